-- Radio is dear, so the sensors speak CBOR with short names; who reads in the cloud wants JSON with long ones.
-- With `format` a payload is read as if it were JSON. The second rule goes the other way: a command in JSON becomes CBOR for the device.
-- try: lora/s-1/up x'a36174f94d606168182862696463732d31'
-- => cloud "sensors/s-1": {"sensor":"s-1","temperature":21.5,"humidity":40,"received_at":1795558634000}
-- try: lora/s-1/command {"interval_s":300}
-- => local "lora/s-1/down": x'a2616363736574616919012c'
CREATE RULE up WITH (format = 'cbor') AS
INSERT INTO cloud."sensors/${sensor}"
SELECT
  coalesce(payload.id, topic[2]) AS sensor,
  payload.t AS temperature,
  payload.h AS humidity,
  timestamp AS received_at
FROM "lora/+/up";

CREATE RULE down AS
INSERT INTO local."lora/${topic[2]}/down" WITH (format = 'cbor')
SELECT 'set' AS c, payload.interval_s AS i
FROM "lora/+/command"
WHERE payload.interval_s BETWEEN 10 AND 86400;
