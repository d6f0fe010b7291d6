//! The shard: sessions, routing, retained messages, wills, access hook. Sans-I/O.
