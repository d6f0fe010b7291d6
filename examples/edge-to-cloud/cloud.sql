-- Into a SQLite file: one table for the readings, one for the alerts.
CREATE SINK store WITH (connector = 'sqlite', path = 'readings.db', table = 'readings');

CREATE RULE keep AS
INSERT INTO store
SELECT *
FROM "factory/#";

CREATE RULE keep_alerts AS
INSERT INTO store."alerts"
SELECT *
FROM "alerts/#";
