//! Identity of a stored message: (origin, boot, class, seq), and of a row made from it: + (rule, row).
//!
//! `origin` is the edge's id or, for messages of direct clients, the cloud node's. `boot` is drawn at random at
//! each process start and a row keeps the boot it was born in, so that cloned SD cards, restored backups and
//! quarantined files never collide. `seq` ascends within (origin, boot, class).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// An edge's id or a cloud node's.
pub type Origin = Arc<str>;

/// A random 63-bit number drawn at each process start. 63 bits: SQL's bigint is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Boot(u64);

impl Boot {
    /// Takes the low 63 bits of `random`.
    #[must_use]
    pub fn new(random: u64) -> Self {
        Self(random & (u64::MAX >> 1))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// What identifies a stored message everywhere and for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    /// Who gave it the identity.
    pub origin: Origin,
    /// The process life in which it was given.
    pub boot: Boot,
    /// Priority class: 0 by default.
    pub class: u16,
    /// Ascends within (origin, boot, class).
    pub seq: u64,
}

impl Identity {
    /// The part without the origin as the wire carries it in `ferrule-id`: `boot.class.seq`, boot in hex.
    #[must_use]
    pub fn id(&self) -> MessageId {
        MessageId { boot: self.boot, class: self.class, seq: self.seq }
    }
}

/// `origin.boot.class.seq`: the column `message_id` that rules in the cloud can read.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.origin, self.id())
    }
}

/// `boot.class.seq`: an identity whose origin the connection tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId {
    /// The process life.
    pub boot: Boot,
    /// Priority class.
    pub class: u16,
    /// Ascends within the two.
    pub seq: u64,
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.boot, self.class, self.seq)
    }
}

impl FromStr for MessageId {
    type Err = ();

    /// Reads what `Display` writes; anything else, a boot or seq over 63 bits included, is refused: SQL could
    /// not hold it.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.');
        let (boot, class, seq) = (parts.next().ok_or(())?, parts.next().ok_or(())?, parts.next().ok_or(())?);
        let plain = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_hexdigit());
        if parts.next().is_some() || !plain(boot) || !plain(class) || !plain(seq) {
            return Err(());
        }
        let boot = u64::from_str_radix(boot, 16).map_err(|_| ())?;
        let class = class.parse::<u16>().map_err(|_| ())?;
        let seq = seq.parse::<u64>().map_err(|_| ())?;
        // `smallint` holds 32,767.
        if boot > i64::MAX as u64 || seq > i64::MAX as u64 || class > i16::MAX as u16 {
            return Err(());
        }
        Ok(Self { boot: Boot(boot), class, seq })
    }
}

/// FNV-1a over 64 bits, continued from `seed` (0 starts a new one), cut to 63 bits.
///
/// The fixed hash behind queue ids and behind a message that a rule published, whose `rule` is the hash over
/// all (rule, row) steps behind it: equal on every node and after any loss of the store. Source: the FNV
/// authors' published constants.
#[must_use]
pub fn path_hash(seed: u64, bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = if seed == 0 { OFFSET } else { seed };
    for &byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
    }
    hash & (u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn message_ids_read_what_they_write() {
        let id = MessageId { boot: Boot::new(u64::MAX), class: 3, seq: 99 };
        assert_eq!(id.to_string(), "7fffffffffffffff.3.99");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn what_sql_cannot_hold_is_refused() {
        for text in [
            "",
            "1.2",
            "1.2.3.4",
            "ffffffffffffffff.0.1",
            "1.40000.1",
            "1.0.18446744073709551615",
            "+1.0.1",
            "1.0.-1",
            "1..1",
        ] {
            assert!(text.parse::<MessageId>().is_err(), "{text}");
        }
    }

    #[test]
    fn path_hash_is_the_published_fnv_1a() {
        // The authors' test vectors for 64 bits, without the top bit.
        for (text, hash) in
            [("", 0xcbf2_9ce4_8422_2325_u64), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            assert_eq!(path_hash(0, text.as_bytes()), hash & (u64::MAX >> 1), "{text}");
        }
    }
}
