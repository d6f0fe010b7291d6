-- Made by `rules import` from nanomq.conf.
-- NOT IMPORTED: include /etc/nanomq_bridge.conf: it is not followed: give that file as well
SET dialect = 'emqx';

-- sqlite: broker
CREATE SINK broker WITH (
  connector = 'sqlite',
  path = '/tmp/sqlite_rule.db',
  table = 'broker');

-- postgresql: readings
-- to do: set READINGS_URL in the broker's environment to postgres://plant:PASSWORD@db.example/plant
CREATE SINK readings WITH (
  connector = 'postgres',
  url = 'env:READINGS_URL',
  table = 'readings');

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

-- to do: `timestamp` is in milliseconds here, in NanoMQ in seconds
CREATE RULE sqlite_2 AS
INSERT INTO broker
SELECT payload.x.y as y, timestamp FROM "#" WHERE payload.x.y > 10;

-- NOT IMPORTED: action mysql: there is no sink for `mysql` (connectors: kafka, postgres, sqlite)
--   {"table":"broker1","sql":"SELECT * FROM \"abc\""}
-- NOT IMPORTED: rule mysql_1: none of its actions was
-- SELECT * FROM "abc"

CREATE RULE postgresql_1 AS
INSERT INTO readings
SELECT payload.t as t FROM "abc";
