//! Random ops do to the writer what they do to the model.

use crate::support::Place;
use ferrule_store_writer::harness::{self, step};
use ferrule_testkit::Postgres;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

#[test]
fn the_writer_is_the_model() {
    let postgres = Postgres::start();
    // What is compared is what is there, not that it survives: that is `kill` and `faults`.
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 40,
        // Without a file of failures: its place is guessed from a test of its own.
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let steps = proptest::collection::vec(step(), 1..60);
    let tested = runner.run(&steps, |steps| {
        harness::the_writer_is_the_model(&Place::new(&postgres.url()), steps);
        Ok(())
    });
    tested.unwrap();
    // Bodies without rows are swept: all that is there has some.
    for schema in postgres.query("SELECT nspname FROM pg_namespace WHERE nspname ~ '^s[0-9]+$'") {
        let wrong = format!(
            "SELECT count(*) FROM {schema}.body b WHERE refs <> (SELECT count(*) FROM {schema}.queue_row q \
             WHERE q.body_node = b.node AND q.shared = b.id)"
        );
        assert_eq!(postgres.query(&wrong), ["0"], "{schema}");
    }
}
