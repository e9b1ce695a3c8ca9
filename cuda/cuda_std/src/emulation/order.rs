//! What a thread knows of the accesses of others: vector clocks, kept short.
//!
//! Every thread counts its own time (`clock`); an access is stamped with thread and clock. Inside a block most
//! of the order comes from the full barrier, so it is one number a block (`floor`: everything up to there is
//! known to all its threads). [`Knowledge`] holds the rest: what arrived through atomics, named barriers and
//! `mbarrier`, from the own block and from others.

use std::vec::Vec;

/// For some blocks and threads of a launch, the clock up to which their accesses are known. Threads and blocks
/// are numbered over the grid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Knowledge {
    /// Sorted by block: every access of the block's threads up to the clock.
    blocks: Vec<(u32, u32)>,
    /// Sorted by thread.
    threads: Vec<(u32, u32)>,
}

impl Knowledge {
    /// Whether it covers what `thread` of `block` did at `clock`.
    pub fn covers(&self, block: u32, thread: u32, clock: u32) -> bool {
        let up_to = |list: &[(u32, u32)], key| {
            list.binary_search_by_key(&key, |entry| entry.0).is_ok_and(|i| clock <= list[i].1)
        };
        up_to(&self.blocks, block) || up_to(&self.threads, thread)
    }

    /// Adds everything up to `clock` of `block`.
    pub fn add_block(&mut self, block: u32, clock: u32) {
        add(&mut self.blocks, block, clock);
    }

    /// Adds everything up to `clock` of `thread`.
    pub fn add_thread(&mut self, thread: u32, clock: u32) {
        add(&mut self.threads, thread, clock);
    }

    /// Adds all that `other` covers.
    pub fn join(&mut self, other: &Self) {
        merge(&mut self.blocks, &other.blocks);
        merge(&mut self.threads, &other.threads);
    }
}

fn add(list: &mut Vec<(u32, u32)>, key: u32, clock: u32) {
    match list.binary_search_by_key(&key, |entry| entry.0) {
        Ok(i) => list[i].1 = list[i].1.max(clock),
        Err(i) => list.insert(i, (key, clock)),
    }
}

fn merge(into: &mut Vec<(u32, u32)>, from: &[(u32, u32)]) {
    if from.is_empty() {
        return;
    }
    if into.is_empty() {
        into.extend_from_slice(from);
        return;
    }
    let own = core::mem::take(into);
    into.reserve(own.len() + from.len());
    let (mut a, mut b) = (own.iter().peekable(), from.iter().peekable());
    while let (Some(&&x), Some(&&y)) = (a.peek(), b.peek()) {
        if x.0 <= y.0 {
            a.next();
        }
        if y.0 <= x.0 {
            b.next();
        }
        into.push(match x.0.cmp(&y.0) {
            core::cmp::Ordering::Less => x,
            core::cmp::Ordering::Greater => y,
            core::cmp::Ordering::Equal => (x.0, x.1.max(y.1)),
        });
    }
    into.extend(a);
    into.extend(b);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_keep_the_later_clock_of_each() {
        let (mut a, mut b) = (Knowledge::default(), Knowledge::default());
        a.add_thread(3, 7);
        a.add_thread(1, 2);
        a.add_block(0, 4);
        b.add_thread(3, 5);
        b.add_thread(4, 9);
        b.add_block(2, 1);
        a.join(&b);
        assert_eq!(a.threads, [(1, 2), (3, 7), (4, 9)]);
        assert_eq!(a.blocks, [(0, 4), (2, 1)]);
        assert!(a.covers(9, 3, 7) && !a.covers(9, 3, 8) && a.covers(2, 77, 1) && !a.covers(5, 5, 0));
    }
}
