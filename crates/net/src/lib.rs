//! Workers, turns and listeners that drive shards.
