//! Some columns of a matrix.

use super::Matrix;
use crate::error::{Error, Result};
use crate::host_memory;
use std::ops::Range;

impl Matrix {
    /// `count` of its columns, from `first`, which are whole blocks. Copies the weights.
    ///
    /// # Errors
    /// As [`Matrix::column_ranges`].
    pub fn column_range(&self, first: usize, count: usize) -> Result<Self> {
        self.column_ranges(std::slice::from_ref(&(first..first.saturating_add(count))))
    }

    /// The columns of these ranges side by side, each of whole blocks. Copies the weights.
    ///
    /// # Errors
    /// As [`Matrix::row_bytes`]; [`Error::Model`] if they are not whole blocks, or not there; [`Error::Memory`] if there is no room.
    pub fn column_ranges(&self, ranges: &[Range<usize>]) -> Result<Self> {
        let row_bytes = self.row_bytes()?;
        let of_row = self.column_bytes(ranges)?;
        let bytes: usize = of_row.iter().map(Range::len).sum();
        let mut data = Vec::new();
        host_memory::reserve(&self.name, &mut data, self.rows.saturating_mul(bytes))?;
        for row in self.data.chunks_exact(row_bytes) {
            of_row.iter().for_each(|range| data.extend_from_slice(&row[range.clone()]));
        }
        let cols = ranges.iter().map(Range::len).sum();
        Ok(Self { cols, data: data.into(), ..self.clone() })
    }

    /// Which bytes of a row the columns of these ranges are.
    ///
    /// # Errors
    /// As [`Matrix::column_ranges`].
    pub(super) fn column_bytes(&self, ranges: &[Range<usize>]) -> Result<Vec<Range<usize>>> {
        let row_bytes = self.row_bytes()?;
        let in_bytes = |range: &Range<usize>| {
            let [first, count] = [range.start, range.len()].map(|cols| self.format.row_bytes(cols));
            let bytes = first.zip(count).map(|(first, count)| first..first.saturating_add(count));
            bytes.filter(|bytes| bytes.end <= row_bytes && !range.is_empty()).ok_or_else(|| {
                let Self { name, cols, format, .. } = self;
                let (count, first) = (range.len(), range.start);
                Error::Model(format!(
                    "{name}: {count} columns from {first} of {cols} are not whole blocks of {format}"
                ))
            })
        };
        ranges.iter().map(in_bytes).collect()
    }
}
