-- Every message of the generator passes and is published once more, to the second subscriber.
CREATE RULE again AS
INSERT INTO local."again"
SELECT * FROM "bench/#" WHERE payload.n >= 0;
