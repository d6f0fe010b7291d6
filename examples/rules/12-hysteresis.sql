-- An alarm that does not flicker: it is raised at 80 degrees and lifted at 75, whatever happens in between.
-- hysteresis() remembers for each device on which side it is; changed() lets only the moments pass when that turns.
-- try: ovens/3/temp {"temp":70}
-- => cloud "alarms/3/hot": {"oven":"3","hot":false,"temp":70}
-- try: ovens/3/temp {"temp":81}
-- => cloud "alarms/3/hot": {"oven":"3","hot":true,"temp":81}
-- try: ovens/3/temp {"temp":78}
-- try: ovens/3/temp {"temp":82}
-- try: ovens/3/temp {"temp":75}
-- => cloud "alarms/3/hot": {"oven":"3","hot":false,"temp":75}
CREATE RULE hot AS
INSERT INTO cloud."alarms/${oven}/hot" WITH (retain = TRUE)
SELECT topic[2] AS oven, hysteresis(payload.temp, 75, 80, topic[2]) AS hot, payload.temp AS temp
FROM "ovens/+/temp"
WHERE changed(hot, topic[2]);
