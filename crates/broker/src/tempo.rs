//! Whether a publisher can send nothing more until it is acknowledged, or has nothing more to say.
//!
//! # Why
//! MQTT does not tell how many messages a client keeps unacknowledged. One that has stopped at its window should be acknowledged soon, from the disk if need be: it
//! sends as fast as it is answered. A sensor that has said what it had to say should not: its row would be written although its destination answers in time, and
//! while that is away each row would have a commit of its own. Both look alike at first: everything they sent waits, and nothing more comes.
//!
//! # Data
//! One time, `quiet_us`: a publisher that has sent nothing for so long while something of it waits is at its window. It begins at [`QUIET_US`], as of one that
//! sends in bursts, and what the client does says more:
//!
//! | a publish comes | so | `quiet_us` |
//! |---|---|---|
//! | behind one that waits, and nothing was acknowledged between the two | it was not at its window | at least [`PATIENCE`] times the time between the two |
//! | when nothing waits, [`IDLE_US`] or more after the last acknowledgement | it does not wait for acknowledgements | the same, so mostly [`NEVER_US`] |
//! | when nothing waits, within [`PROMPT_US`] of the last acknowledgement and a quarter of the time between the two publishes | it may well wait for them | halved |
//!
//! # Invariants
//! `quiet_us` is at most [`NEVER_US`], above any deadline of an acknowledgement, so that a guess that is wrong costs a publisher time and never its acknowledgement.

/// A publisher that sent nothing for this long has sent all that its window admits, as long as nothing else is known of it: 1 ms is far above a turn and far
/// below the 50 ms that a row waits anyway.
pub(crate) const QUIET_US: u64 = 1_000;
/// A second: beyond the 800 ms of `ack_deadline`, so that a publisher of this patience is never at its window by being quiet.
pub(crate) const NEVER_US: u64 = 1_000_000;
/// A client that sends at a pace of its own is late now and then, as everything on a busy machine is.
const PATIENCE: u64 = 4;
/// Longer than any client takes from an acknowledgement to its next publish if that is what it waits for, over a mobile network, too.
const IDLE_US: u64 = 200_000;
/// Who takes longer than the 50 ms that a row waits at the least is not held up much by the row's waiting.
const PROMPT_US: u64 = 50_000;

/// What is known of a publisher's tempo. All times are microseconds of the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tempo {
    quiet_us: u64,
    /// Of the last publish that had to wait; 0: there was none.
    published_us: u64,
    /// Of the last acknowledgement; 0: there was none.
    acknowledged_us: u64,
}

impl Default for Tempo {
    fn default() -> Self {
        Self { quiet_us: QUIET_US, published_us: 0, acknowledged_us: 0 }
    }
}

impl Tempo {
    /// A publish came that has to wait; `behind`: another one of it still does.
    pub(crate) fn published(&mut self, now_us: u64, behind: bool) {
        let before_us = std::mem::replace(&mut self.published_us, now_us);
        let apart_us = now_us.saturating_sub(before_us);
        if before_us == 0 || apart_us < QUIET_US {
            return; // of one burst
        }
        let acknowledged = self.acknowledged_us > before_us;
        let own_us = now_us.saturating_sub(self.acknowledged_us);
        let went_on = behind && !acknowledged;
        let idle = !behind && own_us >= IDLE_US;
        if went_on || idle {
            self.quiet_us = self.quiet_us.max(PATIENCE * apart_us).min(NEVER_US);
        } else if !behind && own_us <= PROMPT_US.min(apart_us / 4) {
            self.quiet_us = (self.quiet_us / 2).max(QUIET_US);
        }
    }

    /// An acknowledgement is on its way to it.
    pub(crate) fn acknowledged(&mut self, now_us: u64) {
        self.acknowledged_us = now_us;
    }

    /// So long it is quiet when it is at its window.
    pub(crate) fn quiet_us(&self) -> u64 {
        self.quiet_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A publisher's `quiet_us` in milliseconds after a script of (milliseconds since the last step, what): `p`ublish, `a`cknowledgement of all that waits,
    /// `1`: of one of several.
    fn check(script: &[(u64, char)], expect_ms: u64) {
        let (mut tempo, mut now_us, mut waiting) = (Tempo::default(), 5_000_000, 0);
        for &(ms, what) in script {
            now_us += ms * 1_000;
            match what {
                'p' => {
                    tempo.published(now_us, waiting > 0);
                    waiting += 1;
                }
                _ => {
                    tempo.acknowledged(now_us);
                    waiting = if what == 'a' { 0 } else { waiting - 1 };
                }
            }
        }
        assert_eq!(tempo.quiet_us(), expect_ms * 1_000, "{script:?}");
    }

    #[test]
    fn who_waits_for_acknowledgements_is_at_its_window_at_once() {
        check(&[(0, 'p')], 1);
        // One at a time, near and far.
        check(&[(0, 'p'), (20, 'a'), (1, 'p'), (300, 'a'), (40, 'p')], 1);
        // A window of three, in bursts and one by one.
        check(&[(0, 'p'), (0, 'p'), (0, 'p'), (70, 'a'), (1, 'p'), (0, 'p'), (0, 'p')], 1);
        check(&[(0, 'p'), (0, 'p'), (0, 'p'), (70, '1'), (2, 'p'), (30, '1'), (2, 'p')], 1);
    }

    #[test]
    fn who_goes_on_without_them_is_not() {
        // Every 10 ms over a round trip of 50 ms.
        check(&[(0, 'p'), (10, 'p'), (10, 'p'), (10, 'p'), (10, 'p'), (10, '1'), (1, 'p')], 40);
        // The same, as acknowledgements of several come together and nothing waits: it comes when it would have come anyway.
        check(&[(0, 'p'), (10, 'p'), (5, 'a'), (5, 'p')], 40);
        // Every second; each is acknowledged before the next.
        check(&[(0, 'p'), (100, 'a'), (900, 'p')], 1_000);
        check(&[(0, 'p'), (0, 'a'), (5_000, 'p')], 1_000);
        // Every second, and nothing is ever acknowledged.
        check(&[(0, 'p'), (1_000, 'p')], 1_000);
    }

    #[test]
    fn who_begins_to_wait_for_them_is_found_out() {
        let idle = [(0, 'p'), (100, 'a'), (900, 'p')];
        let prompt = [(100, 'a'), (1, 'p')];
        for (rounds, expect_ms) in [(1, 500), (2, 250), (4, 62), (10, 1)] {
            let script: Vec<_> = idle.iter().copied().chain(prompt.repeat(rounds)).collect();
            let (mut tempo, mut now_us) = (Tempo::default(), 5_000_000);
            for (ms, what) in script {
                now_us += ms * 1_000;
                match what {
                    'p' => tempo.published(now_us, false),
                    _ => tempo.acknowledged(now_us),
                }
            }
            assert_eq!(tempo.quiet_us() / 1_000, expect_ms);
        }
    }
}
