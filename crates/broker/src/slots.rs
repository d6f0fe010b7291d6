//! A slab whose ids carry a generation: a late answer never meets another in a reused place.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;

/// Index and generation. `T` only tells ids of different slabs apart.
pub struct Id<T> {
    index: u32,
    generation: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Id<T> {
    /// Places are reused: an index alone names nothing for long.
    #[must_use]
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// As one number, for whoever must keep it opaque.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// From [`Id::to_bits`].
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32, of: PhantomData }
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

/// The slab: `V` in places named by `Id<M>`.
#[derive(Debug)]
pub(crate) struct Slots<M, V> {
    places: Vec<(u32, Option<V>)>,
    free: Vec<u32>,
    of: PhantomData<fn() -> M>,
}

impl<M, V> Slots<M, V> {
    pub(crate) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), of: PhantomData }
    }

    pub(crate) fn insert(&mut self, value: V) -> Id<M> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            // Memory ends long before 2^32 connections.
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        place.1 = Some(value);
        Id { index, generation: place.0, of: PhantomData }
    }

    pub(crate) fn get(&self, id: Id<M>) -> Option<&V> {
        let (generation, value) = self.places.get(id.index as usize)?;
        if *generation == id.generation { value.as_ref() } else { None }
    }

    pub(crate) fn get_mut(&mut self, id: Id<M>) -> Option<&mut V> {
        let (generation, value) = self.places.get_mut(id.index as usize)?;
        if *generation == id.generation { value.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, id: Id<M>) -> Option<V> {
        let (generation, value) = self.places.get_mut(id.index as usize)?;
        if *generation != id.generation {
            return None;
        }
        let value = value.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(id.index);
        Some(value)
    }

    pub(crate) fn ids(&self) -> Vec<Id<M>> {
        (self.places.iter().enumerate())
            .filter(|(_, (_, value))| value.is_some())
            .map(|(index, (generation, _))| Id {
                index: index as u32,
                generation: *generation,
                of: PhantomData,
            })
            .collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}
