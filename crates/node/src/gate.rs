//! Who may connect, for a shard: the authenticator's verdict, and what a gateway may claim.
//!
//! # Other users
//! Users and what listeners ask for ([`Keys`]) are exchanged as a whole. Who is in the middle of proving a password then, by the old ones,
//! is told to come again: nobody gets in by what is not in force any more. Who was let in is reviewed by each shard
//! ([`ferrule_broker::Shard::review`]): it has what its user may do now, or goes where it would not be let in any more. A password is
//! not asked for again: each user has the number of the keys since which what it has to prove is the same, and what a client
//! may do has the number of those that it was judged by.

use crate::access::{Acl, Principal, Role as AccessRole};
use crate::auth::{Attempt, Authenticator, Issue, Refused, Verdict, Who};
use crate::config::{AccessLists, Anonymous, BrokerConfig, ListenerConfig, User};
use crate::scram;
use ferrule_broker::{Access, ConnId, ConnectRequest, Exchange, Gate, Grant, Refusal, Role, Standing, Step};
use ferrule_mqtt::{Properties, PropertiesBuf, Property, ReasonCode};
use ferrule_net::{Inbox, Mail};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The gate of one worker. All of a node's share one authenticator: its threads, their memory and what it remembers are the node's.
pub struct NodeGate {
    worker: u16,
    shared: Arc<Shared>,
}

/// What the gates of a node share, and the right to exchange it.
pub struct Gatekeeper {
    shared: Arc<Shared>,
    /// Takes late verdicts: the worker, the connection.
    tell: Arc<Tell>,
}

type Tell = dyn Fn(u16, ConnId, Result<Grant, Refusal>) + Send + Sync;

struct Shared {
    keys: Mutex<Arc<Keys>>,
    /// The number of those.
    in_force: Arc<AtomicU64>,
    asked: Arc<Asked>,
}

/// Users, and what listeners ask for.
pub struct Keys {
    number: u64,
    authenticator: Authenticator,
    doors: Doors,
}

/// What listeners ask of those who come, by their numbers.
type Doors = Arc<[(u16, Door)]>;

fn door(doors: &Doors, listener: usize) -> Option<&Door> {
    doors.iter().find(|(number, _)| usize::from(*number) == listener).map(|(_, door)| door)
}

impl Shared {
    fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_in_force(&self, number: u64) -> bool {
        self.in_force.load(Ordering::Acquire) == number
    }
}

/// What a listener asks of those who come.
#[derive(Debug, Clone, Default)]
struct Door {
    anonymous: Anonymous,
    /// Names come from certificates.
    by_certificate: bool,
    /// The keys since which that is so, or is not.
    since: u64,
    /// Whom alone it is for.
    users: Option<Box<[String]>>,
}

impl Door {
    fn of(listener: &ListenerConfig, issue: u64, before: &Doors) -> Self {
        let by_certificate = listener.username_from.is_some();
        let before = door(before, listener.number.into());
        let before = before.filter(|before| before.by_certificate == by_certificate);
        Self {
            anonymous: listener.anonymous,
            by_certificate,
            since: before.map_or(issue, |before| before.since),
            users: listener.users.clone().map(Into::into),
        }
    }

    /// Whether it is for this user.
    fn lets_in(&self, principal: &Principal) -> Result<(), Refusal> {
        let Some(users) = &self.users else { return Ok(()) };
        match &principal.username {
            Some(name) if !users.iter().any(|user| **user == **name) => Err(Refusal {
                reason: ReasonCode::NOT_AUTHORIZED,
                message: format!("the listener's `users` do not name `{name}`"),
            }),
            _ => Ok(()),
        }
    }
}

/// Passwords that are being verified.
#[derive(Default)]
struct Asked {
    /// The authenticator's name for a try.
    next: AtomicU64,
    tries: Mutex<HashMap<u64, Try>>,
}

/// Who asked, and what it claims.
struct Try {
    worker: u16,
    conn: ConnId,
    listener: usize,
    claim: Claim,
}

impl Asked {
    fn tries(&self) -> MutexGuard<'_, HashMap<u64, Try>> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a CONNECT says of itself in user properties: how a gateway shows that it is one (`ferrule_link`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Claim {
    /// `ferrule: 1`.
    ferrule: bool,
    /// `ferrule-edge`.
    edge: Option<String>,
    /// `ferrule-boot`.
    boot: Option<Box<str>>,
    /// `ferrule-batch: 1`.
    batch: bool,
    /// `ferrule-dictionary`: it is the one that is here.
    dictionary: bool,
}

impl Claim {
    fn of(properties: Properties<'_>) -> Self {
        let mut claim = Self::default();
        for (name, value) in properties.user_properties() {
            match name {
                "ferrule" => claim.ferrule = value == "1",
                "ferrule-edge" => claim.edge = Some(value.into()),
                "ferrule-boot" => claim.boot = Some(value.into()),
                ferrule_batch::NAME => claim.batch = value == ferrule_batch::VERSION_TEXT,
                ferrule_batch::DICTIONARY_NAME => {
                    claim.dictionary = value == ferrule_batch::dictionary::name()
                }
                _ => {}
            }
        }
        claim
    }

    /// The grant of a principal that claims this.
    fn grant(self, principal: Principal) -> Result<Grant, Refusal> {
        let mut properties = PropertiesBuf::new();
        let role = match (principal.role, self.ferrule) {
            (AccessRole::Edge { edge_id }, true) => {
                if self.edge.as_deref() != Some(&*edge_id) {
                    return Err(Refusal {
                        reason: ReasonCode::NOT_AUTHORIZED,
                        message: format!(
                            "says it is edge `{}`, its user may speak for `{edge_id}` alone",
                            self.edge.unwrap_or_default()
                        ),
                    });
                }
                let mut say = |name, value| {
                    // Two short strings: they encode.
                    let _ = properties.push(Property::UserProperty(name, value));
                };
                say("ferrule", "1");
                if self.batch {
                    say(ferrule_batch::NAME, ferrule_batch::VERSION_TEXT);
                    if self.dictionary {
                        say(ferrule_batch::DICTIONARY_NAME, &ferrule_batch::dictionary::name());
                    }
                }
                Role::Edge(edge_id)
            }
            // A gateway's user without a gateway's CONNECT is any client.
            (AccessRole::Edge { .. } | AccessRole::Device, _) => Role::Device,
        };
        let life = self.boot.filter(|_| role != Role::Device);
        Ok(Grant { role, username: principal.username, access: principal.acl, properties, life })
    }
}

impl Gatekeeper {
    /// For the workers of these inboxes, to which late verdicts go.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new<M: Send + 'static>(config: &BrokerConfig, inboxes: &[Inbox<M>]) -> std::io::Result<Self> {
        Self::with(&config.users, (&config.anonymous, &config.certificate), &config.listeners, inboxes)
    }

    fn with<M: Send + 'static>(
        users: &[User],
        lists: (&AccessLists, &AccessLists),
        listeners: &[ListenerConfig],
        inboxes: &[Inbox<M>],
    ) -> std::io::Result<Self> {
        let to = inboxes.to_vec();
        let tell: Arc<Tell> = Arc::new(move |worker: u16, conn, verdict| {
            to[usize::from(worker)].post(Mail::Admitted(conn, verdict));
        });
        // Until its own users are there, it has none.
        let none = Authenticator::new(&[], lists, Issue::default(), |_, _| {})?;
        let none = Keys { number: 0, authenticator: none, doors: Arc::default() };
        let (keys, in_force) = (Mutex::new(Arc::new(none)), Arc::default());
        let shared = Shared { keys, in_force, asked: Arc::default() };
        let keeper = Self { shared: Arc::new(shared), tell };
        let keys = keeper.make(users, lists, listeners)?;
        keeper.exchange(keys);
        Ok(keeper)
    }

    /// The gate of a worker, by its place among the inboxes.
    #[must_use]
    pub fn gate(&self, worker: u16) -> NodeGate {
        NodeGate { worker, shared: Arc::clone(&self.shared) }
    }

    /// What is to be in force next.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn prepare(&self, config: &BrokerConfig) -> std::io::Result<Keys> {
        self.make(&config.users, (&config.anonymous, &config.certificate), &config.listeners)
    }

    fn make(
        &self,
        users: &[User],
        lists: (&AccessLists, &AccessLists),
        listeners: &[ListenerConfig],
    ) -> std::io::Result<Keys> {
        let before = self.shared.keys();
        let number = before.number + 1;
        let door = |listener: &ListenerConfig| (listener.number, Door::of(listener, number, &before.doors));
        let doors: Doors = listeners.iter().map(door).collect();
        // Not all that is shared: the threads are part of it, and none of them may be the last to let go.
        let (asked, in_force) = (Arc::clone(&self.shared.asked), Arc::clone(&self.shared.in_force));
        let (tell, known) = (Arc::clone(&self.tell), Arc::clone(&doors));
        let issue = Issue { number, before: Some(&before.authenticator) };
        let authenticator = Authenticator::new(users, lists, issue, move |id, verdict| {
            // Held until it is told: what comes after others are in force was judged by them, and is not reviewed again.
            let mut tries = asked.tries();
            let Some(Try { worker, conn, listener, claim }) = tries.remove(&id) else { return };
            let is_current = in_force.load(Ordering::Acquire) == number;
            let verdict = if is_current { verdict } else { Err(Refused::Busy) };
            tell(worker, conn, judged(verdict, self::door(&known, listener), claim));
        })?;
        Ok(Keys { number, authenticator, doors })
    }

    /// Puts it in force.
    pub fn exchange(&self, keys: Keys) {
        let tries = self.shared.asked.tries();
        self.shared.in_force.store(keys.number, Ordering::Release);
        drop(tries);
        let mut current = self.shared.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *current, Arc::new(keys));
        drop(current);
        old.authenticator.retire();
    }
}

impl Keys {
    /// What a client may do that was let in by others.
    fn review(&self, client: &Standing<'_>) -> Result<Principal, &'static str> {
        let door = door(&self.doors, client.listener).ok_or("its listener is gone")?;
        let authenticator = &self.authenticator;
        let principal = match (client.certificate, client.username) {
            (Some(name), username) if door.by_certificate => {
                let is_same = username == Some(name);
                is_same.then(|| authenticator.certified(name, client.client_id)).ok_or("its name is another")
            }
            (Some(_), _) if door.since > client.issued => {
                Err("certificates do not name clients there any more")
            }
            (_, Some(name)) => {
                let known = authenticator.known(name, client.client_id, client.issued);
                known.ok_or("its user is gone, or has another password")
            }
            (_, None) => {
                let is_admitted = door.anonymous.admits(client.peer);
                is_admitted.then(|| authenticator.anonymous(client.client_id)).ok_or("it needs a name")
            }
        }?;
        door.lets_in(&principal).map_err(|_| "it is not among the listener's users")?;
        let edge = match &principal.role {
            AccessRole::Edge { edge_id } => Some(&**edge_id),
            AccessRole::Device => None,
        };
        if client.edge.is_some() && client.edge != edge {
            return Err("its user may not speak for that edge any more");
        }
        Ok(principal)
    }
}

impl Gate for NodeGate {
    fn admit(&mut self, conn: ConnId, request: &ConnectRequest<'_>) -> Option<Result<Grant, Refusal>> {
        let claim = Claim::of(request.properties);
        let (keys, asked) = (self.shared.keys(), &self.shared.asked);
        let door = door(&keys.doors, request.listener);
        let attempt = Attempt {
            client_id: request.client_id,
            username: request.username,
            password: request.password,
            peer: request.peer,
            certificate: request.certificate.filter(|_| door.is_some_and(|door| door.by_certificate)),
            anonymous: door.map(|door| door.anonymous).unwrap_or_default(),
        };
        let number = asked.next.fetch_add(1, Ordering::Relaxed);
        // Before the answer can come. A claim whose connection ends meanwhile goes with the verdict.
        let listener = request.listener;
        asked.tries().insert(number, Try { worker: self.worker, conn, listener, claim: claim.clone() });
        match keys.authenticator.verify(number, attempt) {
            Verdict::Later => None,
            Verdict::Now(verdict) => {
                asked.tries().remove(&number);
                Some(judged(verdict, door, claim))
            }
        }
    }

    fn exchange(&mut self, request: &ConnectRequest<'_>, method: &str) -> Option<Box<dyn Exchange>> {
        let keys = self.shared.keys();
        if method != scram::METHOD || !keys.authenticator.knows_scram() {
            return None;
        }
        Some(Box::new(ByScram {
            door: door(&keys.doors, request.listener).cloned(),
            keys,
            shared: Arc::clone(&self.shared),
            claim: Claim::of(request.properties),
            client_id: request.client_id.into(),
            challenged: None,
        }))
    }

    fn review(&mut self, client: &Standing<'_>) -> Option<Result<Arc<dyn Access>, Refusal>> {
        let keys = self.shared.keys();
        if client.issued == keys.number {
            return None; // It came when they were in force already.
        }
        Some(keys.review(client).map(|principal| principal.acl as _).map_err(|why| {
            tracing::debug!(client = client.client_id, "has to go: {why}");
            Refusal { reason: ReasonCode::NOT_AUTHORIZED, message: why.into() }
        }))
    }
}

/// One client's SCRAM-SHA-256: two steps.
struct ByScram {
    keys: Arc<Keys>,
    shared: Arc<Shared>,
    door: Option<Door>,
    claim: Claim,
    client_id: Box<str>,
    /// After the first step. Nobody: a name that is not known, which no proof is right for.
    challenged: Option<(scram::Server, Option<Who>)>,
}

impl fmt::Debug for ByScram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByScram").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}

impl Exchange for ByScram {
    fn step(&mut self, data: &[u8]) -> Step {
        let refused = |message: String| {
            Step::Refused(Refusal { reason: ReasonCode::BAD_USER_NAME_OR_PASSWORD, message })
        };
        if !self.shared.is_in_force(self.keys.number) {
            return Step::Refused(refusal(Refused::Busy));
        }
        let Some((server, who)) = self.challenged.take() else {
            let first = match scram::First::parse(data) {
                Ok(first) => first,
                Err(failed) => return refused(failed.to_string()),
            };
            return match self.keys.authenticator.challenge(first) {
                Ok((server, challenge, who)) => {
                    self.challenged = Some((server, who));
                    Step::Continue(challenge.into())
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot draw a nonce");
                    Step::Refused(refusal(Refused::Busy))
                }
            };
        };
        match (server.finish(data), who) {
            (Ok(proof), Some(who)) => {
                let principal = who.principal(&self.client_id);
                match judged(Ok(principal), self.door.as_ref(), self.claim.clone()) {
                    Ok(grant) => Step::Done(Box::new(grant), proof.into()),
                    Err(refusal) => Step::Refused(refusal),
                }
            }
            (Ok(_), None) => refused(scram::Failed::Proof.to_string()),
            (Err(failed), _) => refused(failed.to_string()),
        }
    }
}

/// The authenticator's verdict, the listener's, and what the client claims.
fn judged(verdict: Result<Principal, Refused>, door: Option<&Door>, claim: Claim) -> Result<Grant, Refusal> {
    let principal = verdict.map_err(refusal)?;
    let gone = || Refusal { reason: ReasonCode::NOT_AUTHORIZED, message: "the listener is gone".into() };
    door.ok_or_else(gone)?.lets_in(&principal)?;
    claim.grant(principal)
}

fn refusal(refused: Refused) -> Refusal {
    let (reason, message) = match refused {
        Refused::BadCredentials => (ReasonCode::BAD_USER_NAME_OR_PASSWORD, "unknown name or wrong password"),
        Refused::NotAuthorized => (ReasonCode::NOT_AUTHORIZED, "a user name is needed on this listener"),
        Refused::Busy => (
            ReasonCode::SERVER_BUSY,
            "too many passwords wait to be verified, or the users have just changed",
        ),
    };
    Refusal { reason, message: message.into() }
}

impl Access for Acl {
    fn publish(&self, topic: &str) -> bool {
        self.may_publish(topic)
    }
    fn subscribe(&self, filter: &str) -> bool {
        self.may_subscribe(filter)
    }
    fn receive(&self, topic: &str) -> bool {
        self.may_receive(topic)
    }
    fn reads(&self, topic: &str) -> bool {
        self.may_read(topic)
    }
    fn issued(&self) -> u64 {
        self.issued()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::access::AclTemplate;
    use crate::config::{Credential, UserRole};
    use ferrule_broker::hook::NoHook;
    use ferrule_store::MemoryStore;

    type Poll = ferrule_net::Worker<NoHook, MemoryStore, ()>;

    #[test]
    fn a_gateway_is_who_its_user_may_be() {
        let edge = |id: &str| AccessRole::Edge { edge_id: id.into() };
        for (role, said, granted) in [
            (
                edge("press-7"),
                &[("ferrule", "1"), ("ferrule-edge", "press-7")][..],
                Some(Role::Edge("press-7".into())),
            ),
            (edge("press-7"), &[("ferrule", "1"), ("ferrule-edge", "press-8")], None),
            (edge("press-7"), &[("ferrule", "1")], None),
            // A gateway's user at another program.
            (edge("press-7"), &[("ferrule-edge", "press-8")], Some(Role::Device)),
            (edge("press-7"), &[("ferrule", "2"), ("ferrule-edge", "press-8")], Some(Role::Device)),
            // A device is believed nothing.
            (AccessRole::Device, &[("ferrule", "1"), ("ferrule-edge", "press-7")], Some(Role::Device)),
        ] {
            let mut properties = PropertiesBuf::new();
            for (name, value) in said {
                properties.push(Property::UserProperty(name, value)).unwrap();
            }
            properties.push(Property::UserProperty("ferrule-boot", "77")).unwrap();
            let acl = AclTemplate::new(AccessLists::default(), None, 0).fill("c", None);
            let principal = Principal { username: Some("u".into()), role, acl };
            let grant = Claim::of(properties.as_properties()).grant(principal);
            match granted {
                None => {
                    let refusal = grant.err().unwrap();
                    assert_eq!(refusal.reason, ReasonCode::NOT_AUTHORIZED, "0x87");
                    assert!(
                        refusal.message.contains("its user may speak for `press-7` alone"),
                        "{}",
                        refusal.message
                    );
                }
                Some(role) => {
                    let grant = grant.ok().unwrap();
                    let is_edge = role != Role::Device;
                    assert_eq!(
                        (grant.role, grant.life.as_deref()),
                        (role, is_edge.then_some("77")),
                        "{said:?}"
                    );
                    let answer: Vec<_> = grant.properties.as_properties().user_properties().collect();
                    assert_eq!(answer, if is_edge { vec![("ferrule", "1")] } else { vec![] });
                }
            }
        }
    }

    /// A gate whose user `ann` proves the password in steps, on a listener for her alone, and `bob`, who may not.
    fn gate() -> NodeGate {
        keeper("secret").gate(0)
    }

    fn users(password: &str) -> [User; 3] {
        let scram = Some(scram::Verifier::of(password, b"salt and pepper!", scram::ITERATIONS));
        let user = |name: &str, scram| User {
            name: name.into(),
            credential: Credential::None,
            scram,
            access: AccessLists::default(),
            role: UserRole::Device,
        };
        [user("ann", scram.clone()), user("bob", None), user("eve", scram)]
    }

    fn listener() -> ListenerConfig {
        let bind = "127.0.0.1:1883".parse().unwrap();
        let users = Some(vec!["ann".to_owned(), "bob".to_owned()]);
        ListenerConfig { users, ..ListenerConfig::plain(bind, ferrule_broker::ClientLimits::default()) }
    }

    fn keeper(password: &str) -> Gatekeeper {
        let (_, inbox) = Poll::poll().unwrap();
        let lists = AccessLists::default();
        Gatekeeper::with(&users(password), (&lists, &lists), &[listener()], &[inbox]).unwrap()
    }

    fn exchange(gate: &mut NodeGate, method: &str) -> Option<Box<dyn Exchange>> {
        let request = ConnectRequest {
            version: ferrule_mqtt::Version::V5,
            client_id: "c",
            username: None,
            password: None,
            peer: std::net::Ipv4Addr::LOCALHOST.into(),
            listener: 0,
            certificate: None,
            properties: Properties::EMPTY,
        };
        gate.exchange(&request, method)
    }

    #[test]
    fn a_password_proved_in_steps() {
        let mut gate = gate();
        assert!(exchange(&mut gate, "SCRAM-SHA-1").is_none());
        for (name, password, outcome) in [
            ("ann", "secret", Ok("ann")),
            ("ann", "Secret", Err(ReasonCode::BAD_USER_NAME_OR_PASSWORD)),
            // Known, and not this way; not known; and not on this listener.
            ("bob", "secret", Err(ReasonCode::BAD_USER_NAME_OR_PASSWORD)),
            ("zoe", "secret", Err(ReasonCode::BAD_USER_NAME_OR_PASSWORD)),
            ("eve", "secret", Err(ReasonCode::NOT_AUTHORIZED)),
        ] {
            let mut exchange = exchange(&mut gate, scram::METHOD).unwrap();
            let first = format!("n={name},r=abc");
            let Step::Continue(challenge) = exchange.step(format!("n,,{first}").as_bytes()) else {
                panic!("{name}")
            };
            let challenge = std::str::from_utf8(&challenge).unwrap();
            let (last, wanted) = scram::tests::prove(password, &first, challenge);
            let got = match exchange.step(last.as_bytes()) {
                Step::Done(grant, data) => {
                    assert_eq!(data, wanted.as_bytes());
                    Ok(grant.username.unwrap().to_string())
                }
                Step::Refused(refusal) => Err(refusal.reason),
                Step::Continue(_) => panic!("{name}"),
            };
            assert_eq!(got, outcome.map(str::to_owned), "{name}");
        }
        // Whoever is in the middle of it when the users change has to begin again.
        let keeper = keeper("secret");
        let mut gate = keeper.gate(0);
        for (password, outcome) in [("secret", ReasonCode::SERVER_BUSY), ("other", ReasonCode::SUCCESS)] {
            let mut exchange = exchange(&mut gate, scram::METHOD).unwrap();
            let Step::Continue(challenge) = exchange.step(b"n,,n=ann,r=abc") else { panic!("{password}") };
            if outcome == ReasonCode::SERVER_BUSY {
                let lists = AccessLists::default();
                keeper.exchange(keeper.make(&users("other"), (&lists, &lists), &[listener()]).unwrap());
            }
            let challenge = std::str::from_utf8(&challenge).unwrap();
            let (last, _) = scram::tests::prove(password, "n=ann,r=abc", challenge);
            let got = match exchange.step(last.as_bytes()) {
                Step::Done(..) => ReasonCode::SUCCESS,
                Step::Refused(refusal) => refusal.reason,
                Step::Continue(_) => panic!("{password}"),
            };
            assert_eq!(got, outcome, "{password}");
        }
        let mut gate = keeper.gate(0);
        // A step too many is a first one again.
        let mut exchange = exchange(&mut gate, scram::METHOD).unwrap();
        assert!(matches!(exchange.step(b"c=biws,r=x,p="), Step::Refused(_)));
    }
    /// What changes, and whether each of those who were let in before stays.
    #[test]
    fn who_stays_when_users_and_listeners_change() {
        type Change = fn(&mut Vec<User>, &mut ListenerConfig);
        // A user, an anonymous client, one with a certificate, a gateway, and a user behind a proxy that names a certificate.
        const ALL: [&str; 5] = ["ann", "", "cert", "edge", "proxied"];
        let cases: [(&str, Change, &[&str]); 12] = [
            ("nothing", |_, _| {}, &ALL),
            ("order", |users, _| users.reverse(), &ALL),
            ("lists", |users, _| users[0].access.deny = vec!["x".into()], &ALL),
            (
                "a password",
                |users, _| users[0].credential = plain("another"),
                &["", "cert", "edge", "proxied"],
            ),
            ("a proof", |users, _| users[0].scram = None, &["", "cert", "edge", "proxied"]),
            ("a user", |users, _| drop(users.remove(0)), &["", "cert", "edge", "proxied"]),
            ("a role", |users, _| users[1].role = UserRole::Device, &["ann", "", "cert", "proxied"]),
            (
                "an edge",
                |users, _| users[1].role = UserRole::Edge("other".into()),
                &["ann", "", "cert", "proxied"],
            ),
            (
                "anonymous",
                |_, listener| listener.anonymous = Anonymous::Nobody,
                &["ann", "cert", "edge", "proxied"],
            ),
            (
                "users of the listener",
                |_, listener| listener.users = Some(vec!["ann".into(), "cert".into()]),
                &["ann", "", "cert"],
            ),
            ("names", |_, listener| listener.username_from = None, &["ann", "", "edge"]),
            ("the listener", |_, listener| listener.number = 1, &[]),
        ];
        let lists = AccessLists::default();
        for (name, change, stay) in cases {
            let mut users = users("secret").to_vec();
            users[1] = User { name: "edge".into(), role: UserRole::Edge("e-1".into()), ..users[1].clone() };
            users[2] = User { name: "proxied".into(), ..users[2].clone() };
            let mut listener = ListenerConfig {
                users: None,
                anonymous: Anonymous::Loopback,
                username_from: Some(ferrule_transport::tls::NameFrom::Cn),
                ..listener()
            };
            let (_, inbox) = Poll::poll().unwrap();
            let keeper = Gatekeeper::with(&users, (&lists, &lists), &[listener.clone()], &[inbox]).unwrap();
            let mut gate = keeper.gate(0);
            // By the first keys; and twice, since what was judged before must count from then on.
            let mut issued = 1;
            let mut reviewed = |issued: u64| -> Vec<&str> {
                let stays = |who: &&str| {
                    let standing = Standing {
                        client_id: who,
                        username: Some(*who).filter(|name| !name.is_empty()),
                        peer: std::net::Ipv4Addr::LOCALHOST.into(),
                        listener: 0,
                        certificate: Some(*who).filter(|name| ["cert", "proxied"].contains(name)),
                        edge: (*who == "edge").then_some("e-1"),
                        issued,
                    };
                    match gate.review(&standing) {
                        None => panic!("it is not reviewed"),
                        Some(Ok(access)) => access.issued() > issued,
                        Some(Err(refusal)) => {
                            assert_eq!(refusal.reason, ReasonCode::NOT_AUTHORIZED);
                            false
                        }
                    }
                };
                ALL.into_iter().filter(stays).collect()
            };
            for _ in 0..2 {
                keeper.exchange(keeper.make(&users, (&lists, &lists), &[listener.clone()]).unwrap());
                assert_eq!(reviewed(issued), ALL, "{name}");
                issued += 1;
            }
            change(&mut users, &mut listener);
            keeper.exchange(keeper.make(&users, (&lists, &lists), &[listener]).unwrap());
            assert_eq!(reviewed(issued), stay, "{name}");
        }
    }

    fn plain(password: &str) -> Credential {
        Credential::Plain(crate::auth::Secret::new(password.into()))
    }
}
