//! Why a TLS connection ends: every one closes it, so the kinds are what a log and a counter tell apart, and each text says
//! whose mistake it is and what to change.

use rustls::{AlertDescription, CertificateError, Error, Side};
use std::fmt;

/// Why the connection is to be closed. `peer`: which side it plays.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// What came first is not TLS.
    #[error("the {} {spoken}, where TLS is spoken: {}", name(*peer), spoken.advice(*peer))]
    NotTls {
        /// Which side sent it.
        peer: Side,
        /// What it is.
        spoken: Spoken,
    },
    /// The peer ended it, with an alert.
    #[error("the {} refused with the TLS alert {alert:?}{}", name(*peer), Advice::alert(*peer, *alert))]
    Refused {
        /// Which side refused.
        peer: Side,
        /// Why.
        alert: AlertDescription,
    },
    /// The peer's certificate was not accepted.
    #[error("the {}'s certificate was not accepted: {}", name(*peer), certificate(*peer, problem))]
    Certificate {
        /// Whose.
        peer: Side,
        /// Why not.
        problem: CertificateError,
    },
    /// A client showed no certificate and must.
    #[error("the client has no certificate, and `client_ca` asks for one")]
    NoCertificate,
    /// More came, without the end of a record or message, than is kept.
    #[error("{left} bytes without the end of a TLS message: {max} is the most")]
    TooLong {
        /// How much.
        left: usize,
        /// The bound.
        max: usize,
    },
    /// The keys have encrypted as much as they may, and TLS 1.2 has no way to change them.
    #[error("the connection's keys are used up: it must be made again")]
    Exhausted,
    /// Data was given before the handshake ended, or after the connection did.
    #[error("the TLS connection is not open")]
    NotOpen,
    /// The peer breaks the protocol, or there is nothing both sides can speak.
    #[error("TLS with the peer failed: {0}")]
    Protocol(#[source] Error),
}

/// What a peer speaks that does not speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    /// An MQTT CONNECT or CONNACK.
    Mqtt,
    /// An HTTP request or response.
    Http,
    /// A PROXY header.
    Proxy,
    /// Anything else.
    Unknown,
}

/// What to do about it, after what happened.
struct Advice(&'static str);

impl TlsError {
    /// Of rustls' errors those that need no more than a name are told apart.
    pub(super) fn of(error: Error, peer: Side) -> Self {
        match error {
            Error::AlertReceived(alert) => Self::Refused { peer, alert },
            Error::InvalidCertificate(problem) => Self::Certificate { peer, problem },
            Error::NoCertificatesPresented if peer == Side::Client => Self::NoCertificate,
            error => Self::Protocol(error),
        }
    }
}

impl Spoken {
    /// None: it begins like TLS, or there is nothing yet.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        const HTTP: [&[u8]; 9] =
            [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"OPTIONS ", b"DELETE ", b"CONNECT ", b"PRI ", b"HTTP/"];
        match *bytes.first()? {
            // Content types (RFC 8446, 5.1; 24 is heartbeat's).
            20..=24 => None,
            // CONNECT (MQTT, 2.1.2), CONNACK.
            0x10 | 0x20 => Some(Self::Mqtt),
            _ if bytes.starts_with(b"PROXY ") || bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n") => {
                Some(Self::Proxy)
            }
            _ if HTTP.iter().any(|start| bytes.starts_with(start)) => Some(Self::Http),
            _ => Some(Self::Unknown),
        }
    }

    fn advice(self, peer: Side) -> &'static str {
        match (self, peer) {
            (Self::Mqtt, Side::Client) => {
                "let it use TLS (mqtts://), or the port of a listener without `tls`"
            }
            (Self::Http, Side::Client) => {
                "let it use https:// or wss://, or the port of a listener without `tls`"
            }
            (Self::Proxy, Side::Client) => {
                "name the proxy's address in this listener's `proxy_protocol_from`"
            }
            (Self::Mqtt, Side::Server) => "use its port for TLS (8883 by custom), or mqtt://",
            (Self::Http, Side::Server) => "use its port for TLS, or ws://",
            (Self::Proxy | Self::Unknown, Side::Server) => "is this its port for TLS (8883 by custom)?",
            (Self::Unknown, Side::Client) => "let it use TLS, or the port of a listener without `tls`",
        }
    }
}

impl fmt::Display for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mqtt => "speaks MQTT without TLS",
            Self::Http => "speaks HTTP without TLS",
            Self::Proxy => "begins with a PROXY header",
            Self::Unknown => "does not speak TLS",
        })
    }
}

impl Advice {
    /// The alerts that configuration brings about.
    fn alert(peer: Side, alert: AlertDescription) -> Self {
        use AlertDescription as A;
        Self(match (alert, peer) {
            (A::UnknownCA | A::CertificateUnknown, Side::Client) => {
                ": it does not trust the CA of this server's certificate, give it the CA's file"
            }
            (A::BadCertificate, Side::Client) => ": it does not accept this server's certificate",
            (A::CertificateExpired, Side::Client) => {
                ": this server's certificate expired, or the client's clock is wrong"
            }
            (A::UnknownCA, Side::Server) => ": it does not know the CA of this client's certificate",
            (A::BadCertificate | A::CertificateUnknown, Side::Server) => {
                ": it does not accept this client's certificate"
            }
            (A::CertificateExpired, Side::Server) => ": this client's certificate expired, renew it",
            (A::CertificateRevoked, Side::Server) => ": this client's certificate was revoked, get a new one",
            (A::CertificateRequired, Side::Server) => ": it wants a certificate, set `cert` and `key`",
            (A::ProtocolVersion, _) => ": it has no version of TLS in common with this side (1.2 and 1.3)",
            (A::NoApplicationProtocol, Side::Server) => {
                ": it does not serve this protocol (ALPN) on this port"
            }
            (A::UnrecognisedName, Side::Server) => ": it does not know the name it was asked for",
            _ => "",
        })
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Client => "client",
        Side::Server => "server",
    }
}

fn certificate(peer: Side, problem: &CertificateError) -> String {
    use CertificateError as C;
    let text = match (problem, peer) {
        (C::UnknownIssuer, Side::Client) => "its issuer is not in `client_ca`",
        (C::UnknownIssuer, Side::Server) => "its issuer is not trusted, name its CA's file in `ca`",
        (C::Revoked, _) => "it was revoked",
        (C::UnknownRevocationStatus, _) => {
            "`crl` has no list of its issuer, add it (a file may hold several)"
        }
        (C::ExpiredRevocationList | C::ExpiredRevocationListContext { .. }, _) => {
            "its issuer's list in `crl` is out of date, get a new one"
        }
        (C::InvalidPurpose | C::InvalidPurposeContext { .. }, Side::Client) => {
            "it is not made for clients (extended key usage lacks clientAuth)"
        }
        (C::InvalidPurpose | C::InvalidPurposeContext { .. }, Side::Server) => {
            "it is not made for servers (extended key usage lacks serverAuth)"
        }
        // rustls says when, and which names there are.
        _ => return problem.to_string(),
    };
    text.to_owned()
}
