-- A meter behind a Modbus gateway: what it says comes as a frame in hexadecimal digits, with samples beside it.
-- try: ferrule-edge rules test examples/rules/11-functions.sql --topic meters/m-17/frame --payload '{"frame":"01 03 04 43 66 80 00 6e 68","samples":[229.8,230.5,null,231.1],"at":1795558634000}'
--
-- All functions: docs/rules-functions.md. Offsets into frames are in bits; the checksum is over all but the last two bytes.
CREATE RULE voltage AS
INSERT INTO cloud."meters/${meter}/voltage"
SELECT
  split_part(topic, '/', 2) AS meter,
  round(read_float(hex_decode(payload.frame), 24, 32), 1) AS volts,
  format_time(payload.at, '%Y-%m-%d %H:%M:%S', '+01:00') AS local_time
FROM "meters/+/frame"
WHERE crc16(byte_slice(hex_decode(payload.frame), 1, 7)) = read_int(hex_decode(payload.frame), 56, 16, 'little');

CREATE RULE summary AS
INSERT INTO cloud."meters/summary"
SELECT
  upper(topic[2]) AS meter,
  array_min(payload.samples) AS low,
  array_max(payload.samples) AS high,
  round(array_avg(payload.samples), 2) AS mean,
  scale(clamp(array_avg(payload.samples), 207, 253), 207, 253, 0, 100) AS percent,
  date_trunc('hour', payload.at) AS hour,
  format('%s: %d samples', topic[2], length(payload.samples)) AS text
FROM "meters/+/frame"
WHERE regexp_like(topic[2], '^m-\d+$') AND NOT contains(payload.samples, 0);
