//! Frames, from `proto/link.proto`, and what they are on this side.

use crate::Parcels;
use crate::limits::{PARCELS_MAX, TEXT_MAX};
use bytes::{Bytes, BytesMut};
use ferrule_cluster::{Message, NodeId, PeerId};
use prost::Message as _;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

pub(crate) use generated::*;

mod generated {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        reason = "made by prost-build"
    )]
    include!(concat!(env!("OUT_DIR"), "/ferrule.link.v1.rs"));
}

/// The two calls of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Control,
    Data,
}

impl Kind {
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Control => "/ferrule.link.v1.Link/Control",
            Self::Data => "/ferrule.link.v1.Link/Data",
        }
    }

    /// Of the path of a request.
    pub(crate) fn of(path: &str) -> Option<Self> {
        [Self::Control, Self::Data].into_iter().find(|kind| kind.path() == path)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Data => "data",
        })
    }
}

// === of the handshake ===

impl From<PeerId> for Peer {
    fn from(id: PeerId) -> Self {
        Self { node: id.node.0, incarnation: id.incarnation }
    }
}

impl From<Peer> for PeerId {
    fn from(peer: Peer) -> Self {
        Self { node: NodeId(peer.node), incarnation: peer.incarnation }
    }
}

pub(crate) fn frame(what: frame::What) -> Frame {
    Frame { what: Some(what) }
}

/// What another node says, for people: no control characters, not too long.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(TEXT_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

// === items ===

pub(crate) fn message_item(message: Message) -> Item {
    let what = match message {
        Message::Heartbeat { number, view } => item::What::Heartbeat(Heartbeat { number, view }),
        Message::Echo { number, epoch } => item::What::Echo(Echo { number, epoch }),
        Message::Offer { epoch } => item::What::Offer(Offer { epoch }),
        Message::Accept { epoch } => item::What::Accept(Accept { epoch }),
    };
    Item { what: Some(what) }
}

pub(crate) fn parcels_item(from: u8, to: u8, bytes: Bytes, more: bool) -> Item {
    let parcels = Parcels_ { from: u32::from(from), to: u32::from(to), bytes, more };
    Item { what: Some(item::What::Parcels(parcels)) }
}

use generated::Parcels as Parcels_;

/// What an item says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Message(Message),
    Parcels(Parcels),
}

/// Why a stream cannot go on: the other side breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("parcels for a shard that is not there")]
    Shard,
    #[error("a piece of other parcels than before")]
    Piece,
    #[error("parcels of more than {PARCELS_MAX} bytes")]
    Long,
}

/// Puts pieces together.
#[derive(Debug)]
pub(crate) struct Reader {
    theirs: u8,
    ours: u8,
    /// From, to, what came of it.
    begun: Option<(u8, u8, BytesMut)>,
}

impl Reader {
    /// `theirs`, `ours`: numbers of shards.
    pub(crate) fn new(theirs: u8, ours: u8) -> Self {
        Self { theirs, ours, begun: None }
    }

    /// None: it is not whole yet, or of a kind that a later version has.
    pub(crate) fn item(&mut self, item: Item) -> Result<Option<Said>, Broken> {
        Ok(match item.what {
            None => None,
            Some(item::What::Heartbeat(Heartbeat { number, view })) => {
                Some(Said::Message(Message::Heartbeat { number, view }))
            }
            Some(item::What::Echo(Echo { number, epoch })) => {
                Some(Said::Message(Message::Echo { number, epoch }))
            }
            Some(item::What::Offer(Offer { epoch })) => Some(Said::Message(Message::Offer { epoch })),
            Some(item::What::Accept(Accept { epoch })) => Some(Said::Message(Message::Accept { epoch })),
            Some(item::What::Parcels(parcels)) => self.piece(parcels)?.map(Said::Parcels),
        })
    }

    fn piece(&mut self, piece: Parcels_) -> Result<Option<Parcels>, Broken> {
        let shard = |number: u32, count: u8| {
            u8::try_from(number).ok().filter(|number| *number < count).ok_or(Broken::Shard)
        };
        let (from, to) = (shard(piece.from, self.theirs)?, shard(piece.to, self.ours)?);
        let Some((begun_from, begun_to, mut bytes)) = self.begun.take() else {
            if piece.more {
                self.begun = Some((from, to, BytesMut::from(piece.bytes)));
                return Ok(None);
            }
            return Ok(Some(Parcels { from, to, bytes: piece.bytes }));
        };
        if (begun_from, begun_to) != (from, to) {
            return Err(Broken::Piece);
        }
        if bytes.len() + piece.bytes.len() > PARCELS_MAX {
            return Err(Broken::Long);
        }
        bytes.extend_from_slice(&piece.bytes);
        if piece.more {
            self.begun = Some((from, to, bytes));
            return Ok(None);
        }
        Ok(Some(Parcels { from, to, bytes: bytes.freeze() }))
    }
}

// === codec ===

/// Frames in gRPC. Beside tonic's own codec it makes room for a frame before it writes it: bytes are copied once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frames;

impl Codec for Frames {
    type Encode = Frame;
    type Decode = Frame;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Frames {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(frame.encoded_len());
        frame.encode(to).map_err(|e| Status::internal(e.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Frames {
    type Item = Frame;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Frame>, Status> {
        Frame::decode(from).map(Some).map_err(|e| Status::internal(format!("not a frame: {e}")))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const MESSAGES: [Message; 4] = [
        Message::Heartbeat { number: 1, view: u64::MAX },
        Message::Echo { number: 2, epoch: 0 },
        Message::Offer { epoch: 3 },
        Message::Accept { epoch: 4 },
    ];

    fn through_the_wire(item: Item) -> Item {
        let items = Items { items: vec![item] };
        let bytes = frame(frame::What::Items(items)).encode_to_vec();
        let Some(frame::What::Items(mut items)) = Frame::decode(&*bytes).unwrap().what else { panic!() };
        items.items.remove(0)
    }

    #[test]
    fn messages_are_what_they_were() {
        for message in MESSAGES {
            let item = through_the_wire(message_item(message));
            assert_eq!(Reader::new(1, 1).item(item), Ok(Some(Said::Message(message))));
        }
    }

    #[test]
    fn pieces_are_put_together_and_must_belong_together() {
        let piece = |to, bytes: &'static [u8], more| parcels_item(1, to, Bytes::from_static(bytes), more);
        let mut reader = Reader::new(2, 2);
        assert_eq!(reader.item(piece(0, b"ab", true)), Ok(None));
        assert_eq!(reader.item(piece(0, b"cd", true)), Ok(None));
        let whole = Parcels { from: 1, to: 0, bytes: Bytes::from_static(b"abcde") };
        assert_eq!(reader.item(piece(0, b"e", false)), Ok(Some(Said::Parcels(whole))));
        let next = Parcels { from: 1, to: 1, bytes: Bytes::from_static(b"f") };
        assert_eq!(reader.item(piece(1, b"f", false)), Ok(Some(Said::Parcels(next))));
        assert_eq!(reader.item(piece(0, b"g", true)), Ok(None));
        assert_eq!(reader.item(piece(1, b"h", false)), Err(Broken::Piece));
        assert_eq!(reader.item(piece(2, b"i", false)), Err(Broken::Shard));
        assert_eq!(reader.item(parcels_item(2, 0, Bytes::new(), false)), Err(Broken::Shard));
    }

    #[test]
    fn parcels_have_an_end() {
        let mut reader = Reader::new(1, 1);
        let half = Bytes::from(vec![0; PARCELS_MAX / 2]);
        assert_eq!(reader.item(parcels_item(0, 0, half.clone(), true)), Ok(None));
        assert_eq!(reader.item(parcels_item(0, 0, half, true)), Ok(None));
        assert_eq!(reader.item(parcels_item(0, 0, Bytes::from_static(b"1"), false)), Err(Broken::Long));
    }

    #[test]
    fn what_a_later_version_adds_is_skipped() {
        // An item of kind 99, and an Offer with a field 50.
        let unknown = Item::decode(&[0x9A, 0x06, 1, 7][..]).unwrap();
        assert_eq!(Reader::new(1, 1).item(unknown), Ok(None));
        let offer = Item::decode(&[0x22, 5, 0x08, 9, 0x90, 0x03, 1][..]).unwrap();
        let said = Said::Message(Message::Offer { epoch: 9 });
        assert_eq!(Reader::new(1, 1).item(offer), Ok(Some(said)));
        assert_eq!(Frame::decode(&[0x9A, 0x06, 1, 7][..]).unwrap().what, None);
    }

    #[test]
    fn texts_of_others_are_tamed() {
        assert_eq!(shown("a\nb\u{1b}[1m"), "a b [1m");
        assert_eq!(shown(&"x".repeat(1000)).len(), TEXT_MAX);
    }
}
