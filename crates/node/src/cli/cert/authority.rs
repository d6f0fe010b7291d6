//! Makes and reads certificates and revocation lists (RFC 5280).

use ferrule_transport::tls::{CertificateInfo, FILE_BYTES_MAX, date};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::DnsName;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use x509_parser::pem::Pem;
use x509_parser::prelude::{CertificateRevocationList, FromDer, ParsedExtension, X509Certificate};

pub(super) const SECONDS_OF_DAY: i64 = 24 * 60 * 60;

/// An authority's life: longer than most devices', and short enough to be of use.
const AUTHORITY_DAYS: i64 = 20 * 365;

/// Certificates begin this much before they are made: the clocks of devices run behind.
const BACKDATED_S: i64 = SECONDS_OF_DAY;

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Server,
    Client,
    /// Of a cluster: whoever of two dials.
    Node,
}

/// A certificate and its key.
pub(super) struct Issued {
    pub(super) certificate_pem: String,
    pub(super) key_pem: String,
    pub(super) not_after_s: i64,
}

/// Who makes certificates.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    /// Its subject, as it is in its certificate.
    name: Vec<u8>,
    key_id: KeyIdMethod,
    not_after_s: i64,
}

/// What is revoked. Reasons are not kept: brokers do not ask.
pub(super) struct List {
    /// Serial number, and since when in s since 1970.
    entries: Vec<(Vec<u8>, i64)>,
    /// Grows with every list; the last one's.
    number: Vec<u8>,
    /// The authority's name.
    issuer: Vec<u8>,
}

// === impl Authority ===

impl Authority {
    /// Makes one; nothing is written.
    pub(super) fn create(host: &str, now_s: i64) -> Result<Self, String> {
        let mut params = CertificateParams::default();
        // Two authorities need two names: revocation lists and trusted certificates are found by them.
        let mut id = [0; 4];
        getrandom::fill(&mut id).map_err(failed)?;
        let name = format!("Ferrule CA {:08x} of {host}", u32::from_be_bytes(id));
        let name: String = name.chars().take(super::NAME_CHARS_MAX).collect();
        params.distinguished_name = common_name(&name);
        // It signs certificates of servers and clients, and no other authority's.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, now_s, now_s + AUTHORITY_DAYS * SECONDS_OF_DAY)?;
        let key = KeyPair::generate().map_err(failed)?;
        let pem = params.self_signed(&key).map_err(failed)?.pem();
        Self::of(pem, key, now_s)
    }

    /// Reads one. None: neither file is there.
    pub(super) fn open(crt: &Path, key: &Path, now_s: i64) -> Result<Option<Self>, String> {
        match (crt.exists(), key.exists()) {
            (false, false) => return Ok(None),
            (true, true) => {}
            (crt_there, _) => {
                let (there, missing) = if crt_there { (crt, key) } else { (key, crt) };
                return Err(format!(
                    "{} is there without {}: bring it, or make a new authority in another `--dir`",
                    there.display(),
                    missing.display()
                ));
            }
        }
        let pair = KeyPair::from_pem(&read(key)?)
            .map_err(|e| format!("{}: it is no key that can be used here ({e})", key.display()))?;
        Self::of(read(crt)?, pair, now_s).map(Some).map_err(|e| format!("{}: {e}", crt.display()))
    }

    fn of(certificate_pem: String, key: KeyPair, now_s: i64) -> Result<Self, String> {
        let der = pems(&certificate_pem, "CERTIFICATE")?;
        let der = der.first().ok_or("there is no certificate in it")?;
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| format!("it is damaged: {e}"))?;
        if !certificate.is_ca() {
            return Err("it is no authority's certificate".to_owned());
        }
        if certificate.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
            return Err("ca.key is not its key".to_owned());
        }
        let not_after_s = certificate.validity().not_after.timestamp();
        if not_after_s < now_s {
            return Err(format!(
                "it ended on {}: make a new authority in another `--dir`, and give both to clients for a time",
                date(not_after_s)
            ));
        }
        let key_id = certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(KeyIdMethod::PreSpecified(id.0.to_vec())),
            _ => None,
        });
        let key_id = key_id.unwrap_or(KeyIdMethod::Sha256);
        let name = certificate.subject().as_raw().to_vec();
        let issuer = Issuer::from_ca_cert_der(&der.as_slice().into(), key).map_err(failed)?;
        Ok(Self { issuer, certificate_pem, name, key_id, not_after_s })
    }

    pub(super) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub(super) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Makes a certificate for `names`, the first of which is its common name, and a key (ECDSA P-256: all TLS stacks of
    /// devices have it). It ends with the authority at the latest.
    pub(super) fn issue(
        &self,
        purpose: Purpose,
        names: &[String],
        now_s: i64,
        not_after_s: i64,
    ) -> Result<Issued, String> {
        let not_after_s = not_after_s.min(self.not_after_s);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = names.first().filter(|name| name.chars().count() <= super::NAME_CHARS_MAX) {
            params.distinguished_name = common_name(name);
        }
        params.subject_alt_names = names.iter().filter_map(|name| alternative(name)).collect();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match purpose {
            Purpose::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Purpose::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, now_s, not_after_s)?;
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let (_, parsed) = X509Certificate::from_der(certificate.der()).map_err(failed)?;
        self.check_name(parsed.issuer().as_raw())?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem(), not_after_s })
    }

    /// Its list, or the first one, empty.
    pub(super) fn open_list(&self, path: &Path) -> Result<List, String> {
        let mut list = List { entries: Vec::new(), number: Vec::new(), issuer: self.name.clone() };
        if !path.exists() {
            return Ok(list);
        }
        let at = |e: String| format!("{}: {e}", path.display());
        let ders = pems(&read(path)?, "X509 CRL").map_err(at)?;
        let [der] = ders.as_slice() else {
            return Err(at("there must be one revocation list in it".to_owned()));
        };
        let (_, parsed) =
            CertificateRevocationList::from_der(der).map_err(|e| at(format!("it is damaged: {e}")))?;
        if parsed.issuer().as_raw() != self.name {
            return Err(at(format!("it is the list of another authority, {}", parsed.issuer())));
        }
        list.number = parsed.crl_number().map(|number| number.to_bytes_be()).unwrap_or_default();
        list.entries = parsed
            .iter_revoked_certificates()
            .map(|entry| (entry.raw_serial().to_vec(), entry.revocation_date.timestamp()))
            .collect();
        Ok(list)
    }

    /// rcgen keeps one of each part of a name; an authority made elsewhere may have more.
    fn check_name(&self, written: &[u8]) -> Result<(), String> {
        match written == self.name {
            true => Ok(()),
            false => Err("the authority's name has parts that this command cannot write: use the tools it was made with"
                .to_owned()),
        }
    }
}

// === impl List ===

impl List {
    /// Adds `certificates`. Returns how many were not in it yet.
    pub(super) fn add(&mut self, certificates: &[Vec<u8>], now_s: i64) -> Result<usize, String> {
        let before = self.entries.len();
        for der in certificates {
            let (_, certificate) =
                X509Certificate::from_der(der).map_err(|e| format!("its certificate is damaged: {e}"))?;
            if certificate.issuer().as_raw() != self.issuer {
                return Err(format!("its certificate is another authority's, {}", certificate.issuer()));
            }
            let serial = certificate.raw_serial();
            if !self.entries.iter().any(|(revoked, _)| revoked == serial) {
                self.entries.push((serial.to_vec(), now_s));
            }
        }
        Ok(self.entries.len() - before)
    }

    /// The list as PEM.
    pub(super) fn sign(&self, authority: &Authority, now_s: i64) -> Result<String, String> {
        let at = |at_s: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(at_s.max(0).cast_unsigned());
        let list = CertificateRevocationListParams {
            this_update: at(now_s - BACKDATED_S),
            next_update: at(authority.not_after_s),
            crl_number: SerialNumber::from(next(&self.number)),
            issuing_distribution_point: None,
            revoked_certs: self
                .entries
                .iter()
                .map(|(serial, since_s)| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(serial),
                    revocation_time: at(*since_s),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: authority.key_id.clone(),
        };
        let list = list.signed_by(&authority.issuer).map_err(failed)?;
        let (_, parsed) = CertificateRevocationList::from_der(list.der()).map_err(failed)?;
        authority.check_name(parsed.issuer().as_raw())?;
        list.pem().map_err(failed)
    }
}

/// The number after a big-endian one.
pub(super) fn next(number: &[u8]) -> Vec<u8> {
    let mut next = number.to_vec();
    for digit in next.iter_mut().rev() {
        *digit = digit.wrapping_add(1);
        if *digit != 0 {
            return next;
        }
    }
    next.insert(0, 1);
    next
}

/// From a little ago until `not_after_s`; and a serial number that nobody can guess (16 bytes; RFC 5280, 4.1.2.2).
fn validity(params: &mut CertificateParams, now_s: i64, not_after_s: i64) -> Result<(), String> {
    let at = |at_s: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs(at_s.max(0).cast_unsigned());
    params.not_before = at(now_s - BACKDATED_S);
    params.not_after = at(not_after_s);
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(failed)?;
    // Positive, and as long as it is.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// A client's name may be something else than a DNS name, and then is its common name only.
fn alternative(name: &str) -> Option<SanType> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Some(SanType::IpAddress(address));
    }
    let text = name.strip_prefix("*.").unwrap_or(name);
    DnsName::try_from(text).ok()?;
    Some(SanType::DnsName(name.to_owned().try_into().ok()?))
}

/// The certificates in a file, DER.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<Vec<u8>>, String> {
    pems(&read(path)?, "CERTIFICATE").map_err(|e| format!("{}: {e}", path.display()))
}

/// What a certificate of this command says of itself.
pub(super) fn read_info(path: &Path) -> Result<CertificateInfo, String> {
    let infos = CertificateInfo::read(path).map_err(|e| e.to_string())?;
    infos.into_iter().next().ok_or_else(|| format!("{}: there is no certificate in it", path.display()))
}

/// Of a PEM file, what has `label`.
fn pems(text: &str, label: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut found = Vec::new();
    for pem in Pem::iter_from_buffer(text.as_bytes()) {
        let pem = pem.map_err(|e| format!("it is damaged: {e}"))?;
        if pem.label == label {
            found.push(pem.contents);
        }
    }
    Ok(found)
}

pub(super) fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
        .map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    Ok(text)
}

fn failed(error: impl Display) -> String {
    format!("making it failed: {error}")
}
