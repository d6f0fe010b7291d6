//! Who this node is, and whom it trusts.

use crate::limits::TOKEN_MIN;
use crate::{CONTROL_MAX, DATA_MAX, Tls};
use ferrule_cluster::PeerId;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

/// The versions of the protocol after the handshake that this program speaks. 2: retained messages of other nodes. 3: exclusive subscriptions
/// of theirs. 4: two copies of a will.
pub const VERSIONS: RangeInclusive<u32> = 1..=4;

/// What a node is among the others.
#[derive(Debug)]
pub struct Config {
    /// Who this is.
    pub me: PeerId,
    /// Its name, for messages at the other nodes.
    pub name: String,
    /// How many shards it has.
    pub shards: u8,
    /// Nodes of another one are refused.
    pub cluster: String,
    /// Which store this node has joined: nodes of another one are refused. Empty: it is not known, and not asked for.
    pub store: Vec<u8>,
    /// Who is let in.
    pub trust: Trust,
    /// [`VERSIONS`], but in tests of an upgrade.
    pub versions: RangeInclusive<u32>,
    /// [`CONTROL_MAX`], but in tests.
    pub control_max: usize,
    /// [`DATA_MAX`], but in tests.
    pub data_max: usize,
}

impl Config {
    /// With the usual versions and bounds.
    #[must_use]
    pub fn new(me: PeerId, name: &str, shards: u8, cluster: &str, trust: Trust) -> Self {
        Self {
            me,
            name: name.to_owned(),
            shards,
            cluster: cluster.to_owned(),
            store: Vec::new(),
            trust,
            versions: VERSIONS,
            control_max: CONTROL_MAX,
            data_max: DATA_MAX,
        }
    }
}

/// How nodes know that they belong together. There is no way to have neither.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Both sides have the same token. What passes between them is not encrypted.
    Token(Token),
    /// Both sides have a certificate of one authority, which is this cluster's alone: any of it is as good as any other.
    Tls(Tls),
    /// Both.
    TokenAndTls(Token, Tls),
}

/// A secret that all nodes of a cluster have: never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Box<[u8]>);

/// A token that would not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It could be guessed from a recorded handshake.
    #[error(
        "the join token has {0} characters, and {TOKEN_MIN} are the fewest: make one with \
         `openssl rand -hex 32`"
    )]
    Short(usize),
}

impl Token {
    /// `text` without white space around it, as files have it at their end.
    ///
    /// # Errors
    /// It is too short.
    pub fn new(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let count = text.chars().count();
        if count < TOKEN_MIN { Err(TokenError::Short(count)) } else { Ok(Self(text.as_bytes().into())) }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// [`Trust`] as it is used: certificates may be exchanged.
#[derive(Debug)]
pub(crate) struct Trusted {
    token: Option<Token>,
    tls: Option<Mutex<Tls>>,
}

impl Trusted {
    /// What proofs are made with. Without a token they prove nothing, and TLS has.
    pub(crate) fn key(&self) -> &[u8] {
        self.token.as_ref().map_or(&[], |token| &token.0)
    }

    pub(crate) fn tls(&self) -> Option<Tls> {
        self.tls.as_ref().map(|tls| tls.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    pub(crate) fn set_tls(&self, tls: Tls) {
        if let Some(current) = &self.tls {
            *current.lock().unwrap_or_else(PoisonError::into_inner) = tls;
        }
    }
}

impl From<&Trust> for Trusted {
    fn from(trust: &Trust) -> Self {
        let (token, tls) = match trust {
            Trust::Token(token) => (Some(token), None),
            Trust::Tls(tls) => (None, Some(tls)),
            Trust::TokenAndTls(token, tls) => (Some(token), Some(tls)),
        };
        Self { token: token.cloned(), tls: tls.cloned().map(Mutex::new) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_a_length_and_is_not_shown() {
        assert_eq!(Token::new("  0123456789abcde \n"), Err(TokenError::Short(15)));
        let token = Token::new("0123456789abcdef\n");
        assert_eq!(token, Token::new("0123456789abcdef"));
        assert_eq!(format!("{token:?}"), "Ok(Token(..))");
    }
}
