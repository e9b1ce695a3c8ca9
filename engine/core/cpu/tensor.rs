//! Buffers of the CPU: f32, row-major, on cache lines.

use crate::error::{Error, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Bytes of a cache line: a 64-byte load that crosses two of them takes twice as long.
const ALIGNMENT: usize = 64;

/// Bytes on a cache line, zero at first; the system gives the pages when they are first written.
#[derive(Debug)]
pub(super) struct Bytes {
    data: NonNull<u8>,
    len: usize,
    layout: Layout,
}

// SAFETY: it owns its memory like a Vec<u8>.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Allocates the product of `sizes`; `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Memory`] if the size overflows or the system refuses.
    pub(super) fn zeroed(what: &str, sizes: &[usize]) -> Result<Self> {
        let overflow = || Error::Memory(format!("{what}: the product of {sizes:?} overflows"));
        let len = sizes.iter().try_fold(1usize, |a, &b| a.checked_mul(b)).ok_or_else(overflow)?;
        let layout = Layout::from_size_align(len.max(1), ALIGNMENT).map_err(|_| overflow())?;
        // SAFETY: the layout is not empty.
        let data = NonNull::new(unsafe { alloc_zeroed(layout) })
            .ok_or_else(|| Error::Memory(format!("{what}: the system refused {len} bytes")))?;
        Ok(Self { data, len, layout })
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: len bytes were allocated and initialised.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.data.as_ptr(), self.layout) };
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
        // SAFETY: the bytes are aligned, and any bits are an f32.
        unsafe { std::slice::from_raw_parts(self.bytes.data.as_ptr().cast(), self.rows * self.cols) }
    }

    /// All values, row-major.
    pub fn values_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.data.as_ptr().cast(), self.rows * self.cols) }
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
