//! `cert`: an authority of one's own, and the certificates of a server, of clients and of a cluster's nodes, in one command.
//!
//! # Design
//!
//! - A folder is all there is: `ca.crt`, `ca.key`, `ca.crl`, and for each name `NAME.crt` and `NAME.key`. No index and no
//!   counter beside them: serial numbers are random, and what is revoked is read from the list itself.
//! - What is there stays: the authority always, a certificate unless `--renew` says otherwise. A renewed one moves to
//!   `NAME.old.crt` (with those before it), because it can still be used and so must be revocable.
//! - Everything is checked before anything is written; each file is replaced at once (written beside, renamed), so that a
//!   broker that looks meanwhile sees the old or the new. Between a key and its certificate it may see one of each: it keeps
//!   what it has until both fit.
//! - The list is valid as long as the authority: a broker refuses everybody when the list is out of date, and this command is
//!   the only one who would renew it.
//! - Order: revocations before certificates, so that `--revoke X --client X --renew` replaces a stolen one.

mod authority;

use authority::{Authority, Issued, Purpose, SECONDS_OF_DAY, read, read_certificates, read_info};
use ferrule_transport::tls::date;
use rustls::pki_types::ServerName;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A common name's longest, in characters (RFC 5280, appendix A: ub-common-name).
const NAME_CHARS_MAX: usize = 64;

/// Keys are their owner's alone.
const MODE_KEY: u32 = 0o600;
const MODE_PUBLIC: u32 = 0o644;

/// The stem of the server's files.
const SERVER: &str = "server";

/// Documentation of options is what `--help` prints.
#[derive(Debug, clap::Args)]
pub(super) struct CertArgs {
    /// Where the files are, or will be; an authority that is there is used again
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// Names and addresses under which clients reach the server [default, with a new authority: this machine's name and localhost]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = server_name)]
    server: Vec<String>,
    /// A client to make a certificate for, its name in it; may be given several times
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = client_name)]
    client: Vec<String>,
    /// A node of a cluster, by the name or address where other nodes reach it, or a name that all share; may be given several times
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = node_name)]
    node: Vec<String>,
    /// A client or node whose certificates are no longer good: they are added to ca.crl; may be given several times
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = client_name)]
    revoke: Vec<String>,
    /// How long certificates are valid
    #[arg(long, value_name = "DAYS", default_value_t = DAYS, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
    days: u32,
    /// Replace certificates that are there: the clients and nodes named, and the server's if it is named or none of them is
    #[arg(long)]
    renew: bool,
}

/// The most that Apple's systems accept of a server, and a bound others took over.
const DAYS: u32 = 825;

/// 100 years.
const DAYS_MAX: i64 = 36_500;

/// One certificate to be there.
struct Wanted {
    stem: String,
    purpose: Purpose,
    /// The common name first.
    names: Vec<String>,
}

/// Does what `args` say and tells it.
///
/// # Errors
/// What is wrong, for people. Nothing was written, unless writing is what failed.
pub(super) fn run(args: &CertArgs, out: &mut dyn Write) -> Result<(), String> {
    let now_s = ferrule_clock::wall_s();
    let folder = Folder { dir: args.dir.clone() };
    let found = Authority::open(&folder.path("ca.crt"), &folder.path("ca.key"), now_s)?;
    let wanted = wanted(args, &folder, found.is_some())?;
    let (authority, new) = match found {
        Some(authority) => (authority, false),
        None if args.revoke.is_empty() => (Authority::create(&host(), now_s)?, true),
        None => return Err(format!("there is no authority in {} that could revoke", folder.dir.display())),
    };
    let crl = folder.path("ca.crl");
    let mut list = authority.open_list(&crl)?;
    let mut revoked = Vec::new();
    for name in &args.revoke {
        revoked.push((
            name,
            list.add(&folder.all_of(name)?, now_s).map_err(|e| format!("--revoke {name}: {e}"))?,
        ));
    }

    let mut report = Report { lines: Vec::new() };
    folder.create()?;
    if new {
        folder.write("ca.key", &authority.key_pem(), MODE_KEY)?;
        folder.write("ca.crt", authority.certificate_pem(), MODE_PUBLIC)?;
        report.line(folder.path("ca.crt"), "the authority: clients and brokers verify certificates with it");
        report.line(
            folder.path("ca.key"),
            "makes certificates: no broker needs it, keep it where nobody else is",
        );
    }
    if !crl.exists() || revoked.iter().any(|(_, count)| *count > 0) {
        folder.write("ca.crl", &list.sign(&authority, now_s)?, MODE_PUBLIC)?;
    }
    for (name, count) in revoked {
        let what = match count {
            0 => format!("{name} was revoked already"),
            1 => format!("{name} is revoked, brokers that read this file refuse it when it connects"),
            _ => format!(
                "{name} is revoked ({count} certificates), brokers that read this file refuse it when it connects"
            ),
        };
        report.line(crl.clone(), what);
    }
    for wanted in wanted {
        folder.make(&wanted, &authority, args, now_s, &mut report)?;
    }
    report.print(&folder, args, out).map_err(|e| e.to_string())
}

/// What is to be there afterwards.
fn wanted(args: &CertArgs, folder: &Folder, has_authority: bool) -> Result<Vec<Wanted>, String> {
    let only_server = args.client.is_empty() && args.node.is_empty() && args.revoke.is_empty();
    let cert = folder.path("server.crt");
    let mut all = Vec::new();
    let mut server = |names: Vec<String>| {
        all.push(Wanted { stem: SERVER.to_owned(), purpose: Purpose::Server, names });
    };
    if !args.server.is_empty() {
        if cert.exists() && !args.renew {
            let names = read_info(&cert)?.names;
            if names != args.server {
                let (names, wanted) = (names.join(", "), args.server.join(", "));
                return Err(format!(
                    "{} is for {names}: `--renew` replaces it by one for {wanted}",
                    cert.display()
                ));
            }
        }
        server(args.server.clone());
    } else if cert.exists() && only_server {
        server(read_info(&cert)?.names);
    } else if !cert.exists() && (only_server || !has_authority && args.node.is_empty()) {
        let names = [host(), "localhost".to_owned()];
        server(names.iter().filter_map(|name| server_name(name).ok()).collect());
    }
    for name in &args.client {
        all.push(Wanted { stem: name.clone(), purpose: Purpose::Client, names: vec![name.clone()] });
    }
    for name in &args.node {
        all.push(Wanted { stem: name.clone(), purpose: Purpose::Node, names: vec![name.clone()] });
    }
    let mut stems: Vec<&str> = all.iter().map(|wanted| wanted.stem.as_str()).collect();
    stems.sort_unstable();
    if let Some(twice) = stems.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("{} is asked for twice: its files have one name", twice[0]));
    }
    for wanted in &all {
        let (crt, key) = (folder.path_of(wanted, "crt"), folder.path_of(wanted, "key"));
        if crt.exists() != key.exists() && !args.renew {
            let (there, missing) = if crt.exists() { (crt, key) } else { (key, crt) };
            return Err(format!(
                "{} is there without {}: bring it, or let `--renew` make both",
                there.display(),
                missing.display()
            ));
        }
    }
    Ok(all)
}

/// A client's name becomes its files' names and its common name.
fn client_name(name: &str) -> Result<String, &'static str> {
    if name.is_empty() || name.starts_with(['.', '-']) || name.contains(['/', '\\']) {
        return Err("it is also a file's name, so it begins with a letter or a digit and has no slash");
    }
    if name.chars().any(char::is_control) {
        return Err("it has control characters");
    }
    if name.chars().count() > NAME_CHARS_MAX {
        return Err("it is longer than 64 characters, the most in a certificate");
    }
    if ["ca", SERVER].contains(&name) || name.ends_with(".old") {
        return Err("files of that name are something else: ca, server, NAME.old");
    }
    Ok(name.to_owned())
}

/// A node is dialled under its name, which is its files' name, too.
fn node_name(name: &str) -> Result<String, &'static str> {
    if name.starts_with('*') {
        return Err("it is also a file's name: nodes that share a certificate share one name, \
                    `server_name` in [cluster] `tls`");
    }
    let name = server_name(name).map_err(|_| "it is neither a name nor an address: like 10.0.0.5")?;
    client_name(&name)
}

/// As it is read from a certificate. `*.` may stand for one label.
fn server_name(name: &str) -> Result<String, &'static str> {
    match ServerName::try_from(name.strip_prefix("*.").unwrap_or(name)) {
        Ok(ServerName::IpAddress(_)) => {
            name.parse::<IpAddr>().map(|address| address.to_string()).map_err(|_| "an address has no `*.`")
        }
        Ok(_) => Ok(name.to_ascii_lowercase()),
        Err(_) => Err("it is neither a name nor an address: like broker.example,192.168.1.5"),
    }
}

/// This machine's name.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The folder of certificates.
struct Folder {
    dir: PathBuf,
}

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn path_of(&self, wanted: &Wanted, extension: &str) -> PathBuf {
        self.path(&format!("{}.{extension}", wanted.stem))
    }

    fn create(&self) -> Result<(), String> {
        fs::create_dir_all(&self.dir).map_err(|e| format!("cannot create {}: {e}", self.dir.display()))
    }

    /// Every certificate that was made for `name`.
    fn all_of(&self, name: &str) -> Result<Vec<Vec<u8>>, String> {
        let mut all = Vec::new();
        for extension in ["crt", "old.crt"] {
            let path = self.path(&format!("{name}.{extension}"));
            if path.exists() {
                all.extend(read_certificates(&path)?);
            }
        }
        match all.is_empty() {
            true => Err(format!(
                "there is no {}: its certificate is needed to revoke it",
                self.path(name).display()
            )),
            false => Ok(all),
        }
    }

    /// Makes what is wanted, unless it is there and to stay.
    fn make(
        &self,
        wanted: &Wanted,
        authority: &Authority,
        args: &CertArgs,
        now_s: i64,
        report: &mut Report,
    ) -> Result<(), String> {
        let (crt, key) = (self.path_of(wanted, "crt"), self.path_of(wanted, "key"));
        if crt.exists() && !args.renew {
            let until = date(read_info(&crt)?.not_after_s);
            report.line(crt, format!("is there, until {until}; `--renew` makes another"));
            return Ok(());
        }
        let until_s = now_s + i64::from(args.days) * SECONDS_OF_DAY;
        let issued = authority.issue(wanted.purpose, &wanted.names, now_s, until_s)?;
        if crt.exists() {
            self.retire(wanted, &crt)?;
        }
        let Issued { certificate_pem, key_pem, not_after_s } = issued;
        // The key first: a certificate that is there has one.
        self.write(&format!("{}.key", wanted.stem), &key_pem, MODE_KEY)?;
        self.write(&format!("{}.crt", wanted.stem), &certificate_pem, MODE_PUBLIC)?;
        let names = wanted.names.join(", ");
        let whose = match wanted.purpose {
            Purpose::Server => "the server's certificate, for",
            Purpose::Client => "a client's certificate, for",
            Purpose::Node => "a node's certificate, for",
        };
        report.line(crt, format!("{whose} {names}, until {}", date(not_after_s)));
        report.line(key, "its key");
        Ok(())
    }

    /// Keeps a certificate beside its predecessors.
    fn retire(&self, wanted: &Wanted, crt: &Path) -> Result<(), String> {
        let old = self.path_of(wanted, "old.crt");
        let mut all = read(crt)?;
        if old.exists() {
            all += &read(&old)?;
        }
        self.write(&format!("{}.old.crt", wanted.stem), &all, MODE_PUBLIC)
    }

    /// Puts `text` in the place of what there is.
    fn write(&self, name: &str, text: &str, mode: u32) -> Result<(), String> {
        let (path, beside) = (self.path(name), self.path(&format!(".{name}.new")));
        // One of before has the mode of before.
        let _ = fs::remove_file(&beside);
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&beside, &path));
        written.map_err(|e| {
            let _ = fs::remove_file(&beside);
            format!("cannot write {}: {e}", path.display())
        })
    }
}

/// What to tell at the end.
struct Report {
    lines: Vec<(PathBuf, String)>,
}

impl Report {
    fn line(&mut self, path: PathBuf, what: impl Into<String>) {
        self.lines.push((path, what.into()));
    }

    fn print(&self, folder: &Folder, args: &CertArgs, out: &mut dyn Write) -> std::io::Result<()> {
        let width = self.lines.iter().map(|(path, _)| path.display().to_string().len()).max().unwrap_or(0);
        for (path, what) in &self.lines {
            writeln!(out, "{:<width$}  {what}", path.display().to_string())?;
        }
        let quoted = |name: &str| toml::Value::String(folder.path(name).display().to_string()).to_string();
        let server = folder.path("server.crt");
        if server.exists() {
            writeln!(out, "\nIn the broker's configuration:\n\n[[listener]]\nbind = \"0.0.0.0:8883\"")?;
            writeln!(
                out,
                "tls = {{ cert = {}, key = {}, client_ca = {}, crl = {} }}",
                quoted("server.crt"),
                quoted("server.key"),
                quoted("ca.crt"),
                quoted("ca.crl")
            )?;
            writeln!(out, "\nWithout `client_ca` and `crl`, clients need no certificate.")?;
        }
        if let Some(node) = args.node.first() {
            writeln!(
                out,
                "\nA node of a cluster (it needs ca.crt, ca.crl and its own two files), in its [cluster]:\n"
            )?;
            writeln!(
                out,
                "tls = {{ cert = {}, key = {}, ca = {}, crl = {} }}",
                quoted(&format!("{node}.crt")),
                quoted(&format!("{node}.key")),
                quoted("ca.crt"),
                quoted("ca.crl")
            )?;
        }
        if let Some(client) = args.client.first() {
            let host = read_info(&server).ok().and_then(|info| info.names.into_iter().next());
            let (crt, key) = (format!("{client}.crt"), format!("{client}.key"));
            writeln!(
                out,
                "\nA client (it needs ca.crt and its own two files):\n\nmosquitto_sub -h {} -p 8883 --cafile {} --cert {} --key {} -t '#'",
                host.as_deref().unwrap_or("HOST"),
                folder.path("ca.crt").display(),
                folder.path(&crt).display(),
                folder.path(&key).display(),
            )?;
            writeln!(out, "\nOr an edge, in [uplink]:\n")?;
            writeln!(
                out,
                "tls = {{ ca = {}, cert = {}, key = {} }}",
                quoted("ca.crt"),
                quoted(&crt),
                quoted(&key)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
