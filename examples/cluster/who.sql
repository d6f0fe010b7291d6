-- What Ferrule knows of whoever publishes below devices/: `mosquitto_sub -p 1883 -t 'who/#' -v` shows it.
CREATE RULE who AS
INSERT INTO local."who/${clientid}"
SELECT clientid, username, peerhost, topic
FROM "devices/#";
