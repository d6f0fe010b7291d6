-- Who is there: a retained message for each device, and what nobody wanted.

CREATE RULE presence AS
INSERT INTO cloud."presence/${clientid}" WITH (retain = TRUE)
SELECT clientid, event = 'client.connected' AS online, reason, timestamp
FROM "$events/client/connected", "$events/client/disconnected";

-- EMQX's spelling and dialect run as well.
SET dialect = 'emqx';
CREATE RULE unwanted AS
INSERT INTO log
SELECT clientid, topic, reason
FROM "$events/message_dropped"
WHERE reason = 'no_subscribers';
