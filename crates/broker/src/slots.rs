//! A slab whose ids carry a generation: a late answer never meets another in a reused place.
//!
//! Places are in chunks that never move: a slab of a million grows by one chunk, not by copying the million, and one that
//! is not full has not touched the memory of the rest.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::num::NonZeroU32;

/// Index and generation. `T` only tells ids of different slabs apart.
pub struct Id<T> {
    index: u32,
    generation: NonZeroU32,
    of: PhantomData<fn() -> T>,
}

impl<T> Id<T> {
    /// Places are reused: an index alone names nothing for long.
    #[must_use]
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// As one number, which is not 0, for whoever must keep it opaque.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation.get()) << 32 | u64::from(self.index)
    }

    /// From [`Id::to_bits`]; none when it is not one.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        let generation = NonZeroU32::new((bits >> 32) as u32)?;
        Some(Self { index: bits as u32, generation, of: PhantomData })
    }
}

impl<T> Clone for Id<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Id<T> {}

impl<T> PartialEq for Id<T> {
    fn eq(&self, other: &Self) -> bool {
        self.to_bits() == other.to_bits()
    }
}

impl<T> Eq for Id<T> {}

impl<T> Hash for Id<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.to_bits().hash(state);
    }
}

impl<T> fmt::Debug for Id<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// Places in a chunk: of connections and sessions some 10 to 20 KiB.
const CHUNK: usize = 64;

#[derive(Debug)]
struct Place<V> {
    generation: NonZeroU32,
    value: Option<V>,
}

/// The slab: `V` in places named by `Id<M>`.
#[derive(Debug)]
pub(crate) struct Slots<M, V> {
    /// Each has `CHUNK` places at most, all but the last exactly as many.
    chunks: Vec<Vec<Place<V>>>,
    free: Vec<u32>,
    len: usize,
    of: PhantomData<fn() -> M>,
}

impl<M, V> Slots<M, V> {
    pub(crate) fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), len: 0, of: PhantomData }
    }

    pub(crate) fn insert(&mut self, value: V) -> Id<M> {
        self.len += 1;
        if let Some(index) = self.free.pop() {
            let place = &mut self.chunks[index as usize / CHUNK][index as usize % CHUNK];
            place.value = Some(value);
            return Id { index, generation: place.generation, of: PhantomData };
        }
        if self.chunks.last().is_none_or(|last| last.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let last = self.chunks.len() - 1;
        let chunk = &mut self.chunks[last];
        // Memory ends long before 2^32 places.
        let index = (last * CHUNK + chunk.len()) as u32;
        let generation = NonZeroU32::MIN;
        chunk.push(Place { generation, value: Some(value) });
        Id { index, generation, of: PhantomData }
    }

    pub(crate) fn get(&self, id: Id<M>) -> Option<&V> {
        let place = self.chunks.get(id.index as usize / CHUNK)?.get(id.index as usize % CHUNK)?;
        if place.generation == id.generation { place.value.as_ref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, id: Id<M>) -> Option<&mut V> {
        let place = self.place(id)?;
        if place.generation == id.generation { place.value.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, id: Id<M>) -> Option<V> {
        self.remove_if(id, |_| true)
    }

    /// Only what is meant.
    pub(crate) fn remove_if(&mut self, id: Id<M>, is: impl FnOnce(&V) -> bool) -> Option<V> {
        let place = self.place(id)?;
        if place.generation != id.generation || !place.value.as_ref().is_some_and(is) {
            return None;
        }
        let value = place.value.take()?;
        place.generation = place.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        self.free.push(id.index);
        self.len -= 1;
        Some(value)
    }

    fn place(&mut self, id: Id<M>) -> Option<&mut Place<V>> {
        self.chunks.get_mut(id.index as usize / CHUNK)?.get_mut(id.index as usize % CHUNK)
    }

    pub(crate) fn ids(&self) -> Vec<Id<M>> {
        let places = self.chunks.iter().flatten().enumerate().filter(|(_, place)| place.value.is_some());
        places
            .map(|(index, place)| Id { index: index as u32, generation: place.generation, of: PhantomData })
            .collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    enum Mark {}

    #[test]
    fn an_old_id_finds_nothing_in_a_reused_place() {
        let mut slots = Slots::<Mark, usize>::new();
        let ids: Vec<_> = (0..3 * CHUNK).map(|n| slots.insert(n)).collect();
        assert!(ids.iter().enumerate().all(|(n, id)| id.index() == n && slots.get(*id) == Some(&n)));
        let old = ids[CHUNK + 1];
        assert_eq!(
            (slots.remove(old), slots.remove(old), slots.len()),
            (Some(CHUNK + 1), None, 3 * CHUNK - 1)
        );
        let new = slots.insert(7);
        assert_eq!((new.index(), slots.get(old), slots.get(new)), (old.index(), None, Some(&7)));
        assert_eq!(Id::<Mark>::from_bits(new.to_bits()), Some(new));
        assert_eq!((Id::<Mark>::from_bits(0), slots.ids().len()), (None, 3 * CHUNK));
        assert_eq!(size_of::<Option<Id<Mark>>>(), 8);
    }
}
