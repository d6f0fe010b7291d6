-- What is done with messages. Checked with `@PROGRAM@ rules check rules.sql`, tried out with
-- `@PROGRAM@ rules test rules.sql --topic devices/press-7/state --payload '{"temp":81.5}'`; read again when it changes.
-- The language: docs/rules.md.

-- What is urgent, under a topic that people watch.
CREATE RULE overheating AS
INSERT INTO local."alerts/${clientid}"
SELECT clientid, payload.temp AS temp, timestamp
FROM "devices/#"
WHERE payload.temp > 80;

-- All that devices say, unchanged, to the cloud.@FORWARD_NOTE@
@C@CREATE RULE everything AS
@C@INSERT INTO cloud
@C@SELECT * FROM "devices/#";
