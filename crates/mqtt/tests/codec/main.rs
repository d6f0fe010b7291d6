//! The codec against the standard: frames written by hand, frames that must be refused, and properties that hold
//! for all packets.
#![allow(clippy::unwrap_used, reason = "tests")]

mod golden;
mod malformed;
mod roundtrip;
mod topics;

use ferrule_mqtt::{DecodeError, Packet, Version, decode};
use proptest::test_runner::Config as ProptestConfig;

const V31: Version = Version::V3_1;
const V311: Version = Version::V3_1_1;
const V5: Version = Version::V5;

/// No limit.
const ANY: usize = usize::MAX;

/// How many cases a property is tried with. `FERRULE_TEST_TIMES` multiplies it: 100 is some minutes' fuzzing. A failure
/// prints the shrunk input: it belongs into the tables of `golden` and `malformed`, not into a seed file.
fn cases(cases: u32) -> ProptestConfig {
    let times = std::env::var("FERRULE_TEST_TIMES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    ProptestConfig {
        cases: cases.saturating_mul(times),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A CONNECT is what a connection without a version decodes.
fn connection(packet: &Packet<'_>, version: Version) -> Option<Version> {
    if matches!(packet, Packet::Connect(_)) { None } else { Some(version) }
}

/// `bytes` decode to `packet`; each proper prefix asks for more; the size limit is exact.
fn check_decode(bytes: &[u8], packet: &Packet<'_>, version: Version) {
    let version = connection(packet, version);
    assert_eq!(decode(bytes, version, ANY), Ok(Some((*packet, bytes.len()))), "{bytes:02X?}");
    for len in 0..bytes.len() {
        assert_eq!(decode(&bytes[..len], version, ANY), Ok(None), "prefix of {len} of {bytes:02X?}");
    }
    let max = bytes.len() - 1;
    assert_eq!(decode(bytes, version, max), Err(DecodeError::TooLarge { size: bytes.len(), max }));
    assert!(decode(bytes, version, bytes.len()).is_ok());
    let mut followed = bytes.to_vec();
    followed.push(0xC0);
    assert_eq!(decode(&followed, version, ANY), Ok(Some((*packet, bytes.len()))));
}

fn encoded(packet: &Packet<'_>, version: Version) -> Vec<u8> {
    let mut out = b"before".to_vec();
    packet.encode(version, &mut out).unwrap();
    assert!(out.starts_with(b"before"));
    out.split_off(6)
}
