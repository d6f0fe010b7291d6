//! What rustls does not tell of a certificate: names, the end of its validity, and who the peer is.

use super::files::{LoadError, chain, parse};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, CertificateRevocationList, FromDer, X509Certificate};

/// How long before its end a certificate is warned about: a renewal that a person must order takes weeks.
pub const WARN_BEFORE_S: i64 = 30 * DAY_S;

const DAY_S: i64 = 24 * 60 * 60;

/// What was read, for logs and status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Where it is.
    pub file: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// The subject's distinguished name; of a revocation list, its issuer's.
    pub subject: String,
    /// DNS names, addresses, e-mail addresses and URIs it is for (subject alternative names).
    pub names: Vec<String>,
    /// The last second at which it is valid, in s since 1970.
    pub not_after_s: i64,
}

/// What ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A certificate of this side, or of its chain.
    Certificate,
    /// A list of revoked certificates.
    RevocationList,
}

/// Which name of a certificate is its holder's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NameFrom {
    /// The subject's common name; of several the last, which is the most specific (names go from the root to the leaf).
    Cn,
    /// The first subject alternative name of the first kind there is: DNS, e-mail, URI, address.
    San,
}

/// What to tell people about certificates that ended, or will within [`WARN_BEFORE_S`]. `now_s`: since 1970.
#[must_use]
pub fn warnings(certificates: &[CertificateInfo], now_s: i64) -> Vec<String> {
    certificates.iter().filter_map(|certificate| certificate.warning(now_s)).collect()
}

// === impl CertificateInfo ===

impl CertificateInfo {
    /// Of every certificate in a PEM file.
    ///
    /// # Errors
    /// The file cannot be read, or there is none in it.
    pub fn read(file: &Path) -> Result<Vec<Self>, LoadError> {
        let chain = chain(file)?;
        chain.iter().map(|der| Ok(Self::of_certificate(file, &parse(file, der)?))).collect()
    }

    pub(super) fn of_certificate(file: &Path, certificate: &X509Certificate<'_>) -> Self {
        let mut names = Vec::new();
        if let Ok(Some(san)) = certificate.subject_alternative_name() {
            names.extend(san.value.general_names.iter().filter_map(name_text));
        }
        Self {
            file: file.to_owned(),
            kind: Kind::Certificate,
            subject: certificate.subject().to_string(),
            names,
            not_after_s: certificate.validity().not_after.timestamp(),
        }
    }

    /// None: it has no end.
    pub(super) fn of_revocation_list(file: &Path, list: &CertificateRevocationList<'_>) -> Option<Self> {
        Some(Self {
            file: file.to_owned(),
            kind: Kind::RevocationList,
            subject: list.issuer().to_string(),
            names: Vec::new(),
            not_after_s: list.next_update()?.timestamp(),
        })
    }

    fn warning(&self, now_s: i64) -> Option<String> {
        let left_s = self.not_after_s - now_s;
        if left_s > WARN_BEFORE_S {
            return None;
        }
        let (what, until) = match self.kind {
            Kind::Certificate => ("the certificate", "nobody accepts it then: renew it"),
            Kind::RevocationList => {
                ("the revocation list", "its issuer's certificates are refused then: get a new one")
            }
        };
        let when = match left_s {
            i64::MIN..0 => format!("ended on {}", date(self.not_after_s)),
            0..DAY_S => format!("ends today, {}", date(self.not_after_s)),
            _ => format!("ends in {} days, on {}", left_s / DAY_S, date(self.not_after_s)),
        };
        let of = if self.subject.is_empty() { String::new() } else { format!(" of {}", self.subject) };
        Some(format!("{}: {what}{of} {when}; {until}", self.file.display()))
    }
}

/// The day of a second since 1970, UTC: `2026-11-25`.
#[must_use]
pub fn date(at_s: i64) -> String {
    match ASN1Time::from_timestamp(at_s) {
        Ok(time) => time.to_datetime().date().to_string(),
        Err(_) => format!("{at_s} s since 1970"),
    }
}

/// The name of the certificate's holder. See [`Tls::peer_name`](super::Tls::peer_name).
pub(super) fn peer_name(der: &[u8], from: NameFrom) -> Option<Box<str>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = match from {
        NameFrom::Cn => certificate.subject().iter_common_name().last()?.as_str().ok()?.to_owned(),
        NameFrom::San => {
            let san = certificate.subject_alternative_name().ok()??;
            let names = &san.value.general_names;
            let first = |rank| names.iter().find(|name| san_rank(name) == Some(rank));
            name_text((0..SAN_RANKS).find_map(first)?)?
        }
    };
    (!name.is_empty() && !name.contains('\0')).then(|| name.into())
}

/// How many kinds of alternative names a holder may be named by.
const SAN_RANKS: u8 = 4;

fn san_rank(name: &GeneralName<'_>) -> Option<u8> {
    match name {
        GeneralName::DNSName(_) => Some(0),
        GeneralName::RFC822Name(_) => Some(1),
        GeneralName::URI(_) => Some(2),
        GeneralName::IPAddress(_) => Some(3),
        _ => None,
    }
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text) => {
            Some((*text).to_owned())
        }
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|ip| ip.to_string())
        }
        _ => None,
    }
}
