//! Which of a listener's certificates a client gets: the one for the name it asks for (SNI, RFC 6066, 3), else the first.
//!
//! An unknown name is no reason to refuse: devices dial addresses and names of their own networks, and whether a certificate
//! suits them is theirs to say.

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;

/// Certificates by name.
#[derive(Debug)]
pub(super) struct ByName {
    /// In the file's order; the first is the default.
    keys: Vec<Arc<CertifiedKey>>,
    /// By names in lower case, `*.` included: which of `keys`, in their order. Several, when one name has an ECDSA and an RSA
    /// certificate.
    names: HashMap<String, Vec<usize>>,
}

impl ByName {
    pub(super) fn new() -> Self {
        Self { keys: Vec::new(), names: HashMap::new() }
    }

    /// Adds a certificate for `names`: DNS names, exact or with `*` as the first label (RFC 6125, 6.4.3).
    pub(super) fn add<'a>(&mut self, key: CertifiedKey, names: impl Iterator<Item = &'a str>) {
        for name in names {
            self.names.entry(name.to_ascii_lowercase()).or_default().push(self.keys.len());
        }
        self.keys.push(Arc::new(key));
    }

    pub(super) fn find(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<CertifiedKey>> {
        let exact = name.map(str::to_ascii_lowercase);
        let wildcard = exact.as_ref().and_then(|name| Some(format!("*.{}", name.split_once('.')?.1)));
        let named = [exact, wildcard].into_iter().flatten().filter_map(|name| self.names.get(&name));
        let named = named.flatten().map(|&index| &self.keys[index]);
        // A client that cannot verify a certificate's signature is served better by another one.
        named.chain(&self.keys).find(|key| key.key.choose_scheme(schemes).is_some())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name(), hello.signature_schemes()).cloned()
    }
}
