-- Only deviations leave the gateway: five degrees or more from the set point that the message carries.
-- try: ferrule-edge rules test examples/rules/07-changed-a-lot.sql --topic ovens/3/state --payload '{"temp":231.2,"set":220}'
CREATE RULE deviation AS
INSERT INTO cloud."ovens/${oven}/deviation"
SELECT
  topic[2] AS oven,
  round(payload.temp - payload.set, 1) AS deviation,
  uuid() AS event,
  now() AS noticed
FROM "ovens/+/state"
WHERE abs(payload.temp - payload.set) >= 5;
