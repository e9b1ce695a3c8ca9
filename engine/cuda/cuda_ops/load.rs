//! Bringing weights to the device.

use super::CudaOps;
use crate::convert::convert;
use crate::decode::decode;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::experts;
use crate::formats::MatrixFormat;
use crate::holding;
use crate::matmul;
use crate::memory::DeviceBuffer;
use crate::ops::Stacked;
use crate::tensor::{self, Activation};
use crate::units::{self, UnitMatrix, UnitShape};
use crate::weight::{BlockMatrix, Piece, Scales, Values, Weight};
use crate::weights::Matrix;
use std::rc::Rc;

impl CudaOps {
    /// Queues bringing a float matrix to `target`, which has as many values of `self.dtype`. What they are multiplied with is known once all
    /// are loaded.
    fn load_float(
        &mut self,
        matrix: &Matrix,
        from: Dtype,
        target: &mut DeviceBuffer<u8>,
        scales: &Rc<Scales>,
    ) -> Result<()> {
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
            self.narrowed.push((name.clone(), scales.clone()));
            self.uploader.upload(data, target)?;
            return self.narrowing.narrow_in_place(count, target);
        }
        let mut raw = DeviceBuffer::zeroed(&self.device, data.len())?;
        self.uploader.upload(data, &mut raw)?;
        self.convert(name, count, from, &raw, target, scales)
    }

    /// Queues making values of the device's format of `count` values `raw`, of the matrix of that name.
    fn convert(
        &mut self,
        name: &str,
        count: usize,
        from: Dtype,
        raw: &DeviceBuffer<u8>,
        target: &mut DeviceBuffer<u8>,
        scales: &Rc<Scales>,
    ) -> Result<()> {
        match self.dtype {
            Dtype::F16 => {
                self.narrowed.push((name.to_owned(), scales.clone()));
                self.narrowing.narrow(count, from, raw, target)
            }
            to => convert(&self.device, count, from, raw, to, target),
        }
    }

    /// [`Self::load_float`] of a matrix in blocks.
    fn load_decoded(
        &mut self,
        matrix: &Matrix,
        target: &mut DeviceBuffer<u8>,
        scales: &Rc<Scales>,
    ) -> Result<()> {
        let &Matrix { ref name, format, rows, cols, ref data, .. } = matrix;
        if !self.widths.contains(&cols) {
            self.widths.push(cols);
        }
        let count = tensor::elements(rows, cols)?;
        let mut blocks = DeviceBuffer::zeroed(&self.device, data.len())?;
        self.uploader.upload(data, &mut blocks)?;
        let values = Values::Blocks(BlockMatrix { data: blocks, format, rows, cols });
        let mut raw = Activation::new(&self.device, Dtype::F32, rows, cols)?;
        decode(&self.device, &self.choice, &values, &mut raw)?;
        self.convert(name, count, Dtype::F32, &raw.data, target, scales)
    }

    /// Queues bringing matrices of one format to the device, one below the other: a piece of the whole for each, and each by itself in the
    /// same memory. Rows that are `apart` are to be side by side; `None` where they stay as in the file.
    fn load_run(
        &mut self,
        matrices: &[Matrix],
        cols: usize,
        apart: Option<usize>,
    ) -> Result<Vec<[Piece; 2]>> {
        let format = matrices[0].format;
        let rows: usize = matrices.iter().map(|matrix| matrix.rows).sum();
        let as_in_the_file = matmul::blocks::stay_as_in_the_file(&self.choice);
        // Kernels of experts read what a file has.
        let as_floats =
            apart.is_some() && matrices.iter().any(|matrix| holding::as_floats(&self.choice, matrix));
        if let Some(apart) = apart.filter(|_| !as_in_the_file && !as_floats)
            && let Some(shape) = units::shape(&self.device, self.dtype, format, [rows, cols], apart)
        {
            let whole = self.load_units(matrices, shape, apart)?;
            self.make_room_to_decode(rows, cols)?;
            self.slices.make_room(&self.device, whole.0.units)?;
            self.attention.starts_next_late = true;
            return Ok(whole.1);
        }
        let dtype = (format.float().is_some() || as_floats).then_some(self.dtype);
        let row_bytes = row_bytes(dtype.map_or(format, MatrixFormat::from), cols)?;
        let whole = DeviceBuffer::zeroed(&self.device, tensor::elements(rows, row_bytes)?)?;
        self.loaded.push(whole.whereabouts());
        let (mut pieces, mut end) = (Vec::new(), 0);
        for matrix in matrices {
            matrix.row_bytes()?;
            let bytes = tensor::elements(matrix.rows, row_bytes)?;
            // SAFETY: the matrices do not overlap, and nothing writes weights after this.
            let [mut data, again] = unsafe { [whole.part(end, bytes)?, whole.part(end, bytes)?] };
            end += bytes;
            let scales = Rc::<Scales>::default();
            scales.stored.set(matrix.scale);
            match matrix.format.float() {
                Some(from) => self.load_float(matrix, from, &mut data, &scales)?,
                None if as_floats => self.load_decoded(matrix, &mut data, &scales)?,
                None => {
                    self.uploader.upload(&matrix.data, &mut data)?;
                    self.make_room_to_decode(rows, cols)?;
                }
            }
            pieces.push([data, again].map(|data| Piece {
                values: match dtype {
                    Some(dtype) => {
                        Values::Float(Activation { data, dtype, rows: matrix.rows, cols, scale: 1.0 })
                    }
                    None => Values::Blocks(BlockMatrix { data, format, rows: matrix.rows, cols }),
                },
                scales: scales.clone(),
            }));
        }
        Ok(pieces)
    }

    /// Room for as many rows of a matrix as are decoded at a time, or for parts of products where none are decoded.
    fn make_room_to_decode(&mut self, rows: usize, cols: usize) -> Result<()> {
        let room = match self.device.is_emulated() {
            true => 0,
            false => matmul::blocks::decoded_bytes(tensor::elements(rows, cols)?, self.dtype),
        };
        let room = room.max(units::partial_bytes(self.device.info()));
        if room > self.decoded.len() {
            self.decoded = DeviceBuffer::zeroed(&self.device, room)?;
        }
        Ok(())
    }

    /// As [`Self::load_run`], repacked as units, rows that are `span` apart side by side; floats as f16. The whole, and its pieces.
    fn load_units(
        &mut self,
        matrices: &[Matrix],
        shape: UnitShape,
        span: usize,
    ) -> Result<(UnitMatrix, Vec<[Piece; 2]>)> {
        let &Matrix { format, cols, .. } = &matrices[0];
        let format = format.float().map_or(format, |_| self.dtype.into());
        let row_bytes = row_bytes(format, cols)?;
        let rows: usize = matrices.iter().map(|matrix| matrix.rows).sum();
        let blocks = DeviceBuffer::zeroed(&self.device, tensor::elements(rows, row_bytes)?)?;
        let (mut end, mut all_scales) = (0, Vec::new());
        for matrix in matrices {
            matrix.row_bytes()?;
            let bytes = tensor::elements(matrix.rows, row_bytes)?;
            // SAFETY: the parts do not overlap.
            let mut part = unsafe { blocks.part(end, bytes)? };
            end += bytes;
            let scales = Rc::<Scales>::default();
            scales.stored.set(matrix.scale);
            match matrix.format.float() {
                Some(from) => self.load_float(matrix, from, &mut part, &scales)?,
                None => self.uploader.upload(&matrix.data, &mut part)?,
            }
            all_scales.push(scales);
        }
        let whole = UnitMatrix::repacked(&self.device, &blocks, format, shape, [rows, cols], span)?;
        self.loaded.push(whole.whereabouts());
        let mut end = 0;
        let pieces = matrices.iter().zip(all_scales).map(|(matrix, scales)| {
            let parts = [whole.part(end, matrix.rows), whole.part(end, matrix.rows)];
            end += matrix.rows;
            parts.map(|part| Piece { values: Values::Units(part), scales: scales.clone() })
        });
        let pieces = pieces.collect();
        Ok((whole, pieces))
    }

    /// [`Ops::load_matrix`](qernel_core::ops::Ops::load_matrix)
    pub(super) fn load_one(&mut self, matrix: &Matrix) -> Result<Weight> {
        self.load_alone(matrix, Some(units::SPAN))
    }

    /// [`ExpertOps::load_experts`](qernel_core::ops::experts::ExpertOps::load_experts)
    pub(super) fn load_all_experts(&mut self, matrix: &Matrix, num_experts: usize) -> Result<Weight> {
        if let Some(weight) = self.leave_on_host(matrix, num_experts)? {
            return Ok(weight);
        }
        match self.shape_of_experts(matrix, num_experts, units::TILE) {
            None => self.load_alone(matrix, None),
            Some(shape) => {
                let (_, pieces) = self.load_units(std::slice::from_ref(matrix), shape, units::SPAN)?;
                Ok(Weight::new(pieces.into_iter().map(|[piece, _]| piece).collect(), matrix.cols))
            }
        }
    }

    /// [`ExpertOps::load_gate_up_experts`](qernel_core::ops::experts::ExpertOps::load_gate_up_experts)
    pub(super) fn load_gate_and_up(
        &mut self,
        [gate, up]: [&Matrix; 2],
        num_experts: usize,
    ) -> Result<[Weight; 2]> {
        if let Some(on_host) = self.leave_on_host(gate, num_experts)? {
            let up = self.leave_on_host(up, num_experts)?;
            return up.map(|up| [on_host, up]).ok_or_else(|| {
                Error::Model(format!("{}: the experts' gate is in host memory, their up is not", gate.name))
            });
        }
        let alike = in_blocks(gate) == in_blocks(up) && [gate.rows, gate.cols] == [up.rows, up.cols];
        match self.shape_of_experts(gate, num_experts, units::SPAN).filter(|_| alike) {
            None => Ok([self.load_alone(gate, None)?, self.load_alone(up, None)?]),
            Some(shape) => {
                let (_, pieces) = self.load_units(&[gate.clone(), up.clone()], shape, gate.rows)?;
                let mut pieces = pieces.into_iter().map(|[piece, _]| Weight::new(vec![piece], gate.cols));
                let missing = || Error::Model(format!("{}: gate or up is missing", gate.name));
                Ok([pieces.next().ok_or_else(missing)?, pieces.next().ok_or_else(missing)?])
            }
        }
    }

    /// A matrix of experts that stay in host memory, if they do.
    fn leave_on_host(&mut self, matrix: &Matrix, num_experts: usize) -> Result<Option<Weight>> {
        let Some(host) = &mut self.host_experts else { return Ok(None) };
        let number = host.take(matrix, num_experts)?;
        Ok(number.map(|number| Weight::on_host(number, matrix.rows, matrix.cols)))
    }

    /// The shape of the units that matrices of experts are repacked as, if they are to be.
    fn shape_of_experts(
        &self,
        matrix: &Matrix,
        num_experts: usize,
        rows_of_tile: usize,
    ) -> Option<UnitShape> {
        let &Matrix { format, rows, cols, .. } = matrix;
        let wanted = num_experts > 0
            && rows.is_multiple_of(num_experts)
            && !experts::stay_as_in_the_file(&self.choice)
            && !matmul::blocks::stay_as_in_the_file(&self.choice);
        let shape = [rows / num_experts.max(1), cols];
        experts::shape_of_units(&self.device, self.dtype, format, shape, rows_of_tile).filter(|_| wanted)
    }

    fn load_alone(&mut self, matrix: &Matrix, apart: Option<usize>) -> Result<Weight> {
        let pieces = self.load_run(std::slice::from_ref(matrix), matrix.cols, apart)?;
        Ok(Weight::new(pieces.into_iter().map(|[piece, _]| piece).collect(), matrix.cols))
    }

    /// [`Ops::load_stacked`](qernel_core::ops::Ops::load_stacked)
    pub(super) fn load_several(&mut self, matrices: &[Matrix], apart: usize) -> Result<Stacked<Weight>> {
        let cols = matrices.first().map_or(0, |matrix| matrix.cols);
        let apart = if apart == 0 { units::SPAN } else { apart };
        if let Some(other) = matrices.iter().find(|matrix| matrix.cols != cols) {
            return Err(Error::Model(format!(
                "{}: expected {cols} columns, found {}",
                other.name, other.cols
            )));
        }
        let (mut whole, mut each) = (Vec::new(), Vec::new());
        // Floats all get one format.
        let kind = |matrix: &Matrix| in_blocks(matrix).filter(|_| !holding::as_floats(&self.choice, matrix));
        let runs: Vec<_> = matrices.chunk_by(|a, b| kind(a) == kind(b)).collect();
        for run in runs {
            for [piece, part] in self.load_run(run, cols, Some(apart))? {
                whole.push(piece);
                each.push(Weight::new(vec![part], cols));
            }
        }
        Ok(Stacked { whole: Weight::new(whole, cols), matrices: each })
    }
}

/// The format of a matrix in blocks; floats, `None`, all get one.
fn in_blocks(matrix: &Matrix) -> Option<MatrixFormat> {
    matrix.format.float().map_or(Some(matrix.format), |_| None)
}

fn row_bytes(format: MatrixFormat, cols: usize) -> Result<usize> {
    format.row_bytes(cols).ok_or_else(|| Error::Model(format!("no rows of {cols} values in {format}")))
}
