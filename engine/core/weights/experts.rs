//! Matrices of experts, and which of them a device may leave in host memory.

use super::{Matrix, Weights, layer};
use crate::error::Result;

impl Matrix {
    /// The matrices of `count` experts that it has one below the other.
    ///
    /// # Errors
    /// As [`Matrix::row_range`].
    pub fn of_experts(&self, count: usize) -> Result<Vec<Self>> {
        let rows = self.rows / count.max(1);
        (0..count).map(|expert| self.row_range(expert * rows, rows)).collect()
    }
}

impl Weights {
    /// The matrices of all experts.
    pub fn experts(&self) -> impl Iterator<Item = &Matrix> {
        self.experts.iter().filter_map(|&place| self.matrices.get(place))
    }

    /// Those of the first `layers` layers; of all where that is more than there are.
    pub fn experts_of_first(&self, layers: usize) -> impl Iterator<Item = &Matrix> {
        self.experts().filter(move |matrix| layer(&matrix.name).is_some_and(|i| i < layers))
    }
}
