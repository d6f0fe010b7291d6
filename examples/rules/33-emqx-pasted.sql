-- A rule as it stood in EMQX's dashboard: only the two lines above it are new, and they name what its actions were.
-- docs/rules-compatibility.md says what runs so; `rules import` writes whole files of this kind from an export.
-- try: t/line2/temp {"temp":31.5}
-- => local "alerts/line2": press-7 at 2026-11-25 06:17:14: 31.5
-- try: t/line2/temp {"temp":29}
CREATE RULE hot WITH (dialect = 'emqx') AS
INSERT INTO local."alerts/${line}" WITH (payload = '${client} at ${time}: ${temp}')
SELECT
  clientid as client,
  nth(2, split(topic, '/')) as line,
  map_get('temp', json_decode(payload), -1) as temp,
  format_date('second', '+08:00', '%Y-%m-%d %H:%M:%S', div(timestamp, 1000)) as time
FROM "t/#"
WHERE regex_match(topic, '^t/line[0-9]+/') and payload.temp > 30;
