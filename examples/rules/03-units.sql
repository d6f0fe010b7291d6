-- Fahrenheit in, Celsius out, for the devices of this building too: `local` is this broker.
-- try: ferrule-edge rules test examples/rules/03-units.sql --topic sensors/hall/fahrenheit --payload '{"value":212}'
--
-- round() takes a number of decimals. A value that is no number gives NULL and a count, never an error.
CREATE RULE to_celsius AS
INSERT INTO local."sensors/${room}/celsius" WITH (retain = TRUE)
SELECT topic[2] AS room, round((payload.value - 32) * 5 / 9, 1) AS value, 'C' AS unit
FROM "sensors/+/fahrenheit"
WHERE payload.value IS NOT NULL;
