//! Access rules that change while clients are connected.
//!
//! # Design
//! - All connections of a shard are judged anew, each once, when the gate has other rules ([`Shard::review`]); between two reviews a
//!   message costs what it did. Who would not be let in any more is told so and goes; the others have what the rules say now.
//! - A subscription outlives the right to make it: its client is not told of an end, and has it again when the right comes back. What it
//!   brings and no rule lets the client read is withheld at delivery ([`Narrowed`]), and that alone. Removed instead, the client would be
//!   deaf for good without knowing: whoever resumes a session does not subscribe again.
//! - The same holds for a session that is resumed: the rules may have changed while its client was away.
//!
//! # What is not judged
//! What a client is subscribed to without its doing (`auto_subscribe`), as it was not when that was made; and filters that a
//! rewrite can have made, since what counts is what the client named, which nobody knows any more.

use crate::ending::Why;
use crate::features::fill;
use crate::hook::{Access, Hook, Standing};
use crate::session::Phase;
use crate::shard::Shard;
use crate::{ConnId, SessionKey};
use ferrule_mqtt::{ReasonCode, topic};
use ferrule_store::{Now, Store};
use std::sync::Arc;

/// What a client may do that has subscriptions beyond it.
#[derive(Debug)]
struct Narrowed {
    access: Arc<dyn Access>,
    /// Filters that it may not subscribe to any more.
    lost: Box<[Box<str>]>,
    /// Those that it has all the same.
    kept: Box<[Box<str>]>,
}

impl Access for Narrowed {
    fn publish(&self, topic: &str) -> bool {
        self.access.publish(topic)
    }
    fn subscribe(&self, filter: &str) -> bool {
        self.access.subscribe(filter)
    }
    fn receive(&self, name: &str) -> bool {
        let matches = |filters: &[Box<str>]| filters.iter().any(|filter| topic::matches(filter, name));
        self.access.receive(name) && (self.access.reads(name) || matches(&self.kept) || !matches(&self.lost))
    }
    fn reads(&self, topic: &str) -> bool {
        self.access.reads(topic)
    }
    fn issued(&self) -> u64 {
        self.access.issued()
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// The gate has other rules: what all clients may do from now on. How many had to go.
    pub fn review(&mut self, now: Now) -> usize {
        self.now = now;
        let mut gone = 0;
        for id in self.conns.ids() {
            let Some(conn) = self.conns.get(id) else { continue };
            // Of the others the gate has yet to judge.
            if !matches!(conn.phase, Phase::AwaitStore | Phase::Open) {
                continue;
            }
            let Some(session) = conn.session.and_then(|key| self.sessions.get(key)) else { continue };
            let publishing = conn.publishing.get();
            let standing = Standing {
                client_id: &session.client_id,
                username: session.username.as_deref(),
                peer: conn.peer,
                listener: usize::from(self.rows.listener(conn.limits)),
                certificate: publishing.and_then(|p| p.certificate.as_deref()),
                edge: publishing.and_then(|p| p.edge.as_deref()),
                issued: conn.access.issued(),
            };
            let is_open = conn.phase == Phase::Open;
            match self.gate.review(&standing) {
                None => {}
                Some(Ok(access)) => self.change_access(id, access),
                Some(Err(refusal)) => {
                    gone += 1;
                    let why = Why::new(refusal.reason, "the server's users and rules have changed");
                    if is_open { self.disconnect(id, why) } else { self.refuse(id, why) }
                }
            }
        }
        gone
    }

    /// Ends all connections of a listener that is not there any more. How many there were.
    pub fn close_listener(&mut self, listener: u16, now: Now) -> usize {
        self.now = now;
        let mut gone = 0;
        for id in self.conns.ids() {
            let Some(conn) = self.conns.get(id) else { continue };
            if conn.phase == Phase::Closing || self.rows.listener(conn.limits) != listener {
                continue;
            }
            gone += 1;
            self.disconnect(
                id,
                Why::new(ReasonCode::ADMINISTRATIVE_ACTION, "the listener is not there any more"),
            );
        }
        gone
    }

    /// What an open connection may do from now on.
    pub(crate) fn change_access(&mut self, id: ConnId, access: Arc<dyn Access>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.access = Arc::clone(&access);
        self.narrow_access(id);
        let Some(key) = self.session_of(id) else { return };
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.will.take_if(|will| !access.publish(&will.topic)).is_some() {
            self.end_will(id);
            if let Some((op, due)) = self.session_op(key, None) {
                self.op(op, due);
            }
        }
    }

    /// Withholds what a connection's subscriptions bring beyond what it may read.
    pub(crate) fn narrow_access(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        let Some(key) = conn.session else { return };
        let narrowed = self.narrowed(key, &conn.access);
        if let Some((conn, access)) = self.conns.get_mut(id).zip(narrowed) {
            conn.access = access;
        }
    }

    /// None: it may subscribe to all that it has.
    fn narrowed(&self, key: SessionKey, access: &Arc<dyn Access>) -> Option<Arc<dyn Access>> {
        let session = self.sessions.get(key)?;
        let texts = session.subscriptions.iter().map(|(text, _)| text);
        let beyond: Vec<_> = texts.filter(|text| !access.subscribe(text)).collect();
        if beyond.is_empty() {
            return None;
        }
        let (client_id, username) = (&*session.client_id, session.username.as_deref());
        let features = &*self.features;
        let auto = features.auto_subscribe.iter();
        let auto: Vec<_> = auto.filter_map(|auto| fill(&auto.filter, client_id, username)).collect();
        let is_kept = |text: &Arc<str>| {
            auto.iter().any(|auto| **auto == **text)
                || features.rewrites.can_have_made(text, client_id, username)
        };
        let (kept, lost): (Vec<_>, Vec<_>) = beyond.into_iter().partition(|text| is_kept(text));
        let plain = |texts: Vec<&Arc<str>>| texts.into_iter().map(|text| topic::plain(text).into()).collect();
        let is_narrower = !lost.is_empty();
        let narrowed = Narrowed { access: Arc::clone(access), lost: plain(lost), kept: plain(kept) };
        is_narrower.then(|| Arc::new(narrowed) as _)
    }
}
