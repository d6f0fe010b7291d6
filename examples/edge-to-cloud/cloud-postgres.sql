-- Into PostgreSQL, in columns; DATABASE_URL is an environment variable of ferrule-cloud:
-- DATABASE_URL=postgres://user:password@127.0.0.1:5432/plant
CREATE SINK readings WITH (
  connector = 'postgres',
  url = 'env:DATABASE_URL',
  table = 'readings',
  columns = 'at bigint, edge text, device text, topic text, temp double precision');

CREATE RULE temperatures AS
INSERT INTO readings
SELECT timestamp AS at, edge, clientid AS device, topic, payload.temp AS temp
FROM "factory/+/temperature"
WHERE payload.temp IS NOT NULL;
