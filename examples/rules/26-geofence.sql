-- A vehicle leaves the yard or comes back. The distance in metres is the haversine formula's; 6,371,000 is the Earth's radius.
-- GPS jitters, so the fence has two lines: out beyond 550 m, in again within 450 m, and a message only when that turns.
-- try: trucks/t1/gps {"lat":52.5200,"lon":13.4050}
-- => cloud "trucks/t1/fence": {"truck":"t1","metres":0,"outside":false}
-- try: trucks/t1/gps {"lat":52.5245,"lon":13.4050}
-- try: trucks/t1/gps {"lat":52.5252,"lon":13.4050}
-- => cloud "trucks/t1/fence": {"truck":"t1","metres":578,"outside":true}
-- try: trucks/t1/gps {"lat":52.5245,"lon":13.4050}
-- try: trucks/t1/gps {"lat":52.5210,"lon":13.4060}
-- => cloud "trucks/t1/fence": {"truck":"t1","metres":130,"outside":false}
CREATE RULE yard AS
INSERT INTO cloud."trucks/${truck}/fence"
SELECT
  topic[2] AS truck,
  round(2 * 6371000 * asin(sqrt(power(sin(radians(payload.lat - 52.52) / 2), 2) + cos(radians(52.52)) * cos(radians(payload.lat)) * power(sin(radians(payload.lon - 13.405) / 2), 2)))) AS metres,
  hysteresis(metres, 450, 550, topic[2]) AS outside
FROM "trucks/+/gps"
WHERE changed(outside, topic[2]);
