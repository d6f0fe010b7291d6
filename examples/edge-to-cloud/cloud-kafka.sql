-- Into Kafka: topics that exist already, partitioned by device, so that one device's messages keep their order.
CREATE SINK stream WITH (
  connector = 'kafka',
  brokers = '127.0.0.1:9092',
  topic = 'telemetry',
  key = '${clientid}');

CREATE RULE telemetry AS
INSERT INTO stream
SELECT *
FROM "factory/#";

CREATE RULE alerts AS
INSERT INTO stream."alerts"
SELECT *
FROM "alerts/#";
