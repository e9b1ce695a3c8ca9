//! The launches of what multiplies many rows of an expert at once, and of what brings these rows together before.

use super::blocks::Matrix;
use super::workspace::Arranged;
use super::{Matrices, Sorted};
use crate::device::{Dependent, Device};
use crate::device_info::DeviceInfo;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::launch::{dimension, launch};
use crate::units::UnitShape;
use cuda_std::launch::{DevicePtr, DevicePtrMut, Kernels, LaunchConfig, Value};
use gpu_kernels::experts::arrange::{ArrangeArgs, BLOCK_SIZE as ARRANGE_BLOCK};
use gpu_kernels::experts::warpgroups::{
    ALIGNMENT, BLOCK_SIZE, GROUP_TILES, GroupedArgs, MAX_GROUP_ROWS, MAX_STAGES, shared_bytes,
};
use gpu_kernels::units::HALVES_FACTOR;

/// Rows of an expert from which on, on average, they are multiplied so, and the rows of a group then; those of the first line that holds.
const GROUPS: [(usize, u32); 2] = [(64, 128), (8, 64)];
const _: () = assert!(GROUPS[0].1 == MAX_GROUP_ROWS);
/// The fewest stages: one is multiplied while the next is copied.
const FEWEST_STAGES: u32 = 2;

/// How many stages of units fit beside steps of so many rows, at least two, if they do.
fn stages(device: &DeviceInfo, rows: u32, unit: UnitShape) -> Option<u32> {
    let most = device.shared_memory_per_block;
    (FEWEST_STAGES..=MAX_STAGES).rev().find(|&stages| shared_bytes(rows, stages, unit.bytes) as usize <= most)
}

/// The rows of a group, if experts that have so many on average are multiplied so, and the device has kernels for all `matrices`.
pub(super) fn rows_of_group(device: &Device, average: usize, matrices: &[Matrix]) -> Option<u32> {
    let (_, rows) = GROUPS.into_iter().find(|&(least, _)| average >= least)?;
    let fits = |matrix: &Matrix| stages(device.info(), rows, matrix.unit).is_some();
    (device.has_wgmma() && matrices.iter().all(fits)).then_some(rows)
}

/// Whether groups of so many rows are multiplied so.
pub(in super::super) fn takes(rows_of_group: u32) -> bool {
    GROUPS.iter().any(|&(_, rows)| rows == rows_of_group)
}

/// Products of rows with the matrices of experts.
pub(in super::super) struct Grouped<'a> {
    pub op: &'static str,
    /// What brings the rows together, by the type of x, and what multiplies them.
    pub arrange: &'static Kernels<ArrangeArgs>,
    pub multiply: &'static Kernels<GroupedArgs>,
    pub matrices: &'a Matrices,
    pub sorted: Sorted,
    /// Its type, and `[pairs / pairs_of_row, cols]`.
    pub x_dtype: Dtype,
    pub x: DevicePtr<u8>,
    pub pairs_of_row: usize,
    pub cols: usize,
    /// Scales of the first eight rows of a tile, and of the others.
    pub scales: [f32; 2],
    /// f32 `[pairs, out_cols]`
    pub out: DevicePtrMut<f32>,
    pub out_cols: usize,
}

impl Grouped<'_> {
    /// Queues both kernels.
    ///
    /// # Errors
    /// [`Error::Request`] where there is no room, or what the device says.
    ///
    /// # Safety
    /// Arrays have these sizes; rows were sorted into groups that [`takes`] takes; nobody else uses `out`.
    pub unsafe fn launch(&self, device: &Device) -> Result<()> {
        let &Self { op, matrices, sorted, cols, .. } = self;
        let none = || Error::Request(format!("{op}: there is no room to bring rows of experts together"));
        let units = matrices.place.units().ok_or_else(none)?;
        let (matrix, room) = (Matrix::new(units, matrices.count), sorted.arranged.ok_or_else(none)?);
        let Arranged { rows, factors, places, values } = room;
        let rows_of_group = sorted.rows_of_group;
        let stages = stages(device.info(), rows_of_group, matrix.unit).ok_or_else(none)?;
        if places * cols > values {
            return Err(none());
        }
        let (cols, places) = (dimension(op, cols)?, dimension(op, places)?);
        let [most_groups, _] = sorted.counts;
        let is_float = units.format.float().is_some();
        let arguments = ArrangeArgs {
            cols,
            places,
            pairs_of_row: dimension(op, self.pairs_of_row)?,
            of_floats: is_float.into(),
            factor: if is_float { 1.0 } else { HALVES_FACTOR.recip() },
            groups: sorted.groups,
            order: sorted.order,
            x: self.x,
            rows,
            factors,
        };
        let grid = [most_groups, rows_of_group / ALIGNMENT, 1];
        let config = LaunchConfig { grid, block: [ARRANGE_BLOCK, 1, 1], shared_bytes: 0 };
        // SAFETY: blocks for all groups; there is room for all their rows; the caller vouches for the case.
        unsafe {
            launch(&Dependent(device), self.arrange, &[self.x_dtype.name().into()], &config, arguments)?
        }
        let [scale, other_scale] = self.scales;
        let arguments = GroupedArgs {
            tiles: matrix.tiles,
            cols,
            stages,
            places,
            out_cols: dimension(op, self.out_cols)?,
            scale,
            other_scale,
            groups: sorted.groups,
            order: sorted.order,
            rows: rows.into(),
            factors: factors.into(),
            weight: units.at,
            out: self.out,
        };
        let items = most_groups * matrix.tiles.div_ceil(GROUP_TILES);
        let config = LaunchConfig {
            grid: [device.info().multiprocessors.min(items), 1, 1],
            block: [BLOCK_SIZE, 1, 1],
            shared_bytes: shared_bytes(rows_of_group, stages, matrix.unit.bytes),
        };
        // SAFETY: any number of blocks; rows are arranged; the caller vouches for the case.
        unsafe {
            let values = [Value::from(matrices.format), (rows_of_group / 2).into()];
            launch(&Dependent(device), self.multiply, &values, &config, arguments)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulated::Emulated;
    use crate::formats::MatrixFormat;
    use gpu_kernels::units::{Unit, float};

    /// The units of all formats, floats too, with the shared memory of compute capability 9.0.
    #[test]
    fn stages_fit() {
        let device = Emulated::info();
        let floats = UnitShape { cols: float::f16::COLS, bytes: float::f16::BYTES };
        let shapes = MatrixFormat::ALL.iter().copied().filter_map(UnitShape::of).chain([floats]);
        for (unit, (_, rows)) in shapes.flat_map(|unit| GROUPS.map(|group| (unit, group))) {
            let stages = stages(&device, rows, unit).unwrap_or_else(|| panic!("{unit:?}, {rows} rows"));
            assert!((FEWEST_STAGES..=MAX_STAGES).contains(&stages));
            assert!(rows.is_multiple_of(ALIGNMENT) && rows <= MAX_GROUP_ROWS);
        }
    }
}
