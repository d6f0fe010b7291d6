-- Made by `rules import` from emqx.hocon.
SET dialect = 'emqx';

-- kafka_producer:to_kafka
-- NOT IMPORTED: kafka_headers: records carry headers of Ferrule's own and no others
--   "${pub_props}"
CREATE SINK to_kafka WITH (
  connector = 'kafka',
  brokers = 'k1:9092,k2:9092',
  topic = 'readings',
  compression = 'none');

-- pgsql:to_table
-- to do: set TO_TABLE_URL in the broker's environment to postgres://ferrule:PASSWORD@db.example:5432/plant
CREATE SINK to_table WITH (
  connector = 'postgres',
  url = 'env:TO_TABLE_URL',
  table = 'readings');

-- kafka_producer:raw
-- to do: set RAW_PASSWORD in the broker's environment
CREATE SINK raw WITH (
  connector = 'kafka',
  brokers = 'k3:9093',
  topic = 'raw-${line}',
  key = '${line}',
  compression = 'snappy',
  tls = TRUE,
  tls_ca = '/etc/certs/ca.pem',
  sasl_mechanism = 'SCRAM-SHA-256',
  username = 'sensors',
  password = 'env:RAW_PASSWORD');

-- Overheating
-- Machines that are too hot
CREATE RULE alarm AS
INSERT INTO local."alarms/${clientid}" WITH (qos = 1, retain = TRUE),
  log
SELECT
  payload.temp as temp, clientid
FROM
  "factory/+/temperature"
WHERE
  payload.temp > 80;

-- NOT IMPORTED: action republish: qos: a fixed one is needed here; the message's own is used
--   "${level}"
-- NOT IMPORTED: action republish: retain: TRUE or FALSE is needed here; it is FALSE
--   "${flags.retain}"
-- NOT IMPORTED: action republish: direct_dispatch: what is republished goes through the rules like any message
--   true
CREATE RULE "as-it-comes" AS
INSERT INTO local."copy/${topic} 'as' ""is"" ${$}{a b}" WITH (message_expiry = '60s')
SELECT *, 1 as level FROM "a/#" -- all of it
;

CREATE RULE bare WITH (enabled = FALSE) AS
INSERT INTO local."t2" WITH (qos = 0, payload = '${payload}')
SELECT payload FROM 't1';

-- NOT IMPORTED: action http:hook: there is no sink for `http` (connectors: kafka, postgres, sqlite)
--   {"action":{"connector":"site","enable":true,"parameters":{"body":"${payload}","headers":{"authorization":"***","content-type":"application/json"},"method":"post","path":"/readings"},"resource_opts":{"health_check_interval":"15s","request_ttl":"45s"}},"connector":{"enable":true,"url":"https://***@site.example:8443"}}
-- NOT IMPORTED: action kafka_producer:asleep: it is switched off
--   {"action":{"connector":"k","enable":false,"parameters":{"topic":"asleep"}},"connector":{"authentication":"none","bootstrap_hosts":"k1:9092, k2","enable":true}}
-- NOT IMPORTED: action redis:gone: the files do not say what it is: give the whole export
CREATE RULE readings AS
INSERT INTO to_kafka,
  to_table
SELECT clientid, payload.temp as temp, timestamp as ts FROM "factory/#";

-- to do: `cloud` is the uplink: set `[uplink]` in the configuration to "broker.example:1883"
CREATE RULE raw_lines AS
INSERT INTO raw WITH (payload = '${payload}'),
  cloud."site-7/${topic}" WITH (payload = '${payload}')
FOREACH payload.lines AS line DO line.name AS line, payload FROM "lines/#";

-- NOT IMPORTED: action pgsql:converts: its column `at` is more than a placeholder: compute it in the SELECT list
--   {"action":{"connector":"pg","enable":true,"parameters":{"sql":"insert into t(at, v) values (to_timestamp(${ts} / 1000), ${payload.v})"}},"connector":{"database":"plant","enable":true,"password":"***","server":"db.example:5432","username":"ferrule"}}
-- NOT IMPORTED: rule converted: none of its actions was
-- SELECT * FROM "x"

CREATE RULE twice AS
INSERT INTO to_kafka
SELECT * FROM "again/#";

CREATE RULE from_events AS
INSERT INTO log
SELECT clientid FROM "$events/client_connected";

-- NOT IMPORTED: rule from_bridge: `$bridges/...` is not there: no connector brings messages in (let that broker or connector publish to this one, say below `from/mqtt/up`, and write FROM "from/mqtt/up/#")
-- CREATE RULE from_bridge AS
-- INSERT INTO log
-- SELECT * FROM "$bridges/mqtt:up";

-- NOT IMPORTED: rule broken: this string has no closing `'`
-- CREATE RULE broken AS
-- INSERT INTO log
-- SELECT 'open FROM "t";

-- NOT IMPORTED: rule idle: it has no action
-- SELECT * FROM "t"

-- NOT IMPORTED: rule two_statements: it is more than one statement
-- CREATE RULE two_statements AS
-- INSERT INTO log
-- SELECT * FROM "t"; CREATE RULE other AS INSERT INTO log SELECT * FROM "u";

-- NOT IMPORTED: action my_mod:my_fun: functions of EMQX's own code have no counterpart
--   {"function":"my_mod:my_fun","args":{"password":"***"}}
-- NOT IMPORTED: rule user's code: none of its actions was
-- SELECT * FROM "t"
