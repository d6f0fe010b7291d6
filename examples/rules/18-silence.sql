-- An alarm when a device has said nothing for a minute. Each message sends a reminder to `$delayed/60/...`, with the time at which it came;
-- when the reminder is there a minute later and the device was not seen since, it is silent. A device that talks often needs
-- no reminder for each message: send them with every(), and let them ask whether the last one is older than that.
-- try: devices/d1/data {"v":1}
-- => local "$delayed/60/silence/d1": {"device":"d1","seen":1795558634000}
-- try: devices/d1/data +30s {"v":2}
-- => local "$delayed/60/silence/d1": {"device":"d1","seen":1795558664000}
-- try: silence/d1 +30s {"device":"d1","seen":1795558634000}
-- try: silence/d1 +30s {"device":"d1","seen":1795558664000}
-- => cloud "alarms/d1/silent": {"device":"d1","last_seen":1795558664000}
CREATE RULE remind AS
INSERT INTO local."$delayed/60/silence/${device}"
SELECT topic[2] AS device, timestamp AS seen
FROM "devices/+/data";

-- One rule reads both topics, for a rule remembers for itself alone. state_put() gives what it puts, which is not NULL: no row for data.
CREATE RULE silent AS
INSERT INTO cloud."alarms/${device}/silent"
SELECT topic[2] AS device, payload.seen AS last_seen
FROM "devices/+/data", "silence/+"
WHERE CASE topic[1] WHEN 'devices' THEN state_put(topic[2], timestamp) IS NULL
                    ELSE payload.seen = state_get(topic[2]) END;
