//! Who is let in, as whom, and what both sides are told.

use super::*;
use rcgen::{DnValue, SanType};
use rustls::AlertDescription as Alert;
use rustls::CertificateError as Bad;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// A server's error and, of its alert, the client's.
fn outcome(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (Option<TlsError>, Option<Alert>) {
    let mut pair = Pair::new(client, server);
    pair.run();
    let alert = match pair.client.error {
        None => None,
        Some(TlsError::Refused { peer: Side::Server, alert }) => Some(alert),
        Some(other) => unreachable!("{other}"),
    };
    (pair.server.error, alert)
}

fn bad(problem: Bad) -> Option<TlsError> {
    Some(TlsError::Certificate { peer: Side::Client, problem })
}

#[test]
fn clients_are_let_in_by_their_certificates() {
    let dir = Dir::new();
    let (ca, foreign) = (Authority::new("ca"), Authority::new("foreign"));
    let below = ca.authority("below");
    let chained = {
        let (cert, key) = below.client("chained", 5);
        (cert + &below.pem, key)
    };
    let expired = ca.sign(&[], |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let server_only =
        ca.sign(&[], |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let clients = [
        ("none", None),
        ("good", Some(ca.client("good", 1))),
        ("revoked", Some(ca.client("revoked", 2))),
        ("foreign", Some(foreign.client("foreign", 3))),
        ("expired", Some(expired)),
        ("server only", Some(server_only)),
        ("chained", Some(chained)),
    ];
    let mut server = server_files(vec![dir.pair("server", &ca.server(&["broker.test"]))]);
    let ca_file = dir.write("ca.crt", &ca.pem);
    server.client_ca = Some(ca_file.clone());
    let lists = ca.revoke(&[2], 2100) + &below.revoke(&[9], 2100);
    for versions in VERSIONS {
        for (required, crl) in [(true, false), (false, false), (true, true)] {
            server.client_required = required;
            server.crl = crl.then(|| dir.write("ca.crl", &lists));
            let (config, _) = server.load().unwrap();
            for (name, pair) in &clients {
                let mut client = client_files(ca_file.clone());
                client.certificate = pair.as_ref().map(|pair| dir.pair("client", pair));
                let (error, alert) = outcome(&client.load_versions(versions).unwrap().0, &config);
                let is_13 = versions[0].version == ProtocolVersion::TLSv1_3;
                let (error_expected, alert_expected) = match *name {
                    "none" if required && is_13 => {
                        (Some(TlsError::NoCertificate), Some(Alert::CertificateRequired))
                    }
                    // TLS 1.2 has no alert of its own for it.
                    "none" if required => (Some(TlsError::NoCertificate), Some(Alert::CertificateRequired)),
                    "revoked" if crl => (bad(Bad::Revoked), Some(Alert::CertificateRevoked)),
                    "foreign" => (bad(Bad::UnknownIssuer), Some(Alert::UnknownCA)),
                    "expired" => (error.clone(), Some(Alert::CertificateExpired)),
                    "server only" => (error.clone(), Some(Alert::UnsupportedCertificate)),
                    _ => (None, None),
                };
                assert_eq!(
                    (&error, alert),
                    (&error_expected, alert_expected),
                    "{name} {versions:?} {required} {crl}"
                );
                assert_eq!(error.is_some(), alert.is_some());
            }
        }
    }
}

#[test]
fn a_server_that_was_revoked_is_refused_by_whoever_has_the_list() {
    let (dir, ca) = (Dir::new(), Authority::new("ca"));
    let server = ca.sign(&["broker.test"], |params| params.serial_number = Some(SerialNumber::from(7)));
    let (server, _) = server_files(vec![dir.pair("server", &server)]).load().unwrap();
    let files = client_files(dir.write("ca.crt", &ca.pem));
    // A list that is out of date is none.
    for (revoked, until, refused) in [(7, 2100, true), (8, 2100, false), (8, 2025, true)] {
        let crl = dir.write("ca.crl", ca.revoke(&[revoked], until));
        let mut pair = Pair::new(&files.load_without_revoked(&crl).unwrap().0, &server);
        pair.run();
        assert_eq!(pair.client.error.is_some(), refused, "{revoked} {until}: {:?}", pair.client.error);
    }
}

#[test]
fn revocation_fails_closed() {
    let dir = Dir::new();
    let ca = Authority::new("ca");
    let below = ca.authority("below");
    let (cert, key) = below.client("chained", 5);
    let mut server = server_files(vec![dir.pair("server", &ca.server(&["broker.test"]))]);
    let ca_file = dir.write("ca.crt", &ca.pem);
    server.client_ca = Some(ca_file.clone());
    let mut client = client_files(ca_file);
    client.certificate = Some(dir.pair("client", &(cert + &below.pem, key)));
    let (client, _) = client.load().unwrap();
    let fresh = (ca.revoke(&[], 2100), below.revoke(&[], 2100));
    let cases = [
        (fresh.0.clone() + &fresh.1, None),
        // The list of the one in the middle's issuer, or of its own, is missing or out of date.
        (fresh.1.clone(), Some("has no list of its issuer")),
        (fresh.0.clone(), Some("has no list of its issuer")),
        (fresh.0.clone() + &below.revoke(&[], 2025), Some("out of date")),
        (ca.revoke(&[], 2025) + &fresh.1, Some("out of date")),
        (fresh.0.clone() + &below.revoke(&[5], 2100), Some("was revoked")),
        // Of the same name, but signed by another.
        (fresh.0.clone() + &Authority::new("below").revoke(&[], 2100), Some("")),
    ];
    for (lists, expected) in cases {
        server.crl = Some(dir.write("lists", lists));
        let (error, _) = outcome(&client, &server.load().unwrap().0);
        let text = error.as_ref().map(ToString::to_string);
        match (&text, expected) {
            (None, None) => {}
            (Some(text), Some(part)) => assert!(text.contains(part), "{text}"),
            _ => panic!("{text:?} {expected:?}"),
        }
    }
}

#[test]
fn a_servers_certificate_is_verified() {
    let dir = Dir::new();
    let (ca, foreign) = (Authority::new("ca"), Authority::new("foreign"));
    let expired = ca.sign(&["broker.test"], |params| params.not_after = date_time_ymd(2002, 1, 1));
    let cases = [
        (ca.server(&["broker.test"]), None),
        (foreign.server(&["broker.test"]), Some(("name its CA's file in `ca`", Alert::UnknownCA))),
        (ca.server(&["other.test"]), Some(("other.test", Alert::BadCertificate))),
        (expired, Some(("expired", Alert::CertificateExpired))),
    ];
    let (client, _) = client_files(dir.write("ca.crt", &ca.pem)).load().unwrap();
    for (pair, expected) in cases {
        let (server, _) = server_files(vec![dir.pair("server", &pair)]).load().unwrap();
        let mut pair = Pair::new(&client, &server);
        pair.run();
        let Some((part, alert)) = expected else {
            pair.check_established();
            continue;
        };
        let text = pair.client.error.unwrap().to_string();
        assert!(text.starts_with("the server's certificate was not accepted: "), "{text}");
        assert!(text.contains(part), "{text}");
        assert_eq!(pair.server.error, Some(TlsError::Refused { peer: Side::Client, alert }));
    }
}

#[test]
fn an_address_is_a_servers_name_too() {
    let (dir, ca) = (Dir::new(), Authority::new("ca"));
    let (client, _) = client_files(dir.write("ca.crt", &ca.pem)).load().unwrap();
    let (server, _) =
        server_files(vec![dir.pair("server", &ca.server(&["192.0.2.7", "::1"]))]).load().unwrap();
    for (name, good) in [("192.0.2.7", true), ("::1", true), ("192.0.2.8", false)] {
        let mut pair = Pair::named(&client, &server, name);
        pair.run();
        assert_eq!(pair.client.error.is_none(), good, "{name}");
    }
}

#[test]
fn a_name_selects_a_certificate() {
    let (dir, ca) = (Dir::new(), Authority::new("ca"));
    let certificates = [
        ("first", ca.server(&["first.test", "*.first.test"])),
        ("second", ca.server(&["Second.test", "exact.first.test"])),
        ("third", ca.server(&["*.second.test", "second.test"])),
    ];
    let serial = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    let files = certificates.iter().map(|(name, pair)| dir.pair(name, pair)).collect();
    let (server, _) = server_files(files).load().unwrap();
    let mut files = client_files(dir.write("ca.crt", &ca.pem));
    files.alpn.clear();
    let (client, _) = files.load().unwrap();
    let cases = [
        ("first.test", 0),
        ("a.first.test", 0),
        ("exact.first.test", 1),
        ("EXACT.first.test", 1),
        ("second.test", 1),
        ("a.second.test", 2),
        // One label, not two.
        ("a.b.second.test", 0),
        ("test", 0),
        ("unknown.example", 0),
        ("192.0.2.1", 0),
    ];
    for (name, expected) in cases {
        let mut pair = Pair::named(&client, &server, name);
        pair.run();
        // Certificates for other names are refused, and were shown all the same.
        let shown = match pair.client.tls.common().peer_certificates() {
            Some(chain) => chain[0].to_vec(),
            None => {
                let text = pair.client.error.unwrap().to_string();
                assert!(text.contains("first.test"), "{name}: {text}");
                serial(&certificates[0].1.0)
            }
        };
        assert_eq!(shown, serial(&certificates[expected].1.0), "{name}");
    }
}

#[test]
fn protocols_must_agree_if_the_client_names_any() {
    let dir = Dir::new();
    let ca = Authority::new("ca");
    let mut server = server_files(vec![dir.pair("server", &ca.server(&["broker.test"]))]);
    let mut client = client_files(dir.write("ca.crt", &ca.pem));
    for (spoken, offered, agreed) in [
        (ALPN_MQTT, &[ALPN_MQTT][..], Ok(Some(ALPN_MQTT))),
        (ALPN_MQTT, &[], Ok(None)),
        (ALPN_MQTT, &[b"h2", ALPN_MQTT], Ok(Some(ALPN_MQTT))),
        (ALPN_MQTT, &[b"h2", ALPN_HTTP], Err(())),
        (ALPN_HTTP, &[b"h2", ALPN_HTTP], Ok(Some(ALPN_HTTP))),
        (ALPN_HTTP, &[ALPN_MQTT], Err(())),
    ] {
        server.alpn = vec![spoken.to_vec()];
        client.alpn = offered.iter().map(|protocol| protocol.to_vec()).collect();
        let mut pair = Pair::new(&client.load().unwrap().0, &server.load().unwrap().0);
        pair.run();
        match agreed {
            Ok(protocol) => {
                pair.check_established();
                assert_eq!(pair.client.tls.common().alpn_protocol(), protocol);
            }
            Err(()) => {
                assert_eq!(pair.server.error, Some(TlsError::Protocol(rustls::Error::NoApplicationProtocol)));
                let alert = Alert::NoApplicationProtocol;
                assert_eq!(pair.client.error, Some(TlsError::Refused { peer: Side::Server, alert }));
            }
        }
    }
}

#[test]
fn versions_are_those_of_the_configuration() {
    let dir = Dir::new();
    let ca = Authority::new("ca");
    let mut server = server_files(vec![dir.pair("server", &ca.server(&["broker.test"]))]);
    let client = client_files(dir.write("ca.crt", &ca.pem));
    for (tls12, versions, expected) in [
        (true, VERSIONS[0], Some(ProtocolVersion::TLSv1_3)),
        (true, VERSIONS[1], Some(ProtocolVersion::TLSv1_2)),
        (false, VERSIONS[0], Some(ProtocolVersion::TLSv1_3)),
        (false, VERSIONS[1], None),
    ] {
        server.tls12 = tls12;
        let mut pair = Pair::new(&client.load_versions(versions).unwrap().0, &server.load().unwrap().0);
        pair.run();
        match expected {
            Some(version) => assert_eq!(pair.server.tls.version(), Some(version)),
            None => {
                let alert = Alert::ProtocolVersion;
                assert_eq!(pair.client.error, Some(TlsError::Refused { peer: Side::Server, alert }));
            }
        }
    }
}

#[test]
fn the_peer_has_the_name_in_its_certificate() {
    use NameFrom::{Cn, San};
    let dir = Dir::new();
    let ca = Authority::new("ca");
    let mut server = server_files(vec![dir.pair("server", &ca.server(&["broker.test"]))]);
    let ca_file = dir.write("ca.crt", &ca.pem);
    server.client_ca = Some(ca_file.clone());
    let (server, _) = server.load().unwrap();
    let with = |cn: Option<DnValue>, sans: Vec<SanType>| {
        ca.sign(&[], |params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, "Works");
            if let Some(cn) = cn {
                params.distinguished_name.push(DnType::CommonName, cn);
            }
            params.subject_alt_names = sans;
        })
    };
    let named = |cn: &str, sans| with(Some(cn.into()), sans);
    let ia5 = |text: &str| text.to_owned().try_into().unwrap();
    let mail = SanType::Rfc822Name(ia5("a@b.test"));
    let uri = SanType::URI(ia5("urn:press:7"));
    let dns = SanType::DnsName(ia5("press-7.test"));
    let ip = SanType::IpAddress("192.0.2.7".parse().unwrap());
    let cases = [
        (named("press-7", vec![]), Some("press-7"), None),
        (
            named("Prüfstand 7", vec![mail.clone(), ip.clone(), dns]),
            Some("Prüfstand 7"),
            Some("press-7.test"),
        ),
        (with(None, vec![ip.clone(), uri.clone(), mail]), None, Some("a@b.test")),
        (named("", vec![]), None, None),
        (named("x", vec![ip.clone(), uri]), Some("x"), Some("urn:press:7")),
        (named("x", vec![ip]), Some("x"), Some("192.0.2.7")),
        (named("nul\0byte", vec![SanType::DnsName(ia5("a\0b"))]), None, None),
        (with(Some(DnValue::BmpString("UTF-16".try_into().unwrap())), vec![]), None, None),
    ];
    for (pair, cn, san) in &cases {
        let mut client = client_files(ca_file.clone());
        client.certificate = Some(dir.pair("client", pair));
        let (client, _) = client.load().unwrap();
        // The second time from the ticket.
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let pair = Pair::established(&client, &server);
            assert_eq!(pair.server.tls.handshake_kind(), Some(kind));
            assert_eq!(pair.server.tls.peer_name(Cn).as_deref(), *cn);
            assert_eq!(pair.server.tls.peer_name(San).as_deref(), *san);
            assert_eq!(pair.client.tls.peer_name(San).as_deref(), Some("broker.test"));
        }
    }
    let pair = Pair::established(&client_files(ca_file).load().unwrap().0, &server);
    assert_eq!(pair.server.tls.peer_name(Cn), None);
}

#[test]
fn of_several_common_names_the_last_counts() {
    // `openssl req -x509 -subj /CN=plant/O=Works/CN=press-7`: rcgen writes one of each.
    let der = CertificateDer::from_pem_slice(include_bytes!("forms/two-names.crt")).unwrap();
    assert_eq!(certificate::peer_name(&der, NameFrom::Cn).as_deref(), Some("press-7"));
    assert_eq!(certificate::peer_name(&der[..100], NameFrom::Cn), None);
}

#[test]
fn a_client_gets_a_certificate_that_it_can_verify() {
    use rustls::SignatureScheme as Scheme;
    let keys = [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P256_SHA256].map(|algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate =
            CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        let provider = rustls::crypto::ring::default_provider();
        rustls::sign::CertifiedKey::from_der(vec![certificate.der().clone()], key.into(), &provider).unwrap()
    });
    let mut resolver = resolver::ByName::new();
    for key in keys {
        resolver.add(key, ["a.test"].into_iter());
    }
    let found = |name, schemes: &[Scheme]| {
        resolver.find(name, schemes).map(|key| key.key.choose_scheme(&[Scheme::ED25519]).is_some())
    };
    for name in [Some("a.test"), Some("other.test"), None] {
        assert_eq!(found(name, &[Scheme::ECDSA_NISTP256_SHA256, Scheme::ED25519]), Some(true));
        assert_eq!(found(name, &[Scheme::ECDSA_NISTP256_SHA256]), Some(false));
        assert_eq!(found(name, &[Scheme::RSA_PSS_SHA256]), None);
    }
}
