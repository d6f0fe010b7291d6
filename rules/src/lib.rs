//! SQL rules.
