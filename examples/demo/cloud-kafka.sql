-- And into Kafka, keyed by device; the demo adds this to cloud.sql where it can start a Kafka.

CREATE SINK bus WITH (
  connector = 'kafka',
  brokers = '127.0.0.1:9092',
  topic = 'telemetry',
  key = '${clientid}');

CREATE RULE stream AS
INSERT INTO bus
SELECT *
FROM "host/#";
