-- A data logger wakes up once an hour and sends a small CSV file with a head: one message for each of its lines.
-- The schema gives the columns names and types; an empty field is NULL, and such lines are left out.
-- try: loggers/l4/file ts;temp;rain\n1795558000;7.5;0\n1795558300;;\n1795558600;7.1;0.2\n
-- => cloud "weather/l4": {"logger":"l4","at":1795558000000,"temp":7.5,"rain":0}
-- => cloud "weather/l4": {"logger":"l4","at":1795558600000,"temp":7.1,"rain":0.2}
CREATE SCHEMA logger_file WITH (
  type = 'csv',
  columns = 'ts integer, temp number, rain number',
  delimiter = ';',
  header = TRUE,
  lines = 'many');

CREATE RULE lines WITH (dialect = 'emqx') AS
INSERT INTO cloud."weather/${logger}"
FOREACH schema_decode('logger_file', payload) AS line
DO nth(2, split(topic, '/')) AS logger, line.ts * 1000 AS at, line.temp AS temp, line.rain AS rain
INCASE is_num(line.temp)
FROM "loggers/+/file";
