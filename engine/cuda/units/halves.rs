//! Products of some ten to some hundred rows with units, on f16 tensor cores: how they are launched.

use super::super::device::{Dependent, Device};
use super::super::launch::{dimension, launch};
use super::super::memory::DeviceBuffer;
use super::{Multiplied, TILE, UnitShape, Units, units_of};
use crate::device_info::DeviceInfo;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use cuda_std::launch::{DevicePtr, DevicePtrMut, Kernels, LaunchConfig, Value};
use gpu_kernels::units::halves::{self as by_warp, GROUP_TILES, MatmulHalvesArgs, partial_values};
use gpu_kernels::units::warpgroups;

/// The instruction that multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Tensor {
    /// `mma`, of a warp.
    Mma,
    /// `wgmma`, of a warpgroup.
    Wgmma,
}

/// Eight rows of inputs, as often as there are kernels for.
const GROUPS: [u32; 3] = [2, 4, MOST_GROUPS];
const MOST_GROUPS: u32 = 8;
/// The fewest stages: one is multiplied while the next is copied.
const FEWEST_STAGES: u32 = 2;
/// Groups of tiles, times parts of the rows, times warps, that can be counted.
pub(in super::super) const MAX_COUNTERS: usize = 1 << 16;

/// The most parts of the rows.
const MAX_PARTS: u32 = 4;

impl Tensor {
    fn threads(self) -> u32 {
        match self {
            Self::Mma => by_warp::BLOCK_SIZE,
            Self::Wgmma => warpgroups::BLOCK_SIZE,
        }
    }

    fn shared_bytes(self, stages: u32, unit: UnitShape, groups: u32) -> u32 {
        match self {
            Self::Mma => by_warp::shared_bytes(stages, unit.cols, unit.bytes, groups),
            Self::Wgmma => warpgroups::shared_bytes(stages, unit.bytes, groups),
        }
    }

    fn max_stages(self) -> u32 {
        match self {
            Self::Mma => by_warp::MAX_STAGES,
            Self::Wgmma => warpgroups::MAX_STAGES,
        }
    }

    fn kernels(self) -> &'static Kernels<MatmulHalvesArgs> {
        match self {
            Self::Mma => by_warp::halves(),
            Self::Wgmma => warpgroups::wgmma(),
        }
    }

    /// What the kernel for `groups` times eight rows was made for, with weights of this format.
    fn values(self, format: MatrixFormat, groups: u32) -> [Value; 2] {
        let count = match self {
            Self::Mma => groups,
            // Sums of a thread.
            Self::Wgmma => 4 * groups,
        };
        [format.name().into(), count.into()]
    }

    /// Counters of a group of tiles and a part of the rows: one, or one for each warp.
    fn counters(self) -> usize {
        match self {
            Self::Mma => 1,
            Self::Wgmma => GROUP_TILES as usize,
        }
    }
}

/// What blocks leave of groups that several have a part of, for any such product: bytes.
pub(in super::super) fn partial_bytes(device: &DeviceInfo) -> usize {
    values_of_blocks(device.multiprocessors * MAX_PARTS, MOST_GROUPS) * size_of::<f32>()
}

/// The same of so many blocks, of the kernel for `groups` times eight rows: values.
fn values_of_blocks(blocks: u32, groups: u32) -> usize {
    2 * blocks as usize * partial_values(groups) as usize
}

/// How some rows of inputs are multiplied with units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct HalvesPlan {
    tensor: Tensor,
    /// Eight rows of inputs so many times a block.
    groups: u32,
    /// Blocks that share the rows.
    parts: u32,
    stages: u32,
}

impl HalvesPlan {
    /// The kernel with the fewest columns to spare whose stages fit, which hold `items` items at most.
    fn new(tensor: Tensor, device: &DeviceInfo, unit: UnitShape, n: u32, items: u32) -> Option<Self> {
        let stages = |groups: u32| {
            let fits = |&stages: &u32| {
                tensor.shared_bytes(stages, unit, groups) as usize <= device.shared_memory_per_block
            };
            (FEWEST_STAGES..=tensor.max_stages().min(items).max(FEWEST_STAGES)).rev().find(fits)
        };
        let of = |groups: u32| {
            Some(Self { tensor, groups, parts: n.div_ceil(8 * groups), stages: stages(groups)? })
        };
        let enough = GROUPS.into_iter().filter(|groups| 8 * groups >= n).find_map(of);
        enough.or_else(|| GROUPS.into_iter().rev().find_map(of))
    }
}

/// Blocks that share the items of `groups` groups of `units` units each: as many whatever the rows, so that a row's sums are cut at the same places.
fn blocks(multiprocessors: u32, groups: u32, units: u32) -> u32 {
    // Adding up what a block left of a group takes a third of the time of an item.
    let cost = |blocks: u32| {
        let pieces = f64::from(blocks) / f64::from(groups);
        let adding = if pieces > 1.0 { pieces.ceil() + 1.0 } else { 2.0 };
        f64::from((groups * units).div_ceil(blocks)) + adding / 3.0
    };
    let all = multiprocessors.clamp(1, groups * units);
    (1..=all).min_by(|&a, &b| cost(a).total_cmp(&cost(b))).unwrap_or(1)
}

impl Units {
    /// How [`Self::multiply_halves`] multiplies `n` rows with the first `rows` of these by such instructions; `None` where there is no kernel or no room.
    pub fn plan_of_halves(
        &self,
        tensor: Tensor,
        device: &DeviceInfo,
        [n, rows]: [usize; 2],
    ) -> Option<HalvesPlan> {
        let Multiplied { of, .. } = self.multiplied(rows);
        let has_kernel = tensor.kernels().get(&tensor.values(self.format, GROUPS[0])).is_some();
        let tile_groups = u32::try_from(of / TILE).ok()?.div_ceil(GROUP_TILES);
        let items = tile_groups * units_of(self.shape, self.cols);
        let plan = HalvesPlan::new(tensor, device, self.shape, u32::try_from(n).ok()?, items)?;
        let has_counters = tile_groups as usize * plan.parts as usize * tensor.counters() <= MAX_COUNTERS;
        (has_kernel && plan.parts <= MAX_PARTS && has_counters).then_some(plan)
    }

    /// Queues `out = scale · x · weightᵀ`, or with `accumulate` adds that, for its first `rows` rows and the n rows of x that `plan` was made for; `out`
    /// is in rows of `out_stride` values. A row has the same bits alone and in a batch.
    ///
    /// # Errors
    /// [`Error::Request`] if a dimension is beyond 32 bits or there is no room, or what the device says.
    ///
    /// # Safety
    /// x f16 `[n, cols]` and `out` have these rows, and nothing else uses `out` and `partial`; `plan` is of these rows.
    #[allow(clippy::too_many_arguments)] // The operation has these operands.
    pub unsafe fn multiply_halves(
        &self,
        device: &Device,
        plan: HalvesPlan,
        (partial, counters): (&mut DeviceBuffer<u8>, &mut DeviceBuffer<u32>),
        [n, rows]: [usize; 2],
        x: DevicePtr<u8>,
        scale: f32,
        (out, out_stride): (DevicePtrMut<f32>, usize),
        accumulate: bool,
    ) -> Result<()> {
        const OP: &str = "matmul_blocks";
        let Multiplied { weight, of, first_row } = self.multiplied(rows);
        let (tiles, units) = (dimension(OP, of / TILE)?, units_of(self.shape, self.cols));
        let blocks = blocks(device.info().multiprocessors, tiles.div_ceil(GROUP_TILES), units) * plan.parts;
        if partial.len() < values_of_blocks(blocks, plan.groups) * size_of::<f32>() {
            return Err(Error::Request(format!("{OP}: there is no room for the parts of {n} rows")));
        }
        let arguments = MatmulHalvesArgs {
            n: dimension(OP, n)?,
            rows: dimension(OP, of)?,
            cols: dimension(OP, self.cols)?,
            first_row: dimension(OP, first_row)?,
            num_rows: dimension(OP, rows)?,
            scale,
            out_stride: dimension(OP, out_stride)?,
            accumulate: accumulate.into(),
            stages: plan.stages,
            span: dimension(OP, self.span)?,
            parts: plan.parts,
            x: x.cast(),
            weight,
            out,
            partial: partial.ptr_mut().cast(),
            counters: counters.ptr_mut(),
        };
        let config = LaunchConfig {
            grid: [blocks, 1, 1],
            block: [plan.tensor.threads(), 1, 1],
            shared_bytes: plan.tensor.shared_bytes(plan.stages, self.shape, plan.groups),
        };
        let (kernels, values) = (plan.tensor.kernels(), plan.tensor.values(self.format, plan.groups));
        // SAFETY: every part has blocks, and each of these an item; there is room for what they leave, and counters for all groups of a plan's parts;
        // the caller vouches for the arrays.
        unsafe { launch(&Dependent(device), kernels, &values, &config, arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulated::Emulated;

    /// The units of all formats with the shared memory of compute capability 9.0: up to 64 rows are a part.
    #[test]
    fn stages_fit() {
        let device = Emulated::info();
        let shapes: Vec<_> = MatrixFormat::ALL.iter().copied().filter_map(UnitShape::of).collect();
        assert!(shapes.len() > 12);
        for unit in shapes {
            for (tensor, n) in
                [9, 16, 17, 64, 65, 128, 200].into_iter().flat_map(|n| [(Tensor::Mma, n), (Tensor::Wgmma, n)])
            {
                let plan = HalvesPlan::new(tensor, &device, unit, n, 100).unwrap();
                assert!(8 * plan.groups * plan.parts >= n, "{n} rows: {plan:?}");
                assert!(n > 64 || plan.parts == 1, "{n} rows: {plan:?}");
                let bytes = tensor.shared_bytes(plan.stages, unit, plan.groups) as usize;
                assert!(bytes <= device.shared_memory_per_block && plan.stages >= 2);
                assert!(plan.tensor.threads() <= 1024);
            }
        }
    }
}
