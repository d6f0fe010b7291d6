//! Drives a node of a cluster: between the decisions ([`ferrule_cluster::Site`]), the view in PostgreSQL, the links to the other nodes and the letter boxes of
//! this node's workers.
//!
//! # Constraints
//! A heartbeat that is late by a few hundred milliseconds costs the node its right to acknowledge. So all of this has a thread of its own with a
//! runtime of its own, on which nothing blocks and nothing heavy runs; and what the database is asked waits in a task of its own, whatever it takes.
//!
//! # Operation
//! ```text
//! links ── up, down, messages ──►┌────────┐── orders ─────► letter box of each worker
//! links ── parcels ─────────────────────────────────────► letter box of the worker that is meant
//! workers ── words ─────────────►│ driver │── messages ───► senders of links
//! the view's task ── answers ───►│ (Site) │── questions ──► the view's task
//! a timer ──────────────────────►└────────┘── standing ───► the gate that workers ask
//! ```
//! Beside it `seeds.rs` asks whether who is at the configured addresses belongs to this node.
//!
//! One task owns the [`Site`](ferrule_cluster::Site) and does one thing at a time: put in what happened, set the gate, do the deeds. A link is told to
//! deliver only when the orders about it are in the letter boxes, so a worker knows a link before anything of it arrives.
//!
//! # Bounds
//! Of questions to the database one of each kind is under way; what is asked meanwhile is asked again by the node's own timers. Parcels that workers have not
//! taken are bounded for each link ([`ROOM_BYTES`](site)): then it is not read.

#![forbid(unsafe_code)]

mod driver;
mod seeds;
mod site;
mod view;

use ferrule_cluster::{Gate, PeerId, State, Word};
use ferrule_cluster_link::Trust;
use ferrule_net::Post;
use ferrule_store_postgres::{MembersError, OpenError, Options};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// What a node brings.
pub struct Setup {
    /// Its name.
    pub node: String,
    /// Of the cluster: nodes of another one are refused.
    pub cluster: String,
    /// Where others link to it, already bound.
    pub listener: TcpListener,
    /// How others reach that: `host:port`. None: by the address that it is bound to, or if that is every one, by the one from which this
    /// node reaches the seeds.
    pub advertise: Vec<String>,
    /// Where nodes that belong to this one may be: `host:port`.
    pub seeds: Vec<String>,
    /// Who is let in.
    pub trust: Trust,
    /// The store, which has been opened with them.
    pub store: Options,
    /// Of each worker, in the order of their shards.
    pub posts: Vec<Post>,
    /// That the workers ask.
    pub gate: Arc<Gate>,
    /// What the workers say.
    pub words: mpsc::UnboundedReceiver<Word>,
}

/// Why a node is no member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The view cannot be asked, or says no.
    #[error(transparent)]
    View(#[from] MembersError),
    /// The store's options are wrong.
    #[error(transparent)]
    Options(#[from] OpenError),
    /// A thread or a socket.
    #[error("cannot start the cluster's part: {0}")]
    System(#[from] std::io::Error),
    /// No seed has told by which address others reach this node.
    #[error("no address by which the other nodes reach this one is known: {0}: set `advertise` in [cluster]")]
    Route(String),
    /// A seed is a node that does not belong to this one.
    #[error("this node does not belong to one that `seeds` in [cluster] names, and does not start: {0}")]
    Strangers(String),
    /// More shards than a link can name.
    #[error("a node of a cluster has at most 255 workers")]
    Shards,
}

/// A member, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Who.
    pub id: PeerId,
    /// What its configuration calls it.
    pub name: String,
    /// Whether it serves.
    pub state: State,
    /// Where it is reached.
    pub addresses: Vec<String>,
    /// There is a link to it; this node itself counts as linked.
    pub linked: bool,
    /// Why there is none, as far as that is known.
    pub trouble: Option<String>,
}

/// How it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Who this is.
    pub me: PeerId,
    /// The number of the view.
    pub view: u64,
    /// Who is in it.
    pub members: Vec<Seen>,
    /// It is a live member.
    pub live: bool,
    /// It may acknowledge what needs the others.
    pub acknowledges: bool,
    /// How often it joined in this process's life.
    pub joins: u64,
    /// Links that came up, and that ended.
    pub links_up: u64,
    /// See `links_up`.
    pub links_down: u64,
    /// Why the view cannot be read, when it cannot; or what is wrong with a seed.
    pub trouble: Option<String>,
}

/// Why a member is not removed that somebody says is dead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// There is none of that name.
    #[error("no member of the cluster is called {name:?}; there are {}", .members.join(", "))]
    Unknown {
        /// As asked for.
        name: String,
        /// All of them.
        members: Vec<String>,
    },
    /// It is this one.
    #[error("{0:?} is this node itself, and it lives: `cluster leave` without `--node` has it leave")]
    Itself(String),
    /// It answers.
    #[error(
        "{0:?} lives: this node has a link to it. `cluster leave` there, at {0:?}, has it leave; or stop it first"
    )]
    Lives(String),
    /// It may be alive, as far as is known.
    #[error("it has been seen by the database too short a time ago to be dead")]
    Seen,
    /// The view cannot be asked, or says no.
    #[error(transparent)]
    View(#[from] MembersError),
    /// This node's part in the cluster has ended.
    #[error("this node is stopping")]
    Stopping,
}

/// A member that runs.
#[derive(Debug)]
pub struct Member {
    asked: mpsc::UnboundedSender<driver::Asked>,
    /// It returns whether it has left.
    thread: Mutex<Option<std::thread::JoinHandle<bool>>>,
    address: SocketAddr,
}

/// How long a member that stops tries to say so.
const LEAVE: Duration = Duration::from_secs(2);

impl Member {
    /// Joins, with patience for a database that does not answer yet as the store has it, and goes on in a thread.
    ///
    /// # Errors
    /// It cannot join.
    pub fn start(setup: Setup) -> Result<Self, JoinError> {
        let address = setup.listener.local_addr()?;
        let (asked, asks) = mpsc::unbounded_channel();
        let (started, start) = std::sync::mpsc::channel();
        let run = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = started.send(Err(error.into()));
                    return false;
                }
            };
            runtime.block_on(async {
                match driver::Driver::join(setup).await {
                    // It drives while the seeds are asked: they may ask it.
                    Ok((driver, asking)) => {
                        tokio::spawn(asking.run(move |first| {
                            let _ = started.send(first.map_err(JoinError::Strangers));
                        }));
                        driver.run(asks).await
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                        false
                    }
                }
            })
        };
        let thread = std::thread::Builder::new().name("ferrule-cluster".into()).spawn(run)?;
        // Dropped if it is not to be: then it leaves.
        let member = Self { asked, thread: Mutex::new(Some(thread)), address };
        start.recv().map_err(|_| std::io::Error::other("its thread ended"))??;
        Ok(member)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it goes; none: it has ended.
    pub async fn status(&self) -> Option<Status> {
        let (answer, status) = oneshot::channel();
        self.asked.send(driver::Asked::Status(answer)).ok()?;
        status.await.ok()
    }

    /// Takes a member out that is dead, by its name or its number.
    ///
    /// # Errors
    /// It is none, or may be alive; or the view cannot be asked.
    pub async fn remove(&self, name: &str) -> Result<(), RemoveError> {
        let (answer, removed) = oneshot::channel();
        let asked = self.asked.send(driver::Asked::Remove(name.to_owned(), answer));
        asked.map_err(|_| RemoveError::Stopping)?;
        removed.await.map_err(|_| RemoveError::Stopping)?
    }

    /// New certificates, for links that are made from now on; who could not come with the one that it came with has no link any more.
    pub fn set_tls(&self, tls: ferrule_cluster_link::Tls) {
        let _ = self.asked.send(driver::Asked::Tls(tls));
    }

    /// Leaves the cluster, and returns when the others know or the database has not answered for a while: false then. To be called when the workers have
    /// ended.
    pub fn stop(&self) -> bool {
        let _ = self.asked.send(driver::Asked::Leave);
        match self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It panics only by a bug, which has been told.
            Some(thread) => thread.join().unwrap_or(false),
            None => false,
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop();
    }
}
