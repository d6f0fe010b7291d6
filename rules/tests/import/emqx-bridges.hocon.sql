-- Made by `rules import` from emqx-bridges.hocon.
SET dialect = 'emqx';

-- kafka:old
-- NOT IMPORTED: message.timestamp: a record's time is that of sending
--   ${.payload.ts}
CREATE SINK old WITH (
  connector = 'kafka',
  brokers = '127.0.0.1:9092',
  topic = 'old-topic');

-- to do: `cloud` is the uplink: set `[uplink]` in the configuration to "10.0.0.1:1883"
-- NOT IMPORTED: action webhook:hook: there is no sink for `webhook` (connectors: kafka, postgres, sqlite)
--   {"action":{"url":"http://127.0.0.1:9901/${topic}","method":"post"}}
CREATE RULE r1 AS
INSERT INTO old WITH (payload = '${payload}'),
  cloud."up/${topic}" WITH (retain = TRUE, payload = '${payload}')
SELECT * FROM "t/#";
