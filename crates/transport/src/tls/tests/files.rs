//! Loading: what is wrong, where, and what to do.

use super::*;
use rustls::pki_types::pem::PemObject;

#[test]
fn errors_say_which_file_and_what_to_do() {
    let dir = Dir::new();
    let ca = Authority::new("ca");
    let (cert, key) = ca.server(&["broker.test"]);
    let (_, other_key) = ca.server(&["broker.test"]);
    let good = (dir.write("good.crt", &cert), dir.write("good.key", &key));
    let der: Vec<u8> = rustls::pki_types::CertificateDer::from_pem_slice(cert.as_bytes()).unwrap().to_vec();
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let (nameless, nameless_key) = ca.client("nobody", 1);
    let nameless = dir.pair("nameless", &(nameless, nameless_key));
    let file = |name, text: &str| dir.write(name, text);
    let with = |cert: PathBuf, key: PathBuf| server_files(vec![(cert, key)]);
    let clients = |client_ca: Option<PathBuf>, crl: Option<PathBuf>, client_required| ServerFiles {
        client_ca,
        crl,
        client_required,
        ..server_files(vec![good.clone()])
    };
    let ca_file = file("ca.crt", &ca.pem);
    let missing = dir.0.path().join("missing");
    let half = &cert[..cert.len() / 2];
    let damaged = cert.replacen("MII", "!!!", 1);
    let cases = [
        (with(missing.clone(), good.1.clone()), "missing", "cannot be opened: No such file"),
        (with(good.0.clone(), missing.clone()), "missing", "cannot be opened: No such file"),
        (
            with(file("empty", ""), good.1.clone()),
            "empty",
            "there is no certificate in it: it needs a line -----BEGIN",
        ),
        (
            with(good.1.clone(), good.0.clone()),
            "good.key",
            "but a key: are two files swapped, like `cert` and `key`?",
        ),
        (with(good.0.clone(), good.0.clone()), "good.crt", "but a certificate: are two files swapped"),
        (
            with(good.0.clone(), file("other.key", &other_key)),
            "other.key",
            "good.crt: they must be made together",
        ),
        (
            with(file("turned", &(ca.pem.clone() + &cert)), good.1.clone()),
            "good.key",
            "fits certificate number 2 of",
        ),
        (with(file("half", half), good.1.clone()), "half", "it is damaged"),
        (with(file("damaged", &damaged), good.1.clone()), "damaged", "damaged"),
        (with(dir.write("der", &der), good.1.clone()), "der", "it is DER, not PEM: convert it"),
        (with(good.0.clone(), file("enc", encrypted)), "enc", "the key is encrypted"),
        (with(good.0.clone(), file("two", &(key.clone() + &other_key))), "two", "there are several keys"),
        (with(dir.0.path().to_owned(), good.1.clone()), "", "cannot be read"),
        (server_files(vec![]), "tls", "set `cert` and `key`"),
        (server_files(vec![good.clone(), nameless.clone()]), "nameless.crt", "it has no DNS name"),
        (clients(None, None, true), "good.crt", "`client_ca` does not say whose"),
        (clients(None, Some(missing.clone()), false), "missing", "without `client_ca` no client shows"),
        (clients(Some(good.1.clone()), None, true), "good.key", "there is no certificate in it, but a key"),
        (
            clients(Some(ca_file.clone()), Some(ca_file.clone()), true),
            "ca.crt",
            "no revocation list in it, but a cert",
        ),
        (clients(Some(ca_file.clone()), Some(missing), true), "missing", "cannot be opened"),
    ];
    for (files, name, part) in cases {
        let error = files.load().unwrap_err();
        let text = error.to_string();
        assert!(error.file.ends_with(name), "{text}");
        assert!(text.contains(part), "{text}");
    }
    // Nameless, but the only one.
    server_files(vec![nameless]).load().unwrap();
    let mut client = client_files(good.1.clone());
    assert!(client.load().unwrap_err().to_string().contains("no certificate in it, but a key"));
    client.ca = Some(ca_file);
    client.certificate = Some((good.0, dir.write("other.key", other_key)));
    assert!(client.load().unwrap_err().to_string().contains("does not fit"));
}

#[test]
fn keys_of_all_three_forms_and_text_around_them_are_read() {
    let dir = Dir::new();
    let (ec, rsa) = (include_str!("forms/ec.crt"), include_str!("forms/rsa.crt"));
    for (form, cert, key) in [
        ("PKCS#8", ec, include_str!("forms/ec8.key")),
        ("SEC1", ec, include_str!("forms/ec1.key")),
        ("PKCS#8, RSA", rsa, include_str!("forms/rsa8.key")),
        ("PKCS#1", rsa, include_str!("forms/rsa1.key")),
    ] {
        let cert = dir.write("cert", format!("Certificate:\n  Some text\r\n{cert}"));
        let files = server_files(vec![(cert, dir.write("key", format!("# {form}\n{key}")))]);
        files.load().unwrap_or_else(|error| panic!("{form}: {error}"));
    }
}

#[test]
fn what_was_read_is_told() {
    let dir = Dir::new();
    let ca = Authority::new("ca");
    let (cert, key) = ca.sign(&["broker.test", "192.0.2.7", "::1"], |params| {
        params.distinguished_name.push(DnType::CommonName, "broker");
        params.not_after = date_time_ymd(2030, 1, 1);
    });
    let mut files = server_files(vec![dir.pair("server", &(cert + &ca.pem, key))]);
    files.client_ca = Some(dir.write("ca.crt", &ca.pem));
    files.crl = Some(dir.write("ca.crl", ca.revoke(&[1], 2029)));
    let (_, infos) = files.load().unwrap();
    let told: Vec<_> = infos
        .iter()
        .map(|info| (info.file.file_name().unwrap().to_str().unwrap(), info.kind, info.subject.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("server.crt", Kind::Certificate, "CN=broker"),
            ("server.crt", Kind::Certificate, "CN=ca"),
            ("ca.crl", Kind::RevocationList, "CN=ca"),
        ]
    );
    assert_eq!(infos[0].names, ["broker.test", "192.0.2.7", "::1"]);
    assert_eq!((infos[0].not_after_s, infos[2].not_after_s), (1_893_456_000, 1_861_920_000));
    let names: Vec<_> = files.paths().iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["server.crt", "server.key", "ca.crt", "ca.crl"]);
}

#[test]
fn ends_are_warned_about_a_month_ahead() {
    let end = 1_893_456_000; // 2030-01-01
    let day = 24 * 60 * 60;
    let info = |kind, subject: &str| CertificateInfo {
        file: PathBuf::from("a.crt"),
        kind,
        subject: subject.to_owned(),
        names: vec![],
        not_after_s: end,
    };
    let certificate = [info(Kind::Certificate, "CN=a")];
    for (left_s, expected) in [
        (31 * day, None),
        (30 * day + 1, None),
        (30 * day, Some("ends in 30 days, on 2030-01-01")),
        (2 * day - 1, Some("ends in 1 days, on 2030-01-01")),
        (day - 1, Some("ends today, 2030-01-01")),
        (0, Some("ends today, 2030-01-01")),
        (-1, Some("ended on 2030-01-01")),
        (i64::from(i32::MIN), Some("ended on 2030-01-01")),
    ] {
        let text = warnings(&certificate, end - left_s).pop();
        let expected = expected
            .map(|when| format!("a.crt: the certificate of CN=a {when}; nobody accepts it then: renew it"));
        assert_eq!(text, expected);
    }
    let text = warnings(&[info(Kind::RevocationList, "")], end + 1).pop().unwrap();
    assert_eq!(
        text,
        "a.crt: the revocation list ended on 2030-01-01; its issuer's certificates are refused then: get a new one"
    );
}

#[test]
fn the_systems_authorities_are_read() {
    let files = ClientFiles { ca: None, certificate: None, alpn: vec![] };
    assert!(files.paths().is_empty());
    // With or without authorities on this machine: never a panic, and an error that says what to install.
    if let Err(error) = files.load() {
        assert!(error.to_string().contains("apt install ca-certificates"), "{error}");
    }
}
