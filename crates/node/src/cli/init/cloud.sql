-- What is done with messages. Checked with `@PROGRAM@ rules check rules.sql`; read again when it changes.
-- The language: docs/rules.md. Kafka, PostgreSQL and other destinations: docs/sinks.md.

-- A file to begin with; it and its table are made when the sink starts.
CREATE SINK readings WITH (connector = 'sqlite', path = 'readings.db', table = 'readings');

-- Each message is a row once, however often it was sent on the way.
CREATE RULE store AS
INSERT INTO readings
SELECT * FROM "devices/#";
