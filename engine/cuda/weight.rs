//! Weight matrices on the device, and the powers of two that keep their numbers in the range of f16.

use super::memory::DeviceBuffer;
use super::tensor::Activation;
use super::units::{UnitMatrix, Units};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use std::cell::Cell;
use std::rc::Rc;

/// A weight matrix `[out_features, in_features]`: pieces one below the other, each in a format of its own; most are one.
pub struct Weight {
    pub(super) pieces: Vec<Piece>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Of experts that stay in host memory, which has no pieces: its number there.
    pub(super) on_host: Option<usize>,
}

/// Rows of a weight matrix in one format: a matrix of the file.
pub(super) struct Piece {
    pub values: Values,
    pub scales: Rc<Scales>,
}

pub(super) enum Values {
    Float(Activation),
    Blocks(BlockMatrix),
    Units(UnitMatrix),
}

/// `[rows, cols]` in blocks along the rows, as a file has them.
pub(super) struct BlockMatrix {
    pub data: DeviceBuffer<u8>,
    pub format: MatrixFormat,
    pub rows: usize,
    pub cols: usize,
}

/// Powers of two, found while a model is loaded.
pub(super) struct Scales {
    /// What the values that are stored are multiplied with to be the matrix; no power of two where the file has it ([`Matrix::scale`]).
    ///
    /// [`Matrix::scale`]: qernel_core::weights::Matrix::scale
    pub stored: Cell<f32>,
    /// What [`Ops::matmul_rounded`](qernel_core::ops::Ops::matmul_rounded) leaves is multiplied with to be the product.
    pub product: Cell<f32>,
    /// Of an up projection: what is left of `silu(gate) * up` is multiplied with this.
    pub gated: Cell<f32>,
}

impl Default for Scales {
    fn default() -> Self {
        Self { stored: Cell::new(1.0), product: Cell::new(1.0), gated: Cell::new(1.0) }
    }
}

/// Neighbouring pieces that are multiplied at once.
pub(super) struct Run<'a> {
    /// Of the first piece; its rows go on in those of the next.
    pub values: &'a Values,
    pub rows: usize,
    /// What products are multiplied with.
    pub scale: f32,
}

impl Weight {
    /// Pieces as one matrix.
    pub(super) fn new(pieces: Vec<Piece>, cols: usize) -> Self {
        Self { rows: pieces.iter().map(|piece| piece.values.rows()).sum(), pieces, cols, on_host: None }
    }

    /// `[rows, cols]` of experts in host memory, which are known there by a number.
    pub(super) fn on_host(number: usize, rows: usize, cols: usize) -> Self {
        Self { pieces: Vec::new(), rows, cols, on_host: Some(number) }
    }

    /// The matrix if it is a float one, in one piece.
    pub(super) fn float(&self) -> Option<&Activation> {
        match &self.pieces[..] {
            [Piece { values: Values::Float(matrix), .. }] => Some(matrix),
            _ => None,
        }
    }

    /// The matrix as `op` takes it, and what its values are multiplied with.
    ///
    /// # Errors
    /// [`Error::Request`] if it is not a float one, in one piece.
    pub(super) fn expect_float(&self, op: &str) -> Result<(&Activation, f32)> {
        let matrix = self.float().zip(self.scales());
        let matrix = matrix.map(|(matrix, scales)| (matrix, scales.stored.get()));
        matrix.ok_or_else(|| Error::Request(format!("{op}: the weights must be floats, in one piece")))
    }

    /// As [`Weight::expect_float`] for an operation without a scale.
    ///
    /// # Errors
    /// As there, and if the values are scaled.
    pub(super) fn expect_unscaled(&self, op: &str) -> Result<&Activation> {
        match self.expect_float(op)? {
            (matrix, 1.0) => Ok(matrix),
            (_, scale) => Err(Error::Request(format!("{op}: the weights must not be scaled, by {scale:e}"))),
        }
    }

    /// The matrix if it is in units, in one piece whose values are stored as they are or that `scaled` allows to be scaled.
    pub(super) fn units(&self, scaled: bool) -> Option<Units> {
        match &self.pieces[..] {
            [Piece { values: Values::Units(matrix), scales }] if scaled || scales.stored.get() == 1.0 => {
                Some(matrix.units)
            }
            _ => None,
        }
    }

    /// Whether it is a float matrix in one piece whose values are stored as they are.
    pub(super) fn is_plain(&self) -> bool {
        self.expect_unscaled("").is_ok()
    }

    /// Of a matrix in one piece.
    pub(super) fn scales(&self) -> Option<&Rc<Scales>> {
        match &self.pieces[..] {
            [piece] => Some(&piece.scales),
            _ => None,
        }
    }

    /// What is multiplied at once, from top to bottom, where products are multiplied with `scale`.
    pub(super) fn runs(&self, scale: impl Fn(&Scales) -> f32) -> Vec<Run<'_>> {
        let mut runs: Vec<Run> = Vec::new();
        for Piece { values, scales } in self.pieces.iter().filter(|piece| piece.values.rows() > 0) {
            let scale = scale(scales);
            match runs.last_mut() {
                Some(run) if run.scale == scale && run.values.is_followed_by(run.rows, values) => {
                    run.rows += values.rows();
                }
                _ => runs.push(Run { values, rows: values.rows(), scale }),
            }
        }
        runs
    }

    /// Its float format, if it is a float matrix in one piece.
    pub fn dtype(&self) -> Option<Dtype> {
        self.float().map(Activation::dtype)
    }

    /// `out_features`
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `in_features`
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Lets its values be multiplied with `scale`, a power of two, wherever it is used; beside what a file says.
    pub fn set_scale(&mut self, scale: f32) {
        self.pieces.iter().for_each(|piece| piece.scales.stored.set(piece.scales.stored.get() * scale));
    }
}

impl Values {
    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Float(matrix) => matrix.rows,
            Self::Blocks(matrix) => matrix.rows,
            Self::Units(matrix) => matrix.units.rows,
        }
    }

    /// Where it begins, its format and the bytes of a row.
    fn place(&self) -> (u64, MatrixFormat, usize) {
        match self {
            Self::Float(matrix) => {
                (matrix.ptr().as_raw(), matrix.dtype.into(), matrix.cols * matrix.dtype.size())
            }
            Self::Blocks(BlockMatrix { data, format, rows, .. }) => {
                (data.ptr().as_raw(), *format, data.len() / rows.max(&1))
            }
            Self::Units(UnitMatrix { units, .. }) => (units.at.as_raw(), units.format, 0),
        }
    }

    /// Whether `next` is what follows the first `rows` rows from here on, in the same format.
    fn is_followed_by(&self, rows: usize, next: &Self) -> bool {
        if let (Self::Units(this), Self::Units(next)) = (self, next) {
            return this.units.is_followed_by(rows, next.units);
        }
        let ((address, format, row_bytes), (next, of_next, _)) = (self.place(), next.place());
        format == of_next && address + (rows * row_bytes) as u64 == next
    }
}
