-- Made by `rules import` from emqx-api.json.
SET dialect = 'emqx';

CREATE RULE rule_x7 AS
INSERT INTO local."a/${a}" WITH (qos = 0, payload = '${payload}'),
  log
SELECT payload.a as a FROM "t/#" WHERE payload.a != 0;

-- to kafka
-- NOT IMPORTED: action kafka_producer:somewhere: the files do not say what it is: give the whole export
-- NOT IMPORTED: rule rule_k: none of its actions was
-- SELECT * FROM "k"
