-- One spike is no trend: an alarm looks at the smoothed value, the message shows both.
-- smooth() moves the average a fifth of the way to each new value; what is no number leaves it as it is.
-- try: pumps/4/vibration {"mm_s":2.0}
-- try: pumps/4/vibration {"mm_s":9.0}
-- try: pumps/4/vibration {"mm_s":9.5}
-- => cloud "alarms/pumps/4": {"pump":"4","now":9.5,"average":4.62}
-- try: pumps/4/vibration {"mm_s":9.5}
-- => cloud "alarms/pumps/4": {"pump":"4","now":9.5,"average":5.6}
-- try: pumps/4/vibration {"mm_s":"broken"}
-- try: pumps/4/vibration {"mm_s":2.0}
-- => cloud "alarms/pumps/4": {"pump":"4","now":2.0,"average":4.88}
CREATE RULE vibration AS
INSERT INTO cloud."alarms/pumps/${pump}"
SELECT topic[2] AS pump, payload.mm_s AS now, round(smooth(payload.mm_s, 0.2, topic), 2) AS average
FROM "pumps/+/vibration"
WHERE average > 4.5;
