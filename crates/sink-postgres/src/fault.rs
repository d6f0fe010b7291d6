//! Which error means what: by SQLSTATE, never by text (PostgreSQL's documentation, appendix A).

use ferrule_postgres::chain;
use ferrule_sinks::sql::Fault;
use tokio_postgres::Error;

/// What is to be done about `error`; `server` says where, for people.
pub(crate) fn fault(server: &str, error: &Error) -> Fault {
    let Some(db) = error.as_db_error() else { return Fault::Lost(format!("{server}: {}", chain(error))) };
    let mut text = format!("{server}: {} (SQLSTATE {})", db.message(), db.code().code());
    if let Some(detail) = db.detail() {
        text.push_str(": ");
        text.push_str(detail);
    }
    by_state(db.code().code(), text)
}

fn by_state(state: &str, text: String) -> Fault {
    match state.get(..2).unwrap_or_default() {
        // Data exception, integrity constraint violation, RAISE in a trigger.
        "22" | "23" | "P0" => Fault::Row(text),
        // Program limit exceeded: an index entry over 2.7 kB, JSON nested too deeply, a value over 1 GB.
        "54" => Fault::TooLarge(text),
        // Connection exception, transaction rollback (serialisation, deadlock), insufficient resources (disk full, too many
        // connections), operator intervention (shutdown, statement timeout), system error, invalid transaction state
        // (a standby's read-only one), internal error.
        "08" | "40" | "53" | "57" | "58" | "25" | "XX" => Fault::Lost(text),
        // WITH CHECK OPTION of a view: about the row's values.
        _ if state == "44000" => Fault::Row(text),
        // Not there, not permitted, not such a thing: 42..., 3F..., 0A..., 55... (not now).
        _ => Fault::Table(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_a_meaning() {
        let kind = |state| match by_state(state, String::new()) {
            Fault::Lost(_) => "lost",
            Fault::Table(_) => "table",
            Fault::Row(_) => "row",
            Fault::TooLarge(_) => "large",
        };
        for (state, wanted) in [
            ("22P02", "row"),
            ("22021", "row"),
            ("22P05", "row"),
            ("23505", "row"),
            ("23502", "row"),
            ("P0001", "row"),
            ("44000", "row"),
            ("54000", "large"),
            ("57P01", "lost"),
            ("57014", "lost"),
            ("53100", "lost"),
            ("40P01", "lost"),
            ("25006", "lost"),
            ("42P01", "table"),
            ("42501", "table"),
            ("42703", "table"),
            ("3F000", "table"),
            ("", "table"),
        ] {
            assert_eq!(kind(state), wanted, "{state}");
        }
    }
}
