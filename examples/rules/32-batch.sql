-- To save energy a sensor sends an array once in a while, each value with its distance in seconds from a start: one message a value, with its own time.
-- FOREACH is EMQX's dialect; INCASE is its WHERE for elements. Arrays count from 1 there too.
-- try: batches/b1 {"start":1795558000,"values":[[0,20.1],[60,20.4],[120,null]]}
-- => cloud "readings/b1": {"sensor":"b1","at":1795558000000,"value":20.1}
-- => cloud "readings/b1": {"sensor":"b1","at":1795558060000,"value":20.4}
CREATE RULE one_by_one WITH (dialect = 'emqx') AS
INSERT INTO cloud."readings/${sensor}"
FOREACH payload.values AS v
DO nth(2, split(topic, '/')) AS sensor, (payload.start + v[1]) * 1000 AS at, v[2] AS value
INCASE is_num(v[2])
FROM "batches/+";
