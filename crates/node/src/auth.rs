//! Authentication: who a CONNECT is from.
//!
//! # Design
//!
//! - Argon2 is slow on purpose (tens of milliseconds and 19 MiB a try), so it never runs on a worker. A fixed number of
//!   threads ([`THREADS`]) takes tries from a bounded queue ([`QUEUE_MAX`]); beyond it a try is [`Refused::Busy`] at
//!   once, and the client comes again. At most `THREADS` times the hash's memory is in use: each thread keeps what it has
//!   worked in, since an allocator that is asked for 19 MiB, aligned, and gets them back, hundreds of times (glibc's) ends up
//!   with twenty times as much.
//! - A right password is remembered as a keyed hash, under a key drawn for this process: a fleet that reconnects after
//!   a network fault costs no Argon2. One tag a user bounds it: a user has one right password.
//! - Whether a user exists cannot be told from the time an answer takes: an unknown name and a wrong password both pay
//!   for one Argon2, of the same cost as long as all hashes have one (`passwd` makes them so).
//! - What is known without Argon2 is answered in the call: no name, no password, a remembered or a plain one.
//!
//! # Not there
//! No I/O, no clock. The reason code of a refusal is the caller's: 0x86, 0x87, 0x89.

use crate::access::{AclTemplate, Principal, Role};
use crate::config::{AccessLists, Anonymous, Credential, User, UserRole};
use crate::scram::{First, NONCE_BYTES, Server, Verifier};
use argon2::password_hash::phc::Output;
use argon2::{Algorithm, Argon2, Block, Params, PasswordHasher, Version};
use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput, KeyInit, Update};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Threads that run Argon2: two keep a core free on the smallest gateway with more than two, and 38 MiB bounded.
pub const THREADS: usize = 2;

/// Tries that wait. At 40 ms each on two threads the last one waits 20 s, about what clients wait for a CONNACK.
pub const QUEUE_MAX: usize = 1_024;

/// The most memory that verifying one password may take, in KiB: a hash of more is refused in the configuration.
const MEMORY_KIB_MAX: u32 = 256 << 10;

/// The most passes over it.
const PASSES_MAX: u32 = 64;

/// A password or the like: never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Argon2's hash of a password, as `$argon2id$v=19$...`: never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(Box<argon2::PasswordHash>);

/// What a CONNECT says about its sender.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The client id in force: an assigned one, if the client sent none.
    pub client_id: &'a str,
    /// The user name.
    pub username: Option<&'a str>,
    /// The password.
    pub password: Option<&'a [u8]>,
    /// The name of its certificate, where the listener takes names from them.
    pub certificate: Option<&'a str>,
    /// Where it comes from.
    pub peer: IpAddr,
    /// Whom the listener admits without a name.
    pub anonymous: Anonymous,
}

/// The answer to an [`Attempt`].
#[derive(Debug)]
pub enum Verdict {
    /// It is known.
    Now(Result<Principal, Refused>),
    /// It comes through the callback given to [`Authenticator::new`].
    Later,
}

/// Why a client is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Unknown name or wrong password, which of the two is not told (MQTT 5: 0x86, 3.1.1: 4).
    BadCredentials,
    /// A name is needed here (0x87; 5).
    NotAuthorized,
    /// Too many tries wait, or the users have just changed: it may come again (0x89; 3).
    Busy,
}

/// Called with the connection and the answer, on one of the pool's threads; must not block.
pub type OnVerdict = dyn Fn(u64, Result<Principal, Refused>) + Send + Sync;

/// The users, and the threads that verify their passwords. Dropping it joins them; tries that wait get no answer.
pub struct Authenticator {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    users: Vec<KnownUser>,
    by_name: HashMap<String, usize>,
    anonymous: AclTemplate,
    /// Of clients with a certificate that are no users.
    certified: AclTemplate,
    /// What unknown names are verified against, to take the same time.
    decoy: Option<PasswordHash>,
    /// Of the tags: drawn for this authenticator.
    key: [u8; 32],
    queue: Mutex<Queue>,
    queue_max: usize,
    wake: Condvar,
    on_verdict: Box<OnVerdict>,
}

struct KnownUser {
    name: Arc<str>,
    credential: Credential,
    scram: Option<Verifier>,
    role: Role,
    acl: AclTemplate,
    /// Whoever was let in since these keys proved what has to be proved now.
    since: u64,
    /// The tag of the right password, once it was seen.
    verified: Mutex<Option<[u8; 32]>>,
}

/// Which keys an authenticator is of, and what was in force before it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Issue<'a> {
    /// Their number; it only grows.
    pub number: u64,
    /// The one before.
    pub before: Option<&'a Authenticator>,
}

/// A user of an authenticator.
pub struct Who {
    shared: Arc<Shared>,
    user: usize,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closing: bool,
}

struct Job {
    conn: u64,
    client_id: String,
    /// Index of the user; `None`: there is none of that name.
    user: Option<usize>,
    password: Vec<u8>,
}

// === impl Authenticator ===

impl Authenticator {
    /// Starts the threads, if there is a user; `on_verdict` gets the answers that were [`Verdict::Later`].
    ///
    /// # Errors
    /// When no thread can be started or the system has no randomness.
    pub fn new(
        users: &[User],
        lists: (&AccessLists, &AccessLists),
        issue: Issue<'_>,
        on_verdict: impl Fn(u64, Result<Principal, Refused>) + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        Self::with_bounds(users, lists, issue, (THREADS, QUEUE_MAX), Box::new(on_verdict))
    }

    fn with_bounds(
        users: &[User],
        (anonymous, certified): (&AccessLists, &AccessLists),
        issue: Issue<'_>,
        (threads, queue_max): (usize, usize),
        on_verdict: Box<OnVerdict>,
    ) -> std::io::Result<Self> {
        let mut key = [0; 32];
        draw(&mut key)?;
        let known: Vec<KnownUser> = users.iter().map(|user| KnownUser::new(user, issue)).collect();
        let shared = Arc::new(Shared {
            by_name: users.iter().enumerate().map(|(i, user)| (user.name.clone(), i)).collect(),
            decoy: if known.is_empty() { None } else { Some(decoy(&known)?) },
            users: known,
            anonymous: AclTemplate::new(anonymous.clone(), None, issue.number),
            certified: AclTemplate::new(certified.clone(), None, issue.number),
            key,
            queue: Mutex::default(),
            queue_max,
            wake: Condvar::new(),
            on_verdict,
        });
        let mut authenticator = Self { shared, threads: Vec::new() };
        for i in 0..if users.is_empty() { 0 } else { threads } {
            let shared = Arc::clone(&authenticator.shared);
            let thread =
                std::thread::Builder::new().name(format!("auth-{i}")).spawn(move || shared.work())?;
            authenticator.threads.push(thread);
        }
        Ok(authenticator)
    }

    /// Who sent this CONNECT. `conn` comes back with a later answer; by then it may have closed.
    pub fn verify(&self, conn: u64, attempt: Attempt<'_>) -> Verdict {
        let shared = &*self.shared;
        if let Some(name) = attempt.certificate {
            // Who signed the certificate vouches for the name, whatever the CONNECT says.
            return Verdict::Now(Ok(shared.certified(name, attempt.client_id)));
        }
        let admitted = attempt.anonymous.admits(attempt.peer);
        let Some(username) = attempt.username else {
            let answer =
                if admitted { Ok(shared.anonymous(attempt.client_id)) } else { Err(Refused::NotAuthorized) };
            return Verdict::Now(answer);
        };
        if shared.users.is_empty() {
            // There is nobody to be: a name that nobody can prove is not believed, and not a reason to refuse one
            // who may come without.
            let answer =
                if admitted { Ok(shared.anonymous(attempt.client_id)) } else { Err(Refused::BadCredentials) };
            return Verdict::Now(answer);
        }
        let Some(password) = attempt.password else {
            return Verdict::Now(Err(Refused::BadCredentials));
        };
        let user = shared.by_name.get(username).copied();
        if let Some(i) = user
            && shared.is_known(i, password)
        {
            return Verdict::Now(Ok(shared.users[i].principal(attempt.client_id)));
        }
        let mut queue = shared.queue();
        if queue.closing || queue.jobs.len() >= shared.queue_max {
            return Verdict::Now(Err(Refused::Busy));
        }
        let client_id = attempt.client_id.to_owned();
        queue.jobs.push_back(Job { conn, client_id, user, password: password.to_vec() });
        drop(queue);
        shared.wake.notify_one();
        Verdict::Later
    }

    /// Whether somebody may prove a password in steps.
    pub fn knows_scram(&self) -> bool {
        self.shared.users.iter().any(|user| user.scram.is_some())
    }

    /// Answers the first message of somebody who proves a password in steps: the exchange, its challenge, and who it is if it
    /// ends well. For a name that nobody has, or that may not, the same, and it cannot.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn challenge(&self, first: First) -> std::io::Result<(Server, String, Option<Who>)> {
        let shared = &*self.shared;
        let found = shared.by_name.get(&first.username).copied();
        let known = found.and_then(|user| Some((user, shared.users[user].scram.clone()?)));
        let (user, verifier) = known.unzip();
        let verifier = verifier.unwrap_or_else(|| Verifier::decoy(&shared.key, &first.username));
        let mut random = [0; NONCE_BYTES];
        draw(&mut random)?;
        let (server, challenge) = Server::new(first, verifier, random);
        Ok((server, challenge, user.map(|user| Who { shared: Arc::clone(&self.shared), user })))
    }

    /// What somebody may do who was let in under a name by the keys of this number; none: it would have to prove something else now.
    #[must_use]
    pub fn known(&self, name: &str, client_id: &str, issued: u64) -> Option<Principal> {
        let user = self.shared.user(name).filter(|user| user.since <= issued)?;
        Some(user.principal(client_id))
    }

    /// What somebody may do whom a certificate names.
    #[must_use]
    pub fn certified(&self, name: &str, client_id: &str) -> Principal {
        self.shared.certified(name, client_id)
    }

    /// What somebody may do who has no name.
    #[must_use]
    pub fn anonymous(&self, client_id: &str) -> Principal {
        self.shared.anonymous(client_id)
    }

    /// Others are in force: tries that wait, and those that still come, are told to come again. It returns at once.
    pub fn retire(&self) {
        let mut queue = self.shared.queue();
        queue.closing = true;
        let jobs = std::mem::take(&mut queue.jobs);
        drop(queue);
        self.shared.wake.notify_all();
        jobs.into_iter().for_each(|job| (self.shared.on_verdict)(job.conn, Err(Refused::Busy)));
    }

    /// How many tries wait.
    pub fn waiting(&self) -> usize {
        self.shared.queue().jobs.len()
    }
}

impl Drop for Authenticator {
    fn drop(&mut self) {
        self.shared.queue().closing = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was reported by the thread itself.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("users", &self.shared.users.len()).finish_non_exhaustive()
    }
}

// === impl Who ===

impl Who {
    /// The user, as this client.
    #[must_use]
    pub fn principal(&self, client_id: &str) -> Principal {
        self.shared.users[self.user].principal(client_id)
    }
}

impl fmt::Debug for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Who").field(&self.shared.users[self.user].name).finish()
    }
}

// === impl Shared ===

impl Shared {
    /// No invariant spans the lock: a panic while it was held left a whole queue.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn user(&self, name: &str) -> Option<&KnownUser> {
        self.by_name.get(name).map(|at| &self.users[*at])
    }

    fn anonymous(&self, client_id: &str) -> Principal {
        Principal { username: None, role: Role::Device, acl: self.anonymous.fill(client_id, None) }
    }

    fn certified(&self, name: &str, client_id: &str) -> Principal {
        if let Some(user) = self.user(name) {
            return user.principal(client_id);
        }
        let acl = self.certified.fill(client_id, Some(name));
        Principal { username: Some(name.into()), role: Role::Device, acl }
    }

    /// Whether the password is known to be right without Argon2.
    fn is_known(&self, user: usize, password: &[u8]) -> bool {
        let known = &self.users[user];
        let tag = self.tag(user, password);
        match &known.credential {
            // Both sides under the key: the time of the comparison tells nothing about the password.
            Credential::Plain(secret) => equal(&tag, &self.tag(user, secret.as_str().as_bytes())),
            Credential::None => false,
            Credential::Hash(_) => known.verified().is_some_and(|verified| equal(&tag, &verified)),
        }
    }

    fn tag(&self, user: usize, password: &[u8]) -> [u8; 32] {
        let mut mac = Blake2sMac256::new(&self.key.into());
        mac.update(&(user as u64).to_le_bytes());
        mac.update(password);
        mac.finalize_fixed().into()
    }

    fn work(&self) {
        let mut memory = Vec::new();
        loop {
            let mut queue = self.queue();
            let job = loop {
                if queue.closing {
                    return;
                }
                match queue.jobs.pop_front() {
                    Some(job) => break job,
                    None => queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(queue);
            let answer = self.judge(&job, &mut memory);
            (self.on_verdict)(job.conn, answer);
        }
    }

    fn judge(&self, job: &Job, memory: &mut Vec<Block>) -> Result<Principal, Refused> {
        let known = job.user.map(|i| (i, &self.users[i]));
        let (hash, known) = match (known, &self.decoy) {
            // Of several tries that waited together, the first did the work.
            (Some((i, known)), _) if self.is_known(i, &job.password) => {
                return Ok(known.principal(&job.client_id));
            }
            (Some((i, KnownUser { credential: Credential::Hash(hash), .. })), _) => (hash, Some(i)),
            (_, Some(decoy)) => (decoy, None),
            (_, None) => return Err(Refused::BadCredentials),
        };
        let right = hash.verify(&job.password, memory).map_err(|error| {
            // Out of memory: the client may come again.
            tracing::warn!(%error, "cannot verify a password");
            Refused::Busy
        })?;
        match known {
            Some(i) if right => {
                let tag = self.tag(i, &job.password);
                *self.users[i].verified.lock().unwrap_or_else(PoisonError::into_inner) = Some(tag);
                Ok(self.users[i].principal(&job.client_id))
            }
            _ => Err(Refused::BadCredentials),
        }
    }
}

// === impl KnownUser ===

impl KnownUser {
    fn new(user: &User, issue: Issue<'_>) -> Self {
        let before = issue.before.and_then(|before| before.shared.user(&user.name));
        let is_same = |known: &&Self| known.credential == user.credential && known.scram == user.scram;
        let edge_id = match &user.role {
            UserRole::Device => None,
            UserRole::Edge(id) => Some(Arc::<str>::from(id.as_str())),
        };
        Self {
            name: user.name.as_str().into(),
            credential: user.credential.clone(),
            scram: user.scram.clone(),
            acl: AclTemplate::new(user.access.clone(), edge_id.clone(), issue.number),
            role: edge_id.map_or(Role::Device, |edge_id| Role::Edge { edge_id }),
            since: before.filter(is_same).map_or(issue.number, |known| known.since),
            verified: Mutex::new(None),
        }
    }

    fn principal(&self, client_id: &str) -> Principal {
        let acl = self.acl.fill(client_id, Some(&self.name));
        Principal { username: Some(Arc::clone(&self.name)), role: self.role.clone(), acl }
    }

    fn verified(&self) -> Option<[u8; 32]> {
        *self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The costliest hash of the users; where all have plain passwords, one of a password that nobody knows.
fn decoy(users: &[KnownUser]) -> std::io::Result<PasswordHash> {
    let hashes = users.iter().filter_map(|user| match &user.credential {
        Credential::Hash(hash) => Some(hash),
        Credential::Plain(_) | Credential::None => None,
    });
    if let Some(costliest) = hashes.max_by_key(|hash| hash.cost()) {
        return Ok(costliest.clone());
    }
    let mut password = [0; 32];
    draw(&mut password)?;
    PasswordHash::of(&password).map_err(std::io::Error::other)
}

fn draw(bytes: &mut [u8]) -> std::io::Result<()> {
    getrandom::fill(bytes).map_err(|e| std::io::Error::other(e.to_string()))
}

/// In a time that does not depend on where they differ.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

// === impl PasswordHash ===

impl PasswordHash {
    /// Hashes a password, with Argon2id, a salt of its own and OWASP's cost (19 MiB, two passes).
    ///
    /// # Errors
    /// When memory or randomness are missing.
    pub fn of(password: &[u8]) -> Result<Self, String> {
        Argon2::default().hash_password(password).map(|hash| Self(Box::new(hash))).map_err(|e| e.to_string())
    }

    /// Reads `$argon2id$v=19$m=...,t=...,p=...$salt$hash` (argon2i and argon2d likewise).
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let hash = argon2::PasswordHash::new(text)
            .map_err(|_| "it is not of the form $argon2id$v=19$...".to_owned())?;
        if !hash.algorithm.as_str().starts_with("argon2") {
            return Err(format!("its algorithm is {:?}, not \"argon2id\"", hash.algorithm.as_str()));
        }
        if hash.salt.is_none() || hash.hash.is_none() {
            return Err("its salt or its hash is missing".to_owned());
        }
        let params = Params::try_from(&hash).map_err(|_| "its parameters are out of range".to_owned())?;
        if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX {
            return Err(format!(
                "each try would take {} KiB and {} passes: at most {MEMORY_KIB_MAX} and {PASSES_MAX} are accepted",
                params.m_cost(),
                params.t_cost()
            ));
        }
        Ok(Self(Box::new(hash)))
    }

    /// As [`PasswordHash::parse`] reads it: not for logs.
    #[must_use]
    pub fn reveal(&self) -> String {
        self.0.to_string()
    }

    /// Whether the password is right. `memory` is what Argon2 works in: it grows to what this hash asks for, and what was in it
    /// does not matter.
    fn verify(&self, password: &[u8], memory: &mut Vec<Block>) -> Result<bool, argon2::password_hash::Error> {
        let hash = &*self.0;
        let (Some(salt), Some(expected)) = (&hash.salt, &hash.hash) else { return Ok(false) };
        let algorithm = Algorithm::try_from(hash.algorithm.as_str())?;
        let version = hash.version.map(Version::try_from).transpose()?.unwrap_or_default();
        let params = Params::try_from(hash)?;
        let blocks = params.block_count();
        if memory.len() < blocks {
            *memory = Vec::new();
            memory.try_reserve_exact(blocks).map_err(|_| argon2::Error::OutOfMemory)?;
            memory.resize(blocks, Block::default());
        }
        let mut buffer = [0; Output::MAX_LENGTH];
        let out = &mut buffer[..expected.len()];
        let argon2 = Argon2::new(algorithm, version, params);
        argon2.hash_password_into_with_memory(password, salt, out, &mut memory[..blocks])?;
        // `Output` compares in a time that does not depend on where they differ.
        Ok(*expected == Output::new(out)?)
    }

    /// In KiB times passes.
    fn cost(&self) -> u64 {
        Params::try_from(&*self.0).map_or(0, |p| u64::from(p.m_cost()) * u64::from(p.t_cost()))
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

// === impl Secret ===

impl Secret {
    /// From its text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text: not for logs.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

// === impl Refused ===

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadCredentials => "unknown user name or wrong password",
            Self::NotAuthorized => "a user name is needed",
            Self::Busy => "too many passwords wait to be verified",
        })
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests;
