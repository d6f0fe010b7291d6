//! What can go wrong, typed by what the caller does next, in words for the person at the server.

use tokio_postgres::Error;

/// The store could not be opened. Every message says what, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The options are wrong.
    #[error("{0}")]
    Options(String),
    /// It did not answer in time, or refused who asked.
    #[error("{0}")]
    Server(String),
    /// Written by a later release, whose data this one would damage.
    #[error(
        "schema {schema} ({server}) was written by a newer ferrule (version {found}, this one knows up to {supported}): \
         install the newer release again, or give this one another `schema`"
    )]
    Newer {
        /// Where.
        server: String,
        /// Which.
        schema: String,
        /// Its version.
        found: i32,
        /// The highest that this program reads.
        supported: i32,
    },
    /// Names of nodes are UTF-8.
    #[error(
        "{server}: its encoding is {encoding} and has to be UTF8: make a database for ferrule with \
         `CREATE DATABASE ferrule ENCODING 'UTF8' TEMPLATE template0`"
    )]
    Encoding {
        /// Where.
        server: String,
        /// What it is.
        encoding: String,
    },
}

/// What a failed call means for the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The connection is gone, or none can be had.
    Lost,
    /// Met another transaction: at once again.
    Again,
    /// The fence is not what it was.
    Fence,
    /// Another process writes for this node.
    Taken,
    /// The server cancelled a statement that took too long.
    Slow,
    Full,
    ReadOnly,
    /// Refused who asked.
    Login,
    Permission,
    Missing,
    Other,
}

/// A failed call.
#[derive(Debug, Clone)]
pub(crate) struct DbError {
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

impl From<Error> for DbError {
    fn from(error: Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return Self { kind: Kind::Lost, text: ferrule_postgres::chain(&error) };
        };
        let state = db.code().code();
        let mut text = format!("{} (SQLSTATE {state})", db.message());
        if let Some(detail) = db.detail() {
            text.push_str(": ");
            text.push_str(detail);
        }
        Self { kind: by_state(state), text }
    }
}

/// By SQLSTATE, never by text (PostgreSQL's documentation, appendix A).
fn by_state(state: &str) -> Kind {
    match (state.get(..2).unwrap_or_default(), state) {
        (_, "22012") => Kind::Fence,
        (_, "57014") => Kind::Slow,
        (_, "53100" | "53200") => Kind::Full,
        (_, "25006") => Kind::ReadOnly,
        (_, "42501") => Kind::Permission,
        (_, "42P01" | "3F000" | "42703") => Kind::Missing,
        ("28", _) | (_, "3D000") => Kind::Login,
        // Two nodes have made a row at once: the next attempt sees it.
        ("40", _) | (_, "23505") => Kind::Again,
        // (25P03: we were silent within a transaction for too long.)
        ("08" | "57" | "53", _) | (_, "25P03") => Kind::Lost,
        _ => Kind::Other,
    }
}

impl DbError {
    pub(crate) fn lost(text: impl Into<String>) -> Self {
        Self { kind: Kind::Lost, text: text.into() }
    }

    /// What to do about it.
    fn advice(&self) -> &'static str {
        match self.kind {
            Kind::Full => "free some of its disk (it needs room to remove rows too)",
            Kind::ReadOnly => {
                "it is a standby or was set read-only: name the primary in `url`, or all hosts with commas between them"
            }
            Kind::Login => "look at user, password and database in `url`, and at the server's pg_hba.conf",
            Kind::Permission => "give its user the rights: `GRANT ALL ON ALL TABLES IN SCHEMA ... TO ...`",
            Kind::Missing => {
                "its tables are gone: restore them, or start ferrule again to have them made empty"
            }
            Kind::Slow => {
                "it takes longer than `timeout`: look for what holds it up (`SELECT * FROM pg_stat_activity`)"
            }
            Kind::Taken => "give each node a name of its own, and start this one again",
            Kind::Lost | Kind::Again | Kind::Fence | Kind::Other => "look whether it runs and can be reached",
        }
    }

    /// With what to do about it.
    pub(crate) fn with_advice(&self) -> String {
        format!("{}; {}", self.text, self.advice())
    }

    /// As an answer to `open`.
    pub(crate) fn into_open(self, server: &str) -> OpenError {
        OpenError::Server(format!("cannot open the store, {server}: {}; {}", self.text, self.advice()))
    }

    /// As the message of `StoreEvent::Failing`. Holds no figure that changes by itself, since a changed message is
    /// told again.
    pub(crate) fn describe(&self, server: &str) -> String {
        format!(
            "cannot store, {server}: {}; {}; acknowledgements wait until then and go on by themselves",
            self.text,
            self.advice()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_have_a_meaning() {
        for (state, wanted) in [
            ("22012", Kind::Fence),
            ("57014", Kind::Slow),
            ("57P01", Kind::Lost),
            ("53300", Kind::Lost),
            ("53100", Kind::Full),
            ("25006", Kind::ReadOnly),
            ("25P03", Kind::Lost),
            ("28P01", Kind::Login),
            ("3D000", Kind::Login),
            ("42501", Kind::Permission),
            ("42P01", Kind::Missing),
            ("40P01", Kind::Again),
            ("40001", Kind::Again),
            ("23505", Kind::Again),
            ("22021", Kind::Other),
            ("", Kind::Other),
        ] {
            assert_eq!(by_state(state), wanted, "{state}");
        }
    }
}
