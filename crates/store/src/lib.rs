//! Ops, tickets and record formats of the one durable writer. Pure.
