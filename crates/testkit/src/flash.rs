//! The part of docs/faults.md that tells what is written to flash (`tests/tests/flash.rs`).

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::soak::{results, text};

/// What stands above the table.
const HEAD: &str = "\n## What is written to flash\n\n\
    Devices publish QoS 1 messages with a payload of 200 bytes to `ferrule-edge`, whose one rule forwards them to `ferrule-cloud`, a SQLite sink there. Between the two a relay\n\
    delays each direction by half of the round trip and limits nothing; *offline* is a cloud that is not there until all is acknowledged. *Retained* is a client beside them with 20 retained\n\
    messages of QoS 1 a second on 20 topics, which have to be stored. *Sensors* are 20 that send once a second each, one after the other; *busy* devices are 20 that send 100 times a second.\n\
    Bytes are `write_bytes` of the edge's `/proc/PID/io` (pages that it dirtied: one that is written in part counts whole) without the first and the last tenth of the\n\
    messages; rows are `written` of `ferrule-edge status`. *Slowest* is the longest that a device waited for an acknowledgement.\n\
    *Drained* is what came on top when the cloud was there and all of the backlog was removed again. The data folder is on a disk, not in memory.\n";

fn number(value: &Value, digits: usize) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |number| format!("{number:.digits$}"))
}

/// The newest result in `folder`.
#[must_use]
pub fn report(folder: &Path) -> String {
    let mut page = String::from(HEAD);
    let found = results(folder, "flash-");
    let Some(result) = found.first() else {
        page.push_str("\nNo result yet.\n");
        return page;
    };
    page.push_str(
        "\n| devices | round trip | retained | messages | rows written | commits | bytes written | a message | GB a day | slowest, ms | drained, bytes a message |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in result["rows"].as_array().into_iter().flatten() {
        let rtt = row["rtt_ms"].as_u64().map_or_else(|| "offline".to_owned(), |ms| format!("{ms} ms"));
        let retained = if row["retained"] == true { "20 a second" } else { "-" };
        let _ = writeln!(
            page,
            "| {} | {rtt} | {retained} | {} | {} | {} | {} | {} | {} | {} | {} |",
            text(&row["devices"]),
            row["messages"],
            row["written"],
            row["commits"],
            row["bytes"],
            number(&row["bytes_a_message"], 0),
            number(&row["gb_a_day"], 2),
            row["slowest_ms"],
            number(&row["drained_bytes_a_message"], 0),
        );
    }
    let machine = &result["machine"];
    let _ = writeln!(
        page,
        "\nOn {}, commit {}, {} processors ({}), {} GiB, {}, {}. A day is that of 20 messages a second, as the sensors send them; at other rates a commit has another number of rows.\n\n\
         Since commit 34a71b2 a commit that is made for something else, as for a retained message, takes no row along that the cloud may still acknowledge in time; before, it took all, as\n\
         results of earlier commits show beside retained messages and behind removals. At 600 ms the busy devices have more on its way\n\
         than `max_inflight` admits, so that there is a backlog, which is written.",
        text(&result["date"]),
        text(&result["commit"]),
        machine["processors"],
        text(&machine["model"]),
        machine["memory_gib"],
        text(&machine["kernel"]),
        text(&result["file_system"]),
    );
    page
}
