//! A client's check of a server's certificate on a machine whose clock may not have been set.
//!
//! - A chain that was verified says that the time of its issue has passed: [`ferrule_clock::learn`].
//! - A certificate that is not valid yet by a clock that is wrong for certain was issued after all that is known: then the
//!   time of its issue is what it is judged by. Without that a gateway without a battery, whose cloud renewed its certificate
//!   while it was off, could not connect until somebody set its clock. With a clock that may be right, it is refused.
//!
//! Where a person asks for it the name is left out: chain, dates and signatures count as ever, and the verifier looks at the name last.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Asks another verifier, and learns from it.
#[derive(Debug)]
pub(super) struct KnownTime {
    pub(super) verifier: Arc<dyn ServerCertVerifier>,
    /// Whether a wrong name is forgiven.
    pub(super) any_name: bool,
    /// Whether the clock is wrong for certain.
    pub(super) is_behind: fn() -> bool,
}

/// Seconds since 1970; none: before that, or past 2106, or no certificate.
fn issued_s(certificate: &CertificateDer<'_>) -> Option<u32> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    u32::try_from(certificate.validity().not_before.timestamp()).ok()
}

impl ServerCertVerifier for KnownTime {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = |at: UnixTime| match self.verifier.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            at,
        ) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.any_name => Ok(ServerCertVerified::assertion()),
            said => said,
        };
        let issued = issued_s(end_entity);
        let said = match (verify(now), issued) {
            (
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
                )),
                Some(issued),
            ) if (self.is_behind)() => {
                verify(UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs().max(issued.into()))))
            }
            (said, _) => said,
        };
        if said.is_ok() {
            issued.into_iter().for_each(ferrule_clock::learn);
        }
        said
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
