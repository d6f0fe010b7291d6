-- A radio sensor packs all it knows into seven bytes. They are: version (3 bits), low battery (1), reserved (4), counter (16, little-endian),
-- temperature (12, signed, tenths of a degree), humidity (7, percent), door (1), six spare bits, signal strength (6).
-- read_int() takes an offset and a width in bits, so fields need not begin at a byte; frames of another length are not looked at.
-- try: radio/a1/up x'30 d204 f9c 5b 4b 0'
-- => cloud "sensors/a1": {"sensor":"a1","version":1,"low_battery":true,"counter":1234,"temp":-10.0,"humidity":45,"door_open":true,"dbm":-52}
-- try: radio/a1/up x'30d204'
CREATE RULE frame WITH (format = 'binary') AS
INSERT INTO cloud."sensors/${sensor}"
SELECT
  topic[2] AS sensor,
  read_int(payload, 0, 3) AS version,
  get_bit(byte_at(payload, 1), 4) = 1 AS low_battery,
  read_int(payload, 8, 16, 'unsigned', 'little') AS counter,
  read_int(payload, 24, 12, 'signed') / 10 AS temp,
  read_int(payload, 36, 7) AS humidity,
  read_int(payload, 43, 1) = 1 AS door_open,
  bits(byte_at(payload, 7), 0, 6) - 100 AS dbm
FROM "radio/+/up"
WHERE octet_length(payload) = 7;
