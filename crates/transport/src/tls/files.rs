//! From files to rustls' configurations.
//!
//! # Design
//!
//! - [`ServerFiles::load`] and [`ClientFiles::load`] read everything anew and change nothing: the caller keeps what it has
//!   until they succeed, so a certificate half written, or a key that does not fit, never ends a service.
//! - Each server configuration has ticket keys of its own: after a load (of a new `client_ca`, a new `crl`) no session of
//!   before is resumed, and everybody is verified again. A revoked client's connection that is open stays open; ending it is
//!   the caller's.
//! - Tickets carry the session itself, but in builds where std's clock ends in 2038 ([`ferrule_clock::STD_ENDS_IN_2038`]): there they name one
//!   that is kept, of the last 1024.
//! - A session can be resumed for 12 hours, also past the end of the client's certificate: it was verified when the session
//!   began (OpenSSL does the same).
//! - Revocation is checked for the whole chain below `client_ca`, and fails closed: without a list of an issuer, or with one
//!   past its next update, that issuer's certificates are refused (as nginx and, for the last certificate of the chain,
//!   mosquitto do). A list that is silently not used would be worse than one that is missed.
//! - ALPN: a client that names protocols, none of which this listener speaks, is refused (RFC 7301, 3.2), since it or whoever
//!   redirected it is talking to the wrong service; a client that names none, as most do, is welcome. A browser names
//!   `http/1.1` for `wss://`, so that is what a WebSocket listener speaks.
//! - rustls' order of suites and groups: X25519 first, AES-256-GCM before AES-128-GCM before ChaCha20; clients without AES
//!   in hardware put ChaCha20 first themselves, and the server takes the client's order.

use super::certificate::CertificateInfo;
use super::known_time::KnownTime;
use super::resolver::ByName;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    ClientConfig, InconsistentKeys, RootCertStore, ServerConfig, SupportedProtocolVersion, version,
};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

/// MQTT's protocol name (IANA's registry of ALPN protocol ids).
pub const ALPN_MQTT: &[u8] = b"mqtt";

/// The one under which WebSocket's handshake runs (RFC 6455, 1.8; RFC 7301).
pub const ALPN_HTTP: &[u8] = b"http/1.1";

/// The largest file that is read: authorities of a whole system are 0.3 MiB, a list of 100 000 revoked certificates 6 MiB.
pub const FILE_BYTES_MAX: u64 = 16 << 20;

/// Sessions kept for TLS 1.2 clients that know no tickets (embedded stacks), and where there are none for all; about 1 KiB each.
const SESSIONS_MAX: usize = 1024;

/// Tickets for each TLS 1.3 connection: a device holds one connection, and uses one ticket to make the next.
const TICKETS: usize = 1;

const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
const ONLY_13: &[&SupportedProtocolVersion] = &[&version::TLS13];

/// What a listener's TLS is made of; all files are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// Certificate chain (the server's first, then what certifies it) and key (PKCS#8, SEC1 or PKCS#1, not encrypted) of
    /// each. The first is the default; the others are for the DNS names in them.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    /// Whose clients' certificates are accepted. Without it, none is asked for.
    pub client_ca: Option<PathBuf>,
    /// Lists of revoked certificates, of every authority below and in `client_ca`.
    pub crl: Option<PathBuf>,
    /// Whether a client must show a certificate. If not, one without is let in and has no name; one with a bad
    /// certificate is refused either way.
    pub client_required: bool,
    /// Whether TLS 1.2 is spoken beside 1.3.
    pub tls12: bool,
    /// [`ALPN_MQTT`] or [`ALPN_HTTP`].
    pub alpn: Vec<Vec<u8>>,
}

/// What an uplink's TLS is made of; all files are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// Whose servers' certificates are accepted. None: the system's authorities'.
    pub ca: Option<PathBuf>,
    /// Certificate chain and key, as in [`ServerFiles::certificates`].
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// [`ALPN_MQTT`] or [`ALPN_HTTP`].
    pub alpn: Vec<Vec<u8>>,
}

/// Why files make no configuration. The caller keeps the one it has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", .file.display())]
pub struct LoadError {
    /// The file (of several that contradict each other, the one to look at first).
    pub file: PathBuf,
    /// What is wrong, and what to do.
    pub problem: String,
}

pub(super) type Chain = Vec<CertificateDer<'static>>;

/// Time for rustls, which would ask std.
#[derive(Debug)]
struct WallClock;

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(ferrule_clock::for_certificates()))
    }
}

// === impl ServerFiles ===

impl ServerFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// The first file that cannot be used. The caller keeps what it has.
    pub fn load(&self) -> Result<(Arc<ServerConfig>, Vec<CertificateInfo>), LoadError> {
        let provider = Arc::new(default_provider());
        let mut infos = Vec::new();
        let mut resolver = ByName::new();
        for (index, (cert, key)) in self.certificates.iter().enumerate() {
            let pair = certified(cert, key, &provider, &mut infos)?;
            let names = dns_names(cert, &pair)?;
            if index > 0 && names.is_empty() {
                return Err(error(
                    cert,
                    "it has no DNS name, so no client could ask for it; only the first needs none",
                ));
            }
            resolver.add(pair, names.iter().map(String::as_str));
        }
        if self.certificates.is_empty() {
            return Err(error(Path::new("tls"), "no certificate is given: set `cert` and `key`"));
        }
        let versions = if self.tls12 { BOTH } else { ONLY_13 };
        let builder = ServerConfig::builder_with_details(Arc::clone(&provider), Arc::new(WallClock))
            .with_protocol_versions(versions)
            .map_err(|e| error(Path::new("tls"), e))?;
        let builder = match (&self.client_ca, &self.crl) {
            (Some(ca), _) => builder.with_client_cert_verifier(self.verifier(ca, &provider, &mut infos)?),
            (None, Some(crl)) => {
                return Err(error(
                    crl,
                    "without `client_ca` no client shows a certificate that could be revoked: set it",
                ));
            }
            (None, None) if self.client_required => {
                let (first, _) = &self.certificates[0];
                return Err(error(
                    first,
                    "clients must show certificates, but `client_ca` does not say whose: set it",
                ));
            }
            (None, None) => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols.clone_from(&self.alpn);
        // Its keys change by std's clock.
        if !ferrule_clock::STD_ENDS_IN_2038 {
            config.ticketer = Ticketer::new().map_err(|e| error(Path::new("tls"), e))?;
        }
        config.send_tls13_tickets = TICKETS;
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
        Ok((Arc::new(config), infos))
    }

    /// What judges the certificates that clients show, for whoever has to judge one again that was shown before; none without
    /// [`client_ca`](Self::client_ca).
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_verifier(&self) -> Result<Option<Arc<dyn ClientCertVerifier>>, LoadError> {
        let verifier = |ca| self.verifier(ca, &Arc::new(default_provider()), &mut Vec::new());
        self.client_ca.as_deref().map(verifier).transpose()
    }

    fn verifier(
        &self,
        ca: &Path,
        provider: &Arc<CryptoProvider>,
        infos: &mut Vec<CertificateInfo>,
    ) -> Result<Arc<dyn ClientCertVerifier>, LoadError> {
        let roots = Arc::new(authorities(ca)?);
        let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
            .enforce_revocation_expiration();
        if !self.client_required {
            verifier = verifier.allow_unauthenticated();
        }
        if let Some(crl) = &self.crl {
            verifier = verifier.with_crls(revocation_lists(crl, infos)?);
        }
        verifier.build().map_err(|e| error(self.crl.as_deref().unwrap_or(ca), e))
    }

    /// Every file that [`load`](Self::load) reads.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let pairs = self.certificates.iter().flat_map(|(cert, key)| [cert, key]);
        pairs.chain(&self.client_ca).chain(&self.crl).cloned().collect()
    }
}

// === impl ClientFiles ===

impl ClientFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// As [`ServerFiles::load`].
    pub fn load(&self) -> Result<(Arc<ClientConfig>, Vec<CertificateInfo>), LoadError> {
        self.load_versions(BOTH)
    }

    /// As [`load`](Self::load); the server's certificate may be for any name. Whoever has one of the same authority can be in
    /// between: for people who look for a fault, never for an uplink.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_any_name(&self) -> Result<(Arc<ClientConfig>, Vec<CertificateInfo>), LoadError> {
        self.load_with(BOTH, true, None)
    }

    pub(super) fn load_versions(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<(Arc<ClientConfig>, Vec<CertificateInfo>), LoadError> {
        self.load_with(versions, false, None)
    }

    /// As [`load`](Self::load); servers whose certificates are in the lists of the file `crl` are refused. It has one of every
    /// authority below and in [`ca`](Self::ca).
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_without_revoked(
        &self,
        crl: &Path,
    ) -> Result<(Arc<ClientConfig>, Vec<CertificateInfo>), LoadError> {
        self.load_with(BOTH, false, Some(crl))
    }

    fn load_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        any_name: bool,
        crl: Option<&Path>,
    ) -> Result<(Arc<ClientConfig>, Vec<CertificateInfo>), LoadError> {
        let provider = Arc::new(default_provider());
        let mut infos = Vec::new();
        let (roots, from) = match &self.ca {
            Some(ca) => (authorities(ca)?, ca.as_path()),
            None => (system_authorities()?, Path::new(SYSTEM)),
        };
        let mut verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .enforce_revocation_expiration();
        if let Some(crl) = crl {
            verifier = verifier.with_crls(revocation_lists(crl, &mut infos)?);
        }
        let verifier = verifier.build();
        let builder = ClientConfig::builder_with_details(Arc::clone(&provider), Arc::new(WallClock))
            .with_protocol_versions(versions)
            .map_err(|e| error(Path::new("tls"), e))?;
        let verifier = verifier.map_err(|e| error(crl.unwrap_or(from), e))?;
        let verifier = KnownTime { verifier, any_name, is_behind: ferrule_clock::is_behind };
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.certificate {
            Some((cert, key)) => {
                let pair = certified(cert, key, &provider, &mut infos)?;
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(pair)))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        Ok((Arc::new(config), infos))
    }

    /// Every file that [`load`](Self::load) reads; the system's are not among them.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let pair = self.certificate.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca.iter().chain(pair).cloned().collect()
    }
}

/// What stands for the system's authorities in an error.
const SYSTEM: &str = "the system's CA certificates";

fn error(file: &Path, problem: impl ToString) -> LoadError {
    LoadError { file: file.to_owned(), problem: problem.to_string() }
}

/// A chain with its key.
fn certified(
    cert: &Path,
    key: &Path,
    provider: &CryptoProvider,
    infos: &mut Vec<CertificateInfo>,
) -> Result<CertifiedKey, LoadError> {
    let chain = chain(cert)?;
    for der in &chain {
        infos.push(CertificateInfo::of_certificate(cert, &parse(cert, der)?));
    }
    let der = private_key(key, cert)?;
    let signing = provider.key_provider.load_private_key(der);
    let signing = signing.map_err(|e| {
        error(
            key,
            format!(
                "the key cannot be used ({e}): RSA of 2048 bits or more, ECDSA P-256, P-384 or Ed25519 can"
            ),
        )
    })?;
    let pair = CertifiedKey::new(chain, signing);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(pair),
        Err(rustls::Error::InconsistentKeys(_)) => Err(error(key, misfit(cert, &pair))),
        Err(other) => Err(error(cert, other)),
    }
}

/// Why the key does not fit the first certificate.
fn misfit(cert: &Path, pair: &CertifiedKey) -> String {
    let fits = |der| CertifiedKey::new(vec![der], Arc::clone(&pair.key)).keys_match().is_ok();
    match pair.cert.iter().skip(1).position(|der| fits(der.clone())) {
        Some(index) => format!(
            "the key fits certificate number {} of {}, which must be the first there: put those that certify it after it",
            index + 2,
            cert.display()
        ),
        None => {
            format!("the key does not fit the certificate in {}: they must be made together", cert.display())
        }
    }
}

/// The DNS names that a certificate is for.
fn dns_names(file: &Path, pair: &CertifiedKey) -> Result<Vec<String>, LoadError> {
    let Some(first) = pair.cert.first() else { return Ok(Vec::new()) };
    let certificate = parse(file, first)?;
    let san = certificate
        .subject_alternative_name()
        .map_err(|e| error(file, format!("its names cannot be read: {e}")))?;
    let names = san.iter().flat_map(|san| &san.value.general_names);
    Ok(names
        .filter_map(|n| if let GeneralName::DNSName(n) = n { Some((*n).to_owned()) } else { None })
        .collect())
}

pub(super) fn parse<'a>(file: &Path, der: &'a [u8]) -> Result<X509Certificate<'a>, LoadError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(e) => Err(error(file, format!("the certificate is damaged: {e}"))),
    }
}

pub(super) fn chain(file: &Path) -> Result<Chain, LoadError> {
    let sections = sections(file)?;
    let certificates = sections.iter().filter(|(kind, _)| *kind == SectionKind::Certificate);
    let chain: Chain = certificates.map(|(_, der)| CertificateDer::from(der.clone())).collect();
    if chain.is_empty() {
        return Err(error(file, format!("there is no certificate in it{}", instead(&sections))));
    }
    Ok(chain)
}

/// `cert`: where its certificate is, for the advice to swap them.
fn private_key(file: &Path, cert: &Path) -> Result<PrivateKeyDer<'static>, LoadError> {
    let sections = sections(file)?;
    let mut keys = sections.iter().filter_map(|(kind, der)| PrivateKeyDer::from_pem(*kind, der.clone()));
    match (keys.next(), keys.next()) {
        (Some(key), None) => Ok(key),
        (Some(_), Some(_)) => {
            Err(error(file, format!("there are several keys in it: leave the one of {}", cert.display())))
        }
        (None, _) => Err(error(file, format!("there is no key in it{}", instead(&sections)))),
    }
}

fn authorities(file: &Path) -> Result<RootCertStore, LoadError> {
    let mut roots = RootCertStore::empty();
    for der in chain(file)? {
        roots.add(der).map_err(|e| error(file, format!("a certificate in it cannot be used: {e}")))?;
    }
    Ok(roots)
}

fn system_authorities() -> Result<RootCertStore, LoadError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some systems carry authorities that webpki cannot read; the others do.
    let (_, _) = roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|e| format!(" ({e})")).unwrap_or_default();
        return Err(error(
            Path::new(SYSTEM),
            format!(
                "there are none{why}: install them (on Debian `apt install ca-certificates`) or name a file in `ca`"
            ),
        ));
    }
    Ok(roots)
}

fn revocation_lists(
    file: &Path,
    infos: &mut Vec<CertificateInfo>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, LoadError> {
    let sections = sections(file)?;
    let mut lists = Vec::new();
    for (_, der) in sections.iter().filter(|(kind, _)| *kind == SectionKind::Crl) {
        let parsed = CertificateRevocationList::from_der(der);
        let (_, list) =
            parsed.map_err(|e| error(file, format!("a revocation list in it is damaged: {e}")))?;
        infos.extend(CertificateInfo::of_revocation_list(file, &list));
        lists.push(CertificateRevocationListDer::from(der.clone()));
    }
    if lists.is_empty() {
        return Err(error(file, format!("there is no revocation list in it{}", instead(&sections))));
    }
    Ok(lists)
}

type Sections = Vec<(SectionKind, Vec<u8>)>;

/// What there is where something else should be, and what to do.
fn instead(sections: &Sections) -> &'static str {
    match sections.first().map(|(kind, _)| *kind) {
        None => ": it needs a line -----BEGIN …-----",
        Some(SectionKind::Certificate) => {
            ", but a certificate: are two files swapped, like `cert` and `key`?"
        }
        Some(SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey) => {
            ", but a key: are two files swapped, like `cert` and `key`?"
        }
        Some(SectionKind::Crl) => ", but a revocation list: it belongs into `crl`",
        Some(SectionKind::Csr) => ", but a request for a certificate: the authority makes one from it",
        Some(SectionKind::PublicKey) => ", but a public key: the private one is needed",
        Some(_) => "",
    }
}

/// All of a PEM file that is known. What is known to be of no use is said so.
fn sections(file: &Path) -> Result<Sections, LoadError> {
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(|e| error(file, format!("cannot be opened: {e}")))?;
    opened
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| error(file, format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(error(file, format!("it is longer than {} MiB", FILE_BYTES_MAX >> 20)));
    }
    if bytes.starts_with(&[0x30, 0x82]) {
        return Err(error(
            file,
            format!(
                "it is DER, not PEM: convert it, for a certificate with `openssl x509 -inform DER -in {0} -out {0}.pem`",
                file.display()
            ),
        ));
    }
    // Both ways of encrypting: PKCS#8's own, and OpenSSL's of old.
    if contains(&bytes, b"BEGIN ENCRYPTED PRIVATE KEY") || contains(&bytes, b"Proc-Type: 4,ENCRYPTED") {
        return Err(error(
            file,
            format!(
                "the key is encrypted, and nobody is there to type its password: `openssl pkey -in {0} -out {0}.plain`, readable to the broker only",
                file.display()
            ),
        ));
    }
    <(SectionKind, Vec<u8>)>::pem_slice_iter(&bytes)
        .collect::<Result<Sections, _>>()
        .map_err(|e| error(file, format!("it is damaged: {e}")))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
