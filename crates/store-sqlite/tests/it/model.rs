//! Random ops do to the writer what they do to the model.

use crate::support::on_a_folder;
use ferrule_store_writer::harness::{self, step};
use proptest::prelude::*;

pub(crate) use ferrule_store_writer::harness::queues;

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn the_writer_is_the_model(steps in proptest::collection::vec(step(), 1..60)) {
        on_a_folder(|folder| harness::the_writer_is_the_model(folder, steps));
    }
}
