//! A link from when both of its streams have introduced themselves to its end, on either side; and which node has one.

use crate::accept::Halves;
use crate::call::{Call, advised, told};
use crate::config::Trusted;
use crate::dial::Dialled;
use crate::hello::{Other, Refusal, shown_id};
use crate::report::{Report, count};
use crate::sender::{End, Ending, Sender};
use crate::tls::Shown;
use crate::wire::{Frame, Kind, Reader, Said, frame};
use crate::{Config, Site, Tls};
use ferrule_cluster::{NodeId, PeerId};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Streaming;

/// What all tasks share.
pub(crate) struct Inner<S> {
    pub(crate) config: Config,
    pub(crate) trust: Trusted,
    pub(crate) site: Arc<S>,
    /// Everything that runs, but for what it waits for itself.
    pub(crate) tasks: TaskTracker,
    /// Ends it.
    pub(crate) stop: CancellationToken,
    pub(crate) report: Report,
    /// First streams that wait for the second of their link.
    pub(crate) halves: Mutex<Halves>,
    /// Whom this node dials.
    pub(crate) dialled: Mutex<BTreeMap<PeerId, Arc<Dialled>>>,
    places: Mutex<Places>,
}

/// Which nodes have a link.
struct Places {
    /// This node: links of what it was before do not come up any more.
    me: PeerId,
    of: HashMap<NodeId, Place>,
}

/// A node's place for its one link.
struct Place {
    /// Whose it is: the last that came.
    id: PeerId,
    ending: Arc<Ending>,
    /// What the other side has shown on its connections.
    shown: Vec<Shown>,
    /// Held from before [`Site::up`] until after [`Site::down`].
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// A mutex whose holder panicked: what it guards here is whole between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Site> Inner<S> {
    pub(crate) fn new(config: Config, site: Arc<S>) -> Arc<Self> {
        Arc::new(Self {
            trust: Trusted::from(&config.trust),
            places: Mutex::new(Places { me: config.me, of: HashMap::new() }),
            config,
            site,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            report: Report::default(),
            halves: Mutex::default(),
            dialled: Mutex::default(),
        })
    }

    pub(crate) fn me(&self) -> PeerId {
        lock(&self.places).me
    }

    /// From here on this node is another one: every link that there is ends.
    pub(crate) fn set_me(&self, me: PeerId) {
        let mut places = lock(&self.places);
        places.me = me;
        for place in places.of.values() {
            place.ending.end(End::Closed);
        }
    }

    /// Brings a link up and runs it to its end, which is at the latest that of `parent`. `welcome` is called when the site has said yes. Err: it
    /// did not come up.
    ///
    /// Not cancellation-safe: [`Site::down`] would be missing.
    pub(crate) async fn run(
        &self,
        (me, other): (PeerId, &Other),
        (mut control, mut data): (Call, Call),
        parent: &CancellationToken,
        welcome: impl FnOnce(&mut Call, &mut Call),
    ) -> Result<End, (Refusal, Call, Call)> {
        let ending = Arc::new(Ending::new(parent.child_token()));
        let shown: Vec<Shown> = [&control.shown, &data.shown].into_iter().flatten().cloned().collect();
        let turn = match self.claim(me, other.id, &ending, shown.clone()) {
            Ok(turn) => turn,
            Err(refusal) => return Err((refusal, control, data)),
        };
        // From here on new certificates find it; they may have come since it was opened.
        if let Some(tls) = self.trust.tls() {
            end_if_refused(&tls, &shown, &ending);
        }
        let held = ending.token.run_until_cancelled(turn.lock_owned()).await;
        if held.is_none() || ending.token.is_cancelled() {
            self.release(other.id, &ending);
            return Ok(ending.why());
        }
        let sender = Sender::new(
            (&control.outlet, self.config.control_max),
            (&data.outlet, self.config.data_max),
            Arc::clone(&ending),
        );
        if !self.site.up(other.id, (other.shards, other.version), sender).await {
            self.release(other.id, &ending);
            return Err((Refusal::NotWanted, control, data));
        }
        welcome(&mut control, &mut data);
        (control.outlet.first, data.outlet.first) = (None, None);
        count(&self.report.up);
        tracing::info!("link to {} {:?} up", shown_id(other.id), other.name);
        self.read_until(other, control, data, &ending).await;
        self.site.down(other.id).await;
        let why = ending.why();
        count(&self.report.down);
        match why {
            End::Full { kind: Kind::Control, .. } => count(&self.report.full_control),
            End::Full { kind: Kind::Data, .. } => count(&self.report.full_data),
            _ => {}
        }
        match why {
            End::Full { .. } | End::Broken(_) | End::Panic | End::Untrusted(_) => {
                tracing::warn!("link to {} {:?} {why}", shown_id(other.id), other.name);
            }
            _ => tracing::info!("link to {} {:?} {why}", shown_id(other.id), other.name),
        }
        self.release(other.id, &ending);
        Ok(why)
    }

    /// Reads both streams; when it returns nothing more is delivered, and the connections are closed.
    async fn read_until(&self, other: &Other, control: Call, data: Call, ending: &Ending) {
        let mut readers = JoinSet::new();
        let mut connections = Vec::new();
        for call in [control, data] {
            connections.push(call.connection);
            let reader = Reader::new(other.shards, self.config.shards);
            readers.spawn(read(Arc::clone(&self.site), other.id, call.kind, call.inbound, reader));
        }
        tokio::select! {
            () = ending.token.cancelled() => {}
            ended = readers.join_next() => {
                ending.end(ended.and_then(Result::ok).unwrap_or(End::Panic));
            }
        }
        drop(connections);
        readers.shutdown().await;
    }

    /// From here on the place is this link's, as soon as what was there has ended.
    fn claim(
        &self,
        me: PeerId,
        id: PeerId,
        ending: &Arc<Ending>,
        shown: Vec<Shown>,
    ) -> Result<Arc<tokio::sync::Mutex<()>>, Refusal> {
        let mut places = lock(&self.places);
        if places.me != me {
            return Err(Refusal::NotMe { sought: me, me: places.me });
        }
        let place = places.of.entry(id.node).or_insert_with(|| Place {
            id,
            ending: Arc::clone(ending),
            shown: shown.clone(),
            turn: Arc::default(),
        });
        if place.id.incarnation > id.incarnation {
            return Err(Refusal::Past { theirs: id.incarnation, ours: place.id.incarnation });
        }
        if !Arc::ptr_eq(&place.ending, ending) {
            place.ending.end(End::Replaced);
            (place.id, place.ending, place.shown) = (id, Arc::clone(ending), shown);
        }
        Ok(Arc::clone(&place.turn))
    }

    fn release(&self, id: PeerId, ending: &Arc<Ending>) {
        let mut places = lock(&self.places);
        if places.of.get(&id.node).is_some_and(|place| Arc::ptr_eq(&place.ending, ending)) {
            places.of.remove(&id.node);
        }
    }

    /// See [`Links::set_tls`](crate::Links::set_tls).
    pub(crate) fn set_tls(&self, tls: Tls) {
        self.trust.set_tls(tls.clone());
        for place in lock(&self.places).of.values() {
            end_if_refused(&tls, &place.shown, &place.ending);
        }
    }

    /// Ends the link to this peer, if there is one.
    pub(crate) fn end(&self, id: PeerId) {
        if let Some(place) = lock(&self.places).of.get(&id.node).filter(|place| place.id == id) {
            place.ending.end(End::Closed);
        }
    }
}

/// Ends a link whose other side would not be let in with what it has shown.
fn end_if_refused(tls: &Tls, shown: &[Shown], ending: &Ending) {
    if let Some(error) = shown.iter().find_map(|shown| tls.refuses(shown)) {
        ending.end(End::Untrusted(advised(error.to_string(), &error)));
    }
}

/// Reads a stream to its end.
async fn read<S: Site>(
    site: Arc<S>,
    id: PeerId,
    kind: Kind,
    mut inbound: Streaming<Frame>,
    mut reader: Reader,
) -> End {
    loop {
        let what = match inbound.message().await {
            Ok(Some(Frame { what })) => what,
            Ok(None) => return End::Peer,
            Err(status) => return End::Lost(told(&status)),
        };
        // What a later version says beside items is skipped.
        let Some(frame::What::Items(items)) = what else { continue };
        for item in items.items {
            match reader.item(item) {
                Ok(None) => {}
                Ok(Some(Said::Message(message))) => site.message(id, message),
                Ok(Some(Said::Parcels(parcels))) => match kind {
                    Kind::Control => site.routes(id, parcels),
                    Kind::Data => site.data(id, parcels).await,
                },
                Err(broken) => return End::Broken(broken),
            }
        }
    }
}
