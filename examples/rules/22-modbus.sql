-- A Modbus gateway sends holding registers as it read them. Whoever made the meter decides how they make numbers: here a float over two
-- registers, the low one first ('cdab'), a 32-bit counter in tenths of a kilowatt-hour, and a register with a sign and a scale of its own.
-- A register is 16 bits: register n of a block begins at bit n * 16.
-- try: modbus/meter-5 x'0000 4366 0001 86a0 ffce fffe'
-- => cloud "meters/meter-5": {"meter":"meter-5","volts":230.0,"kwh":10000.0,"power_factor":-0.5}
CREATE RULE registers WITH (format = 'binary') AS
INSERT INTO cloud."meters/${meter}"
SELECT
  topic[2] AS meter,
  round(read_float(payload, 0, 32, 'cdab'), 1) AS volts,
  read_int(payload, 2 * 16, 32) / 10 AS kwh,
  read_int(payload, 4 * 16, 16, 'signed') * power(10, read_int(payload, 5 * 16, 16, 'signed')) AS power_factor
FROM "modbus/+"
WHERE octet_length(payload) >= 12;
