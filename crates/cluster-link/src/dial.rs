//! The side that dials: one task for each peer, until it is told to forget it.

use crate::Site;
use crate::backoff::Backoff;
use crate::call::{Call, OpenError, Unheard, open};
use crate::hello::{Handshake, Met, Refusal, random_u64, shown_id};
use crate::limits::{ADDRESSES_MAX, CONNECT, HANDSHAKE, PROVEN, WELCOME};
use crate::link::{Inner, lock};
use crate::report::{Seldom, count};
use crate::sender::End;
use crate::wire::{Kind, frame};
use ferrule_cluster::PeerId;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::net::lookup_host;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// A peer that is dialled.
#[derive(Debug)]
pub(crate) struct Dialled {
    addresses: Mutex<Vec<String>>,
    /// Ends the task, and the link.
    forgotten: CancellationToken,
    trouble: Mutex<Option<String>>,
    said: Seldom,
}

/// Why an attempt came to nothing.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("no address is known")]
    NoAddress,
    #[error("{0}: it has no address: {1}")]
    Lookup(String, String),
    #[error("{0}: {1}")]
    Open(SocketAddr, OpenError),
    #[error("{0}: {1}")]
    Unheard(SocketAddr, Unheard),
    #[error("{0}: no answer within {1:?}")]
    Late(SocketAddr, std::time::Duration),
    #[error("{0}: this node refuses the other side: {1}")]
    Refusal(SocketAddr, Refusal),
}

/// A link that waits for nothing but this side.
struct Opened {
    control: Call,
    data: Call,
    met: Met,
}

/// See [`Links::connect`](crate::Links::connect).
pub(crate) fn connect<S: Site>(inner: &Arc<Inner<S>>, peer: PeerId, addresses: &[String]) {
    let mut peers = lock(&inner.dialled);
    if peer.node <= inner.me().node || inner.stop.is_cancelled() {
        return;
    }
    if let Some(dialled) = peers.get(&peer) {
        *lock(&dialled.addresses) = addresses.to_vec();
        return;
    }
    let dialled = Arc::new(Dialled {
        addresses: Mutex::new(addresses.to_vec()),
        forgotten: inner.stop.child_token(),
        trouble: Mutex::default(),
        said: Seldom::default(),
    });
    peers.insert(peer, Arc::clone(&dialled));
    inner.tasks.spawn(run(Arc::clone(inner), peer, dialled));
}

/// See [`Links::forget`](crate::Links::forget).
pub(crate) fn forget<S: Site>(inner: &Inner<S>, peer: PeerId) {
    if let Some(dialled) = lock(&inner.dialled).remove(&peer) {
        dialled.forgotten.cancel();
    }
    inner.end(peer);
}

/// See [`Links::rejoin`](crate::Links::rejoin).
pub(crate) fn rejoin<S: Site>(inner: &Inner<S>, me: PeerId) {
    let mut peers = lock(&inner.dialled);
    inner.set_me(me);
    for dialled in std::mem::take(&mut *peers).into_values() {
        dialled.forgotten.cancel();
    }
}

/// See [`Links::trouble`](crate::Links::trouble).
pub(crate) fn trouble<S: Site>(inner: &Inner<S>, peer: PeerId) -> Option<String> {
    let dialled = Arc::clone(lock(&inner.dialled).get(&peer)?);
    lock(&dialled.trouble).clone()
}

async fn run<S: Site>(inner: Arc<Inner<S>>, peer: PeerId, dialled: Arc<Dialled>) {
    let mut backoff = Backoff::default();
    while !dialled.forgotten.is_cancelled() {
        let began = Instant::now();
        let attempt = dialled.forgotten.run_until_cancelled(attempt(&inner, peer, &dialled)).await;
        let since = match attempt {
            None => return,
            Some(Ok((from, opened))) => {
                let up = Instant::now();
                match link(&inner, &dialled, opened).await {
                    Ok(end) => *lock(&dialled.trouble) = Some(end.to_string()),
                    Err(refusal) => tell(peer, &dialled, &Trouble::Refusal(from, refusal)),
                }
                if up.elapsed() >= PROVEN {
                    backoff.reset();
                }
                Instant::now()
            }
            // From its beginning: what waited for an answer has waited.
            Some(Err(trouble)) => {
                if matches!(trouble, Trouble::Refusal(..)) {
                    count(&inner.report.refused);
                }
                tell(peer, &dialled, &trouble);
                began
            }
        };
        let pause = sleep_until(since + backoff.fail(random_u64()));
        if dialled.forgotten.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

fn tell(peer: PeerId, dialled: &Dialled, trouble: &Trouble) {
    let text = trouble.to_string();
    if dialled.said.passes(&text, std::time::Instant::now()) {
        let text = format!("no link to {} yet, it is tried on: {text}", shown_id(peer));
        match trouble {
            Trouble::Refusal(_, refusal) if refusal.is_passing() => tracing::info!("{text}"),
            _ => tracing::warn!("{text}"),
        }
    }
    *lock(&dialled.trouble) = Some(text);
}

async fn link<S: Site>(inner: &Inner<S>, dialled: &Dialled, opened: Opened) -> Result<End, Refusal> {
    let Opened { control, data, met } = opened;
    *lock(&dialled.trouble) = None;
    let ran = inner.run((met.me, &met.other), (control, data), &dialled.forgotten, |_, _| {}).await;
    ran.map_err(|(refusal, _, _)| {
        count(&inner.report.refused);
        refusal
    })
}

/// One try of each address.
///
/// Cancellation-safe: dropped, nothing of it remains.
async fn attempt<S: Site>(
    inner: &Inner<S>,
    peer: PeerId,
    dialled: &Dialled,
) -> Result<(SocketAddr, Opened), Trouble> {
    let mut trouble = Trouble::NoAddress;
    let addresses = lock(&dialled.addresses).clone();
    for text in addresses {
        let found = match lookup(&text).await {
            Ok(found) => found,
            Err(error) => {
                trouble = Trouble::Lookup(text, error);
                continue;
            }
        };
        let host = text.rsplit_once(':').map_or(&*text, |(host, _)| host);
        for address in found {
            match open_both(inner, peer, host, address).await {
                Ok(opened) => return Ok((address, opened)),
                Err(failed) => trouble = failed,
            }
        }
    }
    Err(trouble)
}

pub(crate) async fn lookup(address: &str) -> Result<Vec<SocketAddr>, String> {
    match timeout(CONNECT, lookup_host(address)).await {
        Ok(Ok(found)) => Ok(found.take(ADDRESSES_MAX).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer to the look-up within {CONNECT:?}")),
    }
}

async fn open_both<S: Site>(
    inner: &Inner<S>,
    peer: PeerId,
    host: &str,
    address: SocketAddr,
) -> Result<Opened, Trouble> {
    let number = random_u64();
    // (Boxed: a TLS handshake's state is large.)
    let stream = |kind| Box::pin(open_one(inner, peer, kind, number, (host, address)));
    let ((mut control, met), (mut data, data_met)) =
        tokio::try_join!(stream(Kind::Control), stream(Kind::Data))?;
    let welcomes = async {
        tokio::try_join!(welcome(&mut control, &met, address), welcome(&mut data, &data_met, address))
    };
    timeout(WELCOME, welcomes).await.map_err(|_| Trouble::Late(address, WELCOME))??;
    Ok(Opened { control, data, met })
}

async fn open_one<S: Site>(
    inner: &Inner<S>,
    peer: PeerId,
    kind: Kind,
    number: u64,
    (host, address): (&str, SocketAddr),
) -> Result<(Call, Met), Trouble> {
    let unheard = |unheard| Trouble::Unheard(address, unheard);
    let opening = async {
        let tls = inner.trust.tls();
        let opened = open(&inner.tasks, &inner.stop, tls.as_ref(), kind, (host, address)).await;
        let mut call = opened.map_err(|error| Trouble::Open(address, error))?;
        let handshake = Handshake::dial(&inner.config, inner.me(), inner.trust.key(), kind, (peer, number));
        call.say(frame::What::Hello(handshake.hello()));
        let frame::What::Hello(hello) = call.hear().await.map_err(unheard)? else {
            return Err(unheard(Unheard::Else));
        };
        match handshake.dialled(&hello, peer) {
            Ok(met) => {
                call.say(frame::What::Proof(met.dialler()));
                Ok((call, met))
            }
            Err(refusal) => {
                inner.tasks.spawn(call.refuse(refusal.clone()));
                Err(Trouble::Refusal(address, refusal))
            }
        }
    };
    timeout(HANDSHAKE, opening).await.map_err(|_| Trouble::Late(address, HANDSHAKE))?
}

async fn welcome(call: &mut Call, met: &Met, address: SocketAddr) -> Result<(), Trouble> {
    match call.hear().await {
        Ok(frame::What::Welcome(proof)) => {
            met.check_accepter(&proof).map_err(|refusal| Trouble::Refusal(address, refusal))
        }
        Ok(_) => Err(Trouble::Unheard(address, Unheard::Else)),
        Err(unheard) => Err(Trouble::Unheard(address, unheard)),
    }
}
