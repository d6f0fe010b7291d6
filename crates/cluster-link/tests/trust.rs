//! Who gets a link, and what those are told who do not.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{Node, TOKEN, config, heartbeat, id, until, until_up};
use ferrule_cluster_link::{Config, Sought, Tls, TlsFiles, Token, Trust};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;
use tempfile::TempDir;

/// Two nodes of which the first dials and is refused; both say why.
fn refused(a: Config, b: Config, told: &str) {
    let (a, b) = (Node::start(a), Node::start(b));
    a.connect(&b);
    refused_by(&a, &b, told);
}

fn refused_by(a: &Node, b: &Node, told: &str) {
    let counts = || (a.links().counters().refused, b.links().counters().refused);
    until("one of them refuses, more than once", || counts().0 + counts().1 >= 2);
    let trouble = a.links().trouble(b.id).unwrap();
    assert!(trouble.contains(told), "{trouble}");
    assert_eq!((a.ups(), b.ups()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_token_is_refused() {
    let other = Trust::Token(Token::new("another token, as long").unwrap());
    let b = Config { trust: other, ..config(id(2, 8)) };
    refused(config(id(1, 7)), b, "it does not have the join token of this node: give all nodes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_refused() {
    let b = Config { cluster: "others".into(), ..config(id(2, 8)) };
    refused(
        config(id(1, 7)),
        b,
        r#"it is of cluster "tests", this node of "others": give both the same name"#,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_store_is_refused() {
    let store = |name: &str, of| Config { store: name.into(), ..config(of) };
    refused(store("one", id(1, 7)), store("two", id(2, 8)), "it keeps its sessions in another store");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_at_an_address_learns_whether_it_belongs_there() {
    // The one with the higher number, which dials nobody.
    let a = Node::start(Config { store: "one".into(), ..config(id(9, 1)) });
    let ours = Node::start(Config { store: "one".into(), ..config(id(2, 8)) });
    let seeker = a.links().seeker();
    let ask = async |node: &Node| seeker.ask(&node.links().address().to_string()).await.unwrap();
    assert_eq!(ask(&ours).await, Sought::Ours);
    assert_eq!(ask(&a).await, Sought::Ours);
    let token = Trust::Token(Token::new("another token, as long").unwrap());
    for (config, wanted) in [
        (Config { store: "two".into(), ..config(id(3, 1)) }, "it keeps its sessions in another store"),
        (Config { cluster: "others".into(), ..config(id(3, 1)) }, "it is of cluster"),
        (Config { trust: token, ..config(id(3, 1)) }, "it does not have the join token"),
        (Config { versions: 7..=9, ..config(id(3, 1)) }, "upgrade the older"),
    ] {
        let stranger = Node::start(config);
        let Sought::Strangers(why) = ask(&stranger).await else { panic!("{wanted}") };
        let address = stranger.links().address().to_string();
        assert!(why.contains(wanted) && why.contains(&address), "{why}");
    }
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().to_string();
    let nobody = ferrule_testkit::port::free_addr().to_string();
    for (seed, wanted) in
        [(&*nobody, "cannot connect"), (&silent, "does not answer"), ("no port", "no address")]
    {
        let Some(Sought::Nobody(why)) = seeker.ask(seed).await else { panic!("{seed}") };
        assert!(why.contains(wanted) && why.contains(seed), "{why}");
    }
    // A link comes up beside all that, and nothing else came of it.
    assert_eq!((a.ups(), ours.ups()), (0, 0));
    ours.connect(&a);
    until_up(&a, &ours);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_must_overlap() {
    let a = Config { versions: 1..=1, ..config(id(1, 7)) };
    let b = Config { versions: 2..=3, ..config(id(2, 8)) };
    refused(a, b, "it speaks the versions 1 to 1 of the protocol, this node 2 to 3: upgrade the older");
    // One before or after is fine, as an upgrade that goes from node to node has it.
    let a = Node::start(Config { versions: 1..=2, ..config(id(1, 7)) });
    let b = Node::start(Config { versions: 2..=3, ..config(id(2, 8)) });
    a.connect(&b);
    until_up(&a, &b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_link_to_itself_or_its_copy() {
    let (a, copy) = (Node::start(config(id(1, 7))), Node::start(config(id(1, 8))));
    a.connect(&a);
    // What it takes for the address of node 2 leads to itself, and to one whose data folder was copied.
    let b = id(2, 8);
    for at in [&a, &copy] {
        a.connect_by(b, at.links().address());
        until("it was refused", || {
            a.links().trouble(b).is_some_and(|text| text.contains("or a data folder was copied"))
        });
        a.links().forget(b);
    }
    assert_eq!((a.ups(), copy.ups()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_at_an_address_is_told_and_another_address_is_tried() {
    let (a, b) = (Node::start(config(id(1, 7))), Node::start(config(id(2, 8))));
    let nobody = ferrule_testkit::port::free_addr().to_string();
    a.links().connect(b.id, std::slice::from_ref(&nobody));
    until("there is a reason", || a.links().trouble(b.id).is_some());
    let trouble = a.links().trouble(b.id).unwrap();
    assert!(trouble.contains(&nobody) && trouble.contains("cannot connect"), "{trouble}");
    a.links().connect(b.id, &["no port".into(), nobody, b.links().address().to_string()]);
    until_up(&a, &b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_not_served_and_stop_nobody() {
    let (a, b) = (Node::start(config(id(1, 7))), Node::start(config(id(2, 8))));
    let address = b.links().address();
    // As many that say nothing as are heard at once: they are let go after a while.
    let silent: Vec<_> = (0..80).map(|_| TcpStream::connect(address).unwrap()).collect();
    let talk: [&[u8]; 3] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x04\x08\x00\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    let talkers: Vec<_> = talk
        .map(|bytes| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(bytes).unwrap();
            stream
        })
        .into();
    for mut stream in silent.into_iter().chain(talkers) {
        stream.set_read_timeout(Some(common::LIMIT)).unwrap();
        let mut answer = Vec::new();
        // It ends, one way or the other, with nothing but HTTP/2's formalities.
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        assert!(!answer.windows(5).any(|bytes| bytes == b"tests"), "it introduced itself");
    }
    a.connect(&b);
    until_up(&a, &b);
}

// === certificates ===

struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "an authority of these tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    /// A certificate with this name, good for an hour, and `ca` as the authority that is believed.
    fn tls(&self, in_certificate: &str, asked_for: Option<&str>, ca: &Authority) -> Tls {
        let mut params = CertificateParams::new(vec![in_certificate.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = Duration::from_secs(ferrule_clock::wall_s().try_into().unwrap());
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + now + Duration::from_secs(3600);
        let key = KeyPair::generate().unwrap();
        let path = |name: &str| self.folder.path().join(name);
        std::fs::write(path("node.crt"), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(path("node.key"), key.serialize_pem()).unwrap();
        let files = TlsFiles {
            cert: path("node.crt"),
            key: path("node.key"),
            ca: ca.folder.path().join("ca.crt"),
            crl: None,
            name: asked_for.map(Into::into),
        };
        files.load().unwrap().0
    }
}

fn with(node: u64, trust: Trust) -> Config {
    Config { trust, ..config(id(node, 7)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_one_authority_make_a_link() {
    let ca = Authority::new();
    let tls = || ca.tls("127.0.0.1", None, &ca);
    let token = || Token::new(TOKEN).unwrap();
    for trust in [Trust::Tls(tls()), Trust::TokenAndTls(token(), tls())] {
        let (a, b) = (Node::start(with(1, trust.clone())), Node::start(with(2, trust)));
        a.connect(&b);
        until_up(&a, &b);
        a.to(b.id).data(common::numbered(3, 3 << 20));
        b.to(a.id).message(heartbeat(1));
        until("it is of use", || a.heartbeats() == [1] && b.data() == [3]);
    }
    // A certificate is not enough where a token is asked for.
    let both = Trust::TokenAndTls(token(), tls());
    refused(with(1, Trust::Tls(tls())), with(2, both), "it does not have the join token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_all_certificates_have_does_for_any_address() {
    let ca = Authority::new();
    let tls = || Trust::Tls(ca.tls("node.ferrule", Some("node.ferrule"), &ca));
    let (a, b) = (Node::start(with(1, tls())), Node::start(with(2, tls())));
    a.connect(&b);
    until_up(&a, &b);
    // Without it, the certificate is for another name than the address.
    let strict = Node::start(with(0, Trust::Tls(ca.tls("node.ferrule", None, &ca))));
    strict.connect(&b);
    until("there is a reason", || {
        strict
            .links()
            .trouble(b.id)
            .is_some_and(|text| text.contains("its certificate is not for the host that it advertises"))
    });
    // Certificates can be exchanged.
    strict.links().set_tls(ca.tls("node.ferrule", Some("node.ferrule"), &ca));
    until_up(&strict, &b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_others_make_none() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let token = || Token::new(TOKEN).unwrap();
    let b = Node::start(with(2, Trust::TokenAndTls(token(), ours.tls("127.0.0.1", None, &ours))));
    let none = |a: Trust, why: &str| {
        let a = Node::start(with(1, a));
        a.connect(&b);
        until("there is a reason", || a.links().trouble(b.id).is_some_and(|text| text.contains(why)));
        assert_eq!((a.ups(), b.ups()), (0, 0));
    };
    // It does not believe the other side.
    none(Trust::Tls(theirs.tls("127.0.0.1", None, &theirs)), "its certificate is of another authority");
    // It does, and is not believed: what it hears is an alert.
    none(Trust::Tls(theirs.tls("127.0.0.1", None, &ours)), "this node's certificate is of another authority");
    // The right token, and no TLS.
    none(Trust::Token(token()), "");
}
