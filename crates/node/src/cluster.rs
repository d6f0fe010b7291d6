//! A node of a cluster, as far as a program knows that cannot be one: links and view are in what the program brings ([`Cluster`]).

use crate::config::{ClusterConfig, PostgresConfig};
use crate::control::ClusterStatus;
use ferrule_cluster::{Gate, Word};
use ferrule_net::{Abroad, Inbox, Post};
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
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
    fn status(&self) -> Pin<Box<dyn Future<Output = Option<ClusterStatus>> + Send + '_>>;
    /// Leaves; when the workers have ended.
    fn stop(&self);
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
