//! How workers of one process reach each other: a bounded ring from each to each.
//!
//! A ring carries batches of bytes, in order, as a rule one a turn. Pushing never blocks: a full ring refuses, its producer keeps
//! the batch, stops reading its clients, and is woken when the ring is half empty. A worker always takes what others sent it, full or
//! not, so that two of them never wait for each other.

use crate::Inbox;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes in a ring: 4 MiB, some 10 ms of what a worker forwards at full speed. A batch that is larger alone passes when the
/// ring is empty.
const RING_BYTES: usize = 4 << 20;

/// From one worker to another.
#[derive(Debug)]
struct Ring {
    batches: Mutex<Batches>,
    /// There is something: looked at without the lock.
    filled: AtomicBool,
    consumer: Arc<mio::Waker>,
    producer: Arc<mio::Waker>,
}

#[derive(Debug, Default)]
struct Batches {
    /// With the time from which each may be taken.
    queue: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    producer_waits: bool,
    delay: Option<Delay>,
}

/// For tests: what passes between workers takes a random time.
#[derive(Debug, Clone, Copy)]
struct Delay {
    max_us: u64,
    random: u64,
}

/// A worker's ends of all rings, and where connections go that belong to another.
#[derive(Debug)]
pub struct Links<M> {
    index: usize,
    out: Vec<Option<Arc<Ring>>>,
    inward: Vec<Option<Arc<Ring>>>,
    /// Of each worker.
    pub(crate) inboxes: Vec<Inbox<M>>,
}

impl<M> Links<M> {
    /// Of each of the workers with these inboxes. With `delay` every batch takes a random time up to that: for tests.
    #[must_use]
    pub fn mesh(inboxes: &[Inbox<M>], delay: Option<Duration>) -> Vec<Self> {
        let of = inboxes.len();
        let ring = |from: usize, to: usize| {
            // Any seed does; each ring has its own.
            let random = (from * of + to) as u64;
            let delay = delay.map(|max| Delay { max_us: max.as_micros() as u64, random });
            (from != to).then(|| {
                Arc::new(Ring {
                    batches: Mutex::new(Batches { delay, ..Batches::default() }),
                    filled: AtomicBool::new(false),
                    consumer: inboxes[to].waker(),
                    producer: inboxes[from].waker(),
                })
            })
        };
        let rings: Vec<Vec<_>> = (0..of).map(|from| (0..of).map(|to| ring(from, to)).collect()).collect();
        (0..of)
            .map(|index| Self {
                index,
                out: rings[index].clone(),
                inward: rings.iter().map(|row| row[index].clone()).collect(),
                inboxes: inboxes.to_vec(),
            })
            .collect()
    }

    /// Which of them it is.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Other workers.
    pub(crate) fn others(&self) -> impl Iterator<Item = usize> + use<M> {
        let me = self.index;
        (0..self.out.len()).filter(move |index| *index != me)
    }

    /// Gives the batch back when the ring is full: the worker is woken when there is room.
    pub(crate) fn push(&self, to: usize, batch: Vec<u8>, now_us: u64) -> Result<(), Vec<u8>> {
        let Some(Some(ring)) = self.out.get(to) else { return Ok(()) };
        let mut batches = ring.batches.lock().unwrap_or_else(PoisonError::into_inner);
        if batches.bytes > 0 && batches.bytes + batch.len() > RING_BYTES {
            batches.producer_waits = true;
            return Err(batch);
        }
        let mut due_us = now_us;
        if let Some(delay) = &mut batches.delay {
            // splitmix64
            delay.random = delay.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = delay.random;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            due_us += (z ^ (z >> 31)) % (delay.max_us + 1);
            // In order all the same.
            due_us = due_us.max(batches.queue.back().map_or(0, |(due_us, _)| *due_us));
        }
        let wake = batches.queue.is_empty();
        batches.bytes += batch.len();
        batches.queue.push_back((due_us, batch));
        ring.filled.store(true, Ordering::Release);
        drop(batches);
        if wake {
            // A worker that is gone needs no waking.
            let _ = ring.consumer.wake();
        }
        Ok(())
    }

    /// The next batch of another worker that may be taken.
    pub(crate) fn take(&self, from: usize, now_us: u64) -> Option<Vec<u8>> {
        let ring = self.inward.get(from)?.as_ref()?;
        if !ring.filled.load(Ordering::Acquire) {
            return None;
        }
        let mut batches = ring.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = match batches.queue.front() {
            Some((due_us, _)) if *due_us <= now_us => batches.queue.pop_front().map(|(_, batch)| batch),
            _ => None,
        };
        let size = batch.as_ref().map_or(0, Vec::len);
        batches.bytes -= size;
        ring.filled.store(!batches.queue.is_empty(), Ordering::Release);
        let wake = size > 0 && batches.bytes <= RING_BYTES / 2 && std::mem::take(&mut batches.producer_waits);
        drop(batches);
        if wake {
            let _ = ring.producer.wake();
        }
        batch
    }

    /// When the next batch may be taken; none when there is none.
    pub(crate) fn next_us(&self) -> Option<u64> {
        let filled = self.inward.iter().flatten().filter(|ring| ring.filled.load(Ordering::Acquire));
        let due = |ring: &Arc<Ring>| {
            let batches = ring.batches.lock().unwrap_or_else(PoisonError::into_inner);
            batches.queue.front().map(|(due_us, _)| *due_us)
        };
        filled.filter_map(due).min()
    }
}
