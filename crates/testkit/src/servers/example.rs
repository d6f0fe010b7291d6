//! The set-ups of `examples/`, as they stand: what is tested is what users copy.
//!
//! A copy of the folder is run. All that is changed in it are the ports, since tests run beside each other: each well-known one is
//! named, must be there, and becomes a free one. A file with a port that was not named does not run.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{Certs, Config, port};

/// A copy of a folder of `examples/`.
#[derive(Debug)]
pub struct Example {
    folder: TempDir,
    ports: BTreeMap<u16, u16>,
}

impl Example {
    /// Copies the files of `examples/NAME`, in which the `used` ones have these ports as `:PORT`; `certs/` are `certs`.
    ///
    /// # Panics
    /// When a file is not there; when one of these ports is in none of the `used` files, or one of those has another port.
    #[must_use]
    pub fn copy(name: &str, used: &[&str], ports: &[u16], certs: &Certs) -> Self {
        Self::copy_beside(name, used, ports, &[], certs)
    }

    /// The same where some of the ports are those of servers that are there already: (the example's, the server's).
    ///
    /// # Panics
    /// As [`Self::copy`].
    #[must_use]
    pub fn copy_beside(
        name: &str,
        used: &[&str],
        ports: &[u16],
        there: &[(u16, u16)],
        certs: &Certs,
    ) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let entries = source.read_dir().unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        for entry in entries.map(|entry| entry.expect("a folder can be read")) {
            // Not the folders that running the example makes.
            if entry.path().is_file() {
                std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("files are copied");
            }
        }
        symlink(certs.folder(), folder.path().join("certs")).expect("the temporary folder can be written");
        let free = ports.iter().map(|known| (*known, port::free()));
        let ports = free.chain(there.iter().copied()).collect();
        let example = Self { folder, ports };
        let mut unused: Vec<u16> = example.ports.keys().copied().collect();
        for name in used {
            example.replace(name, &mut unused);
        }
        assert!(unused.is_empty(), "{name}: {unused:?} are in none of {used:?}");
        example
    }

    /// Replaces the ports in a file, and takes those that were there from `unused`.
    fn replace(&self, name: &str, unused: &mut Vec<u16>) {
        let path = self.path(name);
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut parts = text.split(':');
        let mut replaced = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let digits = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, rest) = part.split_at(digits);
            replaced.push(':');
            // Not the size in `shared:mqtt:10m`.
            let is_port = !rest.starts_with(|c: char| c.is_ascii_alphanumeric());
            match number.parse::<u16>() {
                Ok(known) if is_port => {
                    let free = self.ports.get(&known);
                    let free =
                        free.unwrap_or_else(|| panic!("{name} has a port that was not named: {known}"));
                    unused.retain(|port| *port != known);
                    replaced.push_str(&free.to_string());
                }
                _ => replaced.push_str(number),
            }
            replaced.push_str(rest);
        }
        std::fs::write(&path, replaced).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Where what the example has at port `known` is: on 127.0.0.1.
    ///
    /// # Panics
    /// When that port was not named.
    #[must_use]
    pub fn addr(&self, known: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports[&known]))
    }

    /// The file `name`.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The edge of the configuration `file`, whose state is in `data/ID` and whose plain listener is at port `known`.
    #[must_use]
    pub fn edge(&self, file: &str, id: &str, known: u16) -> Config {
        let data = self.path("data").join(id);
        Config::edge().file(self.path(file)).data_dir(data).listen(self.addr(known))
    }

    /// The cloud node of the configuration `file`, whose state is in `data/ID` and whose first listener is at port `known` of `host`.
    #[must_use]
    pub fn cloud(&self, file: &str, id: &str, host: Ipv4Addr, known: u16) -> Config {
        let data = self.path("data").join(id);
        let listen = SocketAddr::from((host, self.addr(known).port()));
        Config::cloud().file(self.path(file)).data_dir(data).listen(listen)
    }
}
