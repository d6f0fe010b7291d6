//! `init`: a folder with a configuration, rules and passwords that run as they stand, and what to type next.
//!
//! # Invariants
//! - Nothing is overwritten: when one of the files is there, none is written.
//! - Closed at first: it listens on 127.0.0.1, nobody comes in without a name, a device may use its own topics alone.
//! - Passwords are drawn here, 128 bits each, and only their owner can read the files that hold them.

use super::{Failure, Flavor, Run};
use crate::config::{CloudConfig, EdgeConfig, Overrides};
use clap::Args;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const EDGE_TOML: &str = include_str!("init/edge.toml");
const UPLINK_TOML: &str = include_str!("init/uplink.toml");
const EDGE_SQL: &str = include_str!("init/edge.sql");
const CLOUD_TOML: &str = include_str!("init/cloud.toml");
const CLOUD_SQL: &str = include_str!("init/cloud.sql");

/// The rules' name; it stands in the templates.
const RULES: &str = "rules.sql";

/// Passwords are their owner's alone.
const MODE_SECRET: u32 = 0o600;
const MODE_PUBLIC: u32 = 0o644;

/// Arguments of `init`.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The folder to write to; it is made when it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// What the node is called in every message's identity [default: edge-1 or cloud-1]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Where clients connect [default: 127.0.0.1:1883, of a cloud 127.0.0.1:1884]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where an edge brings its messages, like mqtts://cloud.example
    #[arg(long, value_name = "URL")]
    uplink: Option<String>,
}

/// A file to be written.
struct File {
    name: &'static str,
    text: String,
    mode: u32,
}

/// Writes the files and tells what to do with them.
pub(super) fn run(flavor: &Flavor, args: &InitArgs, out: &mut dyn Write) -> Result<u8, Failure> {
    let edge = matches!(flavor.run, Run::Edge(_));
    if args.uplink.is_some() && !edge {
        return Err(Failure::Text("--uplink is an edge's: gateways come to a cloud".to_owned()));
    }
    let config_name = if edge { "edge.toml" } else { "cloud.toml" };
    let id = args.id.clone().unwrap_or_else(|| if edge { "edge-1" } else { "cloud-1" }.to_owned());
    let listen = args.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], if edge { 1883 } else { 1884 })));
    // What is quoted in the file must be no end of the quotation: such an id or URL is none anyway.
    for (what, text) in [("--id", Some(&id)), ("--uplink", args.uplink.as_ref())] {
        if text.is_some_and(|text| text.contains(['"', '\\']) || text.chars().any(char::is_control)) {
            return Err(Failure::Text(format!(
                "{what} has a quotation mark, a backslash or a control character"
            )));
        }
    }
    let files = files(flavor, edge, config_name, &id, listen, args.uplink.as_deref())?;
    let config = args.dir.join(config_name);
    // Mistakes in the arguments are the configuration's: nothing is written then.
    checked(flavor, &args.dir, config_name, &files)?;
    write(&args.dir, &files)?;
    next(flavor, args, &config, listen, &id, out).map_err(super::failed)?;
    Ok(0)
}

fn files(
    flavor: &Flavor,
    edge: bool,
    config_name: &'static str,
    id: &str,
    listen: SocketAddr,
    uplink: Option<&str>,
) -> Result<Vec<File>, Failure> {
    let uplink_toml = UPLINK_TOML.replace("@URL@", uplink.unwrap_or("mqtts://cloud.example"));
    let uplink_toml = match uplink {
        Some(_) => uplink_toml,
        None => uplink_toml.lines().map(|line| format!("# {line}\n")).collect(),
    };
    let (comment, note) = match uplink {
        Some(_) => ("", ""),
        None => ("-- ", " It is off until there is an [uplink]: rows would only pile up."),
    };
    let fill = |template: &str| {
        template
            .replace("@UPLINK@\n", &uplink_toml)
            .replace("@PROGRAM@", flavor.name)
            .replace("@CONFIG@", config_name)
            .replace("@ID@", id)
            .replace("@LISTEN@", &listen.to_string())
            .replace("@FORWARD_NOTE@", note)
            .replace("@C@", comment)
    };
    let (toml, sql, secrets): (_, _, &[&str]) = match (edge, uplink) {
        (true, None) => (EDGE_TOML, EDGE_SQL, &["device.pass", "operator.pass"]),
        (true, Some(_)) => (EDGE_TOML, EDGE_SQL, &["device.pass", "operator.pass", "uplink.pass"]),
        (false, _) => (CLOUD_TOML, CLOUD_SQL, &["edge-1.pass", "operator.pass"]),
    };
    let mut files = vec![
        File { name: config_name, text: fill(toml), mode: MODE_PUBLIC },
        File { name: RULES, text: fill(sql), mode: MODE_PUBLIC },
    ];
    for &name in secrets {
        files.push(File { name, text: password()? + "\n", mode: MODE_SECRET });
    }
    Ok(files)
}

/// 128 bits in hexadecimal: easily typed, and no shell or file takes a character of it for something else.
fn password() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| Failure::Text(format!("no random numbers: {e}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// As `check` does, in a folder beside, since the passwords are read from their files.
fn checked(flavor: &Flavor, dir: &Path, config_name: &str, files: &[File]) -> Result<(), Failure> {
    let io = |e: io::Error| Failure::Text(format!("cannot write to {}: {e}", dir.display()));
    let is_new = !dir.exists();
    fs::create_dir_all(dir).map_err(io)?;
    let trial = dir.join(format!(".init-{}", std::process::id()));
    fs::create_dir(&trial).map_err(io)?;
    let tried = write(&trial, files).and_then(|()| {
        let file = trial.join(config_name);
        let overrides = Overrides::default();
        match flavor.run {
            Run::Edge(_) => EdgeConfig::load(&file, &overrides).map(|_| ()),
            Run::Cloud(_) => CloudConfig::load(&file, &overrides).map(|_| ()),
        }
        .map_err(Failure::Config)
    });
    // It is only ours; what cannot be removed is empty of secrets in force.
    let _ = fs::remove_dir_all(&trial);
    if is_new && tried.is_err() {
        let _ = fs::remove_dir(dir);
    }
    tried
}

fn write(dir: &Path, files: &[File]) -> Result<(), Failure> {
    let there: Vec<_> = files.iter().map(|file| file.name).filter(|name| dir.join(name).exists()).collect();
    if !there.is_empty() {
        let (dir, there) = (dir.display(), there.join(", "));
        return Err(Failure::Text(format!(
            "{dir} has {there} already: nothing was written; name another folder, or move them away"
        )));
    }
    for file in files {
        let path = dir.join(file.name);
        let written = OpenOptions::new().write(true).create_new(true).mode(file.mode).open(&path);
        let written = written.and_then(|mut f| f.write_all(file.text.as_bytes()).and_then(|()| f.sync_all()));
        written.map_err(|e| Failure::Text(format!("cannot write {}: {e}", path.display())))?;
    }
    Ok(())
}

fn next(
    flavor: &Flavor,
    args: &InitArgs,
    config: &Path,
    listen: SocketAddr,
    id: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    let (program, dir) = (flavor.name, args.dir.display());
    let config = config.display();
    writeln!(out, "{config} and {dir}/{RULES} are written, with passwords in {dir}/*.pass. Next:\n")?;
    writeln!(out, "  {program} check --config {config}")?;
    writeln!(out, "  {program} run --config {config}\n")?;
    let (host, port) = (listen.ip(), listen.port());
    let host = if host.is_unspecified() { "127.0.0.1".to_owned() } else { host.to_string() };
    match flavor.run {
        Run::Edge(_) => {
            writeln!(out, "and in another terminal, to see a message pass:\n")?;
            writeln!(
                out,
                "  {program} sub -h {host} -p {port} -u operator -P \"$(cat {dir}/operator.pass)\" -t '#' -v"
            )?;
            writeln!(
                out,
                "  {program} pub -h {host} -p {port} -u device -P \"$(cat {dir}/device.pass)\" -i press-7 -q 1 \
                 -t devices/press-7/state -m '{{\"temp\":81.5}}'"
            )?;
            writeln!(out, "  {program} status --config {config}")?;
        }
        Run::Cloud(_) => {
            writeln!(
                out,
                "and for a gateway, whose `[uplink]` logs in as edge-1 with the password in {dir}/edge-1.pass:\n"
            )?;
            writeln!(out, "  ferrule-edge init edge --id edge-1 --uplink mqtt://{host}:{port}")?;
            writeln!(out, "  cp {dir}/edge-1.pass edge/uplink.pass")?;
        }
    }
    if args.uplink.is_some() {
        writeln!(
            out,
            "\nThe cloud must know this gateway, by the password in {dir}/uplink.pass. In its configuration:\n"
        )?;
        writeln!(out, "  [[user]]\n  name = \"{id}\"\n  password_file = \"{id}.pass\"\n  role = \"edge\"")?;
    }
    if !listen.ip().is_loopback() {
        writeln!(
            out,
            "\nOther machines reach {listen}, and passwords would cross the network readably. Give it TLS:\n\n  \
             {program} cert --dir {dir}/certs\n\nand take the `#` from the line `tls = ...` in {config}."
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::cli::tests::flavor;
    use std::os::unix::fs::PermissionsExt;

    fn init(dir: &Path, uplink: Option<&str>, listen: Option<&str>) -> Result<String, Failure> {
        let args = InitArgs {
            dir: dir.to_owned(),
            id: Some("gw.7".to_owned()),
            listen: listen.map(|l| l.parse().unwrap()),
            uplink: uplink.map(str::to_owned),
        };
        let mut out = Vec::new();
        run(&flavor(), &args, &mut out).map(|_| String::from_utf8(out).unwrap())
    }

    #[test]
    fn what_it_writes_is_sound_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        for (name, uplink) in [("a", None), ("b", Some("mqtt://127.0.0.1:1884"))] {
            let dir = folder.path().join(name);
            let Ok(said) = init(&dir, uplink, None) else { panic!("{name}") };
            assert!(said.contains("run --config") && said.contains("role = \"edge\"") == uplink.is_some());
            let config = EdgeConfig::load(&dir.join("edge.toml"), &Overrides::default()).unwrap();
            assert_eq!(
                (config.broker.node.id.as_deref(), config.uplink.is_some()),
                (Some("gw.7"), uplink.is_some())
            );
            for file in ["device.pass", "operator.pass"] {
                let path = dir.join(file);
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
                assert_eq!(fs::read_to_string(&path).unwrap().trim().len(), 32);
            }
            let before = fs::read(dir.join("device.pass")).unwrap();
            let Err(Failure::Text(said)) = init(&dir, uplink, None) else { panic!("it would overwrite") };
            assert!(said.contains("edge.toml, rules.sql, device.pass"), "{said}");
            assert_eq!(fs::read(dir.join("device.pass")).unwrap(), before);
        }
        let Ok(said) = init(&folder.path().join("c"), None, Some("0.0.0.0:8883")) else { panic!("c") };
        assert!(said.contains("cert --dir"), "{said}");
    }

    #[test]
    fn a_mistake_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        for uplink in ["http://x", "mqtt://a\"b"] {
            assert!(init(&folder.path().join("d"), Some(uplink), None).is_err(), "{uplink}");
            assert!(!folder.path().join("d").exists());
        }
    }
}
