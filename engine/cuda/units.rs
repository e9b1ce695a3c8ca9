//! Matrices in units (`gpu-kernels/src/units.rs`): which matrices are repacked, and what is done with them.

use super::device::{Dependent, Device};
use super::launch::{dimension, elements_of_rows, launch};
use super::memory::DeviceBuffer;
use super::variant::Operation;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use cuda_std::launch::{DevicePtr, DevicePtrMut, LaunchConfig, Value};
use gpu_kernels::fused::units::matmul_add::MatmulUnitsArgs;
use gpu_kernels::fused::units::{
    self as fused, MAX_DEPTH, MAX_ROWS, batch, num_warps, ring_bytes, shared_bytes,
};
use gpu_kernels::units::{self as kernels, BLOCK_SIZE, DecodeUnitsArgs, ROWS, RepackArgs, Unit};
use std::rc::Rc;

pub(crate) const OP: &str = "repack";

/// Rows of a tile, as shapes have them.
const TILE: usize = ROWS as usize;
/// The span of rows that are used as they come.
pub(super) const SPAN: usize = kernels::SPAN as usize;

/// The most rows of inputs that a kernel multiplies at once.
pub(super) const FEW_ROWS: usize = MAX_ROWS as usize;

/// The most shared memory of a block: then the next kernel's still fits beside it.
const MAX_SHARED_BYTES: u32 = 112 << 10;
/// The most of it for weights.
const MAX_RING_BYTES: u32 = 80 << 10;

/// What there is to know of the operation.
pub(crate) fn operation() -> Operation {
    Operation::single(OP, &[kernels::repack().instances()])
}

/// Columns and bytes of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnitShape {
    pub cols: u32,
    pub bytes: u32,
}

impl UnitShape {
    /// Of the units of a format, if it has them.
    pub fn of(format: MatrixFormat) -> Option<Self> {
        macro_rules! shapes {
            ($($name:ident)*) => {
                match format.name() {
                    $(stringify!($name) => {
                        use kernels::$name::$name as Format;
                        Some(Self { cols: Format::COLS, bytes: Format::BYTES })
                    })*
                    _ => None,
                }
            };
        }
        shapes!(q4_0 q4_k q5_0 q5_k q6_k q8_0)
    }
}

/// Columns that a row must have a multiple of to be repacked, if the format has units: for who makes matrices up.
pub fn unit_cols(format: MatrixFormat) -> Option<usize> {
    UnitShape::of(format).map(|shape| shape.cols as usize)
}

/// `[rows, cols]` in units, with the memory that they are in.
pub(super) struct UnitMatrix {
    data: DeviceBuffer<u8>,
    pub units: Units,
}

/// `[rows, cols]` in units.
#[derive(Clone, Copy)]
pub(super) struct Units {
    pub at: DevicePtr<u8>,
    pub format: MatrixFormat,
    pub shape: UnitShape,
    pub rows: usize,
    pub cols: usize,
    /// Rows that are this far from each other share a tile.
    pub span: usize,
}

/// The shape of the units of a matrix, if it is to be repacked: its inputs are of `dtype`, rows that are `span` apart are to share tiles.
pub(super) fn shape(
    device: &Device,
    dtype: Dtype,
    format: MatrixFormat,
    [rows, cols]: [usize; 2],
    span: usize,
) -> Option<UnitShape> {
    let shape = UnitShape::of(format)?;
    let is_whole = cols > 0
        && cols.is_multiple_of(shape.cols as usize)
        && rows > 0
        && rows.is_multiple_of(2 * span)
        && span.is_multiple_of(SPAN);
    (is_whole && dtype == Dtype::F16 && device.has_bulk_copies()).then_some(shape)
}

impl UnitMatrix {
    /// Queues repacking `blocks`, the rows of a file, of which [`shape`] said what units they make, with this span.
    ///
    /// # Errors
    /// [`Error::Request`] if they are not the blocks of such a matrix, or what the device says.
    pub fn repacked(
        device: &Rc<Device>,
        blocks: &DeviceBuffer<u8>,
        format: MatrixFormat,
        shape: UnitShape,
        [rows, cols]: [usize; 2],
        span: usize,
    ) -> Result<Self> {
        let data = DeviceBuffer::zeroed(device, blocks.len())?;
        let units = Units { at: data.ptr(), format, shape, rows, cols, span };
        let mut matrix = Self { data, units };
        matrix.repack(device, blocks)?;
        Ok(matrix)
    }

    /// Queues repacking `blocks` in its place.
    ///
    /// # Errors
    /// As [`UnitMatrix::repacked`].
    pub fn repack(&mut self, device: &Device, blocks: &DeviceBuffer<u8>) -> Result<()> {
        let Self { data, units: Units { format, shape, rows, cols, span, .. } } = self;
        let (format, rows, cols) = (*format, *rows, *cols);
        let bytes = format.row_bytes(cols).and_then(|bytes| bytes.checked_mul(rows));
        if bytes != Some(blocks.len()) || data.len() != blocks.len() {
            return Err(Error::Request(format!(
                "{OP}: {} bytes are not [{rows}, {cols}] in {format}",
                blocks.len()
            )));
        }
        let tile_bytes = cols / shape.cols as usize * shape.bytes as usize;
        let arguments = RepackArgs {
            cols: dimension(OP, cols)?,
            span: dimension(OP, *span)?,
            blocks: blocks.ptr(),
            units: data.ptr_mut(),
        };
        let config = elements_of_rows(dimension(OP, rows / TILE)?, dimension(OP, tile_bytes)?, BLOCK_SIZE);
        // SAFETY: a row of blocks for each tile, a thread for each of its bytes; `shape` saw to whole units and tiles.
        unsafe { launch(device, kernels::repack(), &[format.name().into()], &config, arguments) }
    }

    /// Rows `first` to `first + rows` as a matrix of its own in the same memory; `None` where their tiles have others, too.
    ///
    /// # Errors
    /// [`Error::Request`] if there are no such rows.
    pub fn part(&self, first: usize, rows: usize) -> Result<Option<Self>> {
        let Units { rows: all, span, .. } = self.units;
        let whole = 2 * span;
        if !first.is_multiple_of(whole) || !rows.is_multiple_of(whole) {
            return Ok(None);
        }
        let row_bytes = self.data.len() / all.max(1);
        // SAFETY: nothing writes weights once they are repacked.
        let data = unsafe { self.data.part(first * row_bytes, rows * row_bytes)? };
        let units = Units { at: data.ptr(), rows, ..self.units };
        Ok(Some(Self { data, units }))
    }
}

impl Units {
    /// Queues decoding rows `first` to `first + rows` to `out`, in `dtype`.
    ///
    /// # Errors
    /// [`Error::Request`] if there are no such rows, or what the device says.
    ///
    /// # Safety
    /// `out` has room for them, and nothing else uses it.
    pub unsafe fn decode(
        &self,
        device: &Device,
        first: usize,
        rows: usize,
        dtype: Dtype,
        out: DevicePtrMut<u8>,
    ) -> Result<()> {
        const OP: &str = "decode";
        if first + rows > self.rows {
            return Err(Error::Request(format!("{OP}: rows {first} to {} of {}", first + rows, self.rows)));
        }
        let arguments = DecodeUnitsArgs {
            cols: dimension(OP, self.cols)?,
            span: dimension(OP, self.span)?,
            first_row: dimension(OP, first)?,
            units: self.at,
            out,
        };
        let config = elements_of_rows(dimension(OP, rows)?, arguments.cols / 4, BLOCK_SIZE);
        let values = [self.format.name().into(), dtype.name().into()];
        // SAFETY: the rows were checked; the caller vouches for `out`.
        unsafe { launch(device, kernels::decode(), &values, &config, arguments) }
    }

    /// Queues `out = x · weightᵀ`, or with `accumulate` `out += x · weightᵀ`, for any number of rows, [`FEW_ROWS`] at a time; `out` is in rows of
    /// `out_stride` values.
    ///
    /// # Errors
    /// [`Error::Request`] if a dimension is beyond 32 bits, or what the device says.
    ///
    /// # Safety
    /// x f16 `[n, cols]` and `out` have these rows, and nothing else uses `out`.
    pub unsafe fn multiply(
        &self,
        device: &Device,
        n: usize,
        x: DevicePtr<u8>,
        out: DevicePtrMut<f32>,
        out_stride: usize,
        accumulate: bool,
    ) -> Result<()> {
        const OP: &str = "matmul_blocks";
        for first in (0..n).step_by(FEW_ROWS) {
            let few = dimension(OP, FEW_ROWS.min(n - first))?;
            let tiles = dimension(OP, self.rows / TILE)?;
            let launch_shape = self.stream(device, tiles, few);
            let arguments = MatmulUnitsArgs {
                n: few,
                rows: dimension(OP, self.rows)?,
                cols: dimension(OP, self.cols)?,
                out_stride: dimension(OP, out_stride)?,
                accumulate: accumulate.into(),
                depth: launch_shape.depth,
                span: dimension(OP, self.span)?,
                x: x.add(first * self.cols * Dtype::F16.size()).cast(),
                weight: self.at,
                out: out.add(first * out_stride),
            };
            let values = values(&[self.format], few);
            // SAFETY: a grid of as many blocks as there are tiles, or fewer; the caller vouches for the arrays.
            unsafe {
                let kernels = fused::matmul_add::units();
                launch(&Dependent(device), kernels, &values, &launch_shape.config, arguments)?;
            }
        }
        Ok(())
    }

    /// The launch of a kernel that multiplies `tiles` of its tiles with `n` rows.
    pub fn stream(&self, device: &Device, tiles: u32, n: u32) -> Stream {
        Stream::new(device.info().multiprocessors, self.shape, tiles, self.cols, n)
    }
}

/// What the kernel for `n` rows was made for, with weights of these formats.
pub(super) fn values(formats: &[MatrixFormat], n: u32) -> Vec<Value> {
    let formats = formats.iter().map(|format| Value::from(format.name()));
    formats.chain([Value::from(rows_of_kernel(n))]).collect()
}

/// Rows that the kernel for `n` rows has room for.
pub(super) fn rows_of_kernel(n: u32) -> u32 {
    match n {
        1 => 1,
        2..=4 => 4,
        _ => MAX_ROWS,
    }
}

/// The launch of a kernel that streams tiles of units.
pub(super) struct Stream {
    pub config: LaunchConfig,
    /// Units of each warp that are under way.
    pub depth: u32,
}

impl Stream {
    /// One block a multiprocessor, two where its warps are few.
    pub fn new(multiprocessors: u32, unit: UnitShape, tiles: u32, cols: usize, n: u32) -> Self {
        let units = u32::try_from(cols).unwrap_or(u32::MAX) / unit.cols;
        let warps = num_warps(units);
        let resident = multiprocessors.max(1) * if warps <= 8 { 2 } else { 1 };
        Self::with_blocks(unit, tiles, tiles.clamp(1, resident), warps, units, n)
    }

    /// Of that many blocks.
    fn with_blocks(unit: UnitShape, tiles: u32, blocks: u32, warps: u32, units: u32, n: u32) -> Self {
        let rows = rows_of_kernel(n);
        let batch = batch(tiles, blocks);
        let of_warp = tiles.div_ceil(blocks).saturating_mul(units.div_ceil(warps));
        let room = |depth: u32| {
            let besides = shared_bytes(warps, depth, unit.cols, rows, batch);
            depth == 1
                || ring_bytes(warps, depth, unit.bytes) <= MAX_RING_BYTES
                    && ring_bytes(warps, depth, unit.bytes).saturating_add(besides) <= MAX_SHARED_BYTES
        };
        let most = of_warp.clamp(1, MAX_DEPTH);
        let depth = (1..=most).rev().find(|&depth| room(depth)).unwrap_or(1);
        let shared_bytes =
            ring_bytes(warps, depth, unit.bytes) + shared_bytes(warps, depth, unit.cols, rows, batch);
        let config = LaunchConfig { grid: [blocks, 1, 1], block: [32 * warps, 1, 1], shared_bytes };
        Self { config, depth }
    }

    /// Of a block for each tile.
    pub fn of_blocks(unit: UnitShape, tiles: u32, cols: usize, n: u32) -> Self {
        let units = u32::try_from(cols).unwrap_or(u32::MAX) / unit.cols;
        Self::with_blocks(unit, tiles, tiles.max(1), num_warps(units), units, n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shapes of published models: every warp has work, and what a block keeps fits.
    #[test]
    fn launches_of_published_shapes_fit_beside_each_other() {
        for (format, cols, rows) in [
            ("q8_0", 896, 9728),
            ("q5_0", 4864, 896),
            ("q4_k", 3584, 37_888),
            ("q6_k", 18_944, 3584),
            ("q6_k", 3584, 152_064),
            ("q4_0", 5120, 5120),
        ] {
            let unit = match format {
                "q8_0" => UnitShape { cols: 128, bytes: 2176 },
                "q5_0" => UnitShape { cols: 128, bytes: 1408 },
                "q4_0" => UnitShape { cols: 128, bytes: 1152 },
                "q4_k" => UnitShape { cols: 256, bytes: 2304 },
                _ => UnitShape { cols: 256, bytes: 3360 },
            };
            for n in [1, 4, 8] {
                let stream = Stream::new(132, unit, rows / ROWS, cols, n);
                let LaunchConfig { grid, block, shared_bytes } = stream.config;
                assert!(
                    grid[0] <= rows / ROWS && block[0] / 32 <= cols as u32 / unit.cols,
                    "{format} {cols}"
                );
                assert!(
                    stream.depth >= 1 && shared_bytes <= 200 << 10,
                    "{format} {cols} {n}: {shared_bytes}"
                );
            }
        }
    }
}
