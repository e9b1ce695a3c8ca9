//! Matrices in units (`gpu-kernels/src/units.rs`): which matrices are repacked, and what is done with them.

mod halves;
mod stream;

pub(super) use halves::{HalvesPlan, Tensor, partial_bytes};
pub(super) use stream::{Slices, Stream};
use stream::{groups_and_slices, units_of};

use super::device::{Dependent, Device};
use super::launch::{dimension, elements_of_rows, launch};
use super::memory::{DeviceBuffer, Whereabouts};
use super::variant::Operation;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use cuda_std::launch::{DevicePtr, DevicePtrMut, LaunchConfig, Value};
use gpu_kernels::fused::units::matmul_add::MatmulUnitsArgs;
use gpu_kernels::fused::units::{self as fused, MAX_ROWS};
use gpu_kernels::row_norms::{BLOCK_THREADS, WARPS_PER_BLOCK};
use gpu_kernels::units::{self as kernels, BLOCK_SIZE, DecodeUnitsArgs, ROWS, RepackArgs, RowNormsUnitsArgs};
use std::rc::Rc;

pub(crate) const OP: &str = "repack";

/// Rows of a tile, as shapes have them.
pub(super) const TILE: usize = ROWS as usize;
/// The span of rows that are used as they come.
pub(super) const SPAN: usize = kernels::SPAN as usize;

/// The most rows of inputs that a kernel multiplies at once.
pub(super) const FEW_ROWS: usize = MAX_ROWS as usize;

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
        kernels::shape(format.name()).map(|[cols, bytes]| Self { cols, bytes })
    }
}

/// Columns that a row must have a multiple of to be repacked, if the format has units: for who makes matrices up.
pub fn unit_cols(format: MatrixFormat) -> Option<usize> {
    UnitShape::of(format).map(|shape| shape.cols as usize)
}

/// Rows of a matrix in units, with the memory that they are in.
pub(super) struct UnitMatrix {
    /// Of the whole.
    data: Rc<DeviceBuffer<u8>>,
    pub units: Units,
}

/// `[rows, cols]`, some rows of a matrix in units.
#[derive(Clone, Copy)]
pub(super) struct Units {
    /// Where the whole begins.
    pub at: DevicePtr<u8>,
    pub format: MatrixFormat,
    pub shape: UnitShape,
    pub rows: usize,
    pub cols: usize,
    /// Rows that are this far from each other share a tile.
    pub span: usize,
    /// The first of the rows in the whole, and how many that has.
    pub first: usize,
    pub of: usize,
}

/// Rows of whole tiles, and which of them are wanted.
struct Multiplied {
    weight: DevicePtr<u8>,
    of: usize,
    /// The first that is wanted.
    first_row: usize,
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
        let units = Units { at: data.ptr(), format, shape, rows, cols, span, first: 0, of: rows };
        let matrix = Self { data: Rc::new(data), units };
        matrix.repack(device, blocks)?;
        Ok(matrix)
    }

    /// Where the whole is.
    pub fn whereabouts(&self) -> Whereabouts {
        self.data.whereabouts()
    }

    /// Queues repacking `blocks` in its place.
    ///
    /// # Errors
    /// As [`UnitMatrix::repacked`].
    pub fn repack(&self, device: &Device, blocks: &DeviceBuffer<u8>) -> Result<()> {
        let Units { format, shape, of: rows, cols, span, .. } = self.units;
        let bytes = format.row_bytes(cols).and_then(|bytes| bytes.checked_mul(rows));
        if bytes != Some(blocks.len()) || self.data.len() != blocks.len() {
            return Err(Error::Request(format!(
                "{OP}: {} bytes are not [{rows}, {cols}] in {format}",
                blocks.len()
            )));
        }
        let tile_bytes = cols / shape.cols as usize * shape.bytes as usize;
        let arguments = RepackArgs {
            cols: dimension(OP, cols)?,
            span: dimension(OP, span)?,
            blocks: blocks.ptr(),
            units: DevicePtrMut::from_raw(self.data.ptr().as_raw()),
        };
        let config = elements_of_rows(dimension(OP, rows / TILE)?, dimension(OP, tile_bytes)?, BLOCK_SIZE);
        // SAFETY: a row of blocks for each tile, a thread for each of its bytes; `shape` saw to whole units and tiles. Nothing else writes weights.
        unsafe { launch(device, kernels::repack(), &[format.name().into()], &config, arguments) }
    }

    /// Rows `first` to `first + rows` in the same memory.
    pub fn part(&self, first: usize, rows: usize) -> Self {
        let Units { first: of_this, .. } = self.units;
        Self { data: self.data.clone(), units: Units { first: of_this + first, rows, ..self.units } }
    }
}

impl Units {
    /// Whether `next` is the rows that follow the first `rows` rows of this.
    pub fn is_followed_by(self, rows: usize, next: Self) -> bool {
        self.at.as_raw() == next.at.as_raw() && self.first + rows == next.first
    }

    /// Where the rows begin, if no tile has some of them and others: those before and behind begin there too.
    pub fn start(self) -> Option<DevicePtr<u8>> {
        let whole = 2 * self.span;
        let bytes = self.cols / self.shape.cols as usize * self.shape.bytes as usize;
        let is_whole = self.first.is_multiple_of(whole) && self.rows.is_multiple_of(whole);
        is_whole.then(|| self.at.add(self.first / TILE * bytes))
    }

    /// What a product with its first `rows` rows multiplies: where tiles have others too, all.
    fn multiplied(&self, rows: usize) -> Multiplied {
        match (Self { rows, ..*self }).start() {
            Some(weight) => Multiplied { weight, of: rows, first_row: 0 },
            None => Multiplied { weight: self.at, of: self.of, first_row: self.first },
        }
    }

    /// The tiles that have rows `first` to `first + rows` of the whole: the first, and how many. They may have others too.
    fn tiles_of(&self, first: usize, rows: usize) -> (usize, usize) {
        let (span, last) = (self.span, first + rows.max(1) - 1);
        let tile_of = |row: usize| row / (2 * span) * (span / SPAN) + row % span / SPAN;
        let (begin, end) = if first / span == last / span {
            (tile_of(first), tile_of(last) + 1)
        } else {
            (first / (2 * span) * (span / SPAN), (last / (2 * span) + 1) * (span / SPAN))
        };
        (begin, end - begin)
    }

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
        let first = self.first + first;
        let (first_tile, tiles) = self.tiles_of(first, rows);
        let arguments = DecodeUnitsArgs {
            cols: dimension(OP, self.cols)?,
            span: dimension(OP, self.span)?,
            first_tile: dimension(OP, first_tile)?,
            first_row: dimension(OP, first)?,
            rows: dimension(OP, rows)?,
            units: self.at,
            out,
        };
        let grid = [dimension(OP, tiles)?, units_of(self.shape, self.cols), 1];
        let config = LaunchConfig { grid, block: [BLOCK_SIZE, 1, 1], shared_bytes: 0 };
        let values = [self.format.name().into(), dtype.name().into()];
        // SAFETY: the rows were checked; the caller vouches for `out`.
        unsafe { launch(device, kernels::decode(), &values, &config, arguments) }
    }

    /// Queues `out[r] = sqrt(Σ_c (matrix[r, c] · scale[c])²)` for its rows.
    ///
    /// # Errors
    /// What the device says.
    ///
    /// # Safety
    /// `scale` leads to a value for each column, `out` to one for each row, which nothing else uses.
    pub unsafe fn row_norms(
        &self,
        device: &Device,
        scale: DevicePtr<f32>,
        out: DevicePtrMut<f32>,
    ) -> Result<()> {
        const OP: &str = "row_norms";
        let rows = dimension(OP, self.rows)?;
        let arguments = RowNormsUnitsArgs {
            rows,
            cols: dimension(OP, self.cols)?,
            span: dimension(OP, self.span)?,
            first_row: dimension(OP, self.first)?,
            units: self.at,
            scale,
            out,
        };
        let grid = [rows.div_ceil(WARPS_PER_BLOCK), 1, 1];
        let config = LaunchConfig { grid, block: [BLOCK_THREADS, 1, 1], shared_bytes: 0 };
        // SAFETY: a warp for each row; the caller vouches for the arrays.
        unsafe { launch(device, kernels::row_norms(), &[self.format.name().into()], &config, arguments) }
    }

    /// Queues `out = scale · x · weightᵀ`, or with `accumulate` adds that, for its first `rows` rows and any number of x, [`FEW_ROWS`] at a time; `out` is
    /// in rows of `out_stride` values.
    ///
    /// # Errors
    /// [`Error::Request`] if a dimension is beyond 32 bits, or what the device says.
    ///
    /// # Safety
    /// x f16 `[n, cols]` and `out` have these rows, and nothing else uses `out`.
    #[allow(clippy::too_many_arguments)] // The operation has these operands.
    pub unsafe fn multiply(
        &self,
        device: &Device,
        room: &mut Slices,
        [n, rows]: [usize; 2],
        x: DevicePtr<u8>,
        scale: f32,
        (out, out_stride): (DevicePtrMut<f32>, usize),
        accumulate: bool,
    ) -> Result<()> {
        const OP: &str = "matmul_blocks";
        let Multiplied { weight, of, first_row } = self.multiplied(rows);
        let (tiles, units) = (dimension(OP, of / TILE)?, units_of(self.shape, self.cols));
        let [groups, slices] = groups_and_slices(device.info().multiprocessors, self.shape, tiles, units);
        if slices > 1 && room.partial.len() < slices as usize * FEW_ROWS * of {
            return Err(Error::Request(format!("{OP}: there is no room for {slices} slices of the columns")));
        }
        for first in (0..n).step_by(FEW_ROWS) {
            let few = dimension(OP, FEW_ROWS.min(n - first))?;
            let stream = Stream::new(self.shape, tiles, units, [groups, slices], few);
            let arguments = MatmulUnitsArgs {
                n: few,
                rows: dimension(OP, of)?,
                cols: dimension(OP, self.cols)?,
                first_row: dimension(OP, first_row)?,
                num_rows: dimension(OP, rows)?,
                scale,
                out_stride: dimension(OP, out_stride)?,
                accumulate: accumulate.into(),
                depth: stream.depth,
                span: dimension(OP, self.span)?,
                slices,
                x: x.add(first * self.cols * Dtype::F16.size()).cast(),
                weight,
                out: out.add(first * out_stride),
                partial: room.partial.ptr_mut(),
                counters: room.counters.ptr_mut(),
            };
            let values = values(&[self.format], few);
            // SAFETY: a block for each slice of each group; there is room for what they leave; the caller vouches for the arrays.
            unsafe {
                let kernels = fused::matmul_add::units();
                launch(&Dependent(device), kernels, &values, &stream.config, arguments)?;
            }
        }
        Ok(())
    }

    /// The launch of a kernel that multiplies `tiles` tiles with `n` rows: a block a multiprocessor.
    pub fn stream(&self, device: &Device, tiles: u32, n: u32) -> Stream {
        let blocks = device.info().multiprocessors.clamp(1, tiles.max(1));
        Stream::new(self.shape, tiles, units_of(self.shape, self.cols), [blocks, 1], n)
    }

    /// The launch of a kernel for `tiles` tiles of `heads` heads, of which the last `of_v`, in units of `v`, have blocks of their own if that is another
    /// format; and the number of these blocks.
    pub fn stream_of_parts(
        &self,
        device: &Device,
        tiles: u32,
        [heads, of_v]: [u32; 2],
        v: &Self,
        n: u32,
    ) -> (Stream, u32) {
        let units = units_of(self.shape, self.cols);
        let blocks = device.info().multiprocessors.clamp(1, tiles.max(1));
        if self.format == v.format {
            return (Stream::new(self.shape, tiles, units, [blocks, 1], n), 0);
        }
        let v_tiles = tiles / heads * of_v;
        let v_blocks = stream::blocks_of_v(
            blocks,
            [tiles - v_tiles, v_tiles],
            [self.shape, v.shape].map(|shape| shape.bytes),
        );
        let others = blocks.saturating_sub(v_blocks).clamp(1, (tiles - v_tiles).max(1));
        // Of the part whose blocks have fewest, and of that whose blocks have most.
        let fewest = (v_tiles / v_blocks).min((tiles - v_tiles) / others);
        // Room for units of either format.
        let larger = if v.shape.bytes > self.shape.bytes { v } else { self };
        let mut stream = Stream::new(larger.shape, fewest, units, [1, 1], n);
        stream.config.grid = [others + v_blocks, 1, 1];
        (stream, v_blocks)
    }

    /// Whether kernels that norm `n` rows of its inputs run: they have all columns.
    pub fn takes(&self, n: usize) -> bool {
        u32::try_from(n).is_ok_and(|n| Stream::fits(self.shape, self.cols, n))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of some is in one of the tiles, and of rows of one span no tile is without one.
    #[test]
    fn tiles_of_rows_have_them_all() {
        let shape = UnitShape { cols: 256, bytes: 2304 };
        let of = 256;
        for span in [8, 32, 64, 128] {
            let at = DevicePtr::from_raw(0);
            let units =
                Units { at, format: MatrixFormat::Q4_K, shape, rows: of, cols: 256, span, first: 0, of };
            for (first, rows) in [(0, of), (0, 1), (5, 3), (8, 16), (60, 9), (64, 64), (100, 156), (255, 1)] {
                let (begin, tiles) = units.tiles_of(first, rows);
                let found: Vec<usize> = (first..first + rows)
                    .map(|row| kernels::place(row as u32, span as u32).0 as usize)
                    .collect();
                let (least, most) = (found.iter().min().unwrap(), found.iter().max().unwrap());
                assert!(begin <= *least && *most < begin + tiles, "span {span}, {rows} rows from {first}");
                assert!(begin + tiles <= of / TILE);
                if first / span == (first + rows - 1) / span {
                    assert_eq!((begin, tiles), (*least, most - least + 1));
                }
            }
        }
    }
}
