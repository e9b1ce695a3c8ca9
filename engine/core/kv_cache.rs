//! Pages of the KV cache and the tables that map a sequence to them.

use crate::batch::AdapterSet;
use crate::kv_layout::{PAGE_SIZE, pages_for};
use crate::prefix_cache::{Prefix, PrefixCache};
use std::ops::Range;

/// Who uses which page of the cache, and what is in those that nobody uses any more. It is made once with the cache; pages
/// are known by their number alone, so it is the same for every device.
///
/// Each page counts its users: a [`PageList`] is one. A page without a user is free, but where the [prefix
/// cache](crate::prefix_cache) knows what is in it, it is handed out only when no other is left.
///
/// Nothing is kept of pages that nobody has used yet, and of the others those are used again first: memory grows with use.
#[derive(Debug)]
pub struct PagePool {
    num_pages: usize,
    /// Users of each page that was ever handed out, which are the first ones.
    users: Vec<u32>,
    /// Pages of those without a user or a known content; the last is handed out next, so that a page that is still in a cache
    /// nearby comes back first.
    unknown: Vec<u32>,
    prefixes: PrefixCache,
    /// Whether anything is made known to `prefixes`.
    prefix_cache: bool,
    /// Of each page that was ever handed out, how many of its tokens a model that follows has taken in too.
    followed: Vec<u8>,
}

impl PagePool {
    /// `num_pages` free pages, as in [`KvLayout::num_pages`](crate::kv_layout::KvLayout::num_pages). Without `prefix_cache` no page outlives its sequence and none
    /// is shared.
    pub fn new(num_pages: usize, prefix_cache: bool) -> Self {
        Self {
            num_pages,
            users: Vec::new(),
            unknown: Vec::new(),
            prefixes: PrefixCache::default(),
            prefix_cache,
            followed: Vec::new(),
        }
    }

    /// All pages.
    pub fn num_pages(&self) -> usize {
        self.num_pages
    }

    /// Pages that sequences use, each counted once.
    pub fn num_used(&self) -> usize {
        self.num_pages() - self.num_free()
    }

    /// Pages that no sequence uses, those of [`PagePool::num_cached`] too: all may be had.
    pub fn num_free(&self) -> usize {
        self.num_pages - self.users.len() + self.unknown.len() + self.prefixes.num_idle()
    }

    /// Free pages whose content is known: a sequence that begins with it takes them as they are.
    pub fn num_cached(&self) -> usize {
        self.prefixes.num_idle()
    }

    /// What is known of pages.
    pub fn prefixes(&self) -> &PrefixCache {
        &self.prefixes
    }

    /// Whether pages stay known when their sequences end.
    pub fn keeps(&self) -> bool {
        self.prefix_cache
    }

    /// A page for what was known in another run, where there is one of which nothing is known; to be made known or given back.
    pub(crate) fn take_unknown(&mut self) -> Option<u32> {
        let is_left = !self.unknown.is_empty() || self.users.len() < self.num_pages;
        if is_left { self.allocate() } else { None }
    }

    /// Makes known that a page of [`PagePool::take_unknown`] holds these tokens, unless another one does. Returns what ends with them, where they
    /// fill it.
    pub(crate) fn make_known(&mut self, page: u32, before: Prefix, tokens: &[u32]) -> Option<Prefix> {
        let Ok(full) = tokens.try_into() else {
            self.prefixes.insert_tail(page, before, tokens);
            return None;
        };
        let known = self.prefixes.find(before, full).map(|(_, prefix)| prefix);
        Some(known.unwrap_or_else(|| self.prefixes.insert(page, before, full)))
    }

    /// What begins with these adapters.
    pub(crate) fn root(&mut self, adapters: &AdapterSet) -> Prefix {
        self.prefixes.root(adapters)
    }

    /// The prefixes that no page is known for any more, since they were taken last.
    pub fn take_forgotten(&mut self) -> Vec<Prefix> {
        self.prefixes.take_forgotten()
    }

    /// A free page for one user, `None` if there is none. Of pages with a known content the one is taken that nobody has
    /// used for longest.
    fn allocate(&mut self) -> Option<u32> {
        let page = match self.unknown.pop() {
            Some(page) => page,
            None if self.users.len() < self.num_pages => {
                self.users.push(0);
                self.users.len() as u32 - 1
            }
            None => self.prefixes.evict()?,
        };
        self.users[page as usize] = 1;
        if let Some(followed) = self.followed.get_mut(page as usize) {
            *followed = 0;
        }
        Some(page)
    }

    /// A model that follows has taken in these tokens, of the sequence that has these pages, and all before them.
    pub(crate) fn follow(&mut self, pages: &[u32], tokens: Range<usize>) {
        self.followed.resize(self.users.len(), 0);
        let pages = pages[..pages_for(tokens.end)].iter().enumerate().skip(tokens.start / PAGE_SIZE);
        for (i, &page) in pages {
            let end = (tokens.end - i * PAGE_SIZE).min(PAGE_SIZE) as u8;
            let followed = &mut self.followed[page as usize];
            *followed = (*followed).max(end);
        }
    }

    /// How many of the first `num_tokens` tokens of the sequence that has these pages a model that follows has taken in. Where the sequence
    /// writes on in the page of the last of them, what was taken in behind it there is forgotten.
    pub(crate) fn num_followed(&mut self, pages: &[u32], num_tokens: usize) -> usize {
        let mut found = None;
        for (i, &page) in pages[..pages_for(num_tokens)].iter().enumerate() {
            let Some(followed) = self.followed.get_mut(page as usize) else {
                return found.unwrap_or(i * PAGE_SIZE);
            };
            let written = num_tokens - i * PAGE_SIZE;
            if written < PAGE_SIZE {
                *followed = (*followed).min(written as u8);
            }
            if usize::from(*followed) < PAGE_SIZE {
                found = found.or(Some(i * PAGE_SIZE + usize::from(*followed)));
            }
        }
        found.unwrap_or(num_tokens).min(num_tokens)
    }

    /// Adds a user to a page with a known content.
    ///
    /// # Panics
    /// If nothing is known of the page.
    fn retain(&mut self, page: u32) {
        if self.users[page as usize] == 0 {
            self.prefixes.set_used(page);
        }
        self.users[page as usize] += 1;
    }

    /// Takes a user from a page; the last one's leaving frees it.
    ///
    /// # Panics
    /// If the page is free.
    pub(crate) fn release(&mut self, page: u32) {
        let users = &mut self.users[page as usize];
        assert!(*users > 0, "page {page} is released twice");
        *users -= 1;
        if *users > 0 {
            return;
        }
        if self.prefixes.knows(page) {
            self.prefixes.set_idle(page);
        } else {
            self.unknown.push(page);
        }
    }
}

/// The pages of one sequence: its token at `position` is on page `position / PAGE_SIZE` of the list.
///
/// Only pages that are full are shared, and nobody writes to those. So copying on write is a rule of allocation: what a
/// sequence writes goes to pages that it alone has, and where it leaves a beginning that it shares in the middle of a page,
/// it computes that page's tokens into one of its own.
///
/// A list must be [cleared](PageList::clear) into its pool; dropping it loses its pages.
#[derive(Debug, Default)]
pub struct PageList {
    pages: Vec<u32>,
    /// Full pages that the prefix cache knows, the first of the list.
    num_known: usize,
    /// What is in them.
    prefix: Prefix,
    /// What it began with.
    root: Prefix,
}

impl PageList {
    /// An empty list of a sequence with these adapters.
    pub fn new(adapters: &AdapterSet, pool: &mut PagePool) -> Self {
        let root = pool.prefixes.root(adapters);
        Self { prefix: root, root, ..Self::default() }
    }

    /// The pages in the order of positions: a row of [`crate::batch::Batch::block_table`].
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Fills an empty list with the pages that hold the longest known beginning of `tokens`. Returns how many tokens that is.
    ///
    /// The unfinished last page of a sequence that has ended becomes this one's, which writes on in it: a conversation goes
    /// on from its very last token.
    ///
    /// # Panics
    /// If the list has pages.
    pub fn reuse(&mut self, tokens: &[u32], pool: &mut PagePool) -> usize {
        assert!(self.pages.is_empty(), "a sequence begins once");
        for chunk in tokens.as_chunks().0 {
            let Some((page, prefix)) = pool.prefixes.find(self.prefix, chunk) else { break };
            pool.retain(page);
            self.pages.push(page);
            (self.num_known, self.prefix) = (self.pages.len(), prefix);
        }
        let num_full = self.num_known * PAGE_SIZE;
        let Some((page, common)) = pool.prefixes.find_tail(self.prefix, &tokens[num_full..]) else {
            return num_full;
        };
        pool.retain(page);
        self.pages.push(page);
        num_full + common
    }

    /// As [`PageList::reuse`], but no farther than to the last page behind which there `is_checkpoint`, a copy of the sequence's state. Returns
    /// the tokens and what ends with them.
    ///
    /// # Panics
    /// If the list has pages.
    pub fn reuse_to_checkpoint(
        &mut self,
        tokens: &[u32],
        pool: &mut PagePool,
        is_checkpoint: impl Fn(Prefix) -> bool,
    ) -> (usize, Option<Prefix>) {
        assert!(self.pages.is_empty(), "a sequence begins once");
        let (mut known, mut count, mut before) = (Vec::new(), 0, self.prefix);
        for chunk in tokens.as_chunks().0 {
            let Some((page, prefix)) = pool.prefixes.find(before, chunk) else { break };
            known.push((page, prefix));
            before = prefix;
            if is_checkpoint(prefix) {
                count = known.len();
            }
        }
        for &(page, prefix) in &known[..count] {
            pool.retain(page);
            self.pages.push(page);
            (self.num_known, self.prefix) = (self.pages.len(), prefix);
        }
        (count * PAGE_SIZE, (count > 0).then_some(self.prefix))
    }

    /// What ends with the `num_tokens`-th token, where a page that is known ends with it.
    pub fn prefix_of(&self, num_tokens: usize) -> Option<Prefix> {
        (num_tokens > 0 && self.num_known * PAGE_SIZE == num_tokens).then_some(self.prefix)
    }

    /// Takes pages from `pool` until there is room for `num_tokens` tokens. `false`, and nothing is taken, if `pool` has
    /// too few.
    pub fn grow(&mut self, num_tokens: usize, pool: &mut PagePool) -> bool {
        let missing = pages_for(num_tokens).saturating_sub(self.pages.len());
        if missing > pool.num_free() {
            return false;
        }
        self.pages.extend((0..missing).map_while(|_| pool.allocate()));
        true
    }

    /// Makes known which of the pages are full. `computed` are all tokens of the sequence whose K and V are in the pages. Answers whether a page
    /// was given up for one that another sequence has filled with the same.
    pub fn remember(&mut self, computed: &[u32], pool: &mut PagePool) -> bool {
        let mut is_other = false;
        if !pool.prefix_cache {
            return is_other;
        }
        for chunk in &computed.as_chunks().0[self.num_known..] {
            let page = self.pages[self.num_known];
            self.prefix = match pool.prefixes.find(self.prefix, chunk) {
                // Another sequence has computed the same: from now on both use its page.
                Some((known, prefix)) => {
                    pool.retain(known);
                    pool.release(page);
                    self.pages[self.num_known] = known;
                    is_other = true;
                    prefix
                }
                None => pool.prefixes.insert(page, self.prefix, chunk),
            };
            self.num_known += 1;
        }
        is_other
    }

    /// Gives all pages back, the last first. What is in them stays known until others need them; `computed` as in
    /// [`PageList::remember`].
    pub fn clear(&mut self, computed: &[u32], pool: &mut PagePool) {
        self.remember(computed, pool);
        let tail = computed.as_chunks::<PAGE_SIZE>().1;
        if pool.prefix_cache && !tail.is_empty() {
            pool.prefixes.insert_tail(self.pages[self.num_known], self.prefix, tail);
        }
        let empty = Self { prefix: self.root, root: self.root, ..Self::default() };
        for page in std::mem::replace(self, empty).pages.into_iter().rev() {
            pool.release(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` tokens that begin as any other such sequence does.
    fn tokens(count: usize) -> Vec<u32> {
        (0..count as u32).collect()
    }

    #[test]
    fn lists_take_what_they_need_and_give_it_back() {
        for prefix_cache in [false, true] {
            let mut pool = PagePool::new(4, prefix_cache);
            let (mut a, mut b) = (PageList::default(), PageList::default());
            assert!(a.grow(1, &mut pool) && a.grow(PAGE_SIZE, &mut pool));
            assert_eq!((a.pages().len(), pool.num_free()), (1, 3));
            assert!(b.grow(PAGE_SIZE + 1, &mut pool));
            assert_eq!((b.pages().len(), pool.num_free()), (2, 1));
            assert!(!a.grow(3 * PAGE_SIZE, &mut pool), "two pages are missing, one is free");
            assert_eq!((a.pages().len(), pool.num_free()), (1, 1));
            assert!(a.grow(2 * PAGE_SIZE, &mut pool));
            assert!(a.pages().iter().all(|page| !b.pages().contains(page)));
            a.clear(&tokens(40), &mut pool);
            b.clear(&[], &mut pool);
            assert_eq!((pool.num_free(), pool.num_used()), (4, 0));
            assert_eq!(pool.num_cached(), if prefix_cache { 2 } else { 0 });
            assert_eq!(b.reuse(&tokens(50), &mut pool), if prefix_cache { 40 } else { 0 });
        }
    }

    #[test]
    fn a_pool_of_any_size_costs_what_is_used_of_it() {
        let mut pool = PagePool::new(usize::MAX, true);
        let mut list = PageList::default();
        assert!(list.grow(70, &mut pool));
        assert_eq!((list.pages(), pool.num_free()), (&[0, 1, 2][..], usize::MAX - 3));
        list.clear(&tokens(70), &mut pool);
        assert_eq!((pool.num_free(), pool.num_cached()), (usize::MAX, 3));
        assert!(list.grow(1, &mut pool), "a page that nobody used comes before one whose content is known");
        assert_eq!((list.pages(), pool.users.len()), (&[3][..], 4));
    }

    #[test]
    fn full_pages_are_shared_and_the_last_one_goes_to_the_first_who_continues_it() {
        let mut pool = PagePool::new(6, true);
        let (mut a, mut b, mut c) = (PageList::default(), PageList::default(), PageList::default());
        let all = tokens(3 * PAGE_SIZE);
        assert!(a.grow(70, &mut pool));
        a.remember(&all[..70], &mut pool);
        assert_eq!(b.reuse(&all[..80], &mut pool), 64, "the page that is still being written is not shared");
        assert_eq!(b.pages(), &a.pages()[..2]);
        let last = a.pages()[2];
        a.clear(&all[..70], &mut pool);
        assert_eq!((pool.num_used(), pool.num_cached(), pool.num_free()), (2, 1, 4));
        assert_eq!(c.reuse(&all[..80], &mut pool), 70);
        assert_eq!((&c.pages()[..2], c.pages()[2]), (b.pages(), last));
        assert_eq!(a.reuse(&all[..80], &mut pool), 64, "it is written to again");
        for list in [&mut a, &mut b] {
            list.clear(&all[..64], &mut pool);
        }
        c.clear(&all[..80], &mut pool);
        assert_eq!((pool.num_used(), pool.num_cached()), (0, 3));
    }

    #[test]
    fn who_leaves_a_shared_beginning_within_a_page_gets_a_page_of_its_own() {
        let mut pool = PagePool::new(4, true);
        let (mut a, mut b) = (PageList::default(), PageList::default());
        let mut other = tokens(64);
        assert!(a.grow(64, &mut pool));
        a.remember(&tokens(64), &mut pool);
        other[40] = 7;
        assert_eq!(b.reuse(&other, &mut pool), 32);
        assert!(b.grow(64, &mut pool));
        assert_eq!(b.pages()[0], a.pages()[0]);
        assert_ne!(b.pages()[1], a.pages()[1]);
    }

    #[test]
    fn what_two_computed_at_once_is_held_once() {
        let mut pool = PagePool::new(4, true);
        let (mut a, mut b) = (PageList::default(), PageList::default());
        for list in [&mut a, &mut b] {
            assert!(list.grow(40, &mut pool));
        }
        assert_eq!(pool.num_used(), 4);
        for list in [&mut a, &mut b] {
            list.remember(&tokens(40), &mut pool);
        }
        assert_eq!((pool.num_used(), a.pages()[0]), (3, b.pages()[0]));
        assert_ne!(a.pages()[1], b.pages()[1]);
        for list in [&mut a, &mut b] {
            list.clear(&tokens(40), &mut pool);
        }
        assert_eq!((pool.num_used(), pool.num_cached()), (0, 2));
    }

    #[test]
    fn the_end_of_what_was_used_longest_ago_is_evicted_first() {
        let mut pool = PagePool::new(4, true);
        let (mut a, mut b, mut c) = (PageList::default(), PageList::default(), PageList::default());
        let (old, new) = (tokens(64), vec![9; 64]);
        for (list, tokens) in [(&mut a, &old), (&mut b, &new)] {
            assert!(list.grow(64, &mut pool));
            list.clear(tokens, &mut pool);
        }
        // Whoever looks for what is there makes it the newest.
        let known = |tokens: &[u32], pool: &mut PagePool| {
            let mut list = PageList::default();
            let count = list.reuse(tokens, pool);
            list.clear(&tokens[..count], pool);
            count
        };
        assert!(c.grow(1, &mut pool));
        assert_eq!((known(&old, &mut pool), known(&new, &mut pool)), (32, 64));
        assert!(c.grow(33, &mut pool));
        assert_eq!((known(&new, &mut pool), known(&old, &mut pool)), (64, 0));
        assert!(c.grow(65, &mut pool));
        assert_eq!(known(&new, &mut pool), 32);
        assert!(!c.grow(160, &mut pool), "what is in use is never evicted for a list that cannot be served");
        assert_eq!(known(&new, &mut pool), 32);
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn a_page_is_released_once() {
        let mut pool = PagePool::new(1, true);
        let page = pool.allocate().unwrap();
        pool.release(page);
        pool.release(page);
    }
}
