-- Machines say every second what they do: only changes go on, with what was before and for how long.
-- lag() gives what it was given last for the key. It stands behind changed(), and WHERE comes before the SELECT list, so it sees changes only.
-- try: machines/m1/state {"state":"idle"}
-- => cloud "machines/m1/changes": {"state":"idle","before":"unknown","seconds":null}
-- try: machines/m1/state +1s {"state":"idle"}
-- try: machines/m1/state +89s {"state":"run"}
-- => cloud "machines/m1/changes": {"state":"run","before":"idle","seconds":90.0}
-- try: machines/m2/state {"state":"run"}
-- => cloud "machines/m2/changes": {"state":"run","before":"unknown","seconds":null}
CREATE RULE changes AS
INSERT INTO cloud."machines/${topic[2]}/changes"
SELECT
  payload.state AS state,
  lag(payload.state, topic, 'unknown') AS before,
  (timestamp - lag(timestamp, topic)) / 1000 AS seconds
FROM "machines/+/state"
WHERE changed(payload.state, topic);
