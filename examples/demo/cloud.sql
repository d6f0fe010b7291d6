-- The cloud's rules: what the edge sends goes into SQLite.

CREATE SINK store WITH (connector = 'sqlite', path = '.demo/demo.db', table = 'readings');

CREATE RULE keep AS
INSERT INTO store
SELECT *
FROM "host/#";

-- What the edge found out, in a table beside it.
CREATE RULE keep_alerts AS
INSERT INTO store."alerts"
SELECT *
FROM "alerts/#";

CREATE RULE keep_derived AS
INSERT INTO store."derived"
SELECT *
FROM "derived/#";
