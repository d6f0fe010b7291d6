-- A gateway without a cloud: everything into files, alerts to a web hook and the plant's broker, temperatures into SQLite.
-- try: ferrule-edge rules test examples/rules/36-light-sinks.sql --topic factory/press-7/temperature --payload '{"temp":81.5}'
--
-- Each sink has an outbox of its own and is waited for: a web hook that is away for a week gets its alerts then. The files are
-- compressed and thirty are kept; whoever collects them takes those with a number (messages-000042-...ndjson.gz).
CREATE SINK messages WITH (
  connector = 'file',
  path = 'messages.ndjson',
  envelope = TRUE,
  rotate_every = '1d',
  keep = 30,
  compress = TRUE);

CREATE SINK hook WITH (
  connector = 'http',
  url = 'https://alerts.example/hooks/temperature',
  bearer_token = 'env:HOOK_TOKEN');

CREATE SINK plant WITH (
  connector = 'mqtt',
  url = 'mqtts://broker.plant.example',
  username = 'press-7',
  password = 'env:PLANT_PASSWORD');

CREATE SINK readings WITH (
  connector = 'sqlite',
  path = 'readings.db',
  table = 'readings',
  columns = 'at bigint, device text, temp double precision');

CREATE RULE all_of_it AS
INSERT INTO messages
SELECT *
FROM "factory/#";

CREATE RULE alerts AS
INSERT INTO hook, plant."alerts/${clientid}" WITH (retain = TRUE)
SELECT clientid AS device, topic, payload.temp AS temp, timestamp AS at
FROM "factory/+/temperature"
WHERE payload.temp > 80;

CREATE RULE temperatures AS
INSERT INTO readings
SELECT timestamp AS at, clientid AS device, payload.temp AS temp
FROM "factory/+/temperature"
WHERE payload.temp IS NOT NULL;
