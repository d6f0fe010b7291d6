//! Keeps a rule that goes wrong again and again from the others: it is suspended, with a reason, and tried again later.
//!
//! What counts is what costs: a rule that runs out of fuel has used the time of a thousand good ones, and a panic is a bug of ours that need
//! not come once a message. [`STRIKES`] messages in a row out of fuel, or one panic, suspend a rule for [`PAUSE_MS`]; then one message may try,
//! and each time that fails as well the pause doubles, to [`PAUSE_MAX_MS`] at most. A message that the rule ends with clears it. A rule of a changed
//! text begins anew.

/// So many messages in a row.
const STRIKES: u32 = 10;
/// The first pause.
const PAUSE_MS: i64 = 60_000;
/// The longest pause.
const PAUSE_MAX_MS: i64 = 3_600_000;

/// What a rule has done lately.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guard {
    strikes: u32,
    pause_ms: i64,
    /// No message before.
    until_ms: i64,
    reason: Option<&'static str>,
}

impl Guard {
    /// Why it gets no message now.
    #[inline]
    pub(crate) fn suspended(&self, wall_ms: i64) -> Option<&'static str> {
        // A clock that was set back must not suspend it for longer than the pause was.
        self.reason.filter(|_| wall_ms < self.until_ms && self.until_ms - wall_ms <= self.pause_ms)
    }

    /// It has ended with a message.
    #[inline]
    pub(crate) fn clear(&mut self) {
        if self.strikes > 0 {
            *self = Self::default();
        }
    }

    /// It ran out of fuel.
    #[cold]
    pub(crate) fn strike(&mut self, wall_ms: i64) {
        self.strikes += 1;
        if self.strikes >= STRIKES {
            self.suspend("out_of_fuel", wall_ms);
        }
    }

    /// It panicked.
    #[cold]
    pub(crate) fn panicked(&mut self, wall_ms: i64) {
        self.strikes = STRIKES;
        self.suspend("panicked", wall_ms);
    }

    fn suspend(&mut self, reason: &'static str, wall_ms: i64) {
        self.pause_ms = if self.reason.is_some() { (2 * self.pause_ms).min(PAUSE_MAX_MS) } else { PAUSE_MS };
        self.until_ms = wall_ms.saturating_add(self.pause_ms);
        self.reason = Some(reason);
        // After the pause one more is enough.
        self.strikes = STRIKES - 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use crate::*;

    fn rule(text: &str) -> Rule {
        let text = format!("CREATE RULE r AS INSERT INTO log {text} FROM \"#\";");
        let set = load(&[Source { name: "r.sql", text: &text }], &Host::edge(Vec::new())).unwrap();
        set.rules.into_iter().next().unwrap()
    }

    struct Runs {
        state: RuleState,
        scratch: Scratch,
        rows: Rows,
    }

    impl Runs {
        fn new() -> Self {
            Self { state: RuleState::default(), scratch: Scratch::new(1), rows: Rows::default() }
        }

        fn step(&mut self, rule: &Rule, payload: &str, wall_ms: i64, mut fuel: u64) -> Step {
            self.scratch.begin();
            let message = Message { topic: "t", payload: payload.as_bytes(), ..Message::default() };
            let now = Now { wall_ms };
            step(rule, &mut self.state, &message, &mut self.scratch, now, &mut fuel, &mut self.rows)
        }
    }

    #[test]
    fn a_rule_that_runs_out_of_fuel_again_and_again_rests_longer_and_longer() {
        let rule = rule("SELECT payload.x + 1 AS x");
        let mut runs = Runs::new();
        let mut now = 1_000_000;
        for _ in 0..9 {
            assert_eq!(runs.step(&rule, "{}", now, 1), Step::OutOfFuel);
        }
        assert_eq!(runs.step(&rule, "{}", now, 100), Step::Emit, "not in a row");
        for _ in 0..10 {
            assert_eq!(runs.state.suspended(Now { wall_ms: now }), None);
            assert_eq!(runs.step(&rule, "{}", now, 1), Step::OutOfFuel);
        }
        for pause in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
            assert_eq!(runs.state.suspended(Now { wall_ms: now }), Some("out_of_fuel"));
            now += pause * 1000 - 1;
            assert_eq!(runs.step(&rule, "{}", now, 100), Step::Failed(Failure::Suspended));
            now += 1;
            assert_eq!(runs.step(&rule, "{}", now, 1), Step::OutOfFuel);
        }
        assert_eq!(runs.step(&rule, "{}", now - 86_400_000, 100), Step::Emit, "the clock was set back");
        assert_eq!(runs.state.suspended(Now { wall_ms: now }), None);
        assert_eq!(runs.state.counters.failed[Failure::Suspended as usize], 8);
    }

    #[test]
    fn a_panic_ends_one_message_of_one_rule() {
        let good = rule("SELECT lag(payload.x, 'k') AS x");
        let mut bad = rule("SELECT lag(payload.x, 'k') AS x");
        let mut runs = Runs::new();
        assert_eq!(runs.step(&bad, r#"{"x":1}"#, 0, 100), Step::Emit);
        // An item that is not there.
        bad.program.after.push(99);
        assert_eq!(runs.step(&bad, r#"{"x":2}"#, 0, 100), Step::Failed(Failure::Panicked));
        assert_eq!(runs.state.suspended(Now { wall_ms: 0 }), Some("panicked"));
        assert_eq!(runs.step(&good, r#"{"x":3}"#, 60_000, 100), Step::Emit);
        let Body::Json(row) = &runs.rows.rows[0].body else { panic!("no row") };
        assert_eq!(&**row, br#"{"x":1}"#, "what it remembered before is there");
    }
}
