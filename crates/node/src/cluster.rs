//! A node of a cluster, as far as a program knows that cannot be one: links and view are in what the program brings ([`Cluster`]).

use crate::config::{ClusterConfig, PostgresConfig};
use crate::control::ClusterStatus;
use ferrule_cluster::{Gate, Word};
use ferrule_net::{Abroad, Inbox, Post};
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// What makes a program's nodes able to be one of several.
#[derive(Debug, Clone, Copy)]
pub struct Cluster {
    /// What is wrong with a configuration, as far as that is known without the others.
    pub check: fn(&ClusterConfig) -> Result<(), String>,
    /// Joins.
    pub join: Join,
}

/// Joins the cluster that the configuration names: with the store, where others connect, and what the workers have for it.
pub type Join = fn(&ClusterConfig, &PostgresConfig, TcpListener, Seat) -> Result<Box<dyn Membership>, String>;

/// What the node has for it.
#[derive(Debug)]
pub struct Seat {
    /// Of each worker.
    pub posts: Vec<Post>,
    /// That the workers ask.
    pub gate: Arc<Gate>,
    /// What the workers say.
    pub words: mpsc::UnboundedReceiver<Word>,
}

/// A node that has joined.
pub trait Membership: Send + Sync {
    /// How it goes; none: it has ended.
    fn status(&self) -> Asking<'_, Option<ClusterStatus>>;
    /// Takes another member out, by its name or number, of which somebody says that it is dead. False: it is not known for long
    /// enough to be dead, ask again. Err, for people: it is none, or lives.
    fn remove<'a>(&'a self, name: &'a str) -> Asking<'a, Result<bool, String>>;
    /// Reads the certificates of links anew, and puts nothing in force: what comes back does. It reads files: not on a worker.
    ///
    /// # Errors
    /// Of the first file that cannot be used.
    fn read_certificates(&self) -> Result<Exchange, String>;
    /// Reads them anew and puts them in force if their files have changed since they were read last. As it reads files, see there.
    fn look_at_certificates(&self);
    /// Leaves, when the workers have ended; whether the others know of it by the store.
    fn stop(&self) -> bool;
}

/// An answer that comes later.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Puts in force what was read.
pub type Exchange = Box<dyn FnOnce() + Send>;

/// How often files of certificates are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Reads certificates of links when their files change, for ever.
pub(crate) async fn watch(membership: Option<Arc<dyn Membership>>) {
    let Some(membership) = membership else { return std::future::pending().await };
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let membership = Arc::clone(&membership);
        // An end of the runtime ends this too.
        if tokio::task::spawn_blocking(move || membership.look_at_certificates()).await.is_err() {
            return;
        }
    }
}

/// The seat, and what each of these workers has to do with it.
pub(crate) fn seat<M>(inboxes: &[Inbox<M>]) -> (Seat, Vec<Abroad>) {
    let gate = Arc::<Gate>::default();
    // As many as orders, which are few.
    let (say, words) = mpsc::unbounded_channel();
    let posts: Vec<Post> = inboxes.iter().map(Post::beside).collect();
    let abroad = posts.iter().map(|post| {
        let say = say.clone();
        let say = move |word| {
            // Nobody waits for it when the node stops.
            let _ = say.send(word);
        };
        Abroad::new(post.clone(), Arc::clone(&gate), Arc::new(say))
    });
    let abroad = abroad.collect();
    (Seat { posts, gate, words }, abroad)
}
