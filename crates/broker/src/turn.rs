//! A turn's end: timers, what rules published, and the one batch for the store; and what its commits release.

use crate::config::{self, ClientLimits};
use crate::ending::Why;
use crate::hook::{Hook, Which};
use crate::owners::Stage;
use crate::parcel::{Number, Parcel};
use crate::peers::Late;
use crate::publish::LOCAL_PER_TURN;
use crate::session::{Kind, LateWill, Phase, Session};
use crate::shard::{Command, Shard, Timer};
use crate::tempo::NEVER_US;
use crate::{ConnId, SessionKey};
use ferrule_mqtt::ReasonCode;
use ferrule_outbox::{End, Outcome, ReceiptId};
use ferrule_store::record::Subscription;
use ferrule_store::{Joint, JointPart, Now, Op, QueueId, SessionId, Store, StoreEvent, Ticket};
use std::collections::VecDeque;
use std::sync::Arc;

/// What waits for a commit.
#[derive(Debug)]
pub(crate) enum Wait {
    /// An end of a receipt.
    End(End),
    /// That of a retained message.
    Retained(End),
    /// The CONNACK of a connection.
    Connack(ConnId),
    /// A PUBCOMP, or what then waits for the other shards.
    Reply(Reply),
    /// The PUBLISH of a QoS 2 delivery under this packet id.
    Publish(SessionKey, u16),
    /// The PUBREL of one.
    Pubrel(SessionKey, u16),
    /// The oldest held message of a session that ends with its connection.
    Held(SessionKey),
    /// The word to a peer that a client's session may be taken.
    Yours(u16, Stage, Arc<str>),
    /// The question for a new session of a client that has none any more.
    New(Arc<str>),
}

/// A SUBACK, UNSUBACK or PUBCOMP, and the subscriptions whose retained messages follow it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) conn: ConnId,
    pub(crate) packet: Vec<u8>,
    pub(crate) retained: Vec<(Arc<str>, Subscription)>,
    /// A SUBACK of an exclusive subscription.
    pub(crate) is_exclusive: bool,
}

/// What must not be known twice, on its way to the store together with all that it became: the packet id of a QoS 2 publish, the
/// end of a delayed message, that of a will.
#[derive(Debug)]
pub(crate) struct Receiving {
    /// None: it is in the batch of the turn in which it was published.
    pub(crate) op: Option<Op>,
    pub(crate) end: End,
    /// What other shards make of the publish, by number, until it is in their batches or over.
    pub(crate) awaited: Vec<Number>,
    /// In batches, theirs and this shard's, that wait for the one with this op.
    pub(crate) joined: Vec<Number>,
}

/// This turn's ops of the shard's own, and what waits for their commit.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) ops: Vec<Op>,
    /// Somebody waits for them.
    pub(crate) due: bool,
    /// The next batch takes all rows, due or not.
    all: bool,
    since_us: u64,
    pub(crate) waits: Vec<Wait>,
    /// Packet ids of QoS 2 publishes, to be written with what was made of them and never before.
    pub(crate) received: Vec<Receiving>,
    received_us: u64,
    /// What other shards sent and must not be known twice: in the next batch, which then waits for theirs.
    pub(crate) opens: Vec<(u16, Number)>,
    /// Joint commits of this shard's own that the next batch opens.
    opens_own: Vec<Number>,
    /// Those that were drawn.
    own: Number,
    /// Joint commits that the next batch closes.
    pub(crate) closes: Vec<Number>,
    /// Sessions were lost: the store is told once nothing of them is to come any more.
    lost: bool,
    /// Of batches that were submitted.
    commits: VecDeque<(Ticket, Vec<Wait>)>,
}

impl Batch {
    /// Adds an op. `due`: somebody waits for it.
    pub(crate) fn op(&mut self, op: Op, due: bool, now: Now) {
        if self.ops.is_empty() {
            self.since_us = now.mono_us;
        }
        self.ops.push(op);
        self.due |= due;
    }

    /// Takes out what is not written yet of a session's packet ids, or of one of them; their ends.
    pub(crate) fn forget(
        &mut self,
        session: SessionId,
        packet_id: Option<u16>,
    ) -> impl Iterator<Item = End> + use<> {
        let is_its = |r: &mut Receiving| {
            matches!(r.op, Some(Op::InflightPut { session: of, packet_id: id, .. })
                if of == session && packet_id.is_none_or(|meant| meant == id))
        };
        let forgotten: Vec<Receiving> = self.received.extract_if(.., is_its).collect();
        self.closes.extend(forgotten.iter().flat_map(|r| &r.joined));
        self.due |= !self.closes.is_empty();
        forgotten.into_iter().map(|r| r.end)
    }

    /// One more shard makes something of the publish with this receipt.
    pub(crate) fn awaits(&mut self, receipt: ReceiptId, number: Number) {
        if let Some(receiving) = self.received.iter_mut().find(|r| r.end.receipt() == receipt) {
            receiving.awaited.push(number);
        }
    }

    /// What another shard made of a publish is in its batch: to be closed with the packet id.
    pub(crate) fn joined(&mut self, number: Number) {
        self.due = true;
        for receiving in &mut self.received {
            if let Some(at) = receiving.awaited.iter().position(|n| *n == number) {
                receiving.awaited.swap_remove(at);
                receiving.joined.push(number);
                return;
            }
        }
        // The packet id is not to be written any more: its batch must not wait.
        self.closes.push(number);
    }

    /// What another shard made of a publish has ended.
    pub(crate) fn answered(&mut self, number: Number) {
        for receiving in &mut self.received {
            receiving.awaited.retain(|n| *n != number);
        }
    }

    /// Whether something that somebody waits for is not durable yet.
    pub(crate) fn is_awaited(&self) -> bool {
        self.due || !self.commits.is_empty()
    }
}

impl<H: Hook, S: Store> Shard<H, S> {
    /// The store has something to say.
    pub fn store_event(&mut self, event: StoreEvent, now: Now) {
        self.now = now;
        match event {
            StoreEvent::Committed { ticket, took } => {
                // As RFC 6298 smooths: a gain of 1/8.
                self.smoothed_commit =
                    if self.smoothed_commit.is_zero() { took } else { (self.smoothed_commit * 7 + took) / 8 };
                self.committed(ticket);
            }
            StoreEvent::Rows { queue, .. } if self.is_read_before(queue) => {}
            StoreEvent::Rows { queue, rows } => match queue.as_session() {
                None if self.delayed.has(queue) => self.delayed_rows(queue, rows),
                None => self.hook.rows(queue, rows, now),
                Some(id) => {
                    let Some(&key) = self.by_store_id.get(&id) else { return };
                    if let Some(Session { kind: Kind::Persistent { queue }, .. }) = self.sessions.get_mut(key)
                    {
                        queue.loaded(rows, now);
                    }
                    self.pump(key);
                    self.touch(key);
                }
            },
            StoreEvent::Failing { message } => self.failing = Some(message),
            StoreEvent::Recovered => self.failing = None,
            StoreEvent::Fenced { ops } => self.fenced(&ops),
            StoreEvent::Taken(taken) => self.taken(&taken),
            StoreEvent::Lost { sessions } => {
                sessions.iter().for_each(|session| self.lost(*session));
                (self.batch.due, self.batch.lost) = (true, true);
            }
            StoreEvent::Kept(kept) => {
                self.hook.kept(&kept, &mut self.ended);
                self.tell_kept();
                self.tell_unkept(&kept);
            }
            // All that it remembers is to be written now: the answer is behind that.
            StoreEvent::Giving { rule, round } => self.hook.giving(rule, round),
            StoreEvent::Adopted { view, restored, done } => self.adopted(view, &restored, done),
        }
    }

    pub(crate) fn committed(&mut self, ticket: Ticket) {
        let mut ended = std::mem::take(&mut self.ended);
        self.hook.committed(ticket, &mut ended);
        let mut at = 0;
        while let Some(&key) = self.touched.get(at) {
            at += 1;
            if let Some(Session { kind: Kind::Persistent { queue }, .. }) = self.sessions.get_mut(key) {
                queue.committed(ticket, &mut ended);
            }
        }
        self.ended = ended;
        // Their rows may be on disk now.
        self.batch.due |= !self.batch.received.is_empty();
        while self.batch.commits.front().is_some_and(|(t, _)| *t <= ticket) {
            let Some((_, waits)) = self.batch.commits.pop_front() else { break };
            for wait in waits {
                match wait {
                    Wait::End(end) => self.ended.push((end, Outcome::Delivered)),
                    Wait::Retained(end) => self.retained_durable(end),
                    Wait::Connack(conn) => self.connack_when_routed(conn),
                    Wait::Reply(reply) => self.when_routed(Late::Reply(reply)),
                    Wait::Publish(key, packet_id) => self.outbound_committed(key, packet_id),
                    Wait::Held(key) => self.delivering().release_held(key),
                    Wait::Pubrel(key, packet_id) => self.release_committed(key, packet_id),
                    Wait::Yours(to, stage, client_id) => self.is_yours(to, stage, &client_id),
                    Wait::New(client_id) => self.ask_for_new(&client_id),
                }
            }
        }
        self.settle();
    }

    /// Tells publishers whose last end was said.
    pub(crate) fn settle(&mut self) {
        while !self.ended.is_empty() {
            for (end, outcome) in std::mem::take(&mut self.ended) {
                if let Some(done) = self.receipts.resolve(end, outcome) {
                    self.complete(done.owner, done.outcome);
                }
            }
        }
    }

    /// Runs timers, routes what rules published, and hands the turn's batch to the store. Call it once a turn, after all input.
    pub fn end_turn(&mut self, now: Now) {
        self.end_turn_if(now, || true);
    }

    /// The same, of a shard of a cluster: `may` says, when all has been routed, whether it may be acknowledged
    /// ([`Shard::begin_turn`]).
    pub fn end_turn_if(&mut self, now: Now, may: impl FnOnce() -> bool) {
        self.now = now;
        self.run_timers();
        for id in std::mem::take(&mut self.speechless) {
            let text = "a packet that is due to the client is larger than it takes";
            self.disconnect(id, Why::new(ReasonCode::PACKET_TOO_LARGE, text));
        }
        // Before rows are handed out: those that come of it go with them.
        self.tell_events();
        self.fire_delayed();
        self.route_local();
        self.local_left = LOCAL_PER_TURN;
        self.drop_expired_retained();
        self.forget_cleared();
        self.judge(may());
        let mut reads = self.delayed.take_reads();
        let mut ended = std::mem::take(&mut self.ended);
        self.hook.turn(now, &mut ended, &mut reads);
        self.ended = ended;
        for done in self.receipts.sweep() {
            self.complete(done.owner, done.outcome);
        }
        self.settle();
        self.mark_full_windows();
        self.send_rows();
        self.flush(&mut reads);
        self.end_turn_of_owners();
        self.end_turn_of_peers();
        for (queue, from) in reads {
            // 256 rows or 1 MiB a read: the writer serves reads between commits. Sessions are many, and each gets as much as it keeps.
            let bytes = match queue.as_session() {
                Some(_) => self.policy.head_bytes.min(1 << 20),
                None => 1 << 20,
            };
            self.store.read(queue, from, 256, bytes as u32);
        }
    }

    /// A last turn before the store is shut down: all that waits is handed to it, also what nobody waits for and what is not
    /// due yet.
    pub fn write_all(&mut self, now: Now) {
        self.write_all_if(now, || true);
    }

    /// The same, of a shard of a cluster ([`Shard::end_turn_if`]).
    pub fn write_all_if(&mut self, now: Now, may: impl FnOnce() -> bool) {
        (self.batch.due, self.batch.all) = (true, true);
        self.end_turn_if(now, may);
    }

    /// When `end_turn` must be called at the latest, in microseconds of the monotonic clock.
    pub fn next_wake_us(&self) -> Option<u64> {
        let urgent = self.receipts.urgent_count() > 0;
        let mut next = self.wheel.next_us();
        let mut at = |due: Option<u64>| next = [next, due].into_iter().flatten().min();
        at(self.retaining.next_us());
        at(self.delayed.next_us());
        at(self.standing.next_us());
        at(self.owners.next_us());
        at(self.hook.next_due_us(urgent, self.smoothed_commit));
        let unfinished = !self.speechless.is_empty()
            || !self.dirty.is_empty()
            || !self.commands.is_empty()
            || !self.events.is_empty()
            || !self.ended.is_empty();
        if unfinished || self.batch.due || self.hook.has_local() || self.peers.has_parcels() {
            // What came after the turn's end has to have a turn of its own.
            at(Some(0));
        }
        if !self.admitted {
            at(Some(self.now.mono_us + ADMISSION_US));
        }
        if !self.waiters.is_empty() {
            at(Some(self.quiet_at_us));
        }
        if !self.batch.ops.is_empty() {
            at(Some(self.batch.since_us + LAZY_US));
        }
        if !self.batch.received.is_empty() {
            at(Some(self.batch.received_us + LAZY_US));
        }
        at(self.retaining.lazy_since_us().map(|since_us| since_us + LAZY_US));
        for &key in &self.touched {
            if let Some(Session { kind: Kind::Persistent { queue }, .. }) = self.sessions.get(key) {
                at(queue.next_due_us(urgent, self.smoothed_commit));
            }
        }
        next
    }

    pub(crate) fn flush(&mut self, reads: &mut Vec<(QueueId, u64)>) {
        let now = self.now;
        let urgent = self.receipts.urgent_count() > 0;
        let smoothed = self.smoothed_commit;
        let admitted = !self.store.low_on_space() && self.store.pending_bytes() < PENDING_BYTES;
        if admitted != self.admitted {
            self.admitted = admitted;
            self.hook.set_admitted(admitted);
        }
        let lazy_due = |since: u64| now.since(since) >= LAZY_US;
        let mut due = self.batch.due
            || (!self.batch.ops.is_empty() && lazy_due(self.batch.since_us))
            || (!self.batch.received.is_empty() && lazy_due(self.batch.received_us))
            || self.retaining.lazy_since_us().is_some_and(lazy_due)
            || self.hook.due(now, urgent, smoothed);
        for &key in &self.touched {
            if let Some(Session { kind: Kind::Persistent { queue }, .. }) = self.sessions.get_mut(key) {
                queue.set_admitted(admitted);
                due = due || queue.due(now, urgent, smoothed);
                // The backlog of an absent client stays where it is.
                if queue.is_up()
                    && let Some(from) = queue.want_read()
                {
                    reads.push((queue.id(), from));
                }
            }
        }
        if due {
            let mut batch = std::mem::take(&mut self.batch.ops);
            batch.extend(self.retaining.take_lazy(&self.retained));
            // What must not be known twice goes with what it became, whether that is due or not.
            let joint = !self.batch.received.is_empty() || !self.batch.opens.is_empty();
            let which = match joint || std::mem::take(&mut self.batch.all) {
                true => Which::All,
                false => Which::Due { urgent, smoothed_commit: smoothed },
            };
            self.hook.write(now, which, &mut batch);
            let mut withheld = self.hook.withholds();
            for &key in &self.touched {
                if let Some(Session { kind: Kind::Persistent { queue }, .. }) = self.sessions.get_mut(key) {
                    queue.write(now, &mut batch);
                    withheld |= queue.is_withholding();
                }
            }
            self.write_received(withheld, &mut batch);
            let parts = self.joint_parts(withheld);
            if !batch.is_empty() || !self.batch.waits.is_empty() || !parts.is_empty() {
                if admitted {
                    self.steady.write(now, &mut batch);
                }
                let ticket = match parts.is_empty() {
                    true => self.store.submit(batch),
                    false => self.store.submit_joint(batch, parts),
                };
                self.hook.submitted(ticket);
                for &key in &self.touched {
                    if let Some(Session { kind: Kind::Persistent { queue }, .. }) = self.sessions.get_mut(key)
                    {
                        queue.submitted(ticket);
                    }
                }
                if !self.batch.waits.is_empty() {
                    let waits = std::mem::take(&mut self.batch.waits);
                    self.batch.commits.push_back((ticket, waits));
                }
            }
            self.batch.due = false;
        }
        if std::mem::take(&mut self.batch.lost) {
            self.ask_to_adopt();
        }
        if let Some((rule, round)) = self.hook.given() {
            self.store.give(rule, round);
        }
        // A session stays in the list while its queue has anything at all that a commit or a deadline concerns.
        let sessions = &mut self.sessions;
        self.touched.retain(|&key| match sessions.get_mut(key) {
            Some(session) => {
                session.touched = matches!(&session.kind, Kind::Persistent { queue } if queue.is_unsettled());
                session.touched
            }
            None => false,
        });
    }

    /// What this batch is to joint commits. What other shards sent is in it, unless a row of theirs found no room; they are told.
    fn joint_parts(&mut self, withheld: bool) -> Vec<JointPart> {
        let shard = self.peers.place.index;
        let closes = self.batch.closes.drain(..).map(|number| JointPart::Closes(Joint { shard, number }));
        let mut parts: Vec<JointPart> = closes.collect();
        let own = self.batch.opens_own.drain(..);
        parts.extend(own.map(|number| JointPart::Opens(Joint { shard, number })));
        if !withheld {
            for (peer, number) in std::mem::take(&mut self.batch.opens) {
                parts.push(JointPart::Opens(Joint { shard: peer, number }));
                self.peers.send(peer, &Parcel::Joined { number });
            }
        }
        parts
    }

    /// Adds the packet ids of QoS 2 publishes. One whose message has a row that found no room, that another shard has not
    /// submitted, or that a rule's publish may still become, waits for it: alone on disk it
    /// would, after a kill, be answered and the message gone. (Its other rows may then be made twice.)
    pub(crate) fn write_received(&mut self, withheld: bool, batch: &mut Vec<Op>) {
        for mut receiving in std::mem::take(&mut self.batch.received) {
            match self.receipts.pending(receiving.end.receipt()) {
                Some((_, Outcome::Retry)) => {
                    self.batch.closes.extend(receiving.joined);
                    self.ended.push((receiving.end, Outcome::Delivered));
                }
                Some((2.., _)) if withheld || !receiving.awaited.is_empty() || self.hook.has_local() => {
                    if receiving.joined.is_empty() && !withheld {
                        // What it became on this shard is in this batch: it must not be there before the packet id.
                        self.batch.own += 1;
                        let number = OWN_JOINTS | self.batch.own;
                        self.batch.opens_own.push(number);
                        receiving.joined.push(number);
                    }
                    self.batch.received_us = self.now.mono_us;
                    self.batch.received.push(receiving);
                }
                _ => {
                    batch.extend(receiving.op);
                    self.batch.closes.extend(receiving.joined);
                    self.batch.waits.push(Wait::End(receiving.end));
                }
            }
        }
    }

    /// An op of the shard's own. `due`: somebody waits for it.
    pub(crate) fn op(&mut self, op: Op, due: bool) {
        self.batch.op(op, due, self.now);
    }

    /// Waits for the commit of all that was said so far.
    pub(crate) fn wait(&mut self, wait: Wait) {
        self.batch.due = true;
        self.batch.waits.push(wait);
    }

    /// Sees to it that a connection's deadlines are looked at by then.
    pub(crate) fn arm_conn(&mut self, id: ConnId, deadline_us: u64) {
        if let Some(conn) = self.conns.get_mut(id)
            && (conn.timer_us == 0 || deadline_us < conn.timer_us)
        {
            conn.timer_us = deadline_us;
            self.wheel.add(deadline_us, Timer::Conn(id));
        }
    }

    /// Sees to it that the end of a session that has no connection, or its late will, is not missed.
    pub(crate) fn arm_session(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let will = session.late_will.as_ref().map(|late| late.due_us);
        let expiry = (session.expires_us != 0).then_some(session.expires_us);
        let Some(deadline_us) = [will, expiry].into_iter().flatten().min() else { return };
        if session.timer_us == 0 || deadline_us < session.timer_us {
            session.timer_us = deadline_us;
            self.wheel.add(deadline_us, Timer::Session(key));
        }
    }

    /// The session's queue has to be looked at when the turn ends.
    pub(crate) fn touch(&mut self, key: SessionKey) {
        if let Some(session) = self.sessions.get_mut(key)
            && !session.touched
        {
            session.touched = true;
            self.touched.push(key);
        }
    }

    /// Contract 2: a publisher whose window is full waits no longer than it must. Its window is full when half of it
    /// waits, or when all that it sent waits and it sends nothing more ([`crate::tempo`]).
    fn mark_full_windows(&mut self) {
        let before = self.receipts.urgent_count();
        // What it sent now is looked at again when it has been quiet for long enough; till then it is stalled only when half its window
        // waits.
        let mut quiet_at_us = u64::MAX;
        let clients = &self.limits.clients;
        let (now, last_us) = (self.now, self.last_turn_us);
        self.last_turn_us = now.mono_us;
        let (conns, receipts) = (&mut self.conns, &mut self.receipts);
        self.waiters.retain_mut(|(id, since_us)| {
            let Some(conn) = conns.get_mut(*id) else { return false };
            let heard = conn.heard_us >= last_us;
            let half = (usize::from(config::client(clients, conn.limits).receive_max) / 2).max(1);
            let Some(publishing) = conn.publishing.get().filter(|p| !p.waiting.is_empty()) else {
                conn.waits = false;
                return false;
            };
            if heard {
                *since_us = now.mono_us;
            }
            let quiet_us = publishing.tempo.quiet_us();
            // By being quiet it never is at its window: it is looked at again when it sends.
            let patient = quiet_us >= NEVER_US;
            let quiet = !patient && now.since(*since_us) >= quiet_us;
            if quiet || (heard && publishing.waiting.len() >= half) {
                publishing.waiting.iter().filter_map(|w| w.receipt).for_each(|r| receipts.set_urgent(r));
            }
            conn.waits = !quiet && !patient;
            if conn.waits {
                quiet_at_us = quiet_at_us.min(*since_us + quiet_us);
            }
            conn.waits
        });
        self.quiet_at_us = quiet_at_us;
        if self.receipts.urgent_count() > before {
            self.hurry_peers();
        }
    }

    pub(crate) fn run_timers(&mut self) {
        while let Some(timers) = self.wheel.pop(self.now.mono_us) {
            for timer in timers {
                match timer {
                    Timer::Conn(id) => self.conn_timer(id),
                    Timer::Session(key) => self.session_timer(key),
                }
            }
        }
    }

    pub(crate) fn conn_timer(&mut self, id: ConnId) {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.timer_us == 0 || now.mono_us < conn.timer_us {
            return; // It was moved forward, and has been seen to.
        }
        conn.timer_us = 0;
        let limits = *config::client(&self.limits.clients, conn.limits);
        match conn.phase {
            Phase::Closing => {
                // The peer does not take its last bytes.
                self.commands.push(Command::Close(id));
                return;
            }
            Phase::AwaitConnect => {
                if now.since(conn.heard_us) >= limits.connect_timeout.as_micros() as u64 {
                    self.stats.connect_timeouts += 1;
                    self.close(id);
                    return;
                }
            }
            Phase::AwaitGate => {
                if now.since(conn.heard_us) >= limits.connect_timeout.as_micros() as u64 {
                    // It said all that it had to: it is the gate that is late.
                    self.stats.connect_timeouts += 1;
                    self.refuse(id, Why::elsewhere(ReasonCode::SERVER_BUSY, ""));
                    return;
                }
            }
            Phase::AwaitAuth => {
                if now.since(conn.heard_us) >= limits.connect_timeout.as_micros() as u64 {
                    self.stats.connect_timeouts += 1;
                    self.refuse(
                        id,
                        Why::new(ReasonCode::NOT_AUTHORIZED, "the authentication was not ended in time"),
                    );
                    return;
                }
            }
            Phase::AwaitStore | Phase::Moving => {}
            Phase::Open => {
                if let Some(why) = self.overdue(id, &limits) {
                    self.disconnect(id, why);
                    return;
                }
            }
        }
        let slow_us = self.slow_since_us(id, &limits);
        let Some(conn) = self.conns.get_mut(id) else { return };
        let publishing = conn.publishing.get();
        let paid_us = publishing.map_or(0, |p| p.pace.due_us);
        let resumes = conn.throttled && paid_us <= now.mono_us;
        // Whatever begins from now on is not due earlier than this.
        let mut next_us = now.mono_us + limits.stalled.as_micros() as u64;
        let mut at = |due_us: Option<u64>| next_us = next_us.min(due_us.unwrap_or(u64::MAX));
        at(slow_us.map(|since_us| since_us + limits.stalled.as_micros() as u64));
        match conn.phase {
            Phase::Open if conn.is_heard() => {
                at(conn.silence_us().map(|silence_us| conn.heard_us + silence_us));
                at(publishing.filter(|p| p.begun_us != 0).map(|p| p.begun_us + conn.packet_us(&limits)));
            }
            Phase::Open if resumes => at(conn.silence_us().map(|silence_us| now.mono_us + silence_us)),
            Phase::Open if conn.throttled => at(Some(paid_us)),
            Phase::AwaitConnect | Phase::AwaitGate | Phase::AwaitAuth => {
                at(Some(conn.heard_us + limits.connect_timeout.as_micros() as u64));
            }
            _ => {}
        }
        if resumes {
            conn.throttled = false;
            self.hear(id);
        }
        self.arm_conn(id, next_us.max(now.mono_us + 1));
    }

    /// Why a connection has to end that is open, if it does.
    fn overdue(&mut self, id: ConnId, limits: &ClientLimits) -> Option<Why> {
        let now_us = self.now.mono_us;
        let conn = self.conns.get(id)?;
        // What it says while we do not hear it is not held against it.
        if conn.is_heard() {
            if conn.silence_us().is_some_and(|silence_us| now_us - conn.heard_us >= silence_us) {
                self.stats.keep_alive_timeouts += 1;
                return Some(ReasonCode::KEEP_ALIVE_TIMEOUT.into());
            }
            let begun = conn.publishing.get().filter(|p| p.begun_us != 0);
            if begun.is_some_and(|p| now_us - p.begun_us >= conn.packet_us(limits)) {
                self.stats.packet_timeouts += 1;
                let text = "a packet that had begun did not come";
                return Some(Why::new(ReasonCode::KEEP_ALIVE_TIMEOUT, text));
            }
        }
        let stalled_us = limits.stalled.as_micros() as u64;
        let is_slow = self.slow_since_us(id, limits).is_some_and(|since_us| now_us - since_us >= stalled_us);
        self.stats.slow_closed += u64::from(is_slow);
        is_slow
            .then(|| Why::new(ReasonCode::QUOTA_EXCEEDED, "the client takes too little of what is due to it"))
    }

    /// Since when a connection has taken less than it must while its output is long, or while publishers wait for its room: it
    /// reads and does not acknowledge.
    fn slow_since_us(&self, id: ConnId, limits: &ClientLimits) -> Option<u64> {
        let conn = self.conns.get(id)?;
        let is_long = conn.out.len() > self.pool.bound(limits.output_bytes) / 2;
        let long_us = is_long.then(|| conn.drained_us(self.now.mono_us));
        let session = conn.session.and_then(|key| self.sessions.get(key));
        let held_us = match session.map(|session| &session.kind) {
            Some(Kind::Clean(waiters)) => waiters
                .get()
                .filter(|w| w.taken_us != 0 && w.bytes >= self.pool.bound(limits.pending_bytes))
                .map(|w| w.taken_us),
            _ => None,
        };
        [long_us, held_us].into_iter().flatten().min()
    }

    pub(crate) fn session_timer(&mut self, key: SessionKey) {
        let now_us = self.now.mono_us;
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.timer_us == 0 || now_us < session.timer_us {
            return;
        }
        session.timer_us = 0;
        if session.expires_us != 0 && session.expires_us <= now_us {
            self.drop_session(key);
            return;
        }
        let published = self.publish_due_will(key);
        self.arm_session(key);
        if published {
            // Rows and the will's end in one batch.
            let ended_wall_ms =
                self.sessions.get(key).map(|session| session.ended_wall_ms(self.steady, self.now));
            if let Some((op, due)) = self.session_op(key, ended_wall_ms) {
                self.op(op, due);
            }
        }
    }

    /// Publishes a will whose delay is over, and says whether there was one: its end belongs into the same batch.
    pub(crate) fn publish_due_will(&mut self, key: SessionKey) -> bool {
        let now_us = self.now.mono_us;
        let Some(session) = self.sessions.get_mut(key) else { return false };
        let Some(mut late) = session.late_will.take_if(|late| late.due_us <= now_us) else { return false };
        if self.standing.parks() && session.is_persistent() {
            // The session may be another node's by now, and the will with it.
            late.due_us = now_us + WILL_US;
            session.late_will = Some(late);
            return false;
        }
        let LateWill { will, publisher, .. } = *late;
        self.publish_will(Some(key), &publisher, &will, true);
        true
    }
}

/// Numbers of joint commits that no parcel has: those of parcels are ids, and a place would have to be used two billion times to
/// meet one of these while it is open.
const OWN_JOINTS: Number = 1 << 63;

/// Bytes on their way to the store beyond which nothing new is admitted: 64 MiB, a second of what a slow disk takes.
const PENDING_BYTES: usize = 64 << 20;

/// While the store admits nothing it is asked again this often.
const ADMISSION_US: u64 = 250_000;

/// A will of a stored session that is due while this node may not acknowledge is looked at again after this.
pub(crate) const WILL_US: u64 = 1_000_000;

/// What nobody waits for is written with the next commit, or after this: 1 s (contract 2).
const LAZY_US: u64 = 1_000_000;
