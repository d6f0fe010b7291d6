-- A pulse counter of 16 bits starts again at 0 after 65,535, and after each restart of the device: the total must do neither.
-- The difference modulo 65,536 is right across a roll-over; another `boot` says that the counter began anew. if() evaluates both
-- of its branches, CASE only one: lag() must see every message.
-- try: gates/g1/pulses {"boot":1,"n":65000}
-- => cloud "gates/g1/total": {"gate":"g1","pulses":65000,"total":65000}
-- try: gates/g1/pulses {"boot":1,"n":65530}
-- => cloud "gates/g1/total": {"gate":"g1","pulses":530,"total":65530}
-- try: gates/g1/pulses {"boot":1,"n":14}
-- => cloud "gates/g1/total": {"gate":"g1","pulses":20,"total":65550}
-- try: gates/g1/pulses {"boot":2,"n":3}
-- => cloud "gates/g1/total": {"gate":"g1","pulses":3,"total":65553}
CREATE RULE total AS
INSERT INTO cloud."gates/${gate}/total" WITH (retain = TRUE)
SELECT
  topic[2] AS gate,
  if(changed(payload.boot, topic), payload.n, (payload.n - lag(payload.n, topic) + 65536) % 65536) AS pulses,
  state_put(topic, state_get(topic, 0) + pulses) AS total
FROM "gates/+/pulses"
WHERE is_number(payload.n);
