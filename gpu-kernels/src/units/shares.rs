//! How blocks share the items of the products that decode units in registers, and where sums go.

use cuda_std::prelude::*;

#[device]
use super::{HALVES_FACTOR, ROWS, halves::MatmulHalves, row_of};
#[device]
use crate::grid::{divide, offset, repeat};
#[device]
use cuda_std::atomic::{AtomicAdd, Ordering, Scope};

/// How blocks share the items: groups of tiles times the units of a row, in a row.
#[device]
#[derive(Clone, Copy)]
pub(super) struct Shares {
    pub(super) blocks: u32,
    pub(super) items: u32,
    /// Of a row.
    pub(super) units: u32,
}

#[device]
impl Shares {
    /// The first item of a block.
    #[inline(always)]
    pub(super) fn begin(self, block: u32) -> u32 {
        divide(block * self.items, self.blocks).0
    }

    /// The first and the last of the blocks that have a part of a group.
    #[inline(always)]
    pub(super) fn holders(self, group: u32) -> [u32; 2] {
        [group * self.units, (group + 1) * self.units - 1].map(|item| {
            let mut block = divide(item * self.blocks, self.items).0;
            while self.begin(block + 1) <= item {
                block += 1;
            }
            block
        })
    }

    /// Where a block keeps what it has of a group that others have a part of: of its first one, or of its last; with part `part` of `parts` of the rows.
    #[inline(always)]
    pub(super) fn piece(self, block: u32, group: u32, [parts, part]: [u32; 2]) -> u32 {
        let is_first = divide(self.begin(block), self.units).0 == group;
        (block * parts + part) * 2 + u32::from(!is_first)
    }
}

/// Stores, or adds, a warp's sums of a tile and the input rows from `first_input` on: sum `i` of a lane is `sum(i)`, as `mma` has them, of `inputs` input rows for
/// each of its two rows of weights.
///
/// # Safety
/// All lanes of the warp call it together; arrays are as [`MatmulHalves`] says, and nobody else stores these products.
#[device]
#[inline(always)]
pub(super) unsafe fn store(
    a: &MatmulHalves,
    tile: u32,
    first_input: u32,
    inputs: usize,
    sum: impl Fn(usize) -> f32,
) {
    let &MatmulHalves { n, rows, first_row, num_rows, scale, out_stride, accumulate, span, out, .. } = a;
    let lane = warp::lane_id();
    let low = row_of(tile, lane / 4, span);
    let column = first_input + lane % 4 * 2;
    repeat(2, |r| {
        let row = low + r as u32 * span;
        if tile >= rows / ROWS || row < first_row || row - first_row >= num_rows {
            return;
        }
        let out = out.wrapping_add(offset(column, out_stride, row - first_row));
        repeat(inputs, |i| {
            let input = 8 * (i as u32 / 2) + i as u32 % 2;
            if column + input < n {
                let product = sum(4 * (i / 2) + 2 * r + i % 2) * (scale / HALVES_FACTOR);
                // SAFETY: such a row of inputs and of weights is there.
                unsafe {
                    let out = out.add(offset(input, out_stride, 0));
                    if accumulate == 0 {
                        *out = product;
                    } else {
                        // Nobody else adds to it: atomic, so as not to wait for what is there.
                        f32::fetch_add(out, product, Ordering::Relaxed, Scope::Device);
                    }
                }
            }
        });
    });
}
