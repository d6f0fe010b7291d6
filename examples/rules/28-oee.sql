-- How good is the shift so far? OEE is availability times performance times quality, each made of the totals that the machine's controller counts.
-- nullif(x, 0) makes the first minute of a shift NULL instead of a division by zero that is counted as an error.
-- try: lines/a/shift {"planned_s":14400,"run_s":12960,"ideal_s":1.2,"parts":9720,"good":9477}
-- => cloud "lines/a/oee": {"line":"a","availability":0.9,"performance":0.9,"quality":0.975,"percent":79.0}
-- try: lines/a/shift {"planned_s":0,"run_s":0,"ideal_s":1.2,"parts":0,"good":0}
CREATE RULE oee AS
INSERT INTO cloud."lines/${line}/oee" WITH (retain = TRUE)
SELECT
  topic[2] AS line,
  payload.run_s / nullif(payload.planned_s, 0) AS availability,
  payload.ideal_s * payload.parts / nullif(payload.run_s, 0) AS performance,
  payload.good / nullif(payload.parts, 0) AS quality,
  round(100 * availability * performance * quality, 1) AS percent
FROM "lines/+/shift"
WHERE percent IS NOT NULL;
