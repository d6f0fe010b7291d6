-- A number becomes a word that people can act on.
-- try: ferrule-edge rules test examples/rules/04-levels.sql --topic tanks/12/level --payload '{"percent":7}'
CREATE RULE tank_level AS
INSERT INTO cloud."tanks/${tank}/state"
SELECT
  topic[2] AS tank,
  payload.percent AS percent,
  CASE
    WHEN payload.percent < 10 THEN 'refill now'
    WHEN payload.percent < 30 THEN 'refill soon'
    WHEN payload.percent > 98 THEN 'overflow'
    ELSE 'fine'
  END AS state
FROM "tanks/+/level";
