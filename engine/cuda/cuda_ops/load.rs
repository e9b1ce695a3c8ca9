//! Bringing weights to the device.

use super::CudaOps;
use crate::convert::convert;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::matmul;
use crate::memory::DeviceBuffer;
use crate::ops::Stacked;
use crate::tensor::{self, Activation, BlockMatrix, Piece, Weight};
use crate::weights::Matrix;

impl CudaOps {
    /// Queues bringing a float matrix to `target`, which has as many values of `self.dtype`.
    fn load_float(&mut self, matrix: &Matrix, from: Dtype, target: &mut DeviceBuffer<u8>) -> Result<()> {
        let &Matrix { ref name, rows, cols, ref data, .. } = matrix;
        if !self.widths.contains(&cols) {
            self.widths.push(cols);
        }
        let count = tensor::elements(rows, cols)?;
        if from == self.dtype {
            return self.uploader.upload(data, target);
        }
        tracing::debug!("{name} is converted from {from} to {}", self.dtype);
        if (from, self.dtype) == (Dtype::Bf16, Dtype::F16) {
            self.uploader.upload(data, target)?;
            return self.range.narrow_in_place(&self.device, count, target);
        }
        let mut raw = DeviceBuffer::zeroed(&self.device, data.len())?;
        self.uploader.upload(data, &mut raw)?;
        match self.dtype {
            Dtype::F16 => self.range.narrow(&self.device, count, from, &raw, target),
            to => convert(&self.device, count, from, &raw, to, target),
        }
    }

    /// Queues bringing matrices of one format to the device, one below the other: the whole, and each by itself in the same memory.
    fn load_piece(&mut self, matrices: &[Matrix], cols: usize) -> Result<(Piece, Vec<Weight>)> {
        let format = matrices[0].format;
        let dtype = format.float().map(|_| self.dtype);
        let row_bytes = MatrixFormat::row_bytes(dtype.map_or(format, MatrixFormat::from), cols);
        let row_bytes =
            row_bytes.ok_or_else(|| Error::Model(format!("no rows of {cols} values in {format}")))?;
        let piece = |data, rows| match dtype {
            Some(dtype) => Piece::Float(Activation { data, dtype, rows, cols }),
            None => Piece::Blocks(BlockMatrix { data, format, rows, cols }),
        };
        let rows = matrices.iter().map(|matrix| matrix.rows).sum();
        let whole = DeviceBuffer::zeroed(&self.device, tensor::elements(rows, row_bytes)?)?;
        let (mut parts, mut end) = (Vec::new(), 0);
        for matrix in matrices {
            matrix.row_bytes()?;
            let bytes = tensor::elements(matrix.rows, row_bytes)?;
            // SAFETY: the parts do not overlap, and nothing writes weights after this.
            let mut data = unsafe { whole.part(end, bytes)? };
            end += bytes;
            match matrix.format.float() {
                Some(from) => self.load_float(matrix, from, &mut data)?,
                None => {
                    self.uploader.upload(&matrix.data, &mut data)?;
                    let room = matmul::blocks::decoded_bytes(tensor::elements(rows, cols)?, self.dtype);
                    if room > self.decoded.len() && !self.device.is_emulated() {
                        self.decoded = DeviceBuffer::zeroed(&self.device, room)?;
                    }
                }
            }
            parts.push(Weight { pieces: vec![piece(data, matrix.rows)], rows: matrix.rows, cols });
        }
        Ok((piece(whole, rows), parts))
    }

    /// [`Ops::load_matrix`](crate::ops::Ops::load_matrix)
    pub(super) fn load_one(&mut self, matrix: &Matrix) -> Result<Weight> {
        let (piece, _) = self.load_piece(std::slice::from_ref(matrix), matrix.cols)?;
        Ok(Weight { pieces: vec![piece], rows: matrix.rows, cols: matrix.cols })
    }

    /// [`Ops::load_stacked`](crate::ops::Ops::load_stacked)
    pub(super) fn load_several(&mut self, matrices: &[Matrix]) -> Result<Stacked<Weight>> {
        let cols = matrices.first().map_or(0, |matrix| matrix.cols);
        if let Some(other) = matrices.iter().find(|matrix| matrix.cols != cols) {
            return Err(Error::Model(format!(
                "{}: expected {cols} columns, found {}",
                other.name, other.cols
            )));
        }
        let mut whole = Weight { pieces: Vec::new(), rows: 0, cols };
        let mut parts = Vec::new();
        // Floats all get one format.
        let kind = |matrix: &Matrix| matrix.format.float().map_or(Some(matrix.format), |_| None);
        for run in matrices.chunk_by(|a, b| kind(a) == kind(b)) {
            let (piece, of_run) = self.load_piece(run, cols)?;
            whole.rows += piece.rows();
            whole.pieces.push(piece);
            parts.extend(of_run);
        }
        Ok(Stacked { whole, parts })
    }
}
