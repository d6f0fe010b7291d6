-- Ten values a second are good for the machine and too many for the cloud: at most one a minute goes there.
-- every() is TRUE for the first of each key and then not before so many milliseconds are over; what is in between is dropped.
-- try: press/1/force {"kn":310}
-- => cloud "press/1/force": the payload
-- try: press/1/force +20s {"kn":312}
-- try: press/2/force {"kn":95}
-- => cloud "press/2/force": the payload
-- try: press/1/force +40s {"kn":309}
-- => cloud "press/1/force": the payload
CREATE RULE one_a_minute AS
INSERT INTO cloud
SELECT *
FROM "press/+/force"
WHERE every(60000, topic);
