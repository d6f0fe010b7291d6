-- Everything that the devices of one plant say goes to the cloud, unchanged.
-- try: ferrule-edge rules test examples/rules/01-pass-on.sql --topic factory/press-7/temperature --payload '{"temp":81.5}'
--
-- `SELECT *` alone passes the payload through byte for byte, JSON or not. Without a target the topic stays the same.
CREATE RULE everything AS
INSERT INTO cloud
SELECT *
FROM "factory/#";
