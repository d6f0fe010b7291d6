//! What the SQL sinks share.
