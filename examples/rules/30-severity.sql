-- Alarms of all kinds come in on one topic; who is on call subscribes to `alarms/critical/#` alone.
-- The severity is a column, and the column is a level of the target. What is critical also stands in the log.
-- try: plc/m2/alarm {"code":117,"text":"oil pressure"}
-- => local "alarms/critical/m2": {"severity":"critical","machine":"m2","code":117,"text":"oil pressure"}
-- => log: m2: oil pressure
-- try: plc/m2/alarm {"code":42}
-- => local "alarms/notice/m2": {"severity":"notice","machine":"m2","code":42,"text":"code 42"}
CREATE RULE sorted AS
INSERT INTO local."alarms/${severity}/${machine}" WITH (qos = 1)
SELECT
  CASE
    WHEN payload.code IN (101, 117, 118) THEN 'critical'
    WHEN payload.code >= 100 THEN 'warning'
    ELSE 'notice'
  END AS severity,
  topic[2] AS machine,
  payload.code AS code,
  coalesce(payload.text, 'code ' + to_string(payload.code)) AS text
FROM "plc/+/alarm";

CREATE RULE on_call AS
INSERT INTO log WITH (payload = '${machine}: ${text}')
SELECT topic[2] AS machine, payload.text AS text
FROM "plc/+/alarm"
WHERE payload.code IN (101, 117, 118);
