//! What links deliver: parcels into the letter boxes of workers, the rest to the driver.

use ferrule_cluster::{Message, PeerId, Shards};
use ferrule_cluster_link::{Parcels, Sender};
use ferrule_net::{Lane, Letter, Post};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Bytes of publishes of all links that the workers have not taken: some 30 ms of them at full speed. One batch that is larger passes alone.
const ROOM_BYTES: u32 = 32 << 20;

/// What happens to links.
#[derive(Debug)]
pub(crate) enum Event {
    /// Says whether it is wanted, when the workers' letter boxes have the order.
    Up {
        peer: PeerId,
        shards: u16,
        /// Of the protocol.
        version: u32,
        to: Sender,
        wanted: oneshot::Sender<bool>,
    },
    /// Says that the letter boxes have the order.
    Down {
        peer: PeerId,
        done: oneshot::Sender<()>,
    },
    Message(PeerId, Message),
}

/// By which indices the workers know the shards of a peer.
pub(crate) type Indices = Arc<RwLock<HashMap<PeerId, Shards>>>;

pub(crate) struct Office {
    posts: Vec<Post>,
    indices: Indices,
    events: mpsc::UnboundedSender<Event>,
    room: Arc<Semaphore>,
}

impl Office {
    pub(crate) fn new(posts: Vec<Post>, indices: Indices, events: mpsc::UnboundedSender<Event>) -> Self {
        Self { posts, indices, events, room: Arc::new(Semaphore::new(ROOM_BYTES as usize)) }
    }

    /// For the worker that is meant; what is for none is dropped: its sender has other ideas of us than it was told.
    fn post(&self, from: PeerId, parcels: Parcels, room: Option<Box<dyn std::any::Any + Send>>) {
        let shards = {
            let indices = self.indices.read().unwrap_or_else(PoisonError::into_inner);
            indices.get(&from).copied()
        };
        let Some(shards) = shards.filter(|shards| u16::from(parcels.from) < shards.count) else { return };
        if let Some(post) = self.posts.get(usize::from(parcels.to)) {
            let from = shards.first + u16::from(parcels.from);
            post.put(Letter::Parcels(ferrule_net::Parcels { from, bytes: Box::new(parcels.bytes), room }));
        }
    }
}

impl ferrule_cluster_link::Site for Office {
    async fn up(&self, peer: PeerId, (shards, version): (u8, u32), to: Sender) -> bool {
        let (wanted, answer) = oneshot::channel();
        let event = Event::Up { peer, shards: shards.into(), version, to, wanted };
        self.events.send(event).is_ok() && answer.await.unwrap_or(false)
    }

    async fn down(&self, peer: PeerId) {
        let (done, answer) = oneshot::channel();
        if self.events.send(Event::Down { peer, done }).is_ok() {
            // The driver has ended, and nobody cares.
            let _ = answer.await;
        }
    }

    fn message(&self, from: PeerId, message: Message) {
        // As above.
        let _ = self.events.send(Event::Message(from, message));
    }

    fn routes(&self, from: PeerId, parcels: Parcels) {
        self.post(from, parcels, None);
    }

    async fn data(&self, from: PeerId, parcels: Parcels) {
        let bytes = u32::try_from(parcels.bytes.len()).unwrap_or(ROOM_BYTES).min(ROOM_BYTES);
        // It is never closed.
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(bytes).await else { return };
        self.post(from, parcels, Some(Box::new(room)));
    }
}

/// A worker's end of a link.
pub(crate) struct ToPeer(pub(crate) Sender);

impl Lane for ToPeer {
    fn control(&self, from: u16, to: u16, parcels: Vec<u8>) {
        self.0.routes(Parcels { from: from as u8, to: to as u8, bytes: parcels.into() });
    }

    fn data(&self, from: u16, to: u16, parcels: Vec<u8>) {
        self.0.data(Parcels { from: from as u8, to: to as u8, bytes: parcels.into() });
    }

    fn queued(&self) -> usize {
        self.0.queued()
    }
}
