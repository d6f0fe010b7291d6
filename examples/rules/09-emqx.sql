-- Rules as they ran on EMQX (docs/rules-compatibility.md): only the head is ours.
-- try: ferrule-edge rules test examples/rules/09-emqx.sql --topic plants/north/batch --payload '{"sensors":[{"name":"oven","temp":212.5},{"name":"hall","temp":21}]}'
SET dialect = 'emqx';

-- one row for each element of an array
CREATE RULE hot_sensors AS
INSERT INTO local."alarms/${name}", log
FOREACH payload.sensors AS s
DO s.name AS name, s.temp AS temp, nth(2, split(topic, '/')) AS plant
INCASE s.temp > 80
FROM "plants/+/batch";

-- a changed payload under the message's own columns
CREATE RULE counted AS
INSERT INTO cloud
SELECT payload, length(payload.sensors) AS payload.count, clientid AS payload.from
FROM "plants/+/batch";
