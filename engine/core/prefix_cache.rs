//! What is in the pages of the KV cache: an index from the beginning of a sequence to the pages that hold it.
//!
//! A full page is known by what comes before it and by its own 32 tokens. What comes before is named by a [`Prefix`], a number
//! that is given once and never again to the content of one page and so, by the same rule, to all tokens up to its end.
//! That is a hash chained from page to page in which two prefixes cannot collide: the map compares all of a page's tokens
//! and the number before them.
//!
//! Pages that nobody uses wait here, the one that has waited longest leaving first when a page is needed. Sequences give
//! their last pages back first and use no page without those before it, so a page is never evicted before those that
//! follow it.

use crate::batch::{AdapterScale, AdapterSet};
use crate::kv_layout::PAGE_SIZE;
use std::collections::{BTreeMap, HashMap};

/// The tokens up to the end of a full page; the default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Prefix(u64);

/// Sets of adapters whose beginnings are known at a time: requests may come with any scales.
const MAX_ROOTS: usize = 1 << 12;

/// A full page: what is before it, and its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    before: Prefix,
    tokens: [u32; PAGE_SIZE],
}

/// What is known of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known<'a> {
    pub before: Prefix,
    pub tokens: &'a [u32],
    /// What ends with it, where it is full.
    pub prefix: Option<Prefix>,
}

#[derive(Debug)]
enum Content {
    /// Written to the end and never again, so any number of sequences may read it.
    Full(Box<Key>),
    /// The last page of a sequence that has ended. Whoever goes on from it writes to it, so it has no user while it is here.
    Tail { before: Prefix, tokens: Vec<u32> },
}

/// See the [module](self). Pages are known by number.
#[derive(Debug, Default)]
pub struct PrefixCache {
    /// What is known of each page; nothing of those behind the last.
    contents: Vec<Option<Content>>,
    full: HashMap<Key, (u32, Prefix)>,
    /// Tails by what is before them.
    tails: HashMap<Prefix, Vec<u32>>,
    /// Known pages without a user, by the time since when.
    idle: BTreeMap<u64, u32>,
    /// The page's key in `idle`, where it is there.
    idle_since: Vec<u64>,
    /// Counts what became idle.
    clock: u64,
    /// The prefix that was named last.
    last_prefix: u64,
    /// Of each set of adapters that came, as the numbers and the bits of the scales, the prefix that its sequences begin with.
    roots: HashMap<Vec<(u32, u32)>, Prefix>,
    /// Prefixes whose page is known no longer, since somebody asked: one for each known page at most.
    forgotten: Vec<Prefix>,
}

impl PrefixCache {
    /// Known pages that nobody uses.
    pub fn num_idle(&self) -> usize {
        self.idle.len()
    }

    /// The prefix of no tokens, computed with these adapters: sequences of other ones have nothing in common. Where too many sets have come
    /// they are forgotten, and what is known of them is found no more.
    pub fn root(&mut self, adapters: &AdapterSet) -> Prefix {
        if adapters.is_empty() {
            return Prefix::default();
        }
        let bits = |&AdapterScale { adapter, scale }: &AdapterScale| (adapter, scale.to_bits());
        let key: Vec<_> = adapters.adapters().iter().map(bits).collect();
        if self.roots.len() >= MAX_ROOTS && !self.roots.contains_key(&key) {
            self.roots.clear();
        }
        *self.roots.entry(key).or_insert_with(|| {
            self.last_prefix += 1;
            Prefix(self.last_prefix)
        })
    }

    /// The pages that something is known of: those that somebody uses, then the others, what was used last first.
    pub fn newest_first(&self) -> impl Iterator<Item = u32> {
        let is_idle = |page: &u32| self.idle.get(&self.idle_since[*page as usize]) == Some(page);
        let used = (0..self.contents.len() as u32).filter(move |page| self.knows(*page) && !is_idle(page));
        used.chain(self.idle.values().rev().copied())
    }

    /// What is known of a page.
    pub fn known(&self, page: u32) -> Option<Known<'_>> {
        Some(match self.content(page)? {
            Content::Full(key) => {
                let prefix = self.full.get(&**key).map(|&(_, prefix)| prefix);
                Known { before: key.before, tokens: &key.tokens, prefix }
            }
            Content::Tail { before, tokens } => Known { before: *before, tokens, prefix: None },
        })
    }

    /// The full page that ends each prefix.
    pub fn pages(&self) -> HashMap<Prefix, u32> {
        self.full.values().map(|&(page, prefix)| (prefix, page)).collect()
    }

    /// The adapters that known sequences were computed with, by the prefix that they begin with.
    pub fn adapters(&self) -> HashMap<Prefix, AdapterSet> {
        let scale = |&(adapter, bits): &(u32, u32)| AdapterScale { adapter, scale: f32::from_bits(bits) };
        let set = |key: &Vec<_>| AdapterSet::new(&key.iter().map(scale).collect::<Vec<_>>());
        self.roots.iter().map(|(key, &prefix)| (prefix, set(key))).collect()
    }

    /// Another number once anything else is known.
    pub fn version(&self) -> u64 {
        self.clock
    }

    /// Whether anything is known of a page.
    pub fn knows(&self, page: u32) -> bool {
        self.content(page).is_some()
    }

    fn content(&self, page: u32) -> Option<&Content> {
        self.contents.get(page as usize)?.as_ref()
    }

    fn set_content(&mut self, page: u32, content: Content) {
        let room = self.contents.len().max(page as usize + 1);
        self.contents.resize_with(room, || None);
        self.idle_since.resize(room, 0);
        self.contents[page as usize] = Some(content);
    }

    /// The page that holds `tokens` after `before`, and the prefix that ends with it.
    pub fn find(&self, before: Prefix, tokens: &[u32; PAGE_SIZE]) -> Option<(u32, Prefix)> {
        self.full.get(&Key { before, tokens: *tokens }).copied()
    }

    /// The tail after `before` that has most in common with `tokens`, and how many tokens that is. One of both must go on
    /// where the other ends: nobody's tail is worth less than a few tokens of somebody else's.
    pub fn find_tail(&self, before: Prefix, tokens: &[u32]) -> Option<(u32, usize)> {
        let common = |&page: &u32| {
            let tail = self.tail(page);
            let common = tail.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            (common > 0 && common == tail.len().min(tokens.len())).then_some((page, common))
        };
        self.tails.get(&before)?.iter().filter_map(common).max_by_key(|&(_, common)| common)
    }

    /// Makes a page known that holds `tokens` after `before`, which no page does yet. Returns the prefix that ends with it.
    pub fn insert(&mut self, page: u32, before: Prefix, tokens: &[u32; PAGE_SIZE]) -> Prefix {
        self.last_prefix += 1;
        let (key, prefix) = (Key { before, tokens: *tokens }, Prefix(self.last_prefix));
        let earlier = self.full.insert(key, (page, prefix));
        assert!(earlier.is_none() && !self.knows(page), "page {page} is known already");
        self.set_content(page, Content::Full(Box::new(key)));
        prefix
    }

    /// Makes a page known that its last user is about to leave, with fewer tokens than it has room for. Of equal ones the
    /// first is enough.
    pub fn insert_tail(&mut self, page: u32, before: Prefix, tokens: &[u32]) {
        assert!(!self.knows(page), "page {page} is known already");
        let tails = self.tails.get(&before).map_or(&[][..], Vec::as_slice);
        if !tails.iter().any(|&other| self.tail(other) == tokens) {
            self.tails.entry(before).or_default().push(page);
            self.set_content(page, Content::Tail { before, tokens: tokens.to_vec() });
        }
    }

    /// A known page has lost its last user.
    pub fn set_idle(&mut self, page: u32) {
        self.clock += 1;
        self.idle_since[page as usize] = self.clock;
        self.idle.insert(self.clock, page);
    }

    /// An idle page gets a user. A tail is its alone from now on, and forgotten.
    pub fn set_used(&mut self, page: u32) {
        let idle = self.idle.remove(&self.idle_since[page as usize]);
        assert_eq!(idle, Some(page), "page {page} is free, it cannot get another user");
        if matches!(self.content(page), Some(Content::Tail { .. })) {
            self.forget(page);
        }
    }

    /// Forgets the page that has been idle longest, and returns it.
    pub fn evict(&mut self) -> Option<u32> {
        let (_, page) = self.idle.pop_first()?;
        self.forget(page);
        Some(page)
    }

    /// The prefixes that no page is known for any more, since they were taken last.
    pub fn take_forgotten(&mut self) -> Vec<Prefix> {
        std::mem::take(&mut self.forgotten)
    }

    fn forget(&mut self, page: u32) {
        match self.contents[page as usize].take() {
            Some(Content::Full(key)) => {
                self.forgotten.extend(self.full.remove(&key).map(|(_, prefix)| prefix));
            }
            Some(Content::Tail { before, .. }) => {
                if let Some(tails) = self.tails.get_mut(&before) {
                    tails.retain(|&tail| tail != page);
                    if tails.is_empty() {
                        self.tails.remove(&before);
                    }
                }
            }
            None => {}
        }
    }

    /// The tokens of a tail.
    fn tail(&self, page: u32) -> &[u32] {
        match self.content(page) {
            Some(Content::Tail { tokens, .. }) => tokens,
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_known_by_all_tokens_before_it() {
        let mut cache = PrefixCache::default();
        let (ones, twos) = ([1; PAGE_SIZE], [2; PAGE_SIZE]);
        let start = Prefix::default();
        let one = cache.insert(3, start, &ones);
        let one_two = cache.insert(1, one, &twos);
        let two = cache.insert(0, start, &twos);
        assert_eq!(cache.find(start, &ones), Some((3, one)));
        assert_eq!(cache.find(one, &twos), Some((1, one_two)));
        assert_eq!(cache.find(start, &twos), Some((0, two)));
        assert_eq!(cache.find(two, &ones), None);
        let mut other = ones;
        other[PAGE_SIZE - 1] = 9;
        assert_eq!(cache.find(start, &other), None);
    }

    #[test]
    fn sequences_of_other_adapters_begin_with_another_prefix() {
        let mut cache = PrefixCache::default();
        let set = |scale| AdapterSet::new(&[AdapterScale { adapter: 0, scale }]);
        assert_eq!(cache.root(&AdapterSet::default()), Prefix::default());
        let (one, half) = (cache.root(&set(1.0)), cache.root(&set(0.5)));
        assert!(one != half && ![one, half].contains(&Prefix::default()));
        let page = cache.insert(0, one, &[7; PAGE_SIZE]);
        let again = cache.root(&set(1.0));
        assert_eq!(cache.find(again, &[7; PAGE_SIZE]), Some((0, page)));
        assert_eq!(
            (cache.find(half, &[7; PAGE_SIZE]), cache.find(Prefix::default(), &[7; PAGE_SIZE])),
            (None, None)
        );
        // Any number of sets may come, and a prefix is given once.
        let others: Vec<_> = (0..2 * MAX_ROOTS).map(|i| cache.root(&set(2.0 + i as f32))).collect();
        assert!(cache.roots.len() <= MAX_ROOTS && !others.contains(&one) && cache.root(&set(1.0)) != one);
    }

    #[test]
    fn the_longest_idle_page_is_evicted_and_forgotten() {
        let mut cache = PrefixCache::default();
        let start = Prefix::default();
        let pages: Vec<[u32; PAGE_SIZE]> = (0..3).map(|i| [i; PAGE_SIZE]).collect();
        for page in [2, 0, 1] {
            cache.insert(page, start, &pages[page as usize]);
            cache.set_idle(page);
        }
        cache.set_used(2);
        cache.set_idle(2);
        assert_eq!(cache.num_idle(), 3);
        for page in [0, 1, 2] {
            assert!(cache.find(start, &pages[page as usize]).is_some());
            assert_eq!(cache.evict(), Some(page));
            assert_eq!(cache.find(start, &pages[page as usize]), None);
        }
        assert_eq!((cache.evict(), cache.num_idle()), (None, 0));
    }

    #[test]
    fn a_tail_goes_to_one_that_continues_it() {
        let mut cache = PrefixCache::default();
        let start = Prefix::default();
        for (page, tail) in [(0, &[1, 2, 3][..]), (1, &[1, 2]), (2, &[1, 2, 3]), (3, &[7])] {
            cache.insert_tail(page, start, tail);
            assert_eq!(cache.knows(page), page != 2, "one of two equal tails is enough");
            if cache.knows(page) {
                cache.set_idle(page);
            }
        }
        assert_eq!(cache.find_tail(start, &[1, 2, 3, 4]), Some((0, 3)));
        assert_eq!(cache.find_tail(start, &[1, 2, 4]), Some((1, 2)));
        assert_eq!(cache.find_tail(start, &[1]).map(|(_, common)| common), Some(1));
        assert_eq!(cache.find_tail(start, &[7, 1]), Some((3, 1)));
        for none in [&[][..], &[2], &[1, 3]] {
            assert_eq!(cache.find_tail(start, none), None);
        }
        cache.set_used(0);
        assert_eq!(cache.find_tail(start, &[1, 2, 3, 4]), Some((1, 2)), "it is no longer offered");
        assert_eq!(cache.evict(), Some(1));
        assert_eq!(cache.find_tail(start, &[1, 2, 3, 4]), None);
    }
}
