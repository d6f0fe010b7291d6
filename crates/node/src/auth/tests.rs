#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Of the least cost that Argon2 has.
fn cheap(password: &str) -> PasswordHash {
    let params = Params::new(8, 1, 1, None).unwrap();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    PasswordHash(Box::new(argon2.hash_password(password.as_bytes()).unwrap()))
}

#[test]
fn memory_is_used_again_whatever_was_in_it() {
    let hash = |m, t, p, version, password: &str| {
        let argon2 = Argon2::new(Algorithm::Argon2id, version, Params::new(m, t, p, None).unwrap());
        PasswordHash(Box::new(argon2.hash_password(password.as_bytes()).unwrap()))
    };
    let small = hash(8, 1, 1, Version::V0x13, "small");
    let large = hash(64, 3, 2, Version::V0x13, "large");
    let old = hash(32, 2, 1, Version::V0x10, "old");
    let mut memory = Vec::new();
    for _ in 0..2 {
        for (hash, right) in [(&small, "small"), (&large, "large"), (&old, "old")] {
            assert_eq!(hash.verify(right.as_bytes(), &mut memory), Ok(true), "{right}");
            assert_eq!(hash.verify(b"wrong", &mut memory), Ok(false), "{right}");
        }
    }
    assert_eq!(memory.len(), 64, "the largest");
}

#[test]
fn who_waits_when_others_are_in_force_may_come_again() {
    let (authenticator, answers) = start(&users(), 0, 8);
    let attempt = |password| Attempt {
        client_id: "c",
        username: Some("ann"),
        password: Some(password),
        certificate: None,
        peer: std::net::Ipv4Addr::LOCALHOST.into(),
        anonymous: Anonymous::Nobody,
    };
    assert!(matches!(authenticator.verify(7, attempt(b"example")), Verdict::Later));
    authenticator.retire();
    let (conn, answer) = answers.try_recv().unwrap();
    assert_eq!((conn, answer.unwrap_err()), (7, Refused::Busy));
    let late = authenticator.verify(8, attempt(b"example"));
    assert!(matches!(late, Verdict::Now(Err(Refused::Busy))), "{late:?}");
}

type Answers = Receiver<(u64, Result<Principal, Refused>)>;

fn user(name: &str, credential: Credential) -> User {
    User {
        name: name.into(),
        credential,
        scram: None,
        access: AccessLists::default(),
        role: UserRole::Device,
    }
}

fn users() -> Vec<User> {
    let mut edge = user("press-7", Credential::Plain(Secret::new("plain secret".into())));
    edge.role = UserRole::Edge("press-7".into());
    vec![user("ann", Credential::Hash(cheap("example"))), edge]
}

fn start(users: &[User], threads: usize, queue_max: usize) -> (Authenticator, Answers) {
    let (send, answers) = channel();
    let on_verdict = move |conn, answer| drop(send.send((conn, answer)));
    let lists = AccessLists { publish: Some(vec!["open/${clientid}".into()]), ..AccessLists::default() };
    let certified = AccessLists { publish: Some(vec!["of/${username}".into()]), ..AccessLists::default() };
    (
        Authenticator::with_bounds(
            users,
            (&lists, &certified),
            Issue::default(),
            (threads, queue_max),
            Box::new(on_verdict),
        )
        .unwrap(),
        answers,
    )
}

fn attempt<'a>(username: Option<&'a str>, password: Option<&'a str>) -> Attempt<'a> {
    Attempt {
        client_id: "c1",
        username,
        password: password.map(str::as_bytes),
        certificate: None,
        peer: "127.0.0.1".parse().unwrap(),
        anonymous: Anonymous::Nobody,
    }
}

/// What came at once, `None` for later.
fn now(verdict: Verdict) -> Option<Result<Option<Arc<str>>, Refused>> {
    match verdict {
        Verdict::Now(answer) => Some(answer.map(|principal| principal.username)),
        Verdict::Later => None,
    }
}

fn next(answers: &Answers) -> (u64, Result<Option<Arc<str>>, Refused>) {
    let (conn, answer) = answers.recv_timeout(Duration::from_secs(60)).expect("an answer");
    (conn, answer.map(|principal| principal.username))
}

#[test]
fn a_certificate_names_its_client_whatever_the_client_says() {
    let (auth, _answers) = start(&users(), 0, 10);
    let with =
        |certificate| Attempt { certificate: Some(certificate), ..attempt(Some("ann"), Some("wrong")) };
    let Verdict::Now(Ok(device)) = auth.verify(1, with("press-9")) else { panic!() };
    assert_eq!((device.username.as_deref(), device.role), (Some("press-9"), Role::Device));
    assert_eq!(["of/press-9", "of/ann"].map(|topic| device.acl.may_publish(topic)), [true, false]);
    let Verdict::Now(Ok(edge)) = auth.verify(1, with("press-7")) else { panic!() };
    assert_eq!(edge.role, Role::Edge { edge_id: "press-7".into() });
    // A user without a password cannot be had by one.
    let (auth, answers) = start(&[user("press-9", Credential::None)], 1, 10);
    assert_eq!(now(auth.verify(7, attempt(Some("press-9"), Some("")))), None);
    assert_eq!(next(&answers), (7, Err(Refused::BadCredentials)));
}

#[test]
fn what_is_known_is_answered_at_once() {
    let (auth, _answers) = start(&users(), 0, 10);
    let ok = |name: &str| Some(Ok(Some(Arc::from(name))));
    for (username, password, answer) in [
        (None, None, Some(Err(Refused::NotAuthorized))),
        (None, Some("x"), Some(Err(Refused::NotAuthorized))),
        (Some("ann"), None, Some(Err(Refused::BadCredentials))),
        (Some("nobody"), None, Some(Err(Refused::BadCredentials))),
        (Some("press-7"), Some("plain secret"), ok("press-7")),
        // These pay for Argon2, whoever they name.
        (Some("press-7"), Some("plain secres"), None),
        (Some("nobody"), Some("x"), None),
        (Some("ann"), Some("example"), None),
        (Some("ann"), Some("exampl"), None),
        (Some(""), Some("x"), None),
    ] {
        assert_eq!(now(auth.verify(1, attempt(username, password))), answer, "{username:?} {password:?}");
    }
    assert_eq!(auth.waiting(), 5);
}

#[test]
fn passwords_are_verified_by_the_pool_and_remembered() {
    let (auth, answers) = start(&users(), 2, 10);
    for (conn, username, password, answer) in [
        (1, "nobody", "example", Err(Refused::BadCredentials)),
        (2, "ann", "wrong", Err(Refused::BadCredentials)),
        (3, "press-7", "wrong", Err(Refused::BadCredentials)),
        (4, "ann", "example", Ok(Some(Arc::from("ann")))),
    ] {
        assert_eq!(now(auth.verify(conn, attempt(Some(username), Some(password)))), None, "{username}");
        assert_eq!(next(&answers), (conn, answer));
    }
    // Remembered: the right one at once, a wrong one and another user's still through the pool.
    assert_eq!(now(auth.verify(5, attempt(Some("ann"), Some("example")))), Some(Ok(Some("ann".into()))));
    assert_eq!(now(auth.verify(6, attempt(Some("ann"), Some("Example")))), None);
    assert_eq!(next(&answers), (6, Err(Refused::BadCredentials)));
    assert_eq!(now(auth.verify(7, attempt(Some("nobody"), Some("example")))), None);
    assert_eq!(next(&answers), (7, Err(Refused::BadCredentials)));
    assert_eq!(
        now(auth.verify(8, attempt(Some("ann"), Some("example")))),
        Some(Ok(Some("ann".into()))),
        "still"
    );
}

#[test]
fn a_full_queue_is_busy_but_not_for_those_who_are_remembered() {
    let (auth, _answers) = start(&users(), 0, 2);
    assert_eq!(now(auth.verify(1, attempt(Some("ann"), Some("a")))), None);
    assert_eq!(now(auth.verify(2, attempt(Some("ann"), Some("b")))), None);
    assert_eq!(now(auth.verify(3, attempt(Some("ann"), Some("example")))), Some(Err(Refused::Busy)));
    assert_eq!(auth.waiting(), 2);
    let plain = attempt(Some("press-7"), Some("plain secret"));
    assert_eq!(now(auth.verify(4, plain)), Some(Ok(Some("press-7".into()))));
}

#[test]
fn roles_and_lists_come_with_the_name() {
    let (auth, _answers) = start(&users(), 0, 2);
    let Verdict::Now(Ok(edge)) = auth.verify(1, attempt(Some("press-7"), Some("plain secret"))) else {
        panic!("it is known")
    };
    assert_eq!(edge.role, Role::Edge { edge_id: "press-7".into() });
    assert!(edge.acl.may_publish("$ferrule/press-7/x") && edge.acl.may_publish("a"));
}

#[test]
fn clients_without_a_name() {
    let open =
        |peer: &str, anonymous| Attempt { peer: peer.parse().unwrap(), anonymous, ..attempt(None, None) };
    for users in [users(), Vec::new()] {
        let (auth, _answers) = start(&users, 0, 2);
        for (peer, anonymous, admitted) in [
            ("127.0.0.1", Anonymous::Loopback, true),
            ("10.0.0.1", Anonymous::Loopback, false),
            ("10.0.0.1", Anonymous::Anyone, true),
            ("127.0.0.1", Anonymous::Nobody, false),
        ] {
            match auth.verify(1, open(peer, anonymous)) {
                Verdict::Now(Ok(principal)) => {
                    assert!(admitted, "{peer}");
                    assert_eq!((principal.username, &principal.role), (None, &Role::Device));
                    assert!(principal.acl.may_publish("open/c1") && !principal.acl.may_publish("open/c2"));
                }
                Verdict::Now(Err(refused)) => {
                    assert!(!admitted && refused == Refused::NotAuthorized, "{peer}")
                }
                Verdict::Later => panic!("nothing to verify"),
            }
        }
        // A name that nobody can prove: refused where there are users, not believed where there are none.
        let named =
            Attempt { username: Some("x"), password: Some(b"y"), ..open("127.0.0.1", Anonymous::Loopback) };
        assert_eq!(now(auth.verify(1, named)), if users.is_empty() { Some(Ok(None)) } else { None });
    }
}

#[test]
fn dropping_ends_the_threads() {
    let (auth, answers) = start(&users(), 2, 100);
    for conn in 0..100 {
        let _ = auth.verify(conn, attempt(Some("ann"), Some("wrong")));
    }
    drop(auth);
    assert!(answers.into_iter().count() <= 100, "the channel closes with the threads");
}

#[test]
fn hashes() {
    let hash = PasswordHash::of(b"p").unwrap();
    let mut memory = Vec::new();
    assert!(hash.verify(b"p", &mut memory).unwrap() && !hash.verify(b"q", &mut memory).unwrap());
    assert!(hash.reveal().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "OWASP's cost");
    assert_eq!(PasswordHash::parse(&hash.reveal()), Ok(hash.clone()));
    assert_ne!(PasswordHash::of(b"p").unwrap(), hash, "a salt of its own");
    for text in [
        "",
        "$argon2id$",
        "p",
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ",
        "$scrypt$ln=1,r=1,p=1$c2FsdHNhbHQ$7D2ihTn",
    ] {
        assert!(PasswordHash::parse(text).is_err(), "{text}");
    }
}

#[test]
fn the_decoy_costs_what_users_cost() {
    let known =
        |users: &[User]| users.iter().map(|user| KnownUser::new(user, Issue::default())).collect::<Vec<_>>();
    let plain = known(&users()[1..]);
    assert_eq!(decoy(&plain).unwrap().cost(), 19_456 * 2);
    assert_eq!(decoy(&known(&users())).unwrap().cost(), 8);
}
