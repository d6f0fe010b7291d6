-- Machines speak Protobuf: faults leave as JSON, with the names of the .proto file. `protoc --include_imports --descriptor_set_out=25-reading.desc`
-- makes the descriptor of it. An enumeration reads as its name, and what proto3 leaves out is its zero, not NULL.
-- try: machines/proto x'0a 02 6d31 11 0000000000405540 18 02 22 02 0507'
-- => cloud "faults/m1": {"machine":"m1","temperature":85.0,"codes":[5,7]}
-- try: machines/proto x'0a 02 6d31 18 01'
CREATE SCHEMA reading WITH (type = 'protobuf', file = '25-reading.desc', message = 'plant.Reading');

CREATE RULE faults WITH (format = 'reading') AS
INSERT INTO cloud."faults/${machine}"
SELECT payload.machine AS machine, payload.temperature AS temperature, payload.codes AS codes
FROM "machines/proto"
WHERE payload.state = 'FAULT';
