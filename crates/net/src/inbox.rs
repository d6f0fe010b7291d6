//! How other threads reach a worker.

use crate::listener::Listener;
use crate::socket::Extra;
use ferrule_broker::{ConnId, Grant, Refusal};
use ferrule_store::StoreEvent;
use mio::net::TcpStream;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// What arrives.
pub enum Mail<M> {
    /// From the store.
    Store(StoreEvent),
    /// A late answer of the gate.
    Admitted(ConnId, Result<Grant, Refusal>),
    /// For whatever hangs on the shard.
    App(M),
    /// Listen here too, under a number that no listener of this worker has had.
    Listen(u16, Listener),
    /// That listener is gone. What it accepted is the shard's to close.
    Unlisten(u16),
    /// A connection that belongs to this worker's shard.
    Moved(Moved),
    /// Stop: close all connections and return.
    Stop,
}

/// A connection on its way from one worker to another.
#[derive(Debug)]
pub struct Moved {
    pub(crate) stream: TcpStream,
    pub(crate) peer: IpAddr,
    pub(crate) listener: u16,
    /// A name of its verified certificate.
    pub(crate) certificate: Option<Box<str>>,
    pub(crate) extra: Option<Box<Extra>>,
    /// What it sent and nobody has answered: its CONNECT, and what came behind.
    pub(crate) bytes: Vec<u8>,
}

/// Posting never blocks. What can be under way at once is bounded by the senders: connections by open files, one commit, one read a queue, one
/// verdict a connection, one window of answers a consumer.
pub struct Inbox<M> {
    shared: Arc<Shared<M>>,
}

struct Shared<M> {
    mail: Mutex<Vec<Mail<M>>>,
    waker: Arc<mio::Waker>,
}

impl<M> Clone for Inbox<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M> fmt::Debug for Inbox<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inbox")
    }
}

impl<M> Inbox<M> {
    pub(crate) fn new(waker: mio::Waker) -> Self {
        Self { shared: Arc::new(Shared { mail: Mutex::new(Vec::new()), waker: Arc::new(waker) }) }
    }

    pub(crate) fn waker(&self) -> Arc<mio::Waker> {
        Arc::clone(&self.shared.waker)
    }

    /// Posts, and wakes the worker if nothing was there yet.
    pub fn post(&self, mail: Mail<M>) {
        let mut queue = self.shared.mail.lock().unwrap_or_else(PoisonError::into_inner);
        let wake = queue.is_empty();
        queue.push(mail);
        drop(queue);
        if wake {
            // An eventfd's counter cannot overflow here; a worker that is gone needs no waking.
            let _ = self.shared.waker.wake();
        }
    }

    /// Takes what is there; `into` is empty and its capacity is reused.
    pub(crate) fn take(&self, into: &mut Vec<Mail<M>>) {
        let mut queue = self.shared.mail.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *queue, into);
    }
}
