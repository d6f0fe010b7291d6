//! The PostgreSQL sink.
