-- A noisy sensor fills an expensive link: only what differs by half a degree from what was last sent goes on.
-- deadband() compares with the last value that passed, not with the last that came, so a slow drift is not lost.
-- try: halls/1/temp {"temp":20.0}
-- => cloud "halls/1/temp": the payload
-- try: halls/1/temp {"temp":20.3}
-- try: halls/1/temp {"temp":20.6}
-- => cloud "halls/1/temp": the payload
-- try: halls/1/temp {"temp":20.4}
-- try: halls/2/temp {"temp":20.4}
-- => cloud "halls/2/temp": the payload
CREATE RULE what_moved AS
INSERT INTO cloud
SELECT *
FROM "halls/+/temp"
WHERE deadband(payload.temp, 0.5, topic);
