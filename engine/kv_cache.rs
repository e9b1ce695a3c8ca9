//! Pages of the KV cache and the tables that map a sequence to them.

use crate::dtype::Dtype;

/// Tokens of a page.
pub const PAGE_SIZE: usize = 32;

/// Shape of the cache. For each layer, K and V are each `[num_pages, num_key_value_heads, PAGE_SIZE, head_dim]`: the
/// values of one head of one page are contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    pub dtype: Dtype,
    pub num_layers: usize,
    pub num_pages: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
}

impl KvLayout {
    /// Values of K (or of V) of one page of one layer.
    pub const fn page_elements(&self) -> usize {
        self.num_key_value_heads * PAGE_SIZE * self.head_dim
    }

    /// Bytes of one page: K and V of all layers.
    pub const fn page_bytes(&self) -> usize {
        2 * self.num_layers * self.page_elements() * self.dtype.size()
    }
}

/// Pages that hold `num_tokens` tokens.
pub const fn pages_for(num_tokens: usize) -> usize {
    num_tokens.div_ceil(PAGE_SIZE)
}

/// Who uses which page of the cache. It is made once with the cache; pages are known by their number alone, so it is the
/// same for every device.
///
/// Each page counts its users: a [`PageList`] is one, and a page may be [shared](PageList::share). A page is free when it
/// has none.
#[derive(Debug)]
pub struct PagePool {
    /// `[num_pages]` users of each page.
    users: Vec<u32>,
    /// Free pages; the last is handed out next, so that a page that is still in a cache nearby comes back first.
    free: Vec<u32>,
}

impl PagePool {
    /// `num_pages` free pages, as in [`KvLayout::num_pages`].
    pub fn new(num_pages: usize) -> Self {
        Self { users: vec![0; num_pages], free: (0..num_pages as u32).rev().collect() }
    }

    /// All pages.
    pub fn num_pages(&self) -> usize {
        self.users.len()
    }

    /// Pages without a user.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// A free page for one user, `None` if there is none.
    pub fn allocate(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.users[page as usize] = 1;
        Some(page)
    }

    /// Adds a user to a page that has one.
    ///
    /// # Panics
    /// If the page is free.
    pub fn retain(&mut self, page: u32) {
        let users = &mut self.users[page as usize];
        assert!(*users > 0, "page {page} is free, it cannot get another user");
        *users += 1;
    }

    /// Takes a user from a page; the last one's leaving frees it.
    ///
    /// # Panics
    /// If the page is free.
    pub fn release(&mut self, page: u32) {
        let users = &mut self.users[page as usize];
        assert!(*users > 0, "page {page} is released twice");
        *users -= 1;
        if *users == 0 {
            self.free.push(page);
        }
    }
}

/// The pages of one sequence: its token at `position` is on page `position / PAGE_SIZE` of the list.
///
/// A list must be [cleared](PageList::clear) into its pool; dropping it loses its pages.
#[derive(Debug, Default)]
pub struct PageList {
    pages: Vec<u32>,
}

impl PageList {
    /// The pages in the order of positions: a row of [`crate::batch::Batch::block_table`].
    pub fn pages(&self) -> &[u32] {
        &self.pages
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

    /// Gives the pages behind the first `num_tokens` tokens back.
    pub fn truncate(&mut self, num_tokens: usize, pool: &mut PagePool) {
        for page in self.pages.drain(pages_for(num_tokens).min(self.pages.len())..) {
            pool.release(page);
        }
    }

    /// Gives all pages back.
    pub fn clear(&mut self, pool: &mut PagePool) {
        self.truncate(0, pool);
    }

    /// A second list of the full pages among the first `num_tokens` tokens. Nobody may write to those any more.
    pub fn share(&self, num_tokens: usize, pool: &mut PagePool) -> Self {
        let pages = self.pages[..(num_tokens / PAGE_SIZE).min(self.pages.len())].to_vec();
        for &page in &pages {
            pool.retain(page);
        }
        Self { pages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_take_what_they_need_and_give_it_back() {
        let mut pool = PagePool::new(4);
        let (mut a, mut b) = (PageList::default(), PageList::default());
        assert!(a.grow(1, &mut pool) && a.grow(PAGE_SIZE, &mut pool));
        assert_eq!((a.pages().len(), pool.num_free()), (1, 3));
        assert!(b.grow(PAGE_SIZE + 1, &mut pool));
        assert_eq!((b.pages().len(), pool.num_free()), (2, 1));
        assert!(!a.grow(3 * PAGE_SIZE, &mut pool), "two pages are missing, one is free");
        assert_eq!((a.pages().len(), pool.num_free()), (1, 1));
        assert!(a.grow(2 * PAGE_SIZE, &mut pool));
        assert!(a.pages().iter().all(|page| !b.pages().contains(page)));
        b.truncate(PAGE_SIZE, &mut pool);
        assert_eq!((b.pages().len(), pool.num_free()), (1, 1));
        a.clear(&mut pool);
        b.clear(&mut pool);
        assert_eq!(pool.num_free(), 4);
    }

    #[test]
    fn a_shared_page_is_free_when_its_last_user_leaves() {
        let mut pool = PagePool::new(3);
        let mut a = PageList::default();
        assert!(a.grow(2 * PAGE_SIZE + 5, &mut pool));
        let mut b = a.share(2 * PAGE_SIZE + 5, &mut pool);
        assert_eq!(b.pages(), &a.pages()[..2], "the page that is still being written is not shared");
        a.clear(&mut pool);
        assert_eq!(pool.num_free(), 1);
        b.clear(&mut pool);
        assert_eq!(pool.num_free(), 3);
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn a_page_is_released_once() {
        let mut pool = PagePool::new(1);
        let page = pool.allocate().unwrap();
        pool.release(page);
        pool.release(page);
    }
}
