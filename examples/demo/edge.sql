-- The edge's rules. Change them while the demo runs: they are read again within two seconds.

-- Everything that the devices say goes to the cloud as it is. What this rule passes is what must arrive.
CREATE RULE everything AS
INSERT INTO cloud
SELECT *
FROM "host/#";

-- Only what matters, under a topic of its own: memory in use above a tenth.
CREATE RULE memory_alert AS
INSERT INTO cloud."alerts/${clientid}"
SELECT
  clientid,
  payload.used_percent AS used_percent,
  CASE
    WHEN payload.used_percent > 90 THEN 'critical'
    WHEN payload.used_percent > 70 THEN 'high'
    ELSE 'noted'
  END AS level
FROM "host/memory"
WHERE payload.used_percent > 10;

-- Computed here, so that the cloud gets one number instead of three.
CREATE RULE load_per_core AS
INSERT INTO cloud."derived/load"
SELECT clientid, round(payload.load1 / payload.cores, 3) AS load_per_core, payload.at AS at
FROM "host/load";
