//! The side that is dialled: connections, what they prove, and which two of them are a link.

use crate::Site;
use crate::call::{Call, Unheard, advised, serve};
use crate::hello::{Came, Handshake, Met, Other, Refusal, shown_id};
use crate::limits::{ACCEPT_PAUSE, HANDSHAKE, STRANGERS_MAX};
use crate::link::{Inner, lock};
use crate::report::count;
use crate::tls::advice;
use crate::wire::{Kind, frame};
use ferrule_cluster::PeerId;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout};

/// By peer and link number. Only who has the token is here, for [`HANDSHAKE`] at most.
pub(crate) type Halves = HashMap<(PeerId, u64), Half>;

/// A stream that waits for the other one of its link.
pub(crate) struct Half {
    kind: Kind,
    give: oneshot::Sender<Stream>,
}

/// A stream whose other side has proven what it is.
#[derive(Debug)]
struct Stream {
    call: Call,
    met: Met,
}

/// Accepts until the links are stopped.
pub(crate) async fn run<S: Site>(inner: Arc<Inner<S>>, listener: TcpListener) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let accepting = async {
        loop {
            let Ok(permit) = Arc::clone(&strangers).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, from)) => {
                    inner.tasks.spawn(connection(Arc::clone(&inner), socket, from, permit));
                }
                // One that was gone before it was accepted, or none of ours to open.
                Err(error) => {
                    let text = format!("cannot accept a link: {error}; it is tried again");
                    if inner.report.strangers.passes(&text, Instant::now()) {
                        tracing::warn!("{text}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    inner.stop.run_until_cancelled(accepting).await;
}

async fn connection<S: Site>(
    inner: Arc<Inner<S>>,
    socket: TcpStream,
    from: SocketAddr,
    permit: OwnedSemaphorePermit,
) {
    let connection = inner.stop.child_token();
    let _closed = connection.clone().drop_guard();
    let proven = Arc::new(Notify::new());
    let take = {
        let (inner, proven) = (Arc::clone(&inner), Arc::clone(&proven));
        move |call| {
            inner.tasks.spawn(stream(Arc::clone(&inner), call, from, Arc::clone(&proven)));
        }
    };
    let mut serving = Box::pin(serve(&inner.tasks, &connection, inner.trust.tls(), socket, take));
    tokio::select! {
        served = &mut serving => {
            if let Err(error) = served {
                let text = advised(format!("a link from {} came to nothing: {error}", from.ip()), &error);
                // Certificates that do not fit; else somebody who went away.
                if advice(&error).is_some() && inner.report.strangers.passes(&text, Instant::now()) {
                    tracing::warn!("{text}");
                } else {
                    tracing::debug!("{text}");
                }
            }
            return;
        }
        () = sleep(HANDSHAKE) => {
            tracing::debug!("a connection from {from} has proven nothing within {HANDSHAKE:?}");
            return;
        }
        () = connection.cancelled() => return,
        () = proven.notified() => drop(permit),
    }
    tokio::select! {
        _ = &mut serving => {} // its reader knows why
        () = connection.cancelled() => {}
    }
}

async fn stream<S: Site>(inner: Arc<Inner<S>>, mut call: Call, from: SocketAddr, proven: Arc<Notify>) {
    match prove(&inner, &mut call).await {
        Ok(Came::Peer(met)) => {
            proven.notify_one();
            pair(&inner, Stream { call, met }, from).await;
        }
        // It keeps its place among the strangers: it is soon gone.
        Ok(Came::Seeker(met)) => call.end(frame::What::Welcome(met.accepter())).await,
        Err((other, Unproven::Refusal(refusal))) => {
            refuse(&inner, call, other.as_ref(), from, &refusal).await;
        }
        Err((_, Unproven::Unheard(unheard))) => {
            let text = format!("a link from {from} came to nothing: {unheard}");
            match unheard {
                Unheard::Refused { .. } if inner.report.strangers.passes(&text, Instant::now()) => {
                    tracing::warn!("{text}");
                }
                _ => tracing::debug!("{text}"),
            }
        }
    }
}

enum Unproven {
    Refusal(Refusal),
    Unheard(Unheard),
}

async fn prove<S: Site>(inner: &Inner<S>, call: &mut Call) -> Result<Came, (Option<Other>, Unproven)> {
    let unheard = |unheard| (None, Unproven::Unheard(unheard));
    let handshake = Handshake::accept(&inner.config, inner.me(), inner.trust.key(), call.kind);
    let frame::What::Hello(hello) = call.hear().await.map_err(unheard)? else {
        return Err(unheard(Unheard::Else));
    };
    let came = handshake.accepted(&hello).map_err(|refusal| (None, Unproven::Refusal(refusal)))?;
    call.say(frame::What::Hello(handshake.hello()));
    let frame::What::Proof(proof) = call.hear().await.map_err(unheard)? else {
        return Err(unheard(Unheard::Else));
    };
    match came.met().check_dialler(&proof) {
        Ok(()) => Ok(came),
        Err(refusal) => Err((Some(came.met().other.clone()), Unproven::Refusal(refusal))),
    }
}

async fn refuse<S: Site>(
    inner: &Inner<S>,
    call: Call,
    other: Option<&Other>,
    from: SocketAddr,
    refusal: &Refusal,
) {
    count(&inner.report.refused);
    // Without the port, which is another one each time.
    let who = match other {
        Some(other) => format!("{} {:?} at {}", shown_id(other.id), other.name, from.ip()),
        None => from.ip().to_string(),
    };
    let text = format!("refused a link from {who}: {refusal}");
    if inner.report.strangers.passes(&text, Instant::now()) {
        if refusal.is_passing() {
            tracing::info!("{text}");
        } else {
            tracing::warn!("{text}");
        }
    }
    call.refuse(refusal.clone()).await;
}

/// The first stream of a link waits for the second, and runs the link.
async fn pair<S: Site>(inner: &Inner<S>, stream: Stream, from: SocketAddr) {
    let kind = stream.call.kind;
    let key = (stream.met.other.id, stream.met.other.link);
    let Some((stream, other)) = meet(inner, key, stream, from).await else { return };
    let (control, data) = if kind == Kind::Control { (stream, other) } else { (other, stream) };
    let welcome = |control_call: &mut Call, data_call: &mut Call| {
        control_call.say(frame::What::Welcome(control.met.accepter()));
        data_call.say(frame::What::Welcome(data.met.accepter()));
    };
    let who = &control.met.other;
    let ran = inner.run((control.met.me, who), (control.call, data.call), &inner.stop, welcome).await;
    if let Err((refusal, control_call, data_call)) = ran {
        tokio::join!(
            refuse(inner, control_call, Some(who), from, &refusal),
            data_call.refuse(refusal.clone()),
        );
    }
}

/// This stream and the other one. None: the other one's task goes on with both, or there is no link.
async fn meet<S: Site>(
    inner: &Inner<S>,
    key: (PeerId, u64),
    stream: Stream,
    from: SocketAddr,
) -> Option<(Stream, Stream)> {
    let kind = stream.call.kind;
    let mut waits = {
        let mut halves = lock(&inner.halves);
        match halves.remove(&key) {
            Some(half) if half.kind != kind => {
                let _ = half.give.send(stream); // it has just given up: so does this one
                return None;
            }
            Some(half) => {
                halves.insert(key, half);
                None
            }
            None => {
                let (give, get) = oneshot::channel();
                halves.insert(key, Half { kind, give });
                Some(get)
            }
        }
    };
    let Some(get) = &mut waits else {
        refuse(inner, stream.call, Some(&stream.met.other), from, &Refusal::Twice).await;
        return None;
    };
    let came = match inner.stop.run_until_cancelled(timeout(HANDSHAKE, &mut *get)).await {
        Some(Ok(other)) => other.ok(),
        Some(Err(_)) | None => {
            lock(&inner.halves).remove(&key);
            // It may have come at the last moment; from here on it cannot.
            get.try_recv().ok()
        }
    };
    match came {
        Some(other) => Some((stream, other)),
        None => {
            refuse(inner, stream.call, Some(&stream.met.other), from, &Refusal::Alone).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::call::open;
    use crate::{Config, Links, Parcels, Sender, Token, Trust};
    use ferrule_cluster::{Message, NodeId};

    /// Nothing comes up here.
    struct Nobody;

    impl Site for Nobody {
        async fn up(&self, peer: PeerId, _: (u8, u32), _: Sender) -> bool {
            panic!("{peer:?} is up")
        }

        async fn down(&self, _: PeerId) {}

        fn message(&self, _: PeerId, _: Message) {}

        fn routes(&self, _: PeerId, _: Parcels) {}

        async fn data(&self, _: PeerId, _: Parcels) {}
    }

    fn config(node: u64) -> Config {
        let trust = Trust::Token(Token::new("a token of these tests").unwrap());
        Config::new(PeerId { node: NodeId(node), incarnation: 1 }, "", 1, "", trust)
    }

    fn listening() -> Links<Nobody> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Links::start(config(2), listener, Arc::new(Nobody)).unwrap()
    }

    /// A stream of this link that has proven what it is, as far as this side knows.
    async fn stream(to: &Links<Nobody>, kind: Kind, link: u64) -> Call {
        let inner = &to.inner;
        let mut call = open(&inner.tasks, &inner.stop, None, kind, ("", to.address())).await.unwrap();
        let (config, you) = (config(1), inner.me());
        let handshake = Handshake::dial(&config, config.me, inner.trust.key(), kind, (you, link));
        call.say(frame::What::Hello(handshake.hello()));
        let frame::What::Hello(hello) = call.hear().await.unwrap() else { panic!() };
        let met = handshake.dialled(&hello, you).unwrap();
        call.say(frame::What::Proof(met.dialler()));
        call
    }

    async fn refused(mut call: Call) -> String {
        match call.hear().await {
            Err(Unheard::Refused { text, .. }) => text,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn two_streams_of_two_links_make_none() {
        let links = listening();
        let (control, data) = (stream(&links, Kind::Control, 1).await, stream(&links, Kind::Data, 2).await);
        let alone = Refusal::Alone.to_string();
        assert_eq!(tokio::join!(refused(control), refused(data)), (alone.clone(), alone));
        assert!(lock(&links.inner.halves).is_empty());
        links.stop().await;
    }

    #[tokio::test]
    async fn a_link_has_each_stream_once() {
        let links = listening();
        let (one, other) = (stream(&links, Kind::Data, 1).await, stream(&links, Kind::Data, 1).await);
        // Either may come first; the second is refused at once, and the first is then alone.
        let mut texts = <[String; 2]>::from(tokio::join!(refused(one), refused(other)));
        texts.sort();
        let mut wanted = [Refusal::Twice, Refusal::Alone].map(|refusal| refusal.to_string());
        wanted.sort();
        assert_eq!(texts, wanted);
        links.stop().await;
    }

    #[tokio::test]
    async fn a_stop_ends_a_stream_that_waits_for_its_second() {
        let links = listening();
        let call = stream(&links, Kind::Control, 1).await;
        while lock(&links.inner.halves).is_empty() {
            tokio::task::yield_now().await;
        }
        let inner = Arc::clone(&links.inner);
        links.stop().await;
        assert!(lock(&inner.halves).is_empty());
        drop(call);
    }
}
