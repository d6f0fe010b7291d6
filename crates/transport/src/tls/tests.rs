//! Both sides in one process, joined by vectors.

#![allow(clippy::unwrap_used, reason = "tests")]

mod files;
mod known_time;
mod layer;
mod peers;

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use std::path::PathBuf;
use tempfile::TempDir;

/// Files of one test.
struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A certificate and its key, as `NAME.crt` and `NAME.key`.
    fn pair(&self, name: &str, (cert, key): &(String, String)) -> (PathBuf, PathBuf) {
        (self.write(&format!("{name}.crt"), cert), self.write(&format!("{name}.key"), key))
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let (params, key) = Self::params(name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// One below this one.
    fn authority(&self, name: &str) -> Self {
        let (params, key) = Self::params(name);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn params(name: &str) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params, KeyPair::generate().unwrap())
    }

    fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn server(&self, names: &[&str]) -> (String, String) {
        self.sign(names, |_| ())
    }

    fn client(&self, name: &str, serial: u64) -> (String, String) {
        self.sign(&[], |params| {
            params.distinguished_name.push(DnType::CommonName, name);
            params.serial_number = Some(SerialNumber::from(serial));
        })
    }

    fn revoke(&self, serials: &[u64], until_year: i32) -> String {
        let revoked = |&serial| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(until_year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn server_files(certificates: Vec<(PathBuf, PathBuf)>) -> ServerFiles {
    ServerFiles {
        certificates,
        client_ca: None,
        crl: None,
        client_required: false,
        tls12: true,
        alpn: vec![ALPN_MQTT.to_vec()],
    }
}

fn client_files(ca: PathBuf) -> ClientFiles {
    ClientFiles { ca: Some(ca), certificate: None, alpn: vec![ALPN_MQTT.to_vec()] }
}

/// Versions of TLS by what a client speaks.
const VERSIONS: [&[&rustls::SupportedProtocolVersion]; 2] =
    [&[&rustls::version::TLS13], &[&rustls::version::TLS12]];

/// A server for `broker.test` and a client that trusts it.
fn plain_configs(
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let (dir, ca) = (Dir::new(), Authority::new("ca"));
    let server = server_files(vec![dir.pair("server", &ca.server(&["broker.test"]))]);
    let client = client_files(dir.write("ca.crt", &ca.pem));
    (server.load().unwrap().0, client.load_versions(versions).unwrap().0)
}

/// One side and what lies between it and the other.
struct End {
    tls: Tls,
    /// Arrived, not used yet.
    inbox: Vec<u8>,
    /// Written, not arrived at the other side yet.
    wire: Vec<u8>,
    /// Plaintext.
    got: Vec<u8>,
    error: Option<TlsError>,
}

impl End {
    fn new(tls: Tls) -> Self {
        Self { tls, inbox: Vec::new(), wire: Vec::new(), got: Vec::new(), error: None }
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        match self.tls.receive(&mut self.inbox, &mut self.got, &mut self.wire) {
            Ok(used) => drop(self.inbox.drain(..used)),
            Err(error) => self.error = self.error.take().or(Some(error)),
        }
    }

    fn send(&mut self, plain: &[u8]) {
        self.tls.send(plain, &mut self.wire).unwrap();
    }

    fn close(&mut self) {
        self.tls.close(&mut self.wire);
    }
}

struct Pair {
    client: End,
    server: End,
}

impl Pair {
    fn new(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Self {
        Self::named(client, server, "broker.test")
    }

    fn named(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, name: &'static str) -> Self {
        let client = Tls::client(client, ServerName::try_from(name).unwrap()).unwrap();
        Self { client: End::new(client), server: End::new(Tls::server(server).unwrap()) }
    }

    /// Carries everything both ways until there is no more.
    fn run(&mut self) {
        self.run_in(|len| len);
    }

    /// In pieces: of `len` waiting bytes, `piece(len)`.
    fn run_in(&mut self, mut piece: impl FnMut(usize) -> usize) {
        self.client.receive(&[]);
        loop {
            let mut moved = false;
            for forth in [true, false] {
                let (from, to) = if forth {
                    (&mut self.client, &mut self.server)
                } else {
                    (&mut self.server, &mut self.client)
                };
                if !from.wire.is_empty() {
                    let len = piece(from.wire.len()).clamp(1, from.wire.len());
                    let bytes: Vec<u8> = from.wire.drain(..len).collect();
                    if to.error.is_none() {
                        to.receive(&bytes);
                    }
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn established(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Self {
        let mut pair = Self::new(client, server);
        pair.run();
        pair.check_established();
        pair
    }

    fn check_established(&self) {
        assert_eq!((&self.client.error, &self.server.error), (&None, &None));
        assert!(!self.client.tls.is_handshaking() && !self.server.tls.is_handshaking());
    }
}

/// A generator of tests' sizes and bytes (xorshift64*).
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| u8::try_from(self.next() >> 56).unwrap()).collect()
    }
}
