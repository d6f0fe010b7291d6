//! What is known of the time ([`ferrule_clock::known_s`]), over a restart: in the store, since a gateway without a battery begins in
//! 1970 each time.
//!
//! It grows when a server shows a certificate that was issued later than all before: a few times a year, and each is a write.

use crate::store::Writer;
use ferrule_store::{Op, Restored, Store};
use std::time::Duration;

/// Its name in the store; the value is seconds since 1970, little-endian.
const KEY: &str = "known_time_s";

/// How often is looked whether it has grown. What a kill forgets is learned again from the next connection.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Takes it from the store; tells what is there.
pub(crate) fn restore(restored: &Restored) -> u32 {
    let kept = restored.meta.iter().find(|(key, _)| &**key == KEY);
    let kept = kept.and_then(|(_, value)| Some(u32::from_le_bytes(value[..].try_into().ok()?)));
    kept.into_iter().for_each(ferrule_clock::learn);
    kept.unwrap_or(ferrule_clock::WRITTEN_S)
}

/// Writes it when it has grown past `stored`.
pub(crate) async fn keep(writer: std::sync::Arc<Writer>, mut stored: u32) {
    // Nobody waits for the commit.
    let mut store = writer.handle(Box::new(|_| ()));
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let known = ferrule_clock::known_s();
        if known > stored {
            stored = known;
            store.submit(vec![Op::MetaPut { key: KEY.into(), value: known.to_le_bytes().to_vec().into() }]);
        }
    }
}

#[cfg(test)]
mod tests {
    use ferrule_store::Now;

    /// Said in two crates, neither of which may know the other.
    #[test]
    fn both_dates_of_this_code_are_one() {
        let wall_ms = i64::from(ferrule_clock::WRITTEN_S) * 1_000;
        let synced = |wall_ms| Now { mono_us: 0, wall_ms }.stamp().synced;
        assert_eq!([wall_ms - 1, wall_ms].map(synced), [false, true]);
    }
}
