//! Who may connect, for a shard: the authenticator's verdict, and what a gateway may claim.
//!
//! # Other users
//! Users and what listeners ask for ([`Keys`]) are exchanged as a whole, for those who come from then on. Who is in the middle of
//! proving a password then, by the old ones, is told to come again: nobody gets in by what is not in force any more.

use crate::access::{Acl, Principal, Role as AccessRole};
use crate::auth::{Attempt, Authenticator, Refused, Verdict, Who};
use crate::config::{AccessLists, Anonymous, BrokerConfig, ListenerConfig, User};
use crate::scram;
use ferrule_broker::{Access, ConnId, ConnectRequest, Exchange, Gate, Grant, Refusal, Role, Step};
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
    doors: Arc<[Door]>,
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
    /// Whom alone it is for.
    users: Option<Box<[String]>>,
}

impl Door {
    fn of(listener: &ListenerConfig) -> Self {
        Self {
            anonymous: listener.anonymous,
            by_certificate: listener.username_from.is_some(),
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
        Self::with(&config.users, (&config.anonymous, &config.certificate), doors(config), inboxes)
    }

    fn with<M: Send + 'static>(
        users: &[User],
        lists: (&AccessLists, &AccessLists),
        doors: Arc<[Door]>,
        inboxes: &[Inbox<M>],
    ) -> std::io::Result<Self> {
        let to = inboxes.to_vec();
        let tell: Arc<Tell> = Arc::new(move |worker: u16, conn, verdict| {
            to[usize::from(worker)].post(Mail::Admitted(conn, verdict));
        });
        // Until its own users are there, it has none.
        let none = Authenticator::new(&[], lists, |_, _| {})?;
        let none = Keys { number: 0, authenticator: none, doors: Arc::default() };
        let (keys, in_force) = (Mutex::new(Arc::new(none)), Arc::default());
        let shared = Shared { keys, in_force, asked: Arc::default() };
        let keeper = Self { shared: Arc::new(shared), tell };
        let keys = keeper.make(users, lists, doors)?;
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
        self.make(&config.users, (&config.anonymous, &config.certificate), doors(config))
    }

    fn make(
        &self,
        users: &[User],
        lists: (&AccessLists, &AccessLists),
        doors: Arc<[Door]>,
    ) -> std::io::Result<Keys> {
        let number = self.shared.in_force.load(Ordering::Acquire) + 1;
        // Not all that is shared: the threads are part of it, and none of them may be the last to let go.
        let (asked, in_force) = (Arc::clone(&self.shared.asked), Arc::clone(&self.shared.in_force));
        let (tell, known) = (Arc::clone(&self.tell), Arc::clone(&doors));
        let authenticator = Authenticator::new(users, lists, move |id, verdict| {
            let Some(Try { worker, conn, listener, claim }) = asked.tries().remove(&id) else { return };
            let is_current = in_force.load(Ordering::Acquire) == number;
            let verdict = if is_current { verdict } else { Err(Refused::Busy) };
            tell(worker, conn, judged(verdict, known.get(listener), claim));
        })?;
        Ok(Keys { number, authenticator, doors })
    }

    /// Puts it in force.
    pub fn exchange(&self, keys: Keys) {
        self.shared.in_force.store(keys.number, Ordering::Release);
        let mut current = self.shared.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *current, Arc::new(keys));
        drop(current);
        old.authenticator.retire();
    }
}

fn doors(config: &BrokerConfig) -> Arc<[Door]> {
    config.listeners.iter().map(Door::of).collect()
}

impl Gate for NodeGate {
    fn admit(&mut self, conn: ConnId, request: &ConnectRequest<'_>) -> Option<Result<Grant, Refusal>> {
        let claim = Claim::of(request.properties);
        let (keys, asked) = (self.shared.keys(), &self.shared.asked);
        let door = keys.doors.get(request.listener);
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
            door: keys.doors.get(request.listener).cloned(),
            keys,
            shared: Arc::clone(&self.shared),
            claim: Claim::of(request.properties),
            client_id: request.client_id.into(),
            challenged: None,
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
    door.map_or(Ok(()), |door| door.lets_in(&principal))?;
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
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::access::AclTemplate;

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
            let acl = AclTemplate::new(AccessLists::default(), None).fill("c", None);
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
            credential: crate::config::Credential::None,
            scram,
            access: AccessLists::default(),
            role: crate::config::UserRole::Device,
        };
        [user("ann", scram.clone()), user("bob", None), user("eve", scram)]
    }

    fn door() -> Arc<[Door]> {
        [Door { users: Some(["ann".to_owned(), "bob".to_owned()].into()), ..Door::default() }].into()
    }

    fn keeper(password: &str) -> Gatekeeper {
        let (_, inbox) =
            ferrule_net::Worker::<ferrule_broker::hook::NoHook, ferrule_store::MemoryStore, ()>::poll()
                .unwrap();
        let lists = AccessLists::default();
        Gatekeeper::with(&users(password), (&lists, &lists), door(), &[inbox]).unwrap()
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
                keeper.exchange(keeper.make(&users("other"), (&lists, &lists), door()).unwrap());
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
}
