//! What a TLS connection keeps when nothing happens, and while it waits for a handshake.
#![allow(unsafe_code, missing_docs, clippy::unwrap_used, reason = "tests; a counting allocator needs it")]

use ferrule_transport::tls::{ALPN_MQTT, ServerFiles, Tls};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

thread_local! {
    /// Bytes that are allocated.
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all calls go on to `System` unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.with(|live| live.set(live.get() + layout.size().cast_signed()));
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LIVE.with(|live| live.set(live.get() - layout.size().cast_signed()));
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What one side may keep: the target of a whole idle TLS connection is 12 KiB, session and socket included.
const IDLE_BYTES_MAX: isize = 4 << 10;

/// What a server may keep between a client's hello and its proof: an attacker gets it for a hello of 300 bytes.
const HANDSHAKE_BYTES_MAX: isize = 8 << 10;

type Configs = (Arc<ServerConfig>, Arc<ClientConfig>);

fn configs(version: &'static SupportedProtocolVersion, mutual: bool) -> Configs {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let pair = |name: &str| {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &issuer).unwrap(), key)
    };
    let (cert, key) = pair("broker.test");
    let server = ServerFiles {
        certificates: vec![(file("server.crt", cert.pem()), file("server.key", key.serialize_pem()))],
        client_ca: mutual.then(|| file("ca.crt", ca.pem())),
        crl: None,
        client_required: mutual,
        tls12: true,
        alpn: vec![ALPN_MQTT.to_vec()],
    };
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let client = if mutual {
        let (cert, key) = pair("press-7");
        client.with_client_auth_cert(vec![cert.der().clone()], key.into()).unwrap()
    } else {
        client.with_no_client_auth()
    };
    (server.load().unwrap().0, Arc::new(client))
}

/// What `keep` allocates and does not free.
fn kept<T>(keep: impl FnOnce() -> T) -> (T, isize) {
    let before = LIVE.get();
    let kept = keep();
    (kept, LIVE.get() - before)
}

#[test]
fn a_connection_is_small() {
    for version in [&TLS13, &TLS12] {
        for mutual in [false, true] {
            let (server_config, client_config) = configs(version, mutual);
            // The second time resumed.
            for _ in 0..2 {
                let name = ServerName::try_from("broker.test").unwrap();
                let mut client = Tls::client(&client_config, name).unwrap();
                // Buffers are the caller's, and large enough for all that follows.
                let buffer = || Vec::with_capacity(1 << 16);
                let (mut up, mut down, mut plain) = (buffer(), buffer(), buffer());
                client.receive(&mut [], &mut plain, &mut up).unwrap();
                let (mut server, waiting) = kept(|| {
                    let mut server = Tls::server(&server_config).unwrap();
                    let used = server.receive(&mut up, &mut plain, &mut down).unwrap();
                    assert_eq!(used, up.len());
                    server
                });
                up.clear();
                while !up.is_empty() || !down.is_empty() {
                    let used = client.receive(&mut down, &mut plain, &mut up).unwrap();
                    down.drain(..used);
                    let used = server.receive(&mut up, &mut plain, &mut down).unwrap();
                    up.drain(..used);
                }
                // As long as a record may be: nothing of it may stay.
                client.send(&vec![0; 16_384], &mut up).unwrap();
                server.receive(&mut up, &mut plain, &mut down).unwrap();
                server.send(&vec![0; 16_384], &mut down).unwrap();
                client.receive(&mut down, &mut plain, &mut up).unwrap();
                assert_eq!(plain.len(), 32_768);
                let what = format!("{:?}, mutual {mutual}, {:?}", version.version, server.handshake_kind());
                let ((), server) = kept(|| drop(server));
                let ((), client) = kept(|| drop(client));
                eprintln!("{what}: server {}, client {}, server waiting {waiting} bytes", -server, -client);
                assert!(-server <= IDLE_BYTES_MAX && -client <= IDLE_BYTES_MAX, "{what}");
                assert!(waiting <= HANDSHAKE_BYTES_MAX, "{what}");
            }
        }
    }
}
