//! How products with units are launched: blocks, their warps and shared memory, slices of the columns and where they are added up.

use super::super::device::Device;
use super::super::launch::dimension;
use super::super::memory::DeviceBuffer;
use super::halves::MAX_COUNTERS;
use super::{FEW_ROWS, OP, TILE, UnitShape, Units, rows_of_kernel};
use crate::error::Result;
use cuda_std::launch::LaunchConfig;
use gpu_kernels::fused::units::{MAX_DEPTH, ring_bytes, shared_bytes};
use std::rc::Rc;

/// Warps of a block, where it has as many units.
const WARPS: u32 = 12;
/// The most shared memory of a block for weights: what hides the memory's latency, and leaves room for the next kernel's.
const MAX_RING_BYTES: u32 = 84 << 10;
/// The most shared memory of a block.
const MAX_SHARED_BYTES: u32 = 200 << 10;
/// With so much shared memory a block has a multiprocessor of compute capability 9.0 for itself, as far as its like are concerned.
const ALONE_BYTES: u32 = 114 << 10;
/// The most columns of a projection that a block has the inputs of: eight rows of them fit.
const MAX_SLICE_COLS: u32 = 5120;
/// The most slices of its columns.
const MAX_SLICES: u32 = 16;
/// The most groups of blocks of a projection.
const MAX_GROUPS: u32 = 1024;
const _: () = assert!(MAX_GROUPS as usize <= MAX_COUNTERS);

/// The launch of a kernel that streams tiles of units.
pub(in super::super) struct Stream {
    pub config: LaunchConfig,
    /// Units of each warp that are under way.
    pub depth: u32,
}

impl Stream {
    /// Of `groups` of blocks that share `tiles` tiles of `units` units, a block for each of `slices` slices of the columns.
    pub(super) fn new(unit: UnitShape, tiles: u32, units: u32, [groups, slices]: [u32; 2], n: u32) -> Self {
        // A warp without a unit would part the pieces of a tile.
        let fewest = (tiles / groups) * (units / slices);
        let warps = WARPS.min(fewest).max(1);
        let (most, chunks) = (tiles.div_ceil(groups) * units.div_ceil(slices), units.div_ceil(slices));
        let besides = |depth| shared_bytes(warps, depth, chunks, unit.cols, rows_of_kernel(n));
        let room = |depth: u32| {
            let ring = ring_bytes(warps, depth, unit.bytes);
            ring <= MAX_RING_BYTES && ring.saturating_add(besides(depth)) <= MAX_SHARED_BYTES
        };
        let depth = most.div_ceil(warps).clamp(1, MAX_DEPTH);
        let depth = (1..=depth).rev().find(|&depth| room(depth)).unwrap_or(1);
        // More than half of what a multiprocessor has: where the kernel before still runs on some, two blocks would share another.
        let shared_bytes =
            ring_bytes(warps, depth, unit.bytes).saturating_add(besides(depth)).max(ALONE_BYTES);
        let config = LaunchConfig { grid: [groups * slices, 1, 1], block: [32 * warps, 1, 1], shared_bytes };
        Self { config, depth }
    }

    /// Whether a block runs that has the inputs of `n` rows of `cols` columns.
    pub fn fits(unit: UnitShape, cols: usize, n: u32) -> bool {
        let stream = Self::new(unit, 1, units_of(unit, cols), [1, 1], n);
        stream.config.shared_bytes <= MAX_SHARED_BYTES
    }
}

/// Units of a row of `cols` columns, at least one.
pub(super) fn units_of(unit: UnitShape, cols: usize) -> u32 {
    (u32::try_from(cols).unwrap_or(u32::MAX) / unit.cols).max(1)
}

/// How the columns of a projection are sliced, and among how many groups of blocks its tiles are shared: a row has the same bits whatever is
/// multiplied besides, so they depend on the weights alone.
pub(super) fn groups_and_slices(multiprocessors: u32, unit: UnitShape, tiles: u32, units: u32) -> [u32; 2] {
    let blocks = multiprocessors.clamp(1, MAX_GROUPS);
    let fewest = (units * unit.cols).div_ceil(MAX_SLICE_COLS);
    let cost = |slices: u32| {
        let groups = (blocks / slices).clamp(1, tiles);
        // Of the block that has most, in µs: what it reads, and adding slices up.
        let bytes = tiles.div_ceil(groups) * units.div_ceil(slices) * unit.bytes;
        let adding = if slices > 1 { 2.5 + 0.1 * f64::from(slices) } else { 0.0 };
        (groups, f64::from(bytes) / 32e3 + adding)
    };
    let most = most_slices(multiprocessors, tiles).min(units).min(blocks).max(fewest);
    let best = (fewest..=most).min_by(|&a, &b| cost(a).1.total_cmp(&cost(b).1)).unwrap_or(1);
    [cost(best).0, best]
}

/// How many of `blocks` blocks take the second of two parts of so many tiles, whose units have so many bytes: so that the block with most to read has
/// least, and then those of the second part.
pub(super) fn blocks_of_v(blocks: u32, [others, v]: [u32; 2], [bytes, bytes_of_v]: [u32; 2]) -> u32 {
    let cost = |of_v: u32| {
        let of_block = v.div_ceil(of_v) * bytes_of_v;
        (of_block.max(others.div_ceil(blocks - of_v) * bytes), of_block)
    };
    (1..blocks.min(v + 1)).min_by_key(|&of_v| cost(of_v)).unwrap_or(1)
}

/// The most slices of the columns of so many tiles: one where there are tiles for all blocks, and room for partial sums is dear.
fn most_slices(multiprocessors: u32, tiles: u32) -> u32 {
    if tiles >= 4 * multiprocessors { 1 } else { MAX_SLICES }
}

/// Where blocks leave what they have of a slice of the columns.
pub(in super::super) struct Slices {
    pub(super) partial: DeviceBuffer<f32>,
    /// Zeros, as each kernel leaves them.
    pub counters: DeviceBuffer<u32>,
}

impl Slices {
    /// Room for no matrix yet.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::error::Error::Memory) from the device.
    pub fn new(device: &Rc<Device>) -> Result<Self> {
        Ok(Self {
            partial: DeviceBuffer::zeroed(device, 1)?,
            counters: DeviceBuffer::zeroed(device, MAX_COUNTERS)?,
        })
    }

    /// Makes room for the products with `units`, whose memory must not move once something was recorded: called while matrices are loaded.
    ///
    /// # Errors
    /// As [`Slices::new`].
    pub fn make_room(&mut self, device: &Rc<Device>, units: Units) -> Result<()> {
        let (tiles, columns) = (dimension(OP, units.of / TILE)?, units_of(units.shape, units.cols));
        let [_, slices] = groups_and_slices(device.info().multiprocessors, units.shape, tiles, columns);
        let room =
            slices.max(most_slices(device.info().multiprocessors, tiles)) as usize * FEW_ROWS * units.of;
        if room > self.partial.len() {
            self.partial = DeviceBuffer::zeroed(device, room)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpu_kernels::units::ROWS;

    #[test]
    fn no_block_of_v_has_more_to_read_than_the_others() {
        // Qwen2.5-7B with V in Q6_K: 28 heads of Q and 4 of K, then 4 of V, 8 tiles each.
        let v_blocks = blocks_of_v(132, [256, 32], [2304, 3360]);
        assert!(32u32.div_ceil(v_blocks) * 3360 <= 256u32.div_ceil(132 - v_blocks) * 2304, "{v_blocks}");
        // One tile of V, and a device with hardly a block.
        assert_eq!(blocks_of_v(132, [256, 1], [2304, 3360]), 1);
        assert_eq!([blocks_of_v(2, [4, 4], [1, 1]), blocks_of_v(1, [4, 4], [1, 1])], [1, 1]);
    }

    /// The shapes of published models, on large devices and small ones: every warp has a unit, and what a block keeps fits.
    #[test]
    fn launches_of_published_shapes_fit() {
        let [q4_0, q4_k, q6_k, q8_0] = [(128, 1152), (256, 2304), (256, 3360), (128, 2176)]
            .map(|(cols, bytes)| UnitShape { cols, bytes });
        for (unit, rows, cols) in [
            (q8_0, 9728, 896),
            (q4_0, 896, 4864),
            (q4_k, 37_888, 3584),
            (q6_k, 3584, 18_944),
            (q6_k, 152_064, 3584),
            (q4_0, 5120, 27_648),
        ] {
            for multiprocessors in [2, 46, 132] {
                let (tiles, units) = (rows / ROWS, units_of(unit, cols));
                let [groups, slices] = groups_and_slices(multiprocessors, unit, tiles, units);
                assert!(groups * slices <= multiprocessors.max(slices) && slices <= units && groups <= tiles);
                for n in [1, 4, 8] {
                    let stream = Stream::new(unit, tiles, units, [groups, slices], n);
                    let warps = stream.config.block[0] / 32;
                    assert!(warps <= tiles / groups * (units / slices), "{cols} columns: {warps} warps");
                    let bytes = stream.config.shared_bytes;
                    assert!(bytes <= MAX_SHARED_BYTES, "[{rows}, {cols}], {n} rows: {bytes} bytes");
                }
            }
        }
    }
}
