//! Buffers of the CPU: f32, row-major, on cache lines.

use crate::error::{Error, Result};
use crate::host_memory;
use memmap2::MmapMut;

/// Bytes on a page of memory, zero at first. The system gives a page when it is first written: what is not used is not taken.
#[derive(Debug)]
pub(super) struct Bytes {
    map: MmapMut,
    len: usize,
}

impl Bytes {
    /// Reserves the product of `sizes`; `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Memory`] if the size overflows or the system refuses.
    pub(super) fn zeroed(what: &str, sizes: &[usize]) -> Result<Self> {
        let len = sizes.iter().try_fold(1usize, |a, &b| a.checked_mul(b));
        let len = len.ok_or_else(|| Error::Memory(format!("{what}: the product of {sizes:?} overflows")))?;
        // No map is empty.
        let map = MmapMut::map_anon(len.max(1)).map_err(|_| host_memory::refused(what, len))?;
        Ok(Self { map, len })
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.map[..self.len]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.map[..self.len]
    }
}

/// f32 `[rows, cols]`, row-major, zero at first.
#[derive(Debug)]
pub struct Tensor {
    bytes: Bytes,
    rows: usize,
    cols: usize,
}

impl Tensor {
    /// Allocates zeros.
    ///
    /// # Errors
    /// [`Error::Memory`] if the size overflows or the system refuses.
    pub fn new(rows: usize, cols: usize) -> Result<Self> {
        let bytes = Bytes::zeroed("a work buffer", &[rows, cols, size_of::<f32>()])?;
        Ok(Self { bytes, rows, cols })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All values, row-major.
    pub fn values(&self) -> &[f32] {
        // SAFETY: a map begins on a page, has room for them, and any bits are an f32.
        unsafe { std::slice::from_raw_parts(self.bytes.map.as_ptr().cast(), self.rows * self.cols) }
    }

    /// All values, row-major.
    pub fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.map.as_mut_ptr().cast(), self.rows * self.cols) }
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.values()[i * self.cols..][..self.cols]
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        let cols = self.cols;
        &mut self.values_mut()[i * cols..][..cols]
    }

    /// The first `n` rows.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn first(&self, n: usize) -> &[f32] {
        &self.values()[..n * self.cols]
    }

    /// The first `n` rows.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn first_mut(&mut self, n: usize) -> &mut [f32] {
        let len = n * self.cols;
        &mut self.values_mut()[..len]
    }

    /// Refuses a tensor that has not `cols` columns and at least `n` rows.
    pub(super) fn expect(&self, op: &str, what: &str, n: usize, cols: usize) -> Result<()> {
        if self.cols == cols && self.rows >= n {
            return Ok(());
        }
        Err(Error::Request(format!(
            "{op}: {what} must be [{n} or more, {cols}], it is [{}, {}]",
            self.rows, self.cols
        )))
    }
}

/// Where tasks write; each writes the values of its own places.
#[derive(Clone, Copy)]
pub(super) struct OutPtr(pub *mut f32);

// SAFETY: tasks write the values of different places, and the borrow of what they write to outlives them.
unsafe impl Send for OutPtr {}
// SAFETY: as above.
unsafe impl Sync for OutPtr {}

impl OutPtr {
    /// `len` values from `first` on.
    ///
    /// # Safety
    /// They are there, and nobody else reads or writes them.
    #[allow(clippy::mut_from_ref)] // The caller's promise.
    pub unsafe fn values(&self, first: usize, len: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(first), len) }
    }
}
