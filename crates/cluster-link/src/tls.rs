//! TLS of both sides: each shows a certificate of the cluster's authority.

use ferrule_transport::tls::{CertificateInfo, ClientFiles, LoadError, ServerFiles};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::{AlertDescription, CertificateError, ClientConfig, ServerConfig};
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// What it is made of; all files are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// This node's certificate, then what certifies it; good for servers and for clients.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority whose certificates are accepted, from whoever dials and from whoever is dialled: one of this cluster alone.
    pub ca: PathBuf,
    /// List of its revoked certificates.
    pub crl: Option<PathBuf>,
    /// The name that the other nodes' certificates have in common. None: each has the host that it is dialled at.
    pub name: Option<String>,
}

/// What was read. Cloning it costs two counters.
#[derive(Clone)]
pub struct Tls {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
    /// Judges what the other sides of links have shown before, which is good for clients as well.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// What the other side of a connection has shown: its certificate, then what certifies it.
pub(crate) type Shown = Arc<[CertificateDer<'static>]>;

impl TlsFiles {
    /// All of them.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key, &self.ca].into_iter().chain(&self.crl).cloned().collect()
    }

    /// Reads the files.
    ///
    /// # Errors
    /// The first file that cannot be used, or the name.
    pub fn load(&self) -> Result<(Tls, Vec<CertificateInfo>), LoadError> {
        let pair = (self.cert.clone(), self.key.clone());
        let server = ServerFiles {
            certificates: vec![pair.clone()],
            client_ca: Some(self.ca.clone()),
            crl: self.crl.clone(),
            client_required: true,
            tls12: false,
            alpn: vec![ALPN.to_vec()],
        };
        let client =
            ClientFiles { ca: Some(self.ca.clone()), certificate: Some(pair), alpn: vec![ALPN.to_vec()] };
        let name = match &self.name {
            None => None,
            Some(name) => Some(ServerName::try_from(name.clone()).map_err(|e| LoadError {
                file: self.cert.clone(),
                problem: format!("{name:?} cannot be the name in a certificate: {e}"),
            })?),
        };
        let verifier = server.load_verifier()?;
        let (server, infos) = server.load()?;
        // Either of two nodes may be the one that dials.
        let (client, _) = match &self.crl {
            Some(crl) => client.load_without_revoked(crl)?,
            None => client.load()?,
        };
        Ok((Tls { server, client, name, verifier }, infos))
    }
}

/// HTTP/2 (RFC 9113, 3.2).
const ALPN: &[u8] = b"h2";

impl Tls {
    /// The name that whoever is dialled at `host` has to have. None: `host` can be in no certificate.
    pub(crate) fn name(&self, host: &str) -> Option<ServerName<'static>> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        self.name.clone().or_else(|| ServerName::try_from(host.to_owned()).ok())
    }

    /// Why whoever has shown this would not be let in now; none: it would.
    pub(crate) fn refuses(&self, shown: &Shown) -> Option<rustls::Error> {
        let now = UnixTime::since_unix_epoch(ferrule_clock::for_certificates());
        let (first, rest) = shown.split_first()?;
        self.verifier.as_ref()?.verify_client_cert(first, rest, now).err()
    }
}

/// What the other side ends a handshake with because of a certificate, and what to do about it.
const ALERTS: [(AlertDescription, &str); 4] = [
    (AlertDescription::UnknownCA, OTHER_AUTHORITY),
    // If both authorities have one name.
    (AlertDescription::DecryptError, OTHER_AUTHORITY),
    (
        AlertDescription::CertificateExpired,
        "this node's certificate is over, or that machine's clock is wrong: renew it",
    ),
    (AlertDescription::CertificateRevoked, "this node's certificate was revoked: it needs another one"),
];

const OTHER_AUTHORITY: &str = "this node's certificate is of another authority than its `ca` in [cluster] `tls`: \
                               give all nodes certificates of one";

/// The same by what `text` says: HTTP/2 passes on no more of an error than that.
pub(crate) fn advice_in(text: &str) -> Option<&'static str> {
    let said = |alert| text.contains(&rustls::Error::AlertReceived(alert).to_string());
    ALERTS.into_iter().find_map(|(alert, advice)| said(alert).then_some(advice))
}

/// What to do about an error that TLS has caused, at either side, after what it says itself. None: it is not TLS's.
pub(crate) fn advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    use CertificateError as C;
    Some(match cause(error)? {
        // (The latter if both authorities have one name.)
        rustls::Error::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
            "its certificate is of another authority than this node's `ca` in [cluster] `tls`: give all nodes \
             certificates of one"
        }
        rustls::Error::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            "its certificate is not for the host that it advertises: make it one (`cert --node HOST`), or give \
             all nodes the name in it as `server_name` in [cluster] `tls`"
        }
        rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            "its certificate is over, or this machine's clock is wrong: renew it"
        }
        rustls::Error::InvalidCertificate(C::Revoked) => "it was revoked: that node needs another one",
        rustls::Error::InvalidCertificate(_) => "see `tls` in that node's [cluster]",
        rustls::Error::NoCertificatesPresented => {
            "it shows no certificate: give it `tls` in [cluster], as the other nodes have it"
        }
        rustls::Error::AlertReceived(alert) => {
            let known = ALERTS.iter().find(|(each, _)| each == alert);
            known.map_or("the log of the other side says why", |(_, advice)| advice)
        }
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS: `tls` in [cluster] is for all nodes, or for none"
        }
        _ => "is `tls` in [cluster] the same at both?",
    })
}

/// What TLS says, in what caused `error`.
fn cause<'a>(mut error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    loop {
        if let Some(cause) = error.downcast_ref() {
            return Some(cause);
        }
        // The source of what an io::Error wraps is its own: the wrapped one would be passed over.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        error = match wrapped {
            Some(wrapped) => wrapped,
            None => error.source()?,
        };
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}
