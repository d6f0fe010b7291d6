-- Every message of the generator is looked into, and none passes: `n` counts from 0.
CREATE RULE nothing AS
INSERT INTO local."results/nothing"
SELECT * FROM "bench/#" WHERE payload.n < 0;
