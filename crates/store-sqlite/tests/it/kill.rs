//! SIGKILL at any moment: what was told is there, and what is there is a prefix of what was submitted.

use crate::support::{Folder, on_a_folder};
use ferrule_store_writer::harness;
use std::process::Command;

const FOLDER: &str = "FERRULE_TEST_KILL_FOLDER";

#[test]
#[ignore = "the child of kills_lose_nothing_that_was_told"]
fn child() {
    if let Ok(folder) = std::env::var(FOLDER) {
        harness::kill_child(&Folder(folder.into()));
    }
}

#[test]
fn kills_lose_nothing_that_was_told() {
    on_a_folder(|folder| {
        harness::kills_lose_nothing_that_was_told(folder, || {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["kill::child", "--exact", "--ignored", "--nocapture"]).env(FOLDER, &folder.0);
            child
        });
    });
}
