-- Sensors send bare numbers; where they hang and what they are off by is published once, retained, under config/.
-- One rule with two filters: what comes from config/ is remembered and makes no row, what comes from raw/ is joined with it.
-- try: raw/s1 {"v":20.5}
-- => cloud "rooms/s1": {"sensor":"s1","about":null,"room":"unknown","value":20.5,"unit":null}
-- try: config/s1 {"room":"hall 3","offset":-0.4,"unit":"C"}
-- try: raw/s1 {"v":20.5}
-- => cloud "rooms/s1": {"sensor":"s1","about":{"room":"hall 3","offset":-0.4,"unit":"C"},"room":"hall 3","value":20.1,"unit":"C"}
CREATE RULE joined AS
INSERT INTO cloud."rooms/${sensor}"
SELECT
  topic[2] AS sensor,
  state_get(topic[2]) AS about,
  coalesce(about.room, 'unknown') AS room,
  payload.v + coalesce(about.offset, 0) AS value,
  about.unit AS unit
FROM "config/+", "raw/+"
WHERE CASE topic[1] WHEN 'config' THEN state_put(topic[2], json_decode(payload)) IS NULL ELSE TRUE END;
