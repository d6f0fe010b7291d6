-- An alarm when a device has said nothing for a minute. Data send a reminder to `$delayed/60/...` with the time at which they came, at most
-- one in ten seconds; when it is there a minute later and nothing came since, or only what had no reminder of its own, the device is silent.
-- try: devices/d1/data {"v":1}
-- => local "$delayed/60/silence/d1": {"device":"d1","seen":1795558634000}
-- try: devices/d1/data +5s {"v":2}
-- try: devices/d1/data +25s {"v":3}
-- => local "$delayed/60/silence/d1": {"device":"d1","seen":1795558664000}
-- try: silence/d1 +30s {"device":"d1","seen":1795558634000}
-- try: silence/d1 +30s {"device":"d1","seen":1795558664000}
-- => cloud "alarms/d1/silent": {"device":"d1","last_seen":1795558664000}
CREATE RULE remind AS
INSERT INTO local."$delayed/60/silence/${device}"
SELECT topic[2] AS device, timestamp AS seen
FROM "devices/+/data"
WHERE every(10000, topic[2]);

-- One rule reads both topics, for a rule remembers for itself alone. state_put() gives what it puts, which is not NULL: no row for data.
CREATE RULE silent AS
INSERT INTO cloud."alarms/${device}/silent"
SELECT topic[2] AS device, state_get(topic[2]) AS last_seen
FROM "devices/+/data", "silence/+"
WHERE CASE topic[1]
    WHEN 'devices' THEN state_put(topic[2], timestamp) IS NULL
    ELSE state_get(topic[2]) < payload.seen + 10000
  END;
