-- Payloads that are not JSON: lines of CSV from old meters, read by name, sent on in Avro and CBOR.
-- try: ferrule-edge rules test examples/rules/11-formats.sql --topic meters/m-7/line --payload '1795558634;21.5;C'
CREATE SCHEMA meter_line WITH (
  type = 'csv',
  columns = 'ts integer, value number, unit',
  delimiter = ';');
CREATE SCHEMA reading WITH (type = 'avro', file = '11-reading.avsc');

-- `payload` alone is the line as it came
CREATE RULE readings WITH (format = 'meter_line') AS
INSERT INTO cloud."readings/${meter}" WITH (format = 'reading'), log
SELECT topic[2] AS meter, payload.ts * 1000 AS at, payload.value AS value
FROM "meters/+/line"
WHERE payload.value IS NOT NULL;

-- the whole object in another format
CREATE RULE packed WITH (format = 'meter_line') AS
INSERT INTO cloud."packed/${topic[2]}" WITH (format = 'cbor')
SELECT *
FROM "meters/+/line";

-- one value at a time: functions
CREATE RULE by_function AS
INSERT INTO local."meters/${topic[2]}/unit"
SELECT decode('meter_line', payload).unit AS unit, encode('msgpack', [1, 2, 3]) AS packed
FROM "meters/+/line";
