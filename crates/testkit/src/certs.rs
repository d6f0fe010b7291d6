//! Certificates, made as users make them: by `ferrule-edge cert`.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::dial::Trust;
use crate::node::{Role, run_to_exit};

/// A folder with an authority, a server's certificate and clients'.
#[derive(Debug)]
pub struct Certs {
    folder: TempDir,
}

impl Certs {
    /// An authority, and what these options of `cert` ask for.
    ///
    /// # Panics
    /// When the command fails.
    #[must_use]
    pub fn make(args: &[&str]) -> Self {
        let certs = Self { folder: tempfile::tempdir().expect("a temporary folder can be made") };
        certs.run(args);
        certs
    }

    /// The authority and a server's certificate for `localhost` and 127.0.0.1, and one for each of these clients.
    #[must_use]
    pub fn local(clients: &[&str]) -> Self {
        let mut args = vec!["--server", "localhost,127.0.0.1"];
        args.extend(clients.iter().flat_map(|client| ["--client", client]));
        Self::make(&args)
    }

    /// `cert` once more, in the same folder.
    ///
    /// # Panics
    /// When the command fails.
    pub fn run(&self, args: &[&str]) {
        let folder = self.folder.path().to_str().expect("temporary folders have plain names");
        let ended = run_to_exit(Role::Edge, &[&["cert", "--dir", folder], args].concat());
        assert!(ended.status.success(), "cert {args:?}: {}", ended.output);
    }

    /// A file in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A listener's `tls` as it is configured, with more keys (`, tls12 = false`).
    #[must_use]
    pub fn tls(&self, more: &str) -> String {
        format!("tls = {{ cert = {:?}, key = {:?}{more} }}", self.path("server.crt"), self.path("server.key"))
    }

    /// The same for clients with certificates, and the list of those revoked.
    #[must_use]
    pub fn mutual_tls(&self, more: &str) -> String {
        self.tls(&format!(", client_ca = {:?}, crl = {:?}{more}", self.path("ca.crt"), self.path("ca.crl")))
    }

    /// A client that believes this authority.
    #[must_use]
    pub fn trust(&self) -> Trust {
        Trust::in_authority(self.path("ca.crt"))
    }

    /// The same with the certificate of `client`.
    #[must_use]
    pub fn trust_as(&self, client: &str) -> Trust {
        self.trust().identity(self.path(&format!("{client}.crt")), self.path(&format!("{client}.key")))
    }
}
