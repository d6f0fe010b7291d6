//! The worker of `jq()` in a test: the test's own executable, asked to run one test that serves.

/// Offers it.
pub(crate) fn offer() {
    ferrule_rules::jq::offer(&["worker::serves", "--exact", "--ignored", "--test-threads=1", "--nocapture"]);
}

#[test]
#[ignore = "no test: what `jq()` starts"]
fn serves() {
    // Somebody may run all ignored tests; a worker has no environment.
    if std::env::vars_os().next().is_none() {
        ferrule_rules::jq::serve();
    }
}
