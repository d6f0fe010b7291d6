-- A gateway that comes and goes: when it is back, tell for how long it was away, if that was more than half a minute.
-- What happens in the broker is read from `$events/`. The moment of leaving is remembered, and asked for when the client is there again.
-- try: $events/client/connected {"clientid":"gw-1"}
-- try: $events/client/disconnected {"clientid":"gw-1","reason":"keepalive_timeout"}
-- try: $events/client/connected +10s {"clientid":"gw-1"}
-- try: $events/client/disconnected {"clientid":"gw-1","reason":"tcp_closed"}
-- try: $events/client/connected +300s {"clientid":"gw-1"}
-- => local "gateways/gw-1/away": {"clientid":"gw-1","seconds":300.0}
CREATE RULE away AS
INSERT INTO local."gateways/${clientid}/away"
SELECT clientid, (timestamp - state_get(clientid)) / 1000 AS seconds
FROM "$events/client/connected", "$events/client/disconnected"
WHERE CASE event
    WHEN 'client.disconnected' THEN state_put(clientid, timestamp) IS NULL
    ELSE seconds > 30
  END;
