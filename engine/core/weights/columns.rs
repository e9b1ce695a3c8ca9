//! Some columns of a matrix.

use super::Matrix;
use crate::error::{Error, Result};
use crate::host_memory;

impl Matrix {
    /// `count` of its columns, from `first`, which are whole blocks. Copies the weights.
    ///
    /// # Errors
    /// As [`Matrix::row_bytes`]; [`Error::Model`] if they are not whole blocks, or not there; [`Error::Memory`] if there is no room.
    pub fn column_range(&self, first: usize, count: usize) -> Result<Self> {
        let row_bytes = self.row_bytes()?;
        let bytes = |cols: usize| self.format.row_bytes(cols);
        let range = bytes(first).zip(bytes(count)).map(|(first, count)| first..first.saturating_add(count));
        let range = range.filter(|range| range.end <= row_bytes && count > 0).ok_or_else(|| {
            Error::Model(format!(
                "{}: {count} columns from {first} of {} are not whole blocks of {}",
                self.name, self.cols, self.format
            ))
        })?;
        let mut data = Vec::new();
        host_memory::reserve(&self.name, &mut data, self.rows.saturating_mul(range.len()))?;
        self.data.chunks_exact(row_bytes).for_each(|row| data.extend_from_slice(&row[range.clone()]));
        Ok(Self { cols: count, data: data.into(), ..self.clone() })
    }
}
