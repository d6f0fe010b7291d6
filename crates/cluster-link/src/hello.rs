//! The handshake of a stream: who is there, and whether it may be. Decisions only; `accept.rs` and `dial.rs` send and wait.

use crate::Config;
use crate::limits::{HANDSHAKE, TEXT_MAX};
use crate::wire::{Hello, Kind, shown};
use bytes::Bytes;
use ferrule_cluster::PeerId;
use hmac::{Hmac, KeyInit as _, Mac as _};
use prost::Message as _;
use sha2::Sha256;
use std::ops::RangeInclusive;

/// Bytes of a nonce: two streams have the same with a chance of 2^-128 at worst.
const NONCE: usize = 32;

/// Another node, as it said and has not proven yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Other {
    pub(crate) id: PeerId,
    /// For people; nothing but printable characters.
    pub(crate) name: String,
    pub(crate) shards: u8,
    pub(crate) link: u64,
    /// That both speak.
    pub(crate) version: u32,
}

/// Why a link does not come about; told to both sides.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "it speaks the versions {} to {} of the protocol, this node {} to {}: upgrade the older of the two \
         (over more than one version by way of those in between)",
        .theirs.start(), .theirs.end(), .ours.start(), .ours.end()
    )]
    Version { theirs: RangeInclusive<u32>, ours: RangeInclusive<u32> },
    #[error(
        "it is of cluster {theirs:?}, this node of {ours:?}: give both the same name, or take its address \
         from this cluster's"
    )]
    Cluster { theirs: String, ours: String },
    #[error(
        "it keeps its sessions in another store than this node: give all nodes of the cluster the same \
         database (`url`) and `schema` in [store], or take its address from this cluster's"
    )]
    Store,
    #[error(
        "it does not have the join token of this node: give all nodes of the cluster the same one, or \
         all none"
    )]
    Token,
    #[error(
        "it calls itself {}, and so is this node: an address leads back to this node, or a data folder was \
         copied; \
         every node has its own",
        shown_id(*.0)
    )]
    OwnId(PeerId),
    #[error(
        "it looks for {}, this is {}: the view of the members will tell it",
        shown_id(*.sought), shown_id(*.me)
    )]
    NotMe { sought: PeerId, me: PeerId },
    #[error(
        "it is {}, {} was dialled: the view of the members tells who is there",
        shown_id(*.found), shown_id(*.sought)
    )]
    NotThem { sought: PeerId, found: PeerId },
    #[error("it dialled, though of the two this node has the lower number and dials")]
    Direction,
    #[error(
        "it is incarnation {theirs} of a node of which there is a link to incarnation {ours}: it has been \
         restarted since"
    )]
    Past { theirs: u64, ours: u64 },
    #[error("this node does not take it for a member (yet); it will try again")]
    NotWanted,
    #[error("there was no second stream of the link within {HANDSHAKE:?}")]
    Alone,
    #[error("there is such a stream of this link already")]
    Twice,
    #[error("it does not speak this protocol: {0}")]
    Malformed(&'static str),
}

/// One side of one stream's handshake.
#[derive(Debug)]
pub(crate) struct Handshake<'a> {
    config: &'a Config,
    /// This node, at the beginning of the handshake.
    me: PeerId,
    key: &'a [u8],
    kind: Kind,
    /// Ours, as it is sent.
    hello: Bytes,
}

/// Both have introduced themselves; neither has proven anything.
#[derive(Debug)]
pub(crate) struct Met {
    /// Who this node has said that it is.
    pub(crate) me: PeerId,
    pub(crate) other: Other,
    dialler: Proof,
    accepter: Proof,
}

/// What one who dialled wants; it has proven nothing.
#[derive(Debug)]
pub(crate) enum Came {
    /// A link.
    Peer(Met),
    /// To know whether it belongs here.
    Seeker(Met),
}

/// Who has the token and has seen both Hellos can make it.
type Proof = Hmac<Sha256>;

impl Came {
    pub(crate) fn met(&self) -> &Met {
        let (Self::Peer(met) | Self::Seeker(met)) = self;
        met
    }
}

impl Refusal {
    /// Whether it passes by itself, as the view of the members goes round.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::NotMe { .. } | Self::NotThem { .. } | Self::Past { .. } | Self::NotWanted | Self::Alone
        )
    }
}

/// For people.
pub(crate) fn shown_id(id: PeerId) -> String {
    format!("node {} (incarnation {})", id.node.0, id.incarnation)
}

impl<'a> Handshake<'a> {
    /// By the one who dials `you`, for a link of this number.
    pub(crate) fn dial(
        config: &'a Config,
        me: PeerId,
        key: &'a [u8],
        kind: Kind,
        (you, link): (PeerId, u64),
    ) -> Self {
        Self { config, me, key, kind, hello: hello(config, me, Some(you), link) }
    }

    /// By the one who was dialled.
    pub(crate) fn accept(config: &'a Config, me: PeerId, key: &'a [u8], kind: Kind) -> Self {
        Self { config, me, key, kind, hello: hello(config, me, None, 0) }
    }

    /// By the one who dials whoever is there: only whether they belong together is asked.
    pub(crate) fn seek(config: &'a Config, me: PeerId, key: &'a [u8]) -> Self {
        Self { config, me, key, kind: Kind::Control, hello: hello(config, me, None, 0) }
    }

    pub(crate) fn hello(&self) -> Bytes {
        self.hello.clone()
    }

    /// The one who dialled says who it is.
    pub(crate) fn accepted(&self, hello: &Bytes) -> Result<Came, Refusal> {
        let (other, you) = self.check(hello)?;
        let me = self.me;
        let Some(sought) = you else {
            return Ok(Came::Seeker(self.met(other, hello, &self.hello)));
        };
        if other.id.node == me.node {
            return Err(Refusal::OwnId(other.id));
        }
        if sought != me {
            return Err(Refusal::NotMe { sought, me });
        }
        if other.id.node > me.node {
            return Err(Refusal::Direction);
        }
        Ok(Came::Peer(self.met(other, hello, &self.hello)))
    }

    /// Whoever is there says who it is; it may be this node itself.
    pub(crate) fn sought(&self, hello: &Bytes) -> Result<Met, Refusal> {
        let (other, _) = self.check(hello)?;
        Ok(self.met(other, &self.hello, hello))
    }

    /// The one who was dialled says who it is.
    pub(crate) fn dialled(&self, hello: &Bytes, sought: PeerId) -> Result<Met, Refusal> {
        let (other, _) = self.check(hello)?;
        if other.id.node == self.me.node {
            return Err(Refusal::OwnId(other.id));
        }
        if other.id != sought {
            return Err(Refusal::NotThem { sought, found: other.id });
        }
        Ok(self.met(other, &self.hello, hello))
    }

    fn check(&self, hello: &Bytes) -> Result<(Other, Option<PeerId>), Refusal> {
        let hello =
            Hello::decode(hello.clone()).map_err(|_| Refusal::Malformed("its Hello cannot be read"))?;
        let (theirs, ours) = (hello.version_min..=hello.version_max, self.config.versions.clone());
        let Some(version) = spoken(&theirs, &ours) else {
            return Err(Refusal::Version { theirs, ours });
        };
        if hello.cluster != self.config.cluster {
            return Err(Refusal::Cluster {
                theirs: shown(&hello.cluster),
                ours: self.config.cluster.clone(),
            });
        }
        let (theirs, ours) = (&hello.store, &self.config.store);
        if !theirs.is_empty() && !ours.is_empty() && theirs != ours {
            return Err(Refusal::Store);
        }
        if hello.nonce.len() != NONCE {
            return Err(Refusal::Malformed("its nonce has another length"));
        }
        let shards = u8::try_from(hello.shards).ok().filter(|shards| *shards > 0);
        let other = Other {
            id: hello.me.ok_or(Refusal::Malformed("it does not say who it is"))?.into(),
            name: shown(&hello.name),
            shards: shards.ok_or(Refusal::Malformed("it has no shards, or too many"))?,
            link: hello.link,
            version,
        };
        Ok((other, hello.you.map(PeerId::from)))
    }

    fn met(&self, other: Other, dialler: &[u8], accepter: &[u8]) -> Met {
        let proof = |side: &str| {
            let mut proof = Proof::new_from_slice(self.key).expect("HMAC takes keys of any length");
            for part in [side.as_bytes(), self.kind.path().as_bytes(), dialler, accepter] {
                proof.update(&(part.len() as u64).to_le_bytes());
                proof.update(part);
            }
            proof
        };
        Met {
            me: self.me,
            other,
            dialler: proof("ferrule: I dialled"),
            accepter: proof("ferrule: I accepted"),
        }
    }
}

impl Met {
    /// That the one who dialled has the token.
    pub(crate) fn dialler(&self) -> Bytes {
        made(&self.dialler)
    }

    /// That the other one has it.
    pub(crate) fn accepter(&self) -> Bytes {
        made(&self.accepter)
    }

    pub(crate) fn check_dialler(&self, proof: &[u8]) -> Result<(), Refusal> {
        checked(&self.dialler, proof)
    }

    pub(crate) fn check_accepter(&self, proof: &[u8]) -> Result<(), Refusal> {
        checked(&self.accepter, proof)
    }
}

fn made(proof: &Proof) -> Bytes {
    Bytes::copy_from_slice(&proof.clone().finalize().into_bytes())
}

/// In a time that does not depend on where they differ.
fn checked(proof: &Proof, against: &[u8]) -> Result<(), Refusal> {
    proof.clone().verify_slice(against).map_err(|_| Refusal::Token)
}

/// The version that both speak.
fn spoken(a: &RangeInclusive<u32>, b: &RangeInclusive<u32>) -> Option<u32> {
    let (least, most) = (*a.start().max(b.start()), *a.end().min(b.end()));
    (least <= most).then_some(most)
}

fn hello(config: &Config, me: PeerId, you: Option<PeerId>, link: u64) -> Bytes {
    let hello = Hello {
        version_min: *config.versions.start(),
        version_max: *config.versions.end(),
        cluster: config.cluster.clone(),
        me: Some(me.into()),
        you: you.map(Into::into),
        name: config.name.chars().take(TEXT_MAX).collect(),
        shards: u32::from(config.shards),
        link,
        nonce: Bytes::copy_from_slice(&random::<NONCE>()),
        store: Bytes::copy_from_slice(&config.store),
    };
    hello.encode_to_vec().into()
}

/// From the system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // (Linux has always some; without any a nonce would be worthless.)
    getrandom::fill(&mut bytes).expect("the system has random numbers");
    bytes
}

pub(crate) fn random_u64() -> u64 {
    u64::from_le_bytes(random())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{Token, Trust};
    use ferrule_cluster::NodeId;

    const TOKEN: &[u8] = b"0123456789abcdef";

    fn id(node: u64, incarnation: u64) -> PeerId {
        PeerId { node: NodeId(node), incarnation }
    }

    fn config(node: u64, cluster: &str, versions: RangeInclusive<u32>) -> Config {
        let trust = Trust::Token(Token::new("0123456789abcdef").unwrap());
        Config { versions, ..Config::new(id(node, 7), "a\nb", 2, cluster, trust) }
    }

    /// What the accepting side says of whoever dialled, and the other way round.
    fn meet(
        dialler: &Config,
        accepter: &Config,
        sought: PeerId,
    ) -> (Result<Met, Refusal>, Result<Met, Refusal>) {
        let dial = Handshake::dial(dialler, dialler.me, TOKEN, Kind::Data, (sought, 5));
        let accept = Handshake::accept(accepter, accepter.me, TOKEN, Kind::Data);
        let accepted = accept.accepted(&dial.hello()).map(|came| match came {
            Came::Peer(met) => met,
            Came::Seeker(_) => panic!("it wants a link"),
        });
        (accepted, dial.dialled(&accept.hello(), sought))
    }

    fn refusals(dialler: &Config, accepter: &Config, sought: PeerId) -> (Option<Refusal>, Option<Refusal>) {
        let (accepted, dialled) = meet(dialler, accepter, sought);
        (accepted.err(), dialled.err())
    }

    #[test]
    fn two_nodes_of_a_cluster_meet_and_prove_it() {
        let (a, b) = (config(1, "c", 1..=2), config(2, "c", 2..=3));
        let (accepted, dialled) = meet(&a, &b, id(2, 7));
        let (accepted, dialled) = (accepted.unwrap(), dialled.unwrap());
        assert_eq!(
            accepted.other,
            Other { id: id(1, 7), name: "a b".into(), shards: 2, link: 5, version: 2 }
        );
        assert_eq!(dialled.other.id, id(2, 7));
        accepted.check_dialler(&dialled.dialler()).unwrap();
        dialled.check_accepter(&accepted.accepter()).unwrap();
        // One's proof is not the other's, nor of another stream.
        assert_eq!(dialled.check_accepter(&dialled.dialler()), Err(Refusal::Token));
        let (again, _) = meet(&a, &b, id(2, 7));
        assert_eq!(again.unwrap().check_dialler(&dialled.dialler()), Err(Refusal::Token));
    }

    #[test]
    fn a_proof_needs_the_token_and_the_call() {
        let (a, b) = (config(1, "c", 1..=1), config(2, "c", 1..=1));
        for (key, kind) in
            [(&b"another token ..."[..], Kind::Data), (b"", Kind::Data), (TOKEN, Kind::Control)]
        {
            let dial = Handshake::dial(&a, a.me, key, kind, (id(2, 7), 5));
            let accept = Handshake::accept(&b, b.me, TOKEN, Kind::Data);
            let came = accept.accepted(&dial.hello()).unwrap();
            let accepted = came.met();
            let dialled = dial.dialled(&accept.hello(), id(2, 7)).unwrap();
            assert_eq!(accepted.check_dialler(&dialled.dialler()), Err(Refusal::Token));
            assert_eq!(dialled.check_accepter(&accepted.accepter()), Err(Refusal::Token));
            assert_eq!(accepted.check_dialler(b""), Err(Refusal::Token));
        }
    }

    #[test]
    fn who_only_asks_needs_the_token_as_well() {
        let (a, b) = (config(2, "c", 1..=2), config(1, "c", 2..=3));
        let accept = Handshake::accept(&b, b.me, TOKEN, Kind::Control);
        for (key, told) in [(TOKEN, Ok(())), (&b"another token ..."[..], Err(Refusal::Token))] {
            let seek = Handshake::seek(&a, a.me, key);
            let came = accept.accepted(&seek.hello()).unwrap();
            assert!(matches!(came, Came::Seeker(_)));
            let met = seek.sought(&accept.hello()).unwrap();
            assert_eq!(came.met().check_dialler(&met.dialler()), told);
            assert_eq!(met.check_accepter(&came.met().accepter()), told);
        }
    }

    #[test]
    fn nodes_of_two_stores_refuse_each_other() {
        let store = |store: &[u8], node| Config { store: store.to_vec(), ..config(node, "c", 1..=1) };
        let told = |a: &[u8], b: &[u8]| refusals(&store(a, 1), &store(b, 2), id(2, 7));
        assert_eq!(told(b"one", b"two"), (Some(Refusal::Store), Some(Refusal::Store)));
        // As nodes of the version before have it.
        for (a, b) in [("one", "one"), ("", "two"), ("one", ""), ("", "")] {
            assert_eq!(told(a.as_bytes(), b.as_bytes()), (None, None));
        }
    }

    #[test]
    fn who_does_not_belong_here_is_refused() {
        let (a, b) = (config(1, "c", 1..=1), config(2, "c", 1..=1));
        let sought = id(2, 7);
        assert_eq!(refusals(&a, &b, sought), (None, None));
        let newer = config(2, "c", 2..=3);
        let version = |theirs, ours| Some(Refusal::Version { theirs, ours });
        assert_eq!(refusals(&a, &newer, sought), (version(1..=1, 2..=3), version(2..=3, 1..=1)));
        let cluster =
            |theirs: &str, ours: &str| Some(Refusal::Cluster { theirs: theirs.into(), ours: ours.into() });
        assert_eq!(refusals(&a, &config(2, "d", 1..=1), sought), (cluster("c", "d"), cluster("d", "c")));
        let own = Some(Refusal::OwnId(id(2, 7)));
        assert_eq!(refusals(&b, &b, sought), (own.clone(), own));
        let past = id(2, 6);
        assert_eq!(
            refusals(&a, &b, past),
            (
                Some(Refusal::NotMe { sought: past, me: sought }),
                Some(Refusal::NotThem { sought: past, found: sought })
            )
        );
        assert_eq!(refusals(&b, &a, id(1, 7)).0, Some(Refusal::Direction));
        let accept = Handshake::accept(&b, b.me, TOKEN, Kind::Data);
        for bytes in [&b""[..], b"\xFF\xFF", &[7; 100]] {
            assert!(accept.accepted(&Bytes::copy_from_slice(bytes)).is_err());
        }
    }
}
