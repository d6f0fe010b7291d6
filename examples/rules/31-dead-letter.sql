-- Nothing gets lost: what fits goes to the cloud, and all the rest to a topic where somebody can look at it, with the reason.
-- Two rules with opposite conditions. What is missing is NULL, and NOT NULL is NULL, so coalesce() makes a clear FALSE of it first.
-- try: in/s1 {"temp":21.5}
-- => cloud "readings/s1": {"temp":21.5}
-- try: in/s1 {"temp":2150}
-- => local "dead/s1": {"reason":"out of range","clientid":"press-7","payload":"{\"temp\":2150}"}
-- try: in/s1 {"tmp":21.5}
-- => local "dead/s1": {"reason":"no temp","clientid":"press-7","payload":"{\"tmp\":21.5}"}
-- try: in/s1 temp=21.5
-- => local "dead/s1": {"reason":"not JSON","clientid":"press-7","payload":"temp=21.5"}
CREATE RULE fits AS
INSERT INTO cloud."readings/${topic[2]}"
SELECT payload.temp AS temp
FROM "in/+"
WHERE is_number(payload.temp) AND payload.temp BETWEEN -40 AND 125;

CREATE RULE dead_letter AS
INSERT INTO local."dead/${topic[2]}"
SELECT
  CASE
    WHEN NOT is_json(payload) THEN 'not JSON'
    WHEN payload.temp IS NULL THEN 'no temp'
    WHEN NOT is_number(payload.temp) THEN 'temp is no number'
    ELSE 'out of range'
  END AS reason,
  clientid,
  payload
FROM "in/+"
WHERE NOT coalesce(is_number(payload.temp) AND payload.temp BETWEEN -40 AND 125, FALSE);
