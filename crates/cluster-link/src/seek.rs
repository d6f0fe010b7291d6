//! Asks at an address, of which nobody says whose it is, whether who is there and this node belong to each other: a handshake without a link.
//!
//! # Operation
//! A name is looked up and each address it stands for is asked at the same time, with the handshake that links have: cluster, store, versions,
//! token, certificates. What both sides have proven to each other is the answer; the connection is then closed.

use crate::Site;
use crate::call::{Unheard, open};
use crate::dial::lookup;
use crate::hello::{Handshake, Refusal};
use crate::limits::HANDSHAKE;
use crate::link::Inner;
use crate::wire::{Kind, frame};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Who is at an address. Texts are for people, and name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sought {
    /// A node that belongs to this one, or this node itself.
    Ours,
    /// Nobody has answered, or not in a way that tells.
    Nobody(String),
    /// A node that does not belong to this one, until somebody changes a configuration.
    Strangers(String),
}

/// See [`Links::seeker`](crate::Links::seeker).
pub struct Seeker<S> {
    inner: Arc<Inner<S>>,
}

impl<S: Site> Seeker<S> {
    pub(crate) fn new(inner: Arc<Inner<S>>) -> Self {
        Self { inner }
    }

    /// Who is at `seed`, `host:port`: of all its addresses, strangers if one has some, else ours if one has one. Within [`HANDSHAKE`] and the look-up.
    /// None: the links were stopped.
    ///
    /// Cancellation-safe: dropped, nothing of it remains.
    pub async fn ask(&self, seed: &str) -> Option<Sought> {
        self.inner.stop.run_until_cancelled(self.ask_all(seed)).await
    }

    async fn ask_all(&self, seed: &str) -> Sought {
        let addresses = match lookup(seed).await {
            Ok(addresses) => addresses,
            Err(error) => return Sought::Nobody(format!("{seed}: it has no address: {error}")),
        };
        let host: Arc<str> = seed.rsplit_once(':').map_or(seed, |(host, _)| host).into();
        let asked =
            addresses.into_iter().map(|address| ask(Arc::clone(&self.inner), Arc::clone(&host), address));
        let mut asked: JoinSet<_> = asked.collect();
        let mut best = Sought::Nobody(format!("{seed}: it has no address"));
        while let Some(answer) = asked.join_next().await {
            best = match (best, answer) {
                (_, Ok(Sought::Strangers(why))) => return Sought::Strangers(format!("{seed}: {why}")),
                (_, Ok(Sought::Ours)) => Sought::Ours,
                (Sought::Nobody(_), Ok(Sought::Nobody(why))) => Sought::Nobody(format!("{seed}: {why}")),
                (best, _) => best,
            };
        }
        best
    }
}

impl<S> Clone for Seeker<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S> std::fmt::Debug for Seeker<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seeker").finish_non_exhaustive()
    }
}

async fn ask<S: Site>(inner: Arc<Inner<S>>, host: Arc<str>, address: SocketAddr) -> Sought {
    match timeout(HANDSHAKE, shake(&inner, &host, address)).await {
        Ok(sought) => sought,
        Err(_) => Sought::Nobody(format!("{address} does not answer within {HANDSHAKE:?}")),
    }
}

async fn shake<S: Site>(inner: &Inner<S>, host: &str, address: SocketAddr) -> Sought {
    let refused = |refusal: &Refusal| {
        let why = format!("this node refuses the one at {address}: {refusal}");
        if refusal.is_passing() { Sought::Nobody(why) } else { Sought::Strangers(why) }
    };
    let unheard = |unheard: &Unheard| {
        let why = format!("{address}: {unheard}");
        match unheard {
            Unheard::Refused { lasts: true, .. } => Sought::Strangers(why),
            _ => Sought::Nobody(why),
        }
    };
    let tls = inner.trust.tls();
    let opened = open(&inner.tasks, &inner.stop, tls.as_ref(), Kind::Control, (host, address)).await;
    let mut call = match opened {
        Ok(call) => call,
        Err(error) => return Sought::Nobody(format!("{address}: {error}")),
    };
    let handshake = Handshake::seek(&inner.config, inner.me(), inner.trust.key());
    call.say(frame::What::Hello(handshake.hello()));
    let hello = match call.hear().await {
        Ok(frame::What::Hello(hello)) => hello,
        Ok(_) => return unheard(&Unheard::Else),
        Err(error) => return unheard(&error),
    };
    let met = match handshake.sought(&hello) {
        Ok(met) => met,
        Err(refusal) => {
            let sought = refused(&refusal);
            inner.tasks.spawn(call.refuse(refusal));
            return sought;
        }
    };
    call.say(frame::What::Proof(met.dialler()));
    match call.hear().await {
        Ok(frame::What::Welcome(proof)) => match met.check_accepter(&proof) {
            Ok(()) => Sought::Ours,
            Err(refusal) => refused(&refusal),
        },
        Ok(_) => unheard(&Unheard::Else),
        Err(error) => unheard(&error),
    }
}
