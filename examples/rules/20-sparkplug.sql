-- A Sparkplug B gateway puts many metrics into one Protobuf message: one JSON message for each metric, under a topic that says what it is.
-- The format decodes the payload; FOREACH (EMQX's dialect) makes a row of each metric; the value stands in a field named by its type.
-- try: spBv1.0/plant/DDATA/gw1/line3 x'0890e489fda03412240a104f76656e2f54656d706572617475726518ace389fda034200a690000000000906a4012160a094f76656e2f446f6f7218dee389fda034200b700012180a0e4f76656e2f53657420706f696e74200350fbffffff0f1803'
-- => local "plant/line3/Oven/Temperature": {"device":"line3","name":"Oven/Temperature","at":1795558633900,"value":212.5}
-- => local "plant/line3/Oven/Door": {"device":"line3","name":"Oven/Door","at":1795558633950,"value":false}
-- => local "plant/line3/Oven/Set point": {"device":"line3","name":"Oven/Set point","at":1795558634000,"value":-5}
CREATE RULE metrics WITH (dialect = 'emqx', format = 'sparkplug') AS
INSERT INTO local."plant/${device}/${name}"
FOREACH payload.metrics AS m
DO
  nth(5, split(topic, '/')) AS device,
  m.name AS name,
  coalesce(m.timestamp, payload.timestamp) AS at,
  coalesce([m.double_value, m.float_value, m.long_value, m.int_value, m.boolean_value, m.string_value]) AS value
INCASE NOT is_null(m.name)
FROM "spBv1.0/+/DDATA/#";
