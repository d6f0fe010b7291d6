//! Rules files into force: check everything, start and stop sinks, hand the worker the result. A bad file changes
//! nothing.

use crate::connectors::{self, Connectors, ProcessSecrets};
use crate::hub::{BATCHES, Connected, HubMessage, Load};
use crate::watch::RuleFile;
use ferrule_net::{Inbox, Mail};
use ferrule_outbox::{ConsumerEvent, OutRow};
use ferrule_rules::{Host, RuleSet, SinkDecl, Source};
use ferrule_sinks::{Options, Running, SinkContext};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// How long a sink that was removed may go on with rows at hand.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// The name of the edge's uplink among the sinks.
pub const UPLINK: &str = "cloud";

struct Sink {
    connector: String,
    options: Vec<(String, String)>,
    generation: u64,
    /// Ends when its rows' sender, which the worker has, is dropped.
    _running: Running,
}

/// What is in force outside the worker.
pub struct Loader {
    host: Host,
    connectors: Connectors,
    inbox: Inbox<HubMessage>,
    runtime: Handle,
    sinks: BTreeMap<String, Sink>,
    next_generation: u64,
    uplink: Option<Connected>,
}

impl Loader {
    /// Nothing in force yet. `edge` decides the built-in sinks.
    pub fn new(edge: bool, connectors: Connectors, inbox: Inbox<HubMessage>, runtime: Handle) -> Self {
        let host = connectors::host(edge, &connectors);
        Self { host, connectors, inbox, runtime, sinks: BTreeMap::new(), next_generation: 1, uplink: None }
    }

    /// What a consumer of this outbox calls, and its generation.
    pub fn events(&mut self, name: &str) -> (u64, Arc<dyn Fn(ConsumerEvent) + Send + Sync>) {
        let generation = self.next_generation;
        self.next_generation += 1;
        let (inbox, outbox): (_, Arc<str>) = (self.inbox.clone(), name.into());
        let events = move |event| {
            inbox.post(Mail::App(HubMessage::Consumer { outbox: Arc::clone(&outbox), generation, event }));
        };
        (generation, Arc::new(events))
    }

    /// The uplink's rows go here, from the next load on.
    pub fn connect_uplink(&mut self, generation: u64, rows: mpsc::Sender<Vec<OutRow>>) {
        self.uplink = Some(Connected { name: UPLINK.into(), generation, rows: Some(rows) });
    }

    /// Checks files and puts them in force.
    ///
    /// # Errors
    /// All mistakes, rendered; nothing has changed then.
    pub fn load(&mut self, files: &[RuleFile]) -> Result<(), String> {
        let sources: Vec<Source<'_>> =
            files.iter().map(|f| Source { name: &f.name, text: &f.text }).collect();
        let rules = check(&sources, &self.host, &self.connectors)?;
        // Secrets, too, before anything is stopped.
        let mut prepared = Vec::new();
        let mut mistakes = Vec::new();
        for sink in &rules.sinks {
            let given = connectors::given(sink);
            let same = self
                .sinks
                .get(&sink.name)
                .is_some_and(|s| s.connector == sink.connector && s.options == given);
            if same {
                prepared.push((sink, given, None));
                continue;
            }
            let Some(connector) = connectors::find(&self.connectors, &sink.connector) else { continue };
            match Options::resolve(connector.schema(), &given, &ProcessSecrets) {
                Ok(options) => prepared.push((sink, given, Some((Arc::clone(connector), options)))),
                Err(found) => mistakes.extend(found.into_iter().map(|m| place(&sources, sink, &m))),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes.join("\n"));
        }
        let mut outboxes = Vec::new();
        let mut sinks = BTreeMap::new();
        for (sink, given, start) in prepared {
            let Some((connector, options)) = start else {
                if let Some(running) = self.sinks.remove(&sink.name) {
                    let (name, generation) = (sink.name.as_str().into(), running.generation);
                    outboxes.push(Connected { name, generation, rows: None });
                    sinks.insert(sink.name.clone(), running);
                }
                continue;
            };
            let (generation, events) = self.events(&sink.name);
            let (sender, rows) = mpsc::channel(BATCHES);
            let context =
                SinkContext { rows, events, runtime: self.runtime.clone(), finish_within: FINISH_WITHIN };
            match connector.start(&sink.name, &options, context) {
                Ok(running) => {
                    outboxes.push(Connected {
                        name: sink.name.as_str().into(),
                        generation,
                        rows: Some(sender),
                    });
                    sinks.insert(
                        sink.name.clone(),
                        Sink {
                            connector: sink.connector.clone(),
                            options: given,
                            generation,
                            _running: running,
                        },
                    );
                }
                Err(found) => {
                    return Err(found
                        .into_iter()
                        .map(|m| place(&sources, sink, &m))
                        .collect::<Vec<_>>()
                        .join("\n"));
                }
            }
        }
        self.sinks = sinks;
        if let Some(uplink) = &mut self.uplink {
            // Its sender is handed over once.
            let rows = uplink.rows.take();
            outboxes.push(Connected { name: Arc::clone(&uplink.name), generation: uplink.generation, rows });
        }
        let files = files.iter().map(|f| f.name.as_str().into()).collect();
        self.inbox.post(Mail::App(HubMessage::Load(Box::new(Load { rules: rules.rules, files, outboxes }))));
        Ok(())
    }
}

/// Checks sources against what this binary offers, sinks' own checks included.
///
/// # Errors
/// All mistakes, rendered with line and caret where there is one.
pub fn check(sources: &[Source<'_>], host: &Host, connectors: &Connectors) -> Result<RuleSet, String> {
    let rules = ferrule_rules::load(sources, host).map_err(|found| {
        let render = |d: &ferrule_rules::Diagnostic| match sources.iter().find(|s| s.name == d.file) {
            Some(source) => d.render(source),
            None => d.to_string(),
        };
        found.iter().map(render).collect::<Vec<_>>().join("\n")
    })?;
    let mistakes: Vec<String> = (rules.sinks.iter())
        .flat_map(|sink| connectors::mistakes(connectors, sink).into_iter().map(|m| place(sources, sink, &m)))
        .collect();
    if mistakes.is_empty() { Ok(rules) } else { Err(mistakes.join("\n")) }
}

/// `file:line:1: error: sink ...`.
fn place(sources: &[Source<'_>], sink: &SinkDecl, mistake: &str) -> String {
    let Some(source) = sources.get(sink.file) else { return format!("sink `{}`: {mistake}", sink.name) };
    let before = source.text.get(..sink.span.start as usize).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    format!("{}:{line}:1: error: sink `{}`: {mistake}", source.name, sink.name)
}
