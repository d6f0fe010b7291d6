//! Rules files into force: check everything, start and stop sinks, hand the worker the result. A bad file changes
//! nothing.

use crate::connectors::{self, Connectors, ProcessSecrets};
use crate::hub::{BATCHES, Connected, HubMessage, Load};
use crate::watch::RuleFile;
use ferrule_broker::Place;
use ferrule_net::{Inbox, Mail};
use ferrule_outbox::{ConsumerEvent, OutRow};
use ferrule_rules::{Diagnostic, Host, RuleSet, Severity, SinkDecl, Source, Span};
use ferrule_sinks::{Options, Running, SinkContext};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// How long a sink that was removed may go on with rows at hand.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// The name of the edge's uplink among the sinks.
pub const UPLINK: &str = "cloud";

const NO_UPLINK: &str = "rules send rows to `cloud`, but there is no [uplink]: they are kept in the outbox";

struct Sink {
    connector: String,
    options: Vec<(String, String)>,
    generation: u64,
    /// Ends when its rows' sender, which the worker has, is dropped.
    _running: Running,
}

/// What a consumer has said so far; none once the worker knows it.
type Held = Arc<Mutex<Option<Vec<HubMessage>>>>;

/// What is in force outside the worker.
pub struct Loader {
    edge: bool,
    host: Host,
    connectors: Connectors,
    /// Of every worker.
    inboxes: Vec<Inbox<HubMessage>>,
    place: Place,
    runtime: Handle,
    sinks: BTreeMap<String, Sink>,
    next_generation: u64,
    uplink: Option<Connected>,
    /// Of consumers that the worker does not know yet.
    held: Vec<Held>,
    /// What was said of the rules in force.
    warned: Vec<String>,
}

impl Loader {
    /// Nothing in force yet. `edge` decides the built-in sinks.
    /// `inboxes` are the workers' in order; `place` is any worker's.
    pub fn new(
        edge: bool,
        connectors: Connectors,
        inboxes: Vec<Inbox<HubMessage>>,
        place: Place,
        runtime: Handle,
    ) -> Self {
        let host = connectors::host(edge, &connectors);
        Self {
            edge,
            host,
            connectors,
            inboxes,
            place,
            runtime,
            sinks: BTreeMap::new(),
            next_generation: 1,
            uplink: None,
            held: Vec::new(),
            warned: Vec::new(),
        }
    }

    /// What a consumer of this outbox calls, and its generation. What it says before the load that connects it is held back:
    /// the worker does not know it yet.
    pub fn events(&mut self, name: &str) -> (u64, Arc<dyn Fn(ConsumerEvent) + Send + Sync>) {
        let generation = self.next_generation;
        self.next_generation += 1;
        let (inbox, outbox): (_, Arc<str>) = (self.owner(name).clone(), name.into());
        let held = Held::new(Mutex::new(Some(Vec::new())));
        self.held.push(Arc::clone(&held));
        let events = move |event| {
            let message = HubMessage::Consumer { outbox: Arc::clone(&outbox), generation, event };
            // Posting, which never blocks, under the lock keeps the order.
            match &mut *held.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(held) => held.push(message),
                None => inbox.post(Mail::App(message)),
            }
        };
        (generation, Arc::new(events))
    }

    /// The worker whose shard has this outbox.
    fn owner(&self, name: &str) -> &Inbox<HubMessage> {
        &self.inboxes[usize::from(self.place.owner(name))]
    }

    /// The uplink's rows go here, from the next load on.
    pub fn connect_uplink(&mut self, generation: u64, rows: mpsc::Sender<Vec<OutRow>>) {
        self.uplink = Some(Connected { name: UPLINK.into(), generation, rows: Some(rows) });
    }

    /// The uplink gets no more rows; what it says is still heard.
    pub fn release_uplink(&self) {
        self.post(|| HubMessage::Release(UPLINK.into()));
    }

    /// The uplink's rows go here, from now on.
    pub fn exchange_uplink(&mut self, generation: u64, rows: mpsc::Sender<Vec<OutRow>>) {
        let uplink = Connected { name: UPLINK.into(), generation, rows: Some(rows) };
        self.uplink = Some(Connected { rows: None, ..uplink.clone() });
        self.post(|| HubMessage::Uplink(Some(uplink.clone())));
        self.let_them_speak();
    }

    /// There is no uplink any more.
    pub fn remove_uplink(&mut self) {
        self.uplink = None;
        self.post(|| HubMessage::Uplink(None));
    }

    fn post(&self, message: impl Fn() -> HubMessage) {
        self.inboxes.iter().for_each(|inbox| inbox.post(Mail::App(message())));
    }

    /// The workers know all consumers that there are: what those have said meanwhile is passed on.
    fn let_them_speak(&mut self) {
        for held in self.held.drain(..) {
            let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
            for message in held.take().into_iter().flatten() {
                if let HubMessage::Consumer { outbox, .. } = &message {
                    let owner = usize::from(self.place.owner(outbox));
                    self.inboxes[owner].post(Mail::App(message));
                }
            }
        }
    }

    /// Checks files and puts them in force.
    ///
    /// # Errors
    /// All mistakes, rendered; nothing has changed then.
    pub fn load(&mut self, files: &[RuleFile]) -> Result<(), String> {
        let sources = sources(files);
        let rules = check(&sources, &self.host, &self.connectors).map_err(|m| render(&sources, &m))?;
        let file = |sink: &SinkDecl| sources.get(sink.file).map_or("", |s| s.name);

        // Secrets of all, before anything is started.
        let mut mistakes = Vec::new();
        let mut fresh = Vec::new();
        for sink in &rules.sinks {
            let given = connectors::given(sink, file(sink));
            let known = self.sinks.get(&sink.name);
            if known.is_some_and(|s| s.connector == sink.connector && s.options == given) {
                continue;
            }
            // `check` has found it.
            let Some(connector) = connectors::find(&self.connectors, &sink.connector) else { continue };
            match Options::resolve(connector.schema(), &given, &ProcessSecrets) {
                Ok(options) => fresh.push((sink, given, Arc::clone(connector), options)),
                Err(found) => mistakes.extend(found.iter().map(|m| diagnostic(&sources, sink, m))),
            }
        }
        if !mistakes.is_empty() {
            return Err(render(&sources, &mistakes));
        }

        // New ones beside the old: a sink that cannot start leaves the old ones in force. Those that did start end with their
        // rows' senders, which go with `started`.
        let mut started = BTreeMap::new();
        let held = self.held.len();
        for (sink, options, connector, resolved) in fresh {
            let (generation, events) = self.events(&sink.name);
            let (sender, rows) = mpsc::channel(BATCHES);
            let context =
                SinkContext { rows, events, runtime: self.runtime.clone(), finish_within: FINISH_WITHIN };
            match connector.start(&sink.name, &resolved, context) {
                Ok(running) => {
                    let connector = sink.connector.clone();
                    let running = Sink { connector, options, generation, _running: running };
                    started.insert(sink.name.as_str(), (running, sender));
                }
                Err(found) => mistakes.extend(found.iter().map(|m| diagnostic(&sources, sink, m))),
            }
        }
        if !mistakes.is_empty() {
            self.held.truncate(held);
            return Err(render(&sources, &mistakes));
        }

        // From here on nothing can fail.
        self.warn(&rules, &sources);
        let mut outboxes = Vec::new();
        let mut sinks = BTreeMap::new();
        for sink in &rules.sinks {
            let (running, rows) = match started.remove(sink.name.as_str()) {
                Some((running, sender)) => (running, Some(sender)),
                None => match self.sinks.remove(&sink.name) {
                    Some(running) => (running, None),
                    None => continue,
                },
            };
            outboxes.push(Connected {
                name: sink.name.as_str().into(),
                generation: running.generation,
                rows,
            });
            sinks.insert(sink.name.clone(), running);
        }
        self.sinks = sinks;
        if let Some(uplink) = &mut self.uplink {
            // Its sender is handed over once.
            let rows = uplink.rows.take();
            outboxes.push(Connected { name: Arc::clone(&uplink.name), generation: uplink.generation, rows });
        }
        let files = files.iter().map(|f| f.name.as_str().into()).collect();
        let load = Load { rules: rules.rules.into_iter().map(Arc::new).collect(), files, outboxes };
        self.post(|| HubMessage::Load(Box::new(load.clone())));
        self.let_them_speak();
        Ok(())
    }

    /// Logs what works but is probably not meant: once, not again with each load that still has it.
    fn warn(&mut self, rules: &RuleSet, sources: &[Source<'_>]) {
        let mut warnings: Vec<String> =
            rules.warnings.iter().map(|w| render(sources, std::slice::from_ref(w))).collect();
        let forwards = || rules.rules.iter().any(|r| r.inserts.iter().any(|i| i.sink == UPLINK));
        if self.edge && self.uplink.is_none() && forwards() {
            warnings.push(NO_UPLINK.to_owned());
        }
        for warning in warnings.iter().filter(|w| !self.warned.contains(w)) {
            tracing::warn!("{warning}");
        }
        self.warned = warnings;
    }
}

/// The files as the rules take them.
#[must_use]
pub fn sources(files: &[RuleFile]) -> Vec<Source<'_>> {
    files.iter().map(|f| Source { name: &f.name, text: &f.text }).collect()
}

/// Checks sources against what this binary offers, connectors' own checks included.
///
/// # Errors
/// All mistakes, and warnings beside them. What connectors find is told once the rules themselves have no error.
pub fn check(
    sources: &[Source<'_>],
    host: &Host,
    connectors: &Connectors,
) -> Result<RuleSet, Vec<Diagnostic>> {
    let rules = ferrule_rules::load(sources, host)?;
    let mut mistakes = Vec::new();
    for sink in &rules.sinks {
        let file = sources.get(sink.file).map_or("", |s| s.name);
        let found = connectors::mistakes(connectors, sink, file);
        mistakes.extend(found.iter().map(|m| diagnostic(sources, sink, m)));
    }
    if mistakes.is_empty() {
        return Ok(rules);
    }
    Err(rules.warnings.into_iter().chain(mistakes).collect())
}

/// As `rules check` prints them.
#[must_use]
pub fn render(sources: &[Source<'_>], diagnostics: &[Diagnostic]) -> String {
    let text = |d: &Diagnostic| match sources.iter().find(|s| s.name == d.file) {
        Some(source) => d.render(source),
        None => d.to_string(),
    };
    diagnostics.iter().map(text).collect::<Vec<_>>().join("\n")
}

/// A connector's words about a sink, at the first line of its declaration.
fn diagnostic(sources: &[Source<'_>], sink: &SinkDecl, mistake: &str) -> Diagnostic {
    let (file, text) = sources.get(sink.file).map_or(("", ""), |s| (s.name, s.text));
    let before = text.get(..sink.span.start as usize).unwrap_or_default();
    let rest = text.get(sink.span.start as usize..sink.span.end as usize).unwrap_or_default();
    let (line, column) = (before.matches('\n').count() + 1, before.rsplit('\n').next().unwrap_or_default());
    let first = rest.lines().next().unwrap_or_default();
    Diagnostic {
        file: file.to_owned(),
        line: u32::try_from(line).unwrap_or(u32::MAX),
        column: u32::try_from(column.chars().count() + 1).unwrap_or(u32::MAX),
        span: Span { start: sink.span.start, end: sink.span.start + first.len() as u32 },
        message: format!("sink `{}`: {mistake}", sink.name),
        hint: None,
        severity: Severity::Error,
    }
}

#[cfg(test)]
mod tests;
