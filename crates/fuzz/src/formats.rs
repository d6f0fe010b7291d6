//! Arbitrary bytes as a payload in every format that rules read, and what is read written in every other.
//!
//! | invariant | check |
//! |---|---|
//! | no panic | a rule of each format runs on the bytes, its row leaves in another format |
//! | there and back | what is read and written in one format is read again as the same, and written again as the same |
//! | of the schema | what is written in any format is of that format |

use std::cell::RefCell;

use ferrule_rules::{
    Body, Host, Message, Now, OutRow, Rows, RuleSet, RuleState, Scratch, Source, TypeError, load, step,
};

const FORMATS: [&str; 8] = ["text", "binary", "cbor", "msgpack", "csv", "sparkplug", "row", "line"];

const SCHEMAS: &str = r#"
CREATE SCHEMA row WITH (type = 'avro', definition = '{"type":"record","name":"row","fields":[
  {"name":"u","type":["null","int","float","long","double","string","bytes",{"type":"map","values":"double"}]},
  {"name":"e","type":{"type":"enum","name":"e","symbols":["A","B"]}},{"name":"f","type":{"type":"fixed","name":"f","size":2}},
  {"name":"next","type":["null","row",{"type":"array","items":"row"}],"default":null}]}');
CREATE SCHEMA line WITH (type = 'csv', columns = 'a integer, b number, c boolean, d', delimiter = ';', lines = 'many');
"#;

struct Bench {
    /// For each format a rule that writes the same format, then one for each other.
    rules: RuleSet,
    scratch: Scratch,
    state: RuleState,
    rows: Rows,
}

impl Bench {
    fn new() -> Self {
        let mut text = SCHEMAS.to_owned();
        for from in FORMATS {
            for to in FORMATS {
                text.push_str(&format!(
                    "CREATE RULE \"{from} {to}\" WITH (format = '{from}') AS INSERT INTO log, log WITH (format = '{to}')
                     SELECT * FROM \"#\";\n"
                ));
            }
        }
        let rules = load(&[Source { name: "rules", text: &text }], &Host::edge(Vec::new()));
        let rules = rules.unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        Self { rules, scratch: Scratch::new(1), state: RuleState::default(), rows: Rows::default() }
    }

    /// What a rule reads, as JSON, and writes; nothing where the payload is not of its format.
    fn run(&mut self, rule: usize, payload: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let message = Message { topic: "t", payload, ..Message::default() };
        let unread = |state: &RuleState| state.counters.type_errors[TypeError::InvalidFormat as usize];
        let before = unread(&self.state);
        self.scratch.begin();
        let rule = &self.rules.rules[rule];
        step(
            rule,
            &mut self.state,
            &message,
            &mut self.scratch,
            Now::default(),
            &mut 100_000,
            &mut self.rows,
        );
        if unread(&self.state) > before {
            return None;
        }
        match self.rows.rows.as_slice() {
            [OutRow { body: Body::Json(json), .. }, OutRow { body: Body::Encoded(bytes), .. }] => {
                Some((json.to_vec(), bytes.to_vec()))
            }
            _ => None,
        }
    }
}

/// One payload.
pub fn formats(bytes: &[u8]) {
    thread_local! {
        static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
    }
    BENCH.with_borrow_mut(|bench| {
        for (at, format) in FORMATS.iter().enumerate() {
            for (other, to) in FORMATS.iter().enumerate() {
                let rule = at * FORMATS.len() + other;
                let Some((json, written)) = bench.run(rule, bytes) else { continue };
                let own = other * FORMATS.len() + other;
                let read = bench.run(own, &written);
                // What is written is of its format; of the same format it is the same.
                if at == other {
                    let Some((again, twice)) = read else {
                        panic!("{format}: {written:02x?} is not read again")
                    };
                    assert_eq!(twice, written, "{format}");
                    // Members of Sparkplug are read in the order of the wire and written in the schema's; a line that ends
                    // early is written with all its fields.
                    if !["sparkplug", "line"].contains(format) {
                        assert_eq!(
                            String::from_utf8_lossy(&again),
                            String::from_utf8_lossy(&json),
                            "{format}: {written:02x?}"
                        );
                    }
                } else {
                    assert!(read.is_some(), "{format} to {to}: {written:02x?} is not read");
                }
            }
        }
    });
}
