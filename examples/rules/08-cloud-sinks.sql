-- In the cloud: the same stream into a table, into Kafka, and the alerts into a table of their own.
-- try: ferrule-cloud rules test examples/rules/08-cloud-sinks.sql --topic factory/press-7/temperature --payload '{"temp":81.5}'
--
-- A declared sink has an outbox of its own: while Kafka is away, the table still fills. `env:NAME` keeps the password
-- out of this file. Here `clientid` is the device, and `edge` the gateway that it came through.
CREATE SINK readings WITH (
  connector = 'postgres',
  url = 'env:DATABASE_URL',
  table = 'readings',
  columns = 'at bigint, edge text, device text, temp double precision');

CREATE SINK stream WITH (
  connector = 'kafka',
  brokers = 'k1:9092,k2:9092',
  topic = 'factory.${topic[2]}',
  key = '${clientid}');

CREATE SINK archive WITH (
  connector = 'sqlite',
  path = '/var/lib/ferrule/archive.db',
  table = 'messages');

CREATE RULE temperatures AS
INSERT INTO readings
SELECT timestamp AS at, edge, clientid AS device, payload.temp AS temp
FROM "factory/+/temperature"
WHERE payload.temp IS NOT NULL;

CREATE RULE all_of_it AS
INSERT INTO stream, archive
SELECT *
FROM "factory/#";
