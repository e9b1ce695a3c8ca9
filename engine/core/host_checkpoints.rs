//! Copies of states that had to make room for others, in host memory: a prompt that begins as theirs goes on from there all the same.
//!
//! They are known by the same [`Prefix`]es as those of the [places](crate::checkpoints), and forgotten with them: once the page that one stands
//! behind is given to other tokens it is never found again. There are as many as a number of bytes holds; the one that was used longest ago makes
//! room.

use crate::prefix_cache::Prefix;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// See the [module](self). The default has room for none.
#[derive(Debug, Default)]
pub struct HostCheckpoints {
    /// Copies at most.
    capacity: usize,
    copies: HashMap<Prefix, HostCopy>,
    /// The copies by the time of their last use.
    by_use: BTreeMap<u64, Prefix>,
    /// Counts uses.
    clock: u64,
    /// Of all copies.
    num_bytes: usize,
}

#[derive(Debug)]
struct HostCopy {
    state: Arc<Vec<u8>>,
    used: u64,
}

impl HostCheckpoints {
    /// Room for what `max_bytes` holds of states of so many bytes.
    pub fn new(max_bytes: usize, state_bytes: usize) -> Self {
        Self { capacity: max_bytes / state_bytes.max(1), ..Self::default() }
    }

    /// Copies that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Copies that are there.
    pub fn num_known(&self) -> usize {
        self.copies.len()
    }

    /// Bytes that they take.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// Whether the state behind `prefix` is here.
    pub fn has(&self, prefix: Prefix) -> bool {
        self.copies.contains_key(&prefix)
    }

    /// The state behind `prefix`, which is used now.
    pub fn take_up(&mut self, prefix: Prefix) -> Option<Arc<Vec<u8>>> {
        let copy = self.copies.get_mut(&prefix)?;
        self.clock += 1;
        self.by_use.remove(&copy.used);
        self.by_use.insert(self.clock, prefix);
        copy.used = self.clock;
        Some(Arc::clone(&copy.state))
    }

    /// Keeps the state behind `prefix`, for which others that were used longer ago make room.
    pub fn keep(&mut self, prefix: Prefix, state: Vec<u8>) {
        self.forget(prefix);
        if self.capacity == 0 {
            return;
        }
        while self.copies.len() >= self.capacity {
            let Some((_, oldest)) = self.by_use.first_key_value() else { return };
            self.forget(*oldest);
        }
        self.clock += 1;
        self.num_bytes += state.len();
        self.by_use.insert(self.clock, prefix);
        self.copies.insert(prefix, HostCopy { state: Arc::new(state), used: self.clock });
    }

    /// Forgets the state behind `prefix`, where there is one.
    pub fn forget(&mut self, prefix: Prefix) {
        if let Some(HostCopy { state, used }) = self.copies.remove(&prefix) {
            self.by_use.remove(&used);
            self.num_bytes -= state.len();
        }
    }

    /// The copies, what was used last first.
    pub fn newest_first(&self) -> impl Iterator<Item = (Prefix, &Arc<Vec<u8>>)> {
        self.by_use.values().rev().filter_map(|prefix| Some((*prefix, &self.copies.get(prefix)?.state)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_layout::PAGE_SIZE;
    use crate::prefix_cache::PrefixCache;

    #[test]
    fn what_was_used_longest_ago_makes_room_and_no_more_is_kept_than_fits() {
        let mut cache = PrefixCache::default();
        let [a, b, c] = [0, 1, 2].map(|i| cache.insert(i, Prefix::default(), &[i; PAGE_SIZE]));
        let mut host = HostCheckpoints::new(25, 10);
        assert_eq!(host.capacity(), 2);
        host.keep(a, vec![1; 10]);
        host.keep(b, vec![2; 10]);
        assert_eq!(host.take_up(a).unwrap()[..], [1; 10]);
        host.keep(c, vec![3; 10]);
        assert_eq!([a, b, c].map(|prefix| host.has(prefix)), [true, false, true]);
        assert_eq!((host.num_known(), host.num_bytes()), (2, 20));
        assert_eq!(host.newest_first().map(|(prefix, _)| prefix).collect::<Vec<_>>(), [c, a]);
        // The same again takes no further place.
        host.keep(a, vec![4; 10]);
        assert_eq!((host.num_bytes(), host.take_up(a).unwrap()[0]), (20, 4));
        // Whoever has it goes on from it though it is forgotten.
        let state = host.take_up(c).unwrap();
        host.forget(c);
        assert_eq!((host.num_known(), host.num_bytes(), state[0], host.take_up(c)), (1, 10, 3, None));
        let mut none = HostCheckpoints::new(9, 10);
        none.keep(a, vec![1; 10]);
        assert_eq!((none.num_known(), none.num_bytes()), (0, 0));
    }
}
