//! Whether the tensors of a file are numbers.

use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::gguf::{Gguf, Tensor};
use rayon::prelude::*;
use std::fmt;

/// What was found in the tensors of a file.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct TensorCheck {
    /// Tensors whose values were looked at.
    pub num_tensors: usize,
    /// Those in formats that are not computed with.
    pub not_checked: Vec<String>,
    pub not_finite: Vec<NotFinite>,
}

/// A tensor with values that are NaN or infinite.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct NotFinite {
    pub tensor: String,
    /// How many.
    pub count: usize,
    /// Row and column of the first of them; a tensor of more than two dimensions is one matrix below the other.
    pub row: usize,
    pub col: usize,
    /// What it is: `NaN`, `inf` or `-inf`.
    pub value: String,
}

impl Gguf {
    /// Reads all tensors, on all cores, and names values that are no finite numbers.
    ///
    /// # Errors
    /// [`Error::Gguf`] if a tensor's data is not in the file.
    pub fn check_tensors(&self) -> Result<TensorCheck> {
        let mut check = TensorCheck::default();
        for tensor in self.tensors() {
            match MatrixFormat::from_ggml(tensor.ggml_type()) {
                None => check.not_checked.push(tensor.name().to_owned()),
                Some(format) => {
                    check.num_tensors += 1;
                    check.not_finite.extend(check_tensor(&tensor, format)?);
                }
            }
        }
        Ok(check)
    }
}

fn check_tensor(tensor: &Tensor, format: MatrixFormat) -> Result<Option<NotFinite>> {
    let data = tensor.data()?;
    let cols = tensor.shape().last().and_then(|&cols| usize::try_from(cols).ok()).unwrap_or(0);
    let Some(row_bytes) = format.row_bytes(cols).filter(|&bytes| bytes > 0) else { return Ok(None) };
    // Of each row that has some: which it is, how many, the first column and its value.
    let of_row = |values: &mut Vec<f32>, (row, bytes): (usize, &[u8])| {
        format.decode(bytes, values);
        let col = values.iter().position(|value| !value.is_finite())?;
        let count = values[col..].iter().filter(|value| !value.is_finite()).count();
        Some((row, count, col, values[col]))
    };
    let rows = data.par_chunks_exact(row_bytes).enumerate().map_init(|| vec![0.0; cols], of_row);
    let rows: Vec<_> = rows.flatten().collect();
    Ok(rows.first().map(|&(row, _, col, value)| NotFinite {
        tensor: tensor.name().to_owned(),
        count: rows.iter().map(|row| row.1).sum(),
        row,
        col,
        value: value.to_string(),
    }))
}

impl TensorCheck {
    /// Refuses a file with values that are not finite, naming the first tensors that have them.
    ///
    /// # Errors
    /// [`Error::NotFinite`].
    pub fn expect_finite(&self) -> Result<()> {
        const SHOWN: usize = 8;
        if self.not_finite.is_empty() {
            return Ok(());
        }
        let mut lines: Vec<_> = self.not_finite.iter().take(SHOWN).map(NotFinite::to_string).collect();
        if self.not_finite.len() > SHOWN {
            lines.push(format!("and {} more tensors", self.not_finite.len() - SHOWN));
        }
        Err(Error::NotFinite(format!("values of the file are not finite: {}", lines.join("; "))))
    }
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tensor, count, row, col, value } = self;
        write!(f, "{tensor}: {count}, the first {value} in row {row}, column {col}")
    }
}
