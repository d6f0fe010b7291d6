-- Only what is too hot, under a topic of its own in the cloud, and in the edge's log.
-- try: ferrule-edge rules test examples/rules/02-threshold.sql --topic factory/press-7/temperature --payload '{"temp":81.5}'
--
-- A message without `temp`, or whose payload is not JSON, is not above anything: it is filtered, and counted.
CREATE RULE overheating AS
INSERT INTO cloud."alerts/${clientid}", log
SELECT clientid, topic[2] AS machine, payload.temp AS temp, timestamp
FROM "factory/+/temperature"
WHERE payload.temp > 80;
