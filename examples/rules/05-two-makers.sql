-- Meters of two makers name the same things differently: one shape leaves for the cloud.
-- try: ferrule-edge rules test examples/rules/05-two-makers.sql --topic meters/a7/data --payload '{"Serial":"AB-0042","energy":{"total":1234.5}}'
--
-- coalesce() takes the first that is not NULL; a path that leads nowhere is NULL.
CREATE RULE meters AS
INSERT INTO cloud."energy/${meter}"
SELECT
  lower(coalesce(payload.serial, payload.Serial, clientid)) AS meter,
  coalesce(payload.kwh, payload.energy.total) AS kwh,
  coalesce(timestamp_ms(payload.time), timestamp) AS at
FROM "meters/+/data"
WHERE coalesce(payload.kwh, payload.energy.total) IS NOT NULL;
