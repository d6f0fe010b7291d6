//! What worker threads give to a link, and the stream that takes it from there.

use crate::limits::{BATCH, ITEM_BYTES, PARCELS_MAX, PIECE};
use crate::wire::{Frame, Items, Kind, frame, message_item, parcels_item};
use crate::{Message, Parcels};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

/// What may be sent to a peer, as long as the link is up; afterwards it goes nowhere. For any thread: nothing here waits.
#[derive(Debug, Clone)]
pub struct Sender {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    control: Queue,
    data: Queue,
    ending: Arc<Ending>,
}

/// How a link ends: once, for the first reason.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) token: CancellationToken,
    why: OnceLock<End>,
}

/// Why a link has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum End {
    #[error("closed by this node")]
    Closed,
    #[error("replaced by a new link to the same node")]
    Replaced,
    #[error("closed: more {kind} waits for the peer than the {max} bytes that may; both sides begin anew")]
    Full { kind: Kind, max: usize },
    #[error("closed: the peer breaks the protocol, it sent {0}")]
    Broken(crate::wire::Broken),
    #[error("closed: this node failed at what came (a panic)")]
    Panic,
    #[error("closed: the peer's certificate is not good any more: {0}")]
    Untrusted(String),
    #[error("ended by the peer")]
    Peer,
    #[error("the connection was lost: {0}")]
    Lost(String),
}

/// One stream's.
#[derive(Debug)]
struct Queue {
    out: mpsc::UnboundedSender<Out>,
    /// Bounds `out`: bytes that wait, and [`ITEM_BYTES`] of each item.
    bytes: Arc<AtomicUsize>,
    max: usize,
}

#[derive(Debug)]
enum Out {
    Message(Message),
    Parcels(Parcels),
}

/// The two ends of a stream's way out, made before there is a link.
#[derive(Debug)]
pub(crate) struct Outlet {
    /// Frames of the handshake; dropped when it is over: then `items` have their turn.
    pub(crate) first: Option<mpsc::UnboundedSender<Frame>>,
    items: mpsc::UnboundedSender<Out>,
    bytes: Arc<AtomicUsize>,
}

/// What the stream takes frames from, as fast as it can send them.
#[derive(Debug)]
pub(crate) struct Outbound {
    first: Option<mpsc::UnboundedReceiver<Frame>>,
    items: mpsc::UnboundedReceiver<Out>,
    bytes: Arc<AtomicUsize>,
    /// Of parcels that are too long for a frame.
    rest: Option<Parcels>,
}

pub(crate) fn outlet() -> (Outlet, Outbound) {
    let (first, first_out) = mpsc::unbounded_channel();
    let (items, items_out) = mpsc::unbounded_channel();
    let bytes = Arc::new(AtomicUsize::new(0));
    let outlet = Outlet { first: Some(first), items, bytes: Arc::clone(&bytes) };
    (outlet, Outbound { first: Some(first_out), items: items_out, bytes, rest: None })
}

// === impl Ending ===

impl Ending {
    pub(crate) fn new(token: CancellationToken) -> Self {
        Self { token, why: OnceLock::new() }
    }

    pub(crate) fn end(&self, why: End) {
        let _ = self.why.set(why); // another reason was first
        self.token.cancel();
    }

    pub(crate) fn why(&self) -> End {
        self.why.get().cloned().unwrap_or(End::Closed)
    }
}

// === impl Sender ===

impl Sender {
    pub(crate) fn new(
        (control, control_max): (&Outlet, usize),
        (data, data_max): (&Outlet, usize),
        ending: Arc<Ending>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                control: Queue::new(control, control_max),
                data: Queue::new(data, data_max),
                ending,
            }),
        }
    }

    /// On the control stream.
    pub fn message(&self, message: Message) {
        self.push(Kind::Control, Out::Message(message), ITEM_BYTES);
    }

    /// On the control stream, in order with [`Self::message`].
    pub fn routes(&self, parcels: Parcels) {
        let cost = parcels.bytes.len().saturating_add(ITEM_BYTES);
        self.push(Kind::Control, Out::Parcels(parcels), cost);
    }

    /// On the data stream.
    pub fn data(&self, parcels: Parcels) {
        let cost = parcels.bytes.len().saturating_add(ITEM_BYTES);
        self.push(Kind::Data, Out::Parcels(parcels), cost);
    }

    /// Bytes of data, and a few of each item, that the stream has not taken yet. What it has taken, about 1.5 MiB, may still be on
    /// its way.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.shared.data.bytes.load(Ordering::Relaxed)
    }

    /// Ends the link, on both sides; with [`Site::down`](crate::Site::down).
    pub fn close(&self) {
        self.shared.ending.end(End::Closed);
    }

    /// Whether it has ended, or is about to.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.ending.token.is_cancelled()
    }

    fn push(&self, kind: Kind, out: Out, cost: usize) {
        if self.is_closed() {
            return;
        }
        let queue = match kind {
            Kind::Control => &self.shared.control,
            Kind::Data => &self.shared.data,
        };
        // What does not fit stays counted: there is no room for anybody else either.
        let before = queue.bytes.fetch_add(cost.min(PARCELS_MAX), Ordering::Relaxed);
        if cost > PARCELS_MAX || before + cost > queue.max {
            self.shared.ending.end(End::Full { kind, max: queue.max });
            return;
        }
        let _ = queue.out.send(out); // the link has ended meanwhile
    }
}

impl Queue {
    fn new(outlet: &Outlet, max: usize) -> Self {
        Self { out: outlet.items.clone(), bytes: Arc::clone(&outlet.bytes), max }
    }
}

// === impl Outbound ===

impl Outbound {
    /// As much as fits into a frame of what waits. None: the senders are gone.
    fn batch(&mut self, context: &mut Context<'_>) -> Poll<Option<Items>> {
        let mut items = Vec::new();
        let mut taken = 0;
        while taken < BATCH {
            let out = match self.rest.take() {
                Some(parcels) => Out::Parcels(parcels),
                None => match self.items.poll_recv(context) {
                    Poll::Ready(Some(out)) => out,
                    Poll::Ready(None) if items.is_empty() => return Poll::Ready(None),
                    Poll::Pending if items.is_empty() => return Poll::Pending,
                    Poll::Ready(None) | Poll::Pending => break,
                },
            };
            match out {
                Out::Message(message) => {
                    items.push(message_item(message));
                    taken += ITEM_BYTES;
                }
                Out::Parcels(Parcels { from, to, mut bytes }) => {
                    let piece = bytes.split_to(bytes.len().min(PIECE));
                    taken += piece.len();
                    items.push(parcels_item(from, to, piece, !bytes.is_empty()));
                    if bytes.is_empty() {
                        taken += ITEM_BYTES;
                    } else {
                        self.rest = Some(Parcels { from, to, bytes });
                    }
                }
            }
        }
        self.bytes.fetch_sub(taken, Ordering::Relaxed);
        Poll::Ready(Some(Items { items }))
    }
}

impl Stream for Outbound {
    type Item = Frame;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        if let Some(first) = &mut self.first {
            match first.poll_recv(context) {
                Poll::Ready(None) => self.first = None,
                frame => return frame,
            }
        }
        self.batch(context).map(|items| items.map(|items| frame(frame::What::Items(items))))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::wire::{Item, Reader, Said};
    use bytes::Bytes;
    use std::task::Waker;

    struct Pair {
        sender: Sender,
        control: Outbound,
        data: Outbound,
        ending: Arc<Ending>,
    }

    fn pair(control_max: usize, data_max: usize) -> Pair {
        let ((mut control, control_out), (mut data, data_out)) = (outlet(), outlet());
        (control.first, data.first) = (None, None);
        let ending = Arc::new(Ending::new(CancellationToken::new()));
        let sender = Sender::new((&control, control_max), (&data, data_max), Arc::clone(&ending));
        Pair { sender, control: control_out, data: data_out, ending }
    }

    fn next(stream: &mut Outbound) -> Option<Vec<Item>> {
        match Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Frame { what: Some(frame::What::Items(items)) })) => Some(items.items),
            Poll::Ready(other) => panic!("{other:?}"),
            Poll::Pending => None,
        }
    }

    fn parcels(length: usize) -> Parcels {
        Parcels { from: 0, to: 0, bytes: Bytes::from(vec![7; length]) }
    }

    #[test]
    fn what_waits_goes_into_one_frame_in_order() {
        let mut pair = pair(1 << 20, 1 << 20);
        assert_eq!(next(&mut pair.control), None);
        pair.sender.message(Message::Offer { epoch: 1 });
        pair.sender.routes(parcels(3));
        pair.sender.message(Message::Accept { epoch: 2 });
        let mut reader = Reader::new(1, 1);
        let said =
            next(&mut pair.control).unwrap().into_iter().map(|item| reader.item(item).unwrap().unwrap());
        let expected = [
            Said::Message(Message::Offer { epoch: 1 }),
            Said::Parcels(parcels(3)),
            Said::Message(Message::Accept { epoch: 2 }),
        ];
        assert_eq!(said.collect::<Vec<_>>(), expected);
        assert_eq!(next(&mut pair.control), None);
    }

    #[test]
    fn long_parcels_go_in_pieces_and_are_counted_until_they_are_gone() {
        let mut pair = pair(1 << 20, 1 << 20);
        let lengths = [PIECE, 3 * PIECE + 1, 0, 5];
        for length in lengths {
            pair.sender.data(parcels(length));
        }
        let total: usize = lengths.iter().map(|length| length + ITEM_BYTES).sum();
        assert_eq!(pair.sender.queued(), total);
        let (mut reader, mut whole) = (Reader::new(1, 1), Vec::new());
        while let Some(items) = next(&mut pair.data) {
            let bytes: usize = items.iter().map(prost::Message::encoded_len).sum();
            assert!(bytes <= BATCH + PIECE + ITEM_BYTES * items.len(), "{bytes}");
            for item in items {
                if let Some(Said::Parcels(parcels)) = reader.item(item).unwrap() {
                    whole.push(parcels.bytes.len());
                }
            }
        }
        assert_eq!(whole, lengths);
        assert_eq!(pair.sender.queued(), 0);
        assert!(!pair.sender.is_closed());
    }

    #[test]
    fn a_queue_past_its_bound_ends_the_link_and_takes_nothing_more() {
        let mut pair = pair(1 << 20, 1000);
        pair.sender.data(parcels(400));
        pair.sender.data(parcels(400));
        assert!(!pair.sender.is_closed());
        pair.sender.data(parcels(400));
        assert!(pair.sender.is_closed());
        assert_eq!(pair.ending.why(), End::Full { kind: Kind::Data, max: 1000 });
        pair.sender.data(parcels(1));
        pair.sender.message(Message::Offer { epoch: 1 });
        assert_eq!(next(&mut pair.data).unwrap().len(), 2);
        assert_eq!(next(&mut pair.data), None);
        assert_eq!(next(&mut pair.control), None);
    }

    #[test]
    fn nothing_passes_before_the_handshake_is_over() {
        let (mut control, mut out) = outlet();
        let (data, _data_out) = outlet();
        let ending = Arc::new(Ending::new(CancellationToken::new()));
        let sender = Sender::new((&control, 1000), (&data, 1000), ending);
        sender.message(Message::Offer { epoch: 1 });
        assert_eq!(next(&mut out), None);
        let welcome = frame(frame::What::Welcome(Bytes::from_static(b"w")));
        control.first.take().unwrap().send(welcome.clone()).unwrap();
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(Pin::new(&mut out).poll_next(&mut context), Poll::Ready(Some(welcome)));
        assert_eq!(next(&mut out).unwrap().len(), 1);
    }
}
