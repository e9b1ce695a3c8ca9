//! States of recurrent layers as they were behind a beginning of a sequence, so that another one goes on from there.
//!
//! A state cannot be cut back, so copies of it are kept: behind the last full page of a prompt, behind every so many tokens of a long one,
//! and behind the newest full page of what is generated. They are known by the [`Prefix`] that ends with that page, which the prefix cache
//! finds, and which is never given to other tokens: a copy whose page was forgotten is never found again, and gives its place up. There are
//! a fixed number of places for them; the copy that was used longest ago makes room, and may be kept in [host memory](crate::host_checkpoints).

use crate::host_checkpoints::HostCheckpoints;
use crate::kv_layout::PAGE_SIZE;
use crate::prefix_cache::Prefix;
use std::collections::HashMap;
use std::sync::Arc;

/// What is in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Free,
    /// A copy that a step makes which was not completed.
    Pending,
    /// The state behind the prefix, used last at that time.
    Known(Prefix, u64),
}

/// The places, and what is in them. See the [module](self).
#[derive(Debug)]
pub struct Checkpoints {
    places: Vec<Place>,
    known: HashMap<Prefix, u32>,
    /// Counts uses.
    clock: u64,
    /// Tokens of a prompt from one copy to the next; 0: none but the last is made.
    every: usize,
    /// What had to make room.
    host: HostCheckpoints,
}

/// The copy of a state that a sequence begins with.
#[derive(Clone, Debug)]
pub enum Beginning {
    /// In this place.
    Place(u32),
    /// In host memory.
    Host(Arc<Vec<u8>>),
}

/// Tokens of a prompt from one copy to the next, where nobody asks for more or fewer.
pub const CHECKPOINT_EVERY: usize = 2048;

impl Checkpoints {
    /// As many places, all free. Of a prompt copies are made behind every `every` tokens, rounded up to pages; with 0 behind its last page alone.
    pub fn new(count: usize, every: usize) -> Self {
        let host = HostCheckpoints::default();
        Self { places: vec![Place::Free; count], known: HashMap::new(), clock: 0, every, host }
    }

    /// The same with room in host memory for those that have to make room.
    #[must_use]
    pub fn with_host(self, host: HostCheckpoints) -> Self {
        Self { host, ..self }
    }

    /// Those in host memory.
    pub fn host(&self) -> &HostCheckpoints {
        &self.host
    }

    /// The same, for what is to be kept there.
    pub fn host_mut(&mut self) -> &mut HostCheckpoints {
        &mut self.host
    }

    /// Tokens from one copy to the next of a prompt of `len`: no more than half of the places, those in host memory too, are for one prompt.
    pub fn stride(&self, len: usize) -> usize {
        if self.every == 0 {
            return usize::MAX;
        }
        let most = (self.places.len().saturating_add(self.host.capacity()) / 2).max(1);
        self.every.max(len.div_ceil(most)).div_ceil(PAGE_SIZE).saturating_mul(PAGE_SIZE)
    }

    /// Places for copies.
    pub fn num_places(&self) -> usize {
        self.places.len()
    }

    /// The place with the state behind `prefix`.
    pub fn find(&self, prefix: Prefix) -> Option<u32> {
        self.known.get(&prefix).copied()
    }

    /// Whether there is a copy of the state behind `prefix`.
    pub fn has(&self, prefix: Prefix) -> bool {
        self.known.contains_key(&prefix) || self.host.has(prefix)
    }

    /// The copy of the state behind `prefix`, which is used now.
    pub fn begin(&mut self, prefix: Prefix) -> Option<Beginning> {
        if let Some(place) = self.find(prefix) {
            self.touch(place);
            return Some(Beginning::Place(place));
        }
        self.host.take_up(prefix).map(Beginning::Host)
    }

    /// The copies and their places, what was used last first.
    pub fn newest_first(&self) -> Vec<(Prefix, u32)> {
        let used = |&(_, place): &(Prefix, u32)| match self.places[place as usize] {
            Place::Known(_, used) => used,
            _ => 0,
        };
        let mut known: Vec<_> = self.known.iter().map(|(&prefix, &place)| (prefix, place)).collect();
        known.sort_unstable_by_key(|known| std::cmp::Reverse(used(known)));
        known
    }

    /// The copy in a place was used.
    pub fn touch(&mut self, place: u32) {
        self.clock += 1;
        if let Place::Known(_, used) = &mut self.places[place as usize] {
            *used = self.clock;
        }
    }

    /// A place for a new copy; what was there is forgotten. `None` where all wait for copies.
    pub fn take(&mut self) -> Option<u32> {
        self.take_over().map(|(place, _)| place)
    }

    /// The same with the prefix whose copy was there, and is until the new one is made, where host memory has room for such.
    pub fn take_over(&mut self) -> Option<(u32, Option<Prefix>)> {
        let age = |place: &Place| match *place {
            Place::Free => Some(0),
            Place::Pending => None,
            Place::Known(_, used) => Some(1 + used),
        };
        let ages = self.places.iter().enumerate().filter_map(|(i, place)| Some((age(place)?, i)));
        let place = ages.min()?.1;
        let evicted = match self.places[place] {
            Place::Known(prefix, _) => Some(prefix).filter(|_| self.host.capacity() > 0),
            _ => None,
        };
        self.release(place as u32);
        self.places[place] = Place::Pending;
        Some((place as u32, evicted))
    }

    /// The copy in a pending place is made: it is the state behind `prefix`. Of two the first is enough: whether this one is kept.
    pub fn set(&mut self, place: u32, prefix: Prefix) -> bool {
        self.clock += 1;
        let is_first = !self.known.contains_key(&prefix);
        self.host.forget(prefix);
        self.places[place as usize] = if is_first {
            self.known.insert(prefix, place);
            Place::Known(prefix, self.clock)
        } else {
            Place::Free
        };
        is_first
    }

    /// Forgets the state behind `prefix`, where there is one, in host memory too.
    pub fn forget(&mut self, prefix: Prefix) {
        self.find(prefix).into_iter().for_each(|place| self.release(place));
        self.host.forget(prefix);
    }

    /// Forgets what is in a place.
    pub fn release(&mut self, place: u32) {
        if let Place::Known(prefix, _) = self.places[place as usize] {
            self.known.remove(&prefix);
        }
        self.places[place as usize] = Place::Free;
    }

    /// No step is in flight any more: what waited for one is free.
    pub fn release_pending(&mut self) {
        self.places
            .iter_mut()
            .filter(|place| **place == Place::Pending)
            .for_each(|place| *place = Place::Free);
    }

    /// Copies that are there, but for those in host memory.
    pub fn num_known(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix_cache::PrefixCache;

    #[test]
    fn a_long_prompt_has_copies_at_pages_and_no_more_than_half_of_them() {
        let strides = |count, every| [1, 1000, 100_000].map(|len| Checkpoints::new(count, every).stride(len));
        assert_eq!(strides(16, 0), [usize::MAX; 3]);
        assert_eq!(strides(16, 2048), [2048, 2048, 12_512]);
        assert_eq!(strides(16, 1), [32, 128, 12_512]);
        assert_eq!(strides(1, 100), [128, 1024, 100_000]);
        assert_eq!(strides(0, usize::MAX)[0], usize::MAX);
    }

    #[test]
    fn the_copy_that_was_used_longest_ago_makes_room() {
        let mut cache = PrefixCache::default();
        let prefixes = [0, 1, 2].map(|i| cache.insert(i, Prefix::default(), &[i; PAGE_SIZE]));
        let mut checkpoints = Checkpoints::new(2, 0);
        let [a, b] = [0, 1].map(|_| checkpoints.take().unwrap());
        assert_eq!((checkpoints.take(), checkpoints.num_known()), (None, 0), "both wait for their copies");
        assert!(checkpoints.set(a, prefixes[0]) && checkpoints.set(b, prefixes[1]));
        assert_eq!(prefixes.map(|prefix| checkpoints.find(prefix)), [Some(a), Some(b), None]);
        checkpoints.touch(a);
        assert_eq!(checkpoints.take(), Some(b));
        assert_eq!(checkpoints.find(prefixes[1]), None);
        // The same again is not kept twice.
        assert!(!checkpoints.set(b, prefixes[0]));
        assert_eq!((checkpoints.find(prefixes[0]), checkpoints.num_known()), (Some(a), 1));
        assert_eq!(checkpoints.take(), Some(b), "it is free");
        checkpoints.release_pending();
        assert_eq!(checkpoints.take(), Some(b));
        checkpoints.release(a);
        assert_eq!((checkpoints.find(prefixes[0]), checkpoints.num_known()), (None, 0));
    }

    #[test]
    fn what_makes_room_is_told_where_host_memory_has_some() {
        let mut cache = PrefixCache::default();
        let prefixes = [0, 1].map(|i| cache.insert(i, Prefix::default(), &[i; PAGE_SIZE]));
        let mut checkpoints = Checkpoints::new(1, 32).with_host(HostCheckpoints::new(7, 1));
        assert_eq!(checkpoints.stride(400), 128, "half of eight places");
        assert_eq!(checkpoints.take_over(), Some((0, None)));
        checkpoints.set(0, prefixes[0]);
        assert_eq!(checkpoints.take_over(), Some((0, Some(prefixes[0]))));
        assert!(!checkpoints.has(prefixes[0]), "it is nowhere until it was read");
        checkpoints.host_mut().keep(prefixes[0], vec![5]);
        checkpoints.set(0, prefixes[1]);
        assert!(matches!(checkpoints.begin(prefixes[0]), Some(Beginning::Host(state)) if *state == [5]));
        assert!(matches!(checkpoints.begin(prefixes[1]), Some(Beginning::Place(0))));
        // The state that is computed again is in a place, and no longer in host memory.
        checkpoints.take();
        checkpoints.set(0, prefixes[0]);
        assert_eq!((checkpoints.host().num_known(), checkpoints.find(prefixes[0])), (0, Some(0)));
        checkpoints.host_mut().keep(prefixes[1], vec![6]);
        prefixes.iter().for_each(|&prefix| checkpoints.forget(prefix));
        assert!(prefixes.iter().all(|&prefix| !checkpoints.has(prefix)));
    }
}
