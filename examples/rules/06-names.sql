-- The place of a device stands in its client id (`hall3-press-07`): take it apart.
-- try: ferrule-edge rules test examples/rules/06-names.sql --clientid hall3-press-07 --topic status --payload '{"on":true}'
--
-- substr() counts characters from 1.
CREATE RULE by_hall AS
INSERT INTO cloud."halls/${hall}/${clientid}"
SELECT
  upper(substr(clientid, 1, 5)) AS hall,
  length(clientid) AS length,
  clientid,
  concat('on=', to_string(payload.on)) AS state
FROM "status"
WHERE substr(clientid, 1, 4) = 'hall';
