//! SIGKILL at any moment: what was told is there, and what is there is a prefix of what was submitted.

use crate::support::{Place, server};
use ferrule_store_postgres::Options;
use ferrule_store_writer::harness;
use std::process::Command;

const URL: &str = "FERRULE_TEST_KILL_URL";
const SCHEMA: &str = "FERRULE_TEST_KILL_SCHEMA";

#[test]
#[ignore = "the child of kills_lose_nothing_that_was_told"]
fn child() {
    if let (Ok(url), Ok(schema)) = (std::env::var(URL), std::env::var(SCHEMA)) {
        harness::kill_child(&Place(Options { schema, ..Options::new(&url, "a") }));
    }
}

#[test]
fn kills_lose_nothing_that_was_told() {
    let (postgres, place) = server();
    harness::kills_lose_nothing_that_was_told(&place, || {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["kill::child", "--exact", "--ignored", "--nocapture"])
            .env(URL, postgres.url())
            .env(SCHEMA, &place.0.schema);
        child
    });
}
