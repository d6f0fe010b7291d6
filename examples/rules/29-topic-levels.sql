-- The topic says where and what, the payload is a bare number: one self-contained message for those who do not know the topic's order.
-- `payload` alone is text; to_number() makes a number of it, and NULL of what is none.
-- try: acme/berlin/line3/press7/temp 81.5
-- => cloud "readings/berlin/temp": {"site":"berlin","line":"line3","machine":"press7","measure":"temp","value":81.5,"unit":"°C","time":"2026-11-24T22:17:14Z"}
-- try: acme/berlin/line3/press7/temp n/a
CREATE RULE self_contained AS
INSERT INTO cloud."readings/${site}/${measure}"
SELECT
  topic[2] AS site,
  topic[3] AS line,
  topic[4] AS machine,
  topic[-1] AS measure,
  to_number(payload) AS value,
  CASE measure
    WHEN 'temp' THEN '°C'
    WHEN 'pressure' THEN 'bar'
    WHEN 'speed' THEN '1/min'
  END AS unit,
  format_time(timestamp, '%Y-%m-%dT%H:%M:%SZ') AS time
FROM "acme/+/+/+/+"
WHERE value IS NOT NULL;
