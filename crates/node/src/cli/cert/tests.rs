#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use clap::Parser;
use ferrule_transport::tls::{ALPN_MQTT, CertificateInfo, ClientFiles, NameFrom, ServerFiles, Tls, TlsError};
use rustls::{CertificateError, Side};
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    cert: CertArgs,
}

struct Dir(TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// In a folder below, so that it is made too.
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("certs").join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn run(&self, args: &str) -> Result<String, String> {
        let dir = self.path("");
        let all = ["cert", "--dir", dir.to_str().unwrap()].into_iter().chain(args.split_whitespace());
        let mut out = Vec::new();
        run(&Args::try_parse_from(all).map_err(|e| e.to_string())?.cert, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn server(&self) -> ServerFiles {
        ServerFiles {
            certificates: vec![(self.path("server.crt"), self.path("server.key"))],
            client_ca: Some(self.path("ca.crt")),
            crl: Some(self.path("ca.crl")),
            client_required: true,
            tls12: true,
            alpn: vec![ALPN_MQTT.to_vec()],
        }
    }

    /// A handshake of `client` with the server under `host`: the client's name at the server, or either side's error.
    fn connect(&self, client: &str, host: &'static str) -> Result<Box<str>, TlsError> {
        self.connect_to(&self.server(), client, host)
    }

    /// The same with another server.
    fn connect_to(
        &self,
        server: &ServerFiles,
        client: &str,
        host: &'static str,
    ) -> Result<Box<str>, TlsError> {
        let pair = (self.path(&format!("{client}.crt")), self.path(&format!("{client}.key")));
        let files = ClientFiles {
            ca: Some(self.path("ca.crt")),
            certificate: Some(pair),
            alpn: vec![ALPN_MQTT.to_vec()],
        };
        let (client, _) = files.load().unwrap();
        let (server, _) = server.load().unwrap();
        let mut client = Tls::client(&client, ServerName::try_from(host).unwrap()).unwrap();
        let mut server = Tls::server(&server).unwrap();
        let (mut up, mut down, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        client.receive(&mut [], &mut plain, &mut up)?;
        while !up.is_empty() || !down.is_empty() {
            let used = server.receive(&mut up, &mut plain, &mut down)?;
            up.drain(..used);
            let used = client.receive(&mut down, &mut plain, &mut up)?;
            down.drain(..used);
        }
        Ok(server.peer_name(NameFrom::Cn).unwrap())
    }
}

fn refused(problem: CertificateError) -> Result<Box<str>, TlsError> {
    Err(TlsError::Certificate { peer: Side::Client, problem })
}

#[test]
fn a_nodes_certificate_is_good_for_both_sides() {
    let dir = Dir::new();
    let said = dir.run("--node cloud-1.example,10.0.0.5").unwrap();
    // The authority is the cluster's alone: no server's certificate beside them.
    let expected = [
        "10.0.0.5.crt",
        "10.0.0.5.key",
        "ca.crl",
        "ca.crt",
        "ca.key",
        "cloud-1.example.crt",
        "cloud-1.example.key",
    ];
    assert_eq!(dir.names(), expected);
    let [cert, crl] = ["cloud-1.example.crt", "ca.crl"].map(|name| dir.path(name));
    assert!(said.contains(&format!("tls = {{ cert = {:?}", cert.display().to_string())), "{said}");
    assert!(said.contains(&format!("crl = {:?} }}", crl.display().to_string())), "{said}");
    for (there, host, here) in
        [("cloud-1.example", "cloud-1.example", "10.0.0.5"), ("10.0.0.5", "10.0.0.5", "cloud-1.example")]
    {
        let server = ServerFiles {
            certificates: vec![(dir.path(&format!("{there}.crt")), dir.path(&format!("{there}.key")))],
            ..dir.server()
        };
        assert_eq!(dir.connect_to(&server, here, host), Ok(here.into()));
    }
    // A node that is lost is revoked as a client is, and gets another one.
    dir.run("--revoke 10.0.0.5 --node 10.0.0.5 --renew").unwrap();
    assert!(dir.names().contains(&"10.0.0.5.old.crt".to_owned()));
    for (args, wanted) in [
        ("--node *.example", "share one name"),
        ("--node no_name/", "neither a name nor an address"),
        ("--node server", "something else"),
        ("--node a --client a", "twice"),
    ] {
        let said = dir.run(args).unwrap_err();
        assert!(said.contains(wanted), "{args}: {said}");
    }
}

#[test]
fn one_command_makes_all_that_a_broker_and_its_clients_need() {
    let dir = Dir::new();
    let said = dir
        .run("--server broker.example,192.168.1.5,*.plant.example --client press-7 --client press_8")
        .unwrap();
    let expected = [
        "ca.crl",
        "ca.crt",
        "ca.key",
        "press-7.crt",
        "press-7.key",
        "press_8.crt",
        "press_8.key",
        "server.crt",
        "server.key",
    ];
    assert_eq!(dir.names(), expected);
    for name in expected {
        let mode = fs::metadata(dir.path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077 == 0, name.ends_with(".key"), "{name} {mode:o}");
    }
    for (client, host) in
        [("press-7", "broker.example"), ("press_8", "192.168.1.5"), ("press-7", "a.plant.example")]
    {
        assert_eq!(dir.connect(client, host), Ok(client.into()));
    }
    assert!(matches!(
        dir.connect("press-7", "other.example"),
        Err(TlsError::Certificate { peer: Side::Server, .. })
    ));
    // A server's certificate is not one for a client.
    assert!(matches!(
        dir.connect("server", "broker.example"),
        Err(TlsError::Certificate { peer: Side::Client, .. })
    ));
    // What is to be pasted is what was made.
    let start = said.find("[[listener]]").unwrap();
    let end = start + said[start..].find("\n\n").unwrap();
    let pasted: toml::Table = said[start..end].parse().unwrap();
    let tls = pasted["listener"][0]["tls"].as_table().unwrap();
    let files = dir.server();
    for (key, path) in [
        ("cert", &files.certificates[0].0),
        ("key", &files.certificates[0].1),
        ("client_ca", &files.client_ca.unwrap()),
        ("crl", &files.crl.unwrap()),
    ] {
        assert_eq!(tls[key].as_str().unwrap(), path.to_str().unwrap());
    }
    assert!(said.contains("press-7.crt --key"), "{said}");
}

#[test]
fn extensions_are_those_of_the_profile() {
    let dir = Dir::new();
    dir.run("--server broker.example --client press-7 --days 30").unwrap();
    let now_s = ferrule_clock::wall_s();
    let ders: Vec<_> = ["ca", "server", "press-7"]
        .map(|n| read_certificates(&dir.path(&format!("{n}.crt"))).unwrap().remove(0))
        .into();
    let parsed: Vec<_> = ders.iter().map(|der| x509_parser::parse_x509_certificate(der).unwrap().1).collect();
    let mut key_ids = Vec::new();
    for (index, certificate) in parsed.iter().enumerate() {
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical);
        assert_eq!(constraints.value.ca, index == 0);
        assert_eq!(constraints.value.path_len_constraint, (index == 0).then_some(0));
        let usage = certificate.key_usage().unwrap().unwrap();
        assert!(usage.critical);
        assert_eq!(usage.value.key_cert_sign() && usage.value.crl_sign(), index == 0);
        assert_eq!(usage.value.digital_signature(), index != 0);
        let purposes = certificate.extended_key_usage().unwrap().map(|usage| usage.value);
        assert_eq!(
            purposes.map(|usage| (usage.server_auth, usage.client_auth)),
            [None, Some((true, false)), Some((false, true)),][index]
        );
        assert!(certificate.validity().not_before.timestamp() <= now_s - 24 * 60 * 60 + 60);
        assert_eq!(certificate.raw_serial().len(), 16);
        assert_eq!(certificate.issuer().as_raw(), parsed[0].subject().as_raw());
        certificate.verify_signature(Some(parsed[0].public_key())).unwrap();
        for extension in certificate.iter_extensions() {
            match extension.parsed_extension() {
                x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => {
                    key_ids.push(id.0.to_vec())
                }
                x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => {
                    assert_eq!(id.key_identifier.as_ref().unwrap().0, key_ids[0]);
                }
                _ => {}
            }
        }
    }
    assert_eq!(key_ids.len(), 3);
    let left_s = parsed[1].validity().not_after.timestamp() - now_s;
    assert!((30 * 86_400 - 60..=30 * 86_400).contains(&left_s), "{left_s}");
    // No certificate outlives its authority.
    dir.run("--client old --days 36500").unwrap();
    let end_of = |name: &str| CertificateInfo::read(&dir.path(name)).unwrap()[0].not_after_s;
    assert_eq!(end_of("old.crt"), end_of("ca.crt"));
}

#[test]
fn without_names_the_server_has_this_machines() {
    let dir = Dir::new();
    dir.run("").unwrap();
    let names = CertificateInfo::read(&dir.path("server.crt")).unwrap().remove(0).names;
    assert_eq!(names.last().map(String::as_str), Some("localhost"));
    // With an authority of before, a client alone needs no server.
    fs::remove_file(dir.path("server.crt")).unwrap();
    fs::remove_file(dir.path("server.key")).unwrap();
    dir.run("--client press-7").unwrap();
    assert!(!dir.path("server.crt").exists());
    dir.run("").unwrap();
    assert_eq!(dir.connect("press-7", "localhost"), Ok("press-7".into()));
}

#[test]
fn what_is_there_stays_until_renew_says_otherwise() {
    let dir = Dir::new();
    let args = "--server broker.example --client press-7";
    dir.run(args).unwrap();
    let all = || dir.names().iter().map(|name| dir.read(name)).collect::<Vec<_>>();
    let before = all();
    let said = dir.run(args).unwrap();
    assert!(said.contains("is there, until"), "{said}");
    dir.run("").unwrap();
    assert_eq!(all(), before);
    dir.run("--server Broker.Example").unwrap();
    let error = dir.run("--server other.example").unwrap_err();
    assert!(
        error.contains("is for broker.example: `--renew` replaces it by one for other.example"),
        "{error}"
    );
    assert_eq!(all(), before);

    let (server, press, authority) = (dir.read("server.crt"), dir.read("press-7.crt"), dir.read("ca.crt"));
    dir.run("--client press-7 --renew").unwrap();
    assert_eq!((dir.read("server.crt"), dir.read("ca.crt")), (server.clone(), authority.clone()));
    assert_eq!(dir.read("press-7.old.crt"), press);
    let second = dir.read("press-7.crt");
    assert_ne!(second, press);
    dir.run("--renew").unwrap();
    assert_eq!((dir.read("press-7.crt"), dir.read("ca.crt")), (second, authority));
    assert_ne!(dir.read("server.crt"), server);
    assert_eq!(CertificateInfo::read(&dir.path("server.crt")).unwrap()[0].names, ["broker.example"]);
    dir.run("--server other.example --renew").unwrap();
    assert_eq!(dir.connect("press-7", "other.example"), Ok("press-7".into()));
    assert!(dir.names().iter().all(|name| !name.starts_with('.')), "{:?}", dir.names());
}

#[test]
fn a_revoked_client_is_refused_with_every_certificate_it_had() {
    let dir = Dir::new();
    dir.run("--server broker.example --client press-7,press-8").unwrap();
    let keep = |name: &str| {
        for extension in ["crt", "key"] {
            let (from, to) =
                (dir.path(&format!("press-7.{extension}")), dir.path(&format!("{name}.{extension}")));
            fs::copy(from, to).unwrap();
        }
    };
    keep("first");
    dir.run("--client press-7 --renew").unwrap();
    keep("second");
    assert_eq!(dir.connect("first", "broker.example"), Ok("press-7".into()));
    let said = dir.run("--revoke press-7").unwrap();
    assert!(said.contains("press-7 is revoked (2 certificates)"), "{said}");
    for client in ["first", "second", "press-7"] {
        assert_eq!(dir.connect(client, "broker.example"), refused(CertificateError::Revoked));
    }
    assert_eq!(dir.connect("press-8", "broker.example"), Ok("press-8".into()));
    // Again changes nothing; another one adds to it.
    let list = dir.read("ca.crl");
    let said = dir.run("--revoke press-7").unwrap();
    assert!(said.contains("press-7 was revoked already"), "{said}");
    assert_eq!(dir.read("ca.crl"), list);
    // Replaced at once: the stolen one is out, the new one in.
    dir.run("--revoke press-8 --client press-8 --renew").unwrap();
    assert_eq!(dir.connect("press-8", "broker.example"), Ok("press-8".into()));
    assert_eq!(dir.connect("second", "broker.example"), refused(CertificateError::Revoked));
    let ders = x509_parser::pem::parse_x509_pem(dir.read("ca.crl").as_bytes()).unwrap().1;
    let (_, list) = x509_parser::parse_x509_crl(&ders.contents).unwrap();
    assert_eq!(list.iter_revoked_certificates().count(), 3);
    assert_eq!(list.crl_number().unwrap().to_bytes_be(), [3]);
    let authority = read_certificates(&dir.path("ca.crt")).unwrap().remove(0);
    let (_, authority) = x509_parser::parse_x509_certificate(&authority).unwrap();
    list.verify_signature(authority.public_key()).unwrap();
}

#[test]
fn mistakes_change_nothing_and_say_what_to_do() {
    let other = Dir::new();
    other.run("--client press-7").unwrap();
    let dir = Dir::new();
    dir.run("--client press-7").unwrap();
    fs::copy(other.path("press-7.crt"), dir.path("foreign.crt")).unwrap();
    fs::copy(dir.path("ca.key"), dir.path("alone.key")).unwrap();
    let all = |dir: &Dir| dir.names().iter().map(|name| dir.read(name)).collect::<Vec<_>>();
    let before = all(&dir);
    for (args, part) in [
        ("--server broker/example", "neither a name nor an address"),
        ("--server *.*.example", "neither a name nor an address"),
        ("--server *.192.168.1.5", "an address has no"),
        ("--client ../x", "it is also a file's name"),
        ("--client .x", "it is also a file's name"),
        ("--client ca", "files of that name are something else"),
        ("--client server", "files of that name are something else"),
        ("--client x.old", "files of that name are something else"),
        ("--client new,ca", "files of that name are something else"),
        ("--revoke press-9", "its certificate is needed to revoke it"),
        ("--revoke foreign", "is another authority's"),
        ("--client alone", "alone.key is there without"),
    ] {
        let error = dir.run(args).unwrap_err();
        assert!(error.contains(part), "{args}: {error}");
    }
    let long = format!("--client {}", "ä".repeat(65));
    assert!(dir.run(&long).unwrap_err().contains("longer than 64"));
    assert_eq!(all(&dir), before);

    let empty = Dir::new();
    assert!(empty.run("--revoke press-7").unwrap_err().contains("there is no authority"));
    assert!(!empty.path("").exists());
    for (change, part) in [
        ((|dir| fs::remove_file(dir.path("ca.key")).unwrap()) as fn(&Dir), "ca.crt is there without"),
        (|dir| fs::write(dir.path("ca.key"), "x").unwrap(), "it is no key"),
        (|dir| fs::rename(dir.path("press-7.key"), dir.path("ca.key")).unwrap(), "ca.key is not its key"),
        (|dir| fs::copy(dir.path("press-7.crt"), dir.path("ca.crt")).map(|_| ()).unwrap(), "no authority's"),
        (|dir| fs::write(dir.path("ca.crl"), "x").unwrap(), "one revocation list"),
    ] {
        let dir = Dir::new();
        dir.run("--client press-7").unwrap();
        change(&dir);
        let error = dir.run("--client press-8").unwrap_err();
        assert!(error.contains(part), "{error}");
        assert!(!dir.path("press-8.crt").exists());
    }
}

#[test]
fn numbers_go_on() {
    for (number, after) in [
        (&[][..], &[1][..]),
        (&[0], &[1]),
        (&[1], &[2]),
        (&[255], &[1, 0]),
        (&[1, 255], &[2, 0]),
        (&[255, 255], &[1, 0, 0]),
    ] {
        assert_eq!(authority::next(number), after);
    }
}
