//! What a client makes of a server's certificate when its clock is wrong.

use super::super::known_time::KnownTime;
use super::*;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, Error, RootCertStore};
use std::sync::Arc;
use std::time::Duration;

/// Seconds from 1970 to the first of January, 2010 and later.
fn year(year: u64) -> u64 {
    const Y2010: u64 = 1_262_304_000;
    Y2010 + (year - 2010) * 31_557_600
}

#[test]
fn a_clock_that_is_behind_is_not_what_a_certificate_is_judged_by() {
    let ca = Authority::new("ca");
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(der(&ca.pem)).unwrap();
    let verifier: Arc<dyn ServerCertVerifier> =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()))
            .build()
            .unwrap();
    let server = |from: i32, to: i32| {
        let (pem, _) = ca.sign(&["broker.test"], |params| {
            (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        });
        der(&pem)
    };
    let behind: fn() -> bool = || true;
    let set: fn() -> bool = || false;
    let foreign = der(&Authority::new("foreign").server(&["broker.test"]).0);
    // (certificate, years it is for, what the time is taken for, whether the clock is known to be wrong, accepted)
    for (certificate, what, at, is_behind, accepted) in [
        (server(2020, 2030), "in its time", 2025, set, true),
        (server(2020, 2030), "not valid yet, by a clock that may be right", 2015, set, false),
        (server(2020, 2030), "issued after all that is known", 2015, behind, true),
        (server(2012, 2014), "expired by what is known", 2015, behind, false),
        (foreign.clone(), "of somebody else", 2015, behind, false),
    ] {
        let known = KnownTime { verifier: Arc::clone(&verifier), any_name: false, is_behind };
        let name = ServerName::try_from("broker.test").unwrap();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(year(at)));
        let said = known.verify_server_cert(&certificate, &[], &name, &[], at);
        assert_eq!(said.is_ok(), accepted, "{what}: {said:?}");
        let other = ServerName::try_from("other.test").unwrap();
        let said = known.verify_server_cert(&certificate, &[], &other, &[], at);
        assert!(said.is_err(), "{what}, of another name");
    }
    // What was accepted is known; what was refused is not.
    let issued = server(2027, 2030);
    let known = KnownTime { verifier: Arc::clone(&verifier), any_name: false, is_behind: set };
    let name = ServerName::try_from("broker.test").unwrap();
    let verify = |at| {
        let at = UnixTime::since_unix_epoch(Duration::from_secs(year(at)));
        known.verify_server_cert(&issued, &[], &name, &[], at)
    };
    let before = ferrule_clock::known_s();
    let refused = verify(2031).unwrap_err();
    assert!(
        matches!(refused, Error::InvalidCertificate(CertificateError::ExpiredContext { .. })),
        "{refused:?}"
    );
    assert_eq!(ferrule_clock::known_s(), before);
    verify(2028).unwrap();
    assert_eq!(u64::from(ferrule_clock::known_s()) / 86_400, year(2027) / 86_400);
}
