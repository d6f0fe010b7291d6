//! TLS of both sides: each shows a certificate of the cluster's authority.

use ferrule_transport::tls::{CertificateInfo, ClientFiles, LoadError, ServerFiles};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
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
}

impl TlsFiles {
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
        let (server, infos) = server.load()?;
        let (client, _) = client.load()?;
        Ok((Tls { server, client, name }, infos))
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
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("name", &self.name).finish_non_exhaustive()
    }
}
