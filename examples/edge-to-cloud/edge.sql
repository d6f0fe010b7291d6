-- All that the machines say, unchanged.
CREATE RULE everything AS
INSERT INTO cloud
SELECT *
FROM "factory/#";

-- And what is urgent, once more, under a topic that people watch.
CREATE RULE overheating AS
INSERT INTO cloud."alerts/${clientid}"
SELECT clientid, topic[2] AS machine, payload.temp AS temp, timestamp
FROM "factory/+/temperature"
WHERE payload.temp > 80;
