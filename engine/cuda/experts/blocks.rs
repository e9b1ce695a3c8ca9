//! The launches of the kernels of experts in units: how many blocks share an expert, and what a block has of shared memory.

use crate::units::{UnitShape, Units};
use cuda_std::launch::LaunchConfig;
use gpu_kernels::experts::{FEW_ROWS, shared_bytes};
use gpu_kernels::fused::units::{MAX_DEPTH, ring_bytes};
use gpu_kernels::units::ROWS;

/// Rows of a step that go through an expert one by one: few of them share one.
pub(in super::super) const ONE_BY_ONE: usize = 4;

/// The most warps of a block.
const WARPS: u32 = 12;
/// The same where each has several rows of inputs, for which it needs registers.
const WARPS_OF_GROUPS: u32 = 8;
/// The most shared memory of a block of which two are to run on a multiprocessor, or one beside that of the next kernel.
const HALF_BYTES: u32 = 110 << 10;
/// With so much shared memory a block has no other of its kind beside it.
const ALONE_BYTES: u32 = 114 << 10;
/// The most shared memory of a block.
const MAX_BYTES: u32 = 220 << 10;
/// The most shared memory for weights: what hides the memory's latency.
const MAX_RING_BYTES: u32 = 84 << 10;
/// The fewest and the most blocks that share a group, where it has tiles for them.
const MIN_BLOCKS: u32 = 2;
const MAX_BLOCKS: u32 = 8;
/// Columns that share a scale.
const CHUNK: u32 = 256;
/// The most chunks of tiles of a block: what it has of each takes 64 bytes of shared memory.
const MAX_ITEMS: u32 = 512;

/// A launch.
pub(in super::super) struct Blocks {
    pub config: LaunchConfig,
    /// Blocks that share an expert, or all experts of a row.
    pub blocks: u32,
    /// Units of each warp that are under way.
    pub depth: u32,
}

/// What a launch must know of the matrix of an expert.
#[derive(Clone, Copy)]
pub(in super::super) struct Matrix {
    pub unit: UnitShape,
    /// Units of a tile.
    pub units: u32,
    pub tiles: u32,
}

impl Matrix {
    /// Of each of `count` experts in `units`, one below the other.
    pub fn new(units: Units, count: usize) -> Self {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let Units { shape, cols, of, .. } = units;
        Self {
            unit: shape,
            units: number(cols) / shape.cols,
            tiles: number(of / (ROWS as usize * count.max(1))),
        }
    }

    /// Chunks of a tile.
    fn chunks(self) -> u32 {
        (self.units * self.unit.cols).div_ceil(CHUNK)
    }

    /// How many blocks share the tiles of `experts` experts: `wanted`, if there are so many tiles, or more, if there is no room for all their chunks.
    fn blocks(self, wanted: u32, experts: u32) -> u32 {
        let fewest = (self.tiles * experts * self.chunks()).div_ceil(MAX_ITEMS);
        wanted.max(fewest).clamp(1, self.tiles.max(1))
    }
}

/// What a block does.
struct Work {
    /// Tiles of an expert, and of how many experts.
    tiles: u32,
    times: u32,
    /// Staged rows.
    rows: u32,
    /// Whether warps share the chunks of tiles, and leave what they have of each.
    in_chunks: bool,
}

impl Blocks {
    /// Gate and up of `pairs` rows and experts, one pair at a time.
    pub fn of_pairs(multiprocessors: u32, matrix: Matrix, pairs: u32) -> Self {
        let blocks = matrix.blocks(multiprocessors / pairs.max(1), 1);
        let work = Work { tiles: matrix.tiles.div_ceil(blocks), times: 1, rows: 1, in_chunks: true };
        Self::new(matrix, &work, WARPS, HALF_BYTES, [pairs, blocks])
    }

    /// Down of all `num_chosen` experts of each of `rows` rows.
    pub fn of_all(multiprocessors: u32, matrix: Matrix, rows: u32, num_chosen: u32) -> Self {
        let blocks = matrix.blocks(multiprocessors / rows.max(1), num_chosen);
        let tiles = matrix.tiles.div_ceil(blocks);
        let work = Work { tiles, times: num_chosen, rows: num_chosen, in_chunks: true };
        let mut launch = Self::new(matrix, &work, WARPS, MAX_BYTES, [rows, blocks]);
        launch.config.shared_bytes = launch.config.shared_bytes.max(ALONE_BYTES);
        launch
    }

    /// Groups of up to [`FEW_ROWS`] rows of an expert each, at most `groups`, of which there will be about `expected`.
    pub fn of_groups(multiprocessors: u32, matrix: Matrix, [groups, expected]: [u32; 2]) -> Self {
        // Two rounds, so that what is uneven evens out; each warp has a tile, and inputs are not staged too often.
        let wanted = (2 * multiprocessors).div_ceil(expected.max(1)).clamp(MIN_BLOCKS, MAX_BLOCKS);
        let blocks = wanted.min(matrix.tiles / WARPS_OF_GROUPS).max(1);
        let work = Work { tiles: matrix.tiles.div_ceil(blocks), times: 1, rows: FEW_ROWS, in_chunks: false };
        Self::new(matrix, &work, WARPS_OF_GROUPS, HALF_BYTES, [groups, blocks])
    }

    fn new(matrix: Matrix, work: &Work, warps: u32, most: u32, [times, blocks]: [u32; 2]) -> Self {
        let (&Work { tiles, times: experts, rows, in_chunks }, Matrix { unit, units, .. }) = (work, matrix);
        let chunks = matrix.chunks();
        let items = if in_chunks { tiles * experts * chunks } else { 0 };
        // Warps share those, as evenly as so many can.
        let things = if in_chunks { items } else { tiles };
        let warps = things.div_ceil(things.div_ceil(warps).max(1)).max(1);
        let units_of_warp = (tiles * experts * units).div_ceil(warps);
        let bytes = |depth| shared_bytes([warps, depth], [units, unit.cols, unit.bytes], rows, items);
        let fits =
            |&depth: &u32| bytes(depth) <= most && ring_bytes(warps, depth, unit.bytes) <= MAX_RING_BYTES;
        let depth = (1..=units_of_warp.clamp(1, MAX_DEPTH)).rev().find(fits).unwrap_or(1);
        let config = LaunchConfig {
            grid: [times * blocks, 1, 1],
            block: [32 * warps, 1, 1],
            shared_bytes: bytes(depth),
        };
        Self { config, blocks, depth }
    }
}

/// How many of `num_experts` experts `pairs` random choices hit, about.
pub(in super::super) fn expected_experts(num_experts: usize, pairs: usize) -> usize {
    let share = 1.0 - (-(pairs as f64) / (num_experts as f64).max(1.0)).exp();
    ((num_experts as f64 * share).ceil() as usize).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shapes of published models: what a block needs fits, each warp has something to do.
    #[test]
    fn launches_of_published_shapes_fit() {
        let units = [(128, 1152), (256, 2304), (256, 3360), (128, 2176), (64, 2048)];
        for (hidden, width, chosen) in [(2048, 768, 8), (4096, 1536, 8), (2048, 1408, 4), (3584, 2560, 8)] {
            for unit in units.map(|(cols, bytes)| UnitShape { cols, bytes }) {
                let matrix =
                    |rows: u32, cols: u32| Matrix { unit, units: cols / unit.cols, tiles: rows / ROWS };
                let (gate_up, down) = (matrix(2 * width, hidden), matrix(hidden, width));
                let mut launches = Vec::new();
                for n in [1, 2, 4] {
                    launches.push((Blocks::of_pairs(132, gate_up, n * chosen), HALF_BYTES));
                    launches.push((Blocks::of_all(132, down, n, chosen), MAX_BYTES));
                }
                for matrix in [gate_up, down] {
                    launches.push((Blocks::of_groups(132, matrix, [640, 580]), HALF_BYTES));
                }
                for (Blocks { config, blocks, depth }, most) in launches {
                    assert!(config.shared_bytes <= most, "{hidden} {width} {unit:?}: {config:?}");
                    assert!((1..=384).contains(&config.block[0]) && blocks > 0 && depth > 0);
                }
            }
        }
    }

    #[test]
    fn many_choices_hit_all_experts_and_one_hits_one() {
        assert_eq!(expected_experts(128, 1), 1);
        assert!((100..128).contains(&expected_experts(128, 256)));
        assert_eq!(expected_experts(128, 100_000), 128);
        assert_eq!(expected_experts(1, 5), 1);
    }
}
