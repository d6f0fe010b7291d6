-- Made by `rules import` from nanomq-old.conf.
SET dialect = 'emqx';

-- sqlite: broker
CREATE SINK broker WITH (
  connector = 'sqlite',
  path = '/tmp/sqlite_rule.db',
  table = 'broker');

CREATE RULE repub_1 AS
INSERT INTO local."topic/repub1"
SELECT topic, payload FROM "abc";

-- to do: `cloud` is the uplink: set `[uplink]` in the configuration to mqtt-tcp://broker.example:1883
CREATE RULE repub_2 AS
INSERT INTO cloud."topic/repub2"
SELECT * FROM "abc";

CREATE RULE sqlite_1 AS
INSERT INTO broker
SELECT topic, payload FROM "abc";

-- NOT IMPORTED: action mysql: there is no sink for `mysql` (connectors: kafka, postgres, sqlite)
--   {"table":"broker","host":"localhost","sql":"SELECT * FROM \"abc\""}
-- NOT IMPORTED: rule mysql_1: none of its actions was
-- SELECT * FROM "abc"
