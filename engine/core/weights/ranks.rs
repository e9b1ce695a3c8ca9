//! The part of the weights that a rank has, where a model is shared out over several.

use super::{Matrix, TensorShape, TensorSpec, Weights};
use crate::error::{Error, Result};

impl Weights {
    /// Those of rank `rank`, whose model asks for `specs`: of a tensor that has more rows than there, or more columns, the `rank`th share of
    /// as many; others whole. Rows stay where they are; columns, and rows of experts, are copied.
    ///
    /// # Errors
    /// [`Error::Model`] if a share is not there, or is not whole blocks of the matrix's format; [`Error::Memory`] if there is no room.
    pub fn of_rank(&self, specs: &[TensorSpec], rank: usize) -> Result<Self> {
        let mut part = self.clone();
        for TensorSpec { name, shape, .. } in specs {
            // A file may lack biases.
            let Some(&place) = self.places.get(name) else { continue };
            match *shape {
                TensorShape::Matrix { rows, cols } => {
                    part.matrices[place] = self.matrices[place].share(1, [rows, cols], rank)?;
                }
                TensorShape::Experts { count, rows, cols, .. } => {
                    part.matrices[place] = self.matrices[place].share(count, [rows, cols], rank)?;
                }
                TensorShape::Vector { len } => {
                    let values = &self.vectors[place].1;
                    let share = values.get(rank * len..(rank + 1) * len).filter(|_| values.len() > len);
                    part.vectors[place].1 = share.unwrap_or(values).to_vec();
                }
                TensorShape::Table { .. } => {}
            }
        }
        part.expert_bytes = part.experts().map(|matrix| matrix.data.len() as u64).sum();
        Ok(part)
    }
}

impl Matrix {
    /// Of `count` matrices one below the other the `rank`th share of `rows` rows each, or of `cols` columns, where there are more.
    fn share(&self, count: usize, [rows, cols]: [usize; 2], rank: usize) -> Result<Self> {
        let of_each = self.rows / count.max(1);
        let advice = |error| match error {
            Error::Model(what) => Error::Model(format!("{what}: take fewer GPUs (--tensor-parallel)")),
            other => other,
        };
        if self.cols > cols {
            return self.column_range(rank * cols, cols).map_err(advice);
        }
        if of_each == rows {
            return Ok(self.clone());
        }
        let wanted = rank * rows..(rank + 1) * rows;
        if wanted.end > of_each {
            return Err(Error::Model(format!("{}: rows {wanted:?} of {of_each}", self.name)));
        }
        match count {
            1 => self.row_range(wanted.start, rows),
            _ => self.of_heads(of_each, &wanted.collect::<Vec<_>>()),
        }
    }
}
