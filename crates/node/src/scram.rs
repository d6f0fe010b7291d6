//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side: a client proves that it knows a password, and the server that it knew it
//! too, without the password on the wire or here.
//!
//! # Operation
//! ```text
//! client-first   n,,n=user,r=<client nonce>              First::parse
//! server-first   r=<client nonce><ours>,s=<salt>,i=<n>   Server::new
//! client-final   c=<n,, again>,r=<nonce>,p=<proof>       Server::finish
//! server-final   v=<signature>
//! ```
//! Kept of a password is a [`Verifier`], in the form that PostgreSQL's `pg_authid` has: one made there works here. The costly part,
//! PBKDF2, is the client's: a step here is a few hashes, so that it may run on a worker.
//!
//! # Not there
//! Channel binding (`SCRAM-SHA-256-PLUS`): a client that asks for it is refused. No clock, no I/O, no randomness: nonces are given.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// The name of the method in CONNECT and AUTH.
pub const METHOD: &str = "SCRAM-SHA-256";

/// Rounds of PBKDF2 of verifiers made here: RFC 7677's least, as PostgreSQL and EMQX. Each client pays them at each connection.
pub const ITERATIONS: u32 = 4_096;

/// Rounds that a verifier may ask of clients: more is a slip of the pen.
const ITERATIONS_MAX: u32 = 10_000_000;

/// Bytes of a salt made here.
pub const SALT_BYTES: usize = 16;

/// Bytes of randomness in a nonce.
pub const NONCE_BYTES: usize = 18;

/// What is kept of a password: never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Box<[u8]>,
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

/// What a client did not prove or did not say as it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// Not a message of RFC 5802, or one that asks for what is not there.
    Malformed(&'static str),
    /// The proof is not of this password.
    Proof,
}

/// A client's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct First {
    /// The user name, unescaped.
    pub username: String,
    header: String,
    bare: String,
    nonce: String,
}

/// An exchange whose challenge was sent.
#[derive(Debug)]
pub struct Server {
    verifier: Verifier,
    header: String,
    nonce: String,
    /// Both first messages: what is signed, but for the client's last.
    said: String,
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    // HMAC takes a key of any length.
    #[expect(clippy::expect_used, reason = "a key of any length is taken")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length");
    mac.update(data);
    mac.finalize().into_bytes().into()
}

fn xor(a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
    std::array::from_fn(|i| a[i] ^ b[i])
}

// === impl Verifier ===

impl Verifier {
    /// Of a password, prepared as RFC 4013 says where it can be: what else it is, it is taken as it stands, as PostgreSQL does.
    #[must_use]
    pub fn of(password: &str, salt: &[u8], iterations: u32) -> Self {
        let prepared = stringprep::saslprep(password);
        let password = prepared.as_deref().unwrap_or(password);
        let salted = pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), salt, iterations);
        let client_key = hmac(&salted, b"Client Key");
        Self {
            iterations,
            salt: salt.into(),
            stored_key: Sha256::digest(client_key).into(),
            server_key: hmac(&salted, b"Server Key"),
        }
    }

    /// For a name that nobody has: always the same for one, and told from a real one by nothing. `key`: this process's.
    #[must_use]
    pub fn decoy(key: &[u8; 32], username: &str) -> Self {
        let made = hmac(key, username.as_bytes());
        Self {
            iterations: ITERATIONS,
            salt: made[..SALT_BYTES].into(),
            stored_key: hmac(key, &made),
            server_key: hmac(&made, key),
        }
    }

    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, the last three in base64.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "it is not of the form SCRAM-SHA-256$4096:salt$StoredKey:ServerKey";
        let parts = || {
            let (head, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
            Some((head.split_once(':')?, keys.split_once(':')?))
        };
        let ((iterations, salt), (stored, server)) = parts().ok_or(FORM)?;
        let iterations = iterations.parse().map_err(|_| FORM)?;
        if !(ITERATIONS..=ITERATIONS_MAX).contains(&iterations) {
            return Err(format!(
                "{iterations} rounds: RFC 7677 asks for at least {ITERATIONS}, and {ITERATIONS_MAX} are the most here"
            ));
        }
        let bytes = |name, text: &str| BASE64.decode(text).map_err(|_| format!("its {name} is not base64"));
        let key = |name, text| {
            bytes(name, text)?.try_into().map_err(|_| format!("its {name} does not have 32 bytes"))
        };
        let salt = bytes("salt", salt)?;
        if salt.is_empty() {
            return Err("its salt is empty".to_owned());
        }
        let (stored_key, server_key) = (key("StoredKey", stored)?, key("ServerKey", server)?);
        Ok(Self { iterations, salt: salt.into(), stored_key, server_key })
    }

    /// As [`Verifier::parse`] reads it: not for logs.
    #[must_use]
    pub fn reveal(&self) -> String {
        let text = |bytes: &[u8]| BASE64.encode(bytes);
        let (salt, stored, server) = (text(&self.salt), text(&self.stored_key), text(&self.server_key));
        format!("{METHOD}${}:{salt}${stored}:{server}", self.iterations)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(..)")
    }
}

// === impl First ===

impl First {
    /// Reads a client's first message.
    ///
    /// # Errors
    /// [`Failed::Malformed`].
    pub fn parse(data: &[u8]) -> Result<Self, Failed> {
        let bad = Failed::Malformed;
        let text = std::str::from_utf8(data).map_err(|_| bad("the first message is not UTF-8"))?;
        let mut parts = text.splitn(3, ',');
        match parts.next() {
            // "y": it could bind to the channel, and believes that we cannot.
            Some("n" | "y") => {}
            Some(flag) if flag.starts_with("p=") => return Err(bad("channel binding is not there")),
            _ => return Err(bad("the first message does not begin with `n,` or `y,`")),
        }
        let authzid = parts.next().ok_or(bad("the first message ends too early"))?;
        let bare = parts.next().ok_or(bad("the first message ends too early"))?;
        let mut fields = bare.split(',');
        let username = fields.next().and_then(|field| field.strip_prefix("n="));
        let username = unescaped(username.ok_or(bad("the first message names no user"))?)?;
        let nonce = fields.next().and_then(|field| field.strip_prefix("r="));
        let nonce = nonce.filter(|n| is_nonce(n)).ok_or(bad("the first message has no nonce"))?;
        if !authzid.is_empty() {
            let other = unescaped(authzid.strip_prefix("a=").ok_or(bad("the header is none of GS2's"))?)?;
            if other != username {
                return Err(bad("nobody acts for another one here"));
            }
        }
        let header = text[..text.len() - bare.len()].to_owned();
        Ok(Self { username, header, nonce: nonce.to_owned(), bare: bare.to_owned() })
    }
}

/// A name, whose comma and equals sign are `=2C` and `=3D`.
fn unescaped(text: &str) -> Result<String, Failed> {
    let mut name = String::with_capacity(text.len());
    let mut parts = text.split('=');
    name.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (plain, rest) = match part.get(..2) {
            Some("2C") => (',', &part[2..]),
            Some("3D") => ('=', &part[2..]),
            _ => return Err(Failed::Malformed("an equals sign in a name is not =2C or =3D")),
        };
        name.push(plain);
        name.push_str(rest);
    }
    if name.is_empty() { Err(Failed::Malformed("the name is empty")) } else { Ok(name) }
}

/// Printable, and not a comma.
fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| (0x21..=0x7e).contains(&b) && b != b',')
}

// === impl Server ===

impl Server {
    /// The exchange and its challenge. `random`: new for each.
    #[must_use]
    pub fn new(first: First, verifier: Verifier, random: [u8; NONCE_BYTES]) -> (Self, String) {
        let First { header, bare, nonce, .. } = first;
        let nonce = format!("{nonce}{}", BASE64.encode(random));
        let (salt, iterations) = (BASE64.encode(&verifier.salt), verifier.iterations);
        let challenge = format!("r={nonce},s={salt},i={iterations}");
        (Self { said: format!("{bare},{challenge}"), verifier, header, nonce }, challenge)
    }

    /// The server's last message for a client's, which must prove that it knows the password.
    ///
    /// # Errors
    /// [`Failed`].
    pub fn finish(&self, data: &[u8]) -> Result<String, Failed> {
        let bad = Failed::Malformed;
        let text = std::str::from_utf8(data).map_err(|_| bad("the last message is not UTF-8"))?;
        let (unproved, proof) = text.rsplit_once(",p=").ok_or(bad("the last message has no proof"))?;
        let mut fields = unproved.split(',');
        let header = fields.next().and_then(|field| BASE64.decode(field.strip_prefix("c=")?).ok());
        if header.ok_or(bad("the last message has no channel binding"))? != self.header.as_bytes() {
            return Err(bad("the two headers differ"));
        }
        if fields.next().and_then(|field| field.strip_prefix("r=")) != Some(&*self.nonce) {
            return Err(bad("the nonce is not the one of the challenge"));
        }
        let proof: [u8; 32] = BASE64
            .decode(proof)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(bad("the proof is not 32 bytes in base64"))?;
        let signed = format!("{},{unproved}", self.said);
        let client_key = xor(proof, hmac(&self.verifier.stored_key, signed.as_bytes()));
        // A hash of what was sent: where it differs says nothing of the key.
        if Sha256::digest(client_key).as_slice() != self.verifier.stored_key.as_slice() {
            return Err(Failed::Proof);
        }
        let signature = hmac(&self.verifier.server_key, signed.as_bytes());
        Ok(format!("v={}", BASE64.encode(signature)))
    }
}

// === impl Failed ===

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(what) => write!(f, "{METHOD}: {what}"),
            Self::Proof => write!(f, "{METHOD}: wrong password"),
        }
    }
}

impl std::error::Error for Failed {}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// What a client that knows the password says to a challenge, and what it then wants to hear. `first`: its first message,
    /// without a header.
    pub(crate) fn prove(password: &str, first: &str, challenge: &str) -> (String, String) {
        let fields: Vec<&str> = challenge.split(',').map(|field| &field[2..]).collect();
        let salt = BASE64.decode(fields[1]).unwrap();
        let salted =
            pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password.as_bytes(), &salt, fields[2].parse().unwrap());
        let client_key = hmac(&salted, b"Client Key");
        let unproved = format!("c=biws,r={}", fields[0]);
        let signed = format!("{first},{challenge},{unproved}");
        let proof = xor(client_key, hmac(&Sha256::digest(client_key), signed.as_bytes()));
        let signature = hmac(&hmac(&salted, b"Server Key"), signed.as_bytes());
        (format!("{unproved},p={}", BASE64.encode(proof)), format!("v={}", BASE64.encode(signature)))
    }

    /// RFC 7677, 3: user "user", password "pencil".
    const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn pencil() -> Verifier {
        Verifier::of("pencil", &BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4_096)
    }

    /// The RFC's exchange, whose server's nonce is not base64.
    fn exchange() -> Server {
        let first = First::parse(CLIENT_FIRST.as_bytes()).unwrap();
        assert_eq!(first.username, "user");
        let (mut server, challenge) = Server::new(first, pencil(), [0; NONCE_BYTES]);
        let ours = BASE64.encode([0; NONCE_BYTES]);
        assert_eq!(challenge, format!("r=rOprNGfwEbeRWgbNEkqO{ours},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"));
        let theirs = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        (server.nonce, server.said) =
            (server.nonce.replace(&ours, theirs), server.said.replace(&ours, theirs));
        server
    }

    #[test]
    fn the_exchange_of_rfc_7677() {
        let last = exchange().finish(CLIENT_FINAL.as_bytes()).unwrap();
        assert_eq!(last, "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn whatever_else_comes_last_is_refused() {
        let mut wrong = CLIENT_FINAL.to_owned();
        wrong.replace_range(CLIENT_FINAL.len() - 44..CLIENT_FINAL.len() - 43, "e");
        let proof = |text: &str| exchange().finish(text.as_bytes()).unwrap_err();
        assert_eq!(proof(&wrong), Failed::Proof);
        // Of another password, signed as it should be.
        let server = Server { verifier: Verifier::of("pen", b"0123456789abcdef", 4_096), ..exchange() };
        assert_eq!(server.finish(CLIENT_FINAL.as_bytes()), Err(Failed::Proof));
        for (from, to, what) in [
            ("c=biws", "c=eSws", "headers differ"),
            ("c=biws", "c=?", "no channel binding"),
            (")hNlF$k0", ")hNlF$k1", "nonce"),
            (",p=", ",q=", "no proof"),
            ("ndVQ=", "ndVQ", "32 bytes"),
            ("biws,", "biws,x=y,", "nonce"),
        ] {
            let Failed::Malformed(told) = proof(&CLIENT_FINAL.replace(from, to)) else { panic!("{from}") };
            assert!(told.contains(what), "{told}");
        }
        assert!(matches!(exchange().finish(b"\xff"), Err(Failed::Malformed(_))));
    }

    #[test]
    fn first_messages() {
        let name = |text: &str| First::parse(text.as_bytes()).map(|first| first.username);
        assert_eq!(name("y,,n=a=2Cb=3D,r=x"), Ok("a,b=".into()));
        assert_eq!(name("n,a=ann,n=ann,r=x,ext=1"), Ok("ann".into()));
        for (text, what) in [
            ("p=tls-exporter,,n=a,r=x", "channel binding"),
            ("n,a=bob,n=ann,r=x", "for another"),
            ("n,b=bob,n=ann,r=x", "GS2"),
            ("n,,n=,r=x", "empty"),
            ("n,,n=a=2D,r=x", "=2C or =3D"),
            ("n,,n=ann,r=", "nonce"),
            ("n,,n=ann", "nonce"),
            ("n,,m=ext,n=ann,r=x", "no user"),
            ("n,", "too early"),
            ("", "begin"),
        ] {
            let Err(Failed::Malformed(told)) = name(text) else { panic!("{text}") };
            assert!(told.contains(what), "{text}: {told}");
        }
    }

    #[test]
    fn a_verifier_is_postgresql_s() {
        let text = pencil().reveal();
        assert!(text.starts_with("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"), "{text}");
        assert_eq!(Verifier::parse(&text), Ok(pencil()));
        assert!(!format!("{:?}", pencil()).contains("W22"));
        for (text, what) in [
            ("SCRAM-SHA-1$4096:YQ==$YQ==:YQ==", "form"),
            ("SCRAM-SHA-256$4095:YQ==$YQ==:YQ==", "at least 4096"),
            ("SCRAM-SHA-256$4096:?$YQ==:YQ==", "salt is not base64"),
            ("SCRAM-SHA-256$4096:YQ==$YQ==:YQ==", "32 bytes"),
            ("SCRAM-SHA-256$4096:$YQ==:YQ==", "salt is empty"),
        ] {
            let told = Verifier::parse(text).unwrap_err();
            assert!(told.contains(what), "{text}: {told}");
        }
    }

    #[test]
    fn nobody_is_told_from_somebody() {
        let decoy = |name| Verifier::decoy(&[7; 32], name);
        assert_eq!(decoy("ann"), decoy("ann"));
        assert!(decoy("ann") != decoy("bob") && decoy("ann") != Verifier::decoy(&[8; 32], "ann"));
        assert_eq!(decoy("ann").salt.len(), SALT_BYTES);
        let (server, _) = Server::new(First::parse(CLIENT_FIRST.as_bytes()).unwrap(), decoy("user"), [0; 18]);
        let server = Server { nonce: exchange().nonce, ..server };
        assert_eq!(server.finish(CLIENT_FINAL.as_bytes()), Err(Failed::Proof));
    }
}
