-- A meter counts watt-hours; what one wants to see is power. Each reading is compared with the one before: so much in so many seconds.
-- The first reading has none before it: its columns are NULL, and WHERE keeps it back.
-- try: meters/7/energy {"wh":1000}
-- try: meters/7/energy +60s {"wh":1025}
-- => local "meters/7/power": {"meter":"7","wh":25,"seconds":60.0,"watts":1500.0}
-- try: meters/7/energy +30s {"wh":1050}
-- => local "meters/7/power": {"meter":"7","wh":25,"seconds":30.0,"watts":3000.0}
CREATE RULE power AS
INSERT INTO local."meters/${meter}/power"
SELECT
  topic[2] AS meter,
  payload.wh - lag(payload.wh, topic) AS wh,
  (timestamp - lag(timestamp, topic)) / 1000 AS seconds,
  round(wh * 3600 / seconds, 1) AS watts
FROM "meters/+/energy"
WHERE watts IS NOT NULL;
