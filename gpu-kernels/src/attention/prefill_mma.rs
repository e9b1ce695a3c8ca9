//! Attention of rows on tensor cores, tile by tile.
//!
//! FlashAttention-2 (Dao 2023): a warp keeps 16 or 32 queries and their outputs in registers and goes over the keys; scores and
//! weights never leave its registers, since the accumulators of `q · kᵀ` lie as `mma` wants its first factor in `weights · v`.
//!
//! # Arithmetic
//! For a row that sees `num_keys` keys, and one head:
//!
//! 1. `q` is multiplied with [`query_scale`](super::query_scale) and rounded to the pages' format, the softmax is one of
//!    powers of 2; scores are the tensor cores' sums in f32, 16 dimensions after the other.
//! 2. Keys are taken in steps of 64 (in `mma32p`: of 32), counted from position 0. What scores are relative to is the largest
//!    score of the first step, and becomes that of a later step where this is more than [`REFERENCE_STEP`] larger; then sum and
//!    output are scaled down. So weights are below 2^8, which all formats hold, and are hardly ever rescaled (the idea is
//!    FlashAttention-4's).
//! 3. Weights are summed in f32, each lane of four its own keys, then across them; as factors of the values they are rounded to
//!    the pages' format. 16 keys after the other are added to the output in f32.
//!
//! Nothing of this depends on other rows: a row of `mma`'s result depends on that row of its operands alone, and steps begin at
//! the same keys for all. Keys that a row does not see have the score -∞ and the weight 0; a step of which it sees none
//! changes nothing, neither reference nor sum nor output. So a row has the same bits whatever is in its tile, its batch or its
//! chunk, from `mma16` and from `mma32`; `mma32p` has others, and so have the kernels in `super`, which do not round.
//!
//! # Three variants
//! A matrix of 8 keys that `ldmatrix` loads is multiplied with 16 queries in `mma16` and with 32 in the others, which so read half as
//! much of the shared memory, but with tiles of 128 queries leave multiprocessors idle on short prompts. For heads of 64 `mma32` takes
//! 248 registers, so 2 blocks run on a multiprocessor of an H200; `mma32p`, with half the scores at a time, takes 168, so 3 do, but
//! there the queries must be read from shared memory too. With heads of 128, `mma32` keeps some words that are used once a
//! sequence or tile in local memory.
//!
//! # Keys and values
//! Tiles are copied with `cp.async` some stages ahead. 16-byte words of a row are stored at their column exclusive-or the row
//! modulo 8, so that the eight rows of a matrix that `ldmatrix` loads lie on different banks. Keys behind the last one
//! become zeros, since what weighs 0 must not be NaN.
//!
//! Pages of eight bits are decoded to f16 on their way into the tile, once for all queries of a block; see `mma_stages.rs`.
//!
//! # Contract of all kernels
//! `softmax(q · kᵀ / sqrt(HEAD_DIM)) · v` for the rows of all sequences that are not skipped. Arguments: see [`Attention`]. Query
//! `t * heads_per_group + h` is head `h` of the group in row `t`, below 2^32 in all; a tile is [`mma_queries`] of them in a row,
//! whatever sequences they belong to.
//!
//! Grid `[num_key_value_heads, ceil(num_tokens * heads_per_group / mma_queries), 1]`, exact; block `[MMA_BLOCK_SIZE, 1, 1]`; dynamic
//! shared memory [`mma_shared_bytes`].
//!
//! Safety: grid, block and shared memory are as above, arrays are as described and aligned to 16 bytes, `out` overlaps nothing.

use cuda_std::prelude::*;

use super::Attention;
#[device]
use super::{
    formats::{AnyFloats, Output, q8_0},
    mma_segment::{Segment, segments},
    mma_stages::Source,
};
#[device]
use crate::vector::Group;
#[device]
use cuda_std::mma::MmaElement;

/// Warps of a block.
pub const MMA_WARPS: u32 = 4;

/// Threads of a block.
pub const MMA_BLOCK_SIZE: u32 = 32 * MMA_WARPS;

/// Keys of a tile.
pub const MMA_KEYS: u32 = 64;

/// How much larger than the reference, to the base 2, a score may be.
pub const REFERENCE_STEP: f32 = 8.0;

/// Queries (a row and a head each) of a block whose warps have `blocks` times 16.
pub const fn mma_queries(blocks: u32) -> u32 {
    16 * blocks * MMA_WARPS
}

/// Tiles in shared memory: one that is computed on, the others on their way.
pub const fn mma_stages(head_dim: u32) -> u32 {
    if head_dim == 64 { 3 } else { 2 }
}

/// Whether queries wait in shared memory, where there are not enough registers for them.
pub(super) const fn queries_in_shared(blocks: u32, columns: u32, head_dim: u32) -> bool {
    head_dim == 256 || (blocks == 2 && (head_dim == 128 || columns == 4))
}

/// As [`mma_shared_bytes`] over pages of eight bits: one tile, and the integers of the next one.
pub const fn mma_shared_bytes_of_blocks(blocks: u32, columns: u32, head_dim: u32) -> u32 {
    let row = 2 * head_dim;
    let queries = if queries_in_shared(blocks, columns, head_dim) { mma_queries(blocks) * row } else { 0 };
    3 * MMA_KEYS * row + queries
}

/// Bytes of dynamic shared memory, where warps have `blocks` times 16 queries and steps `columns` times 8 keys.
pub const fn mma_shared_bytes(blocks: u32, columns: u32, head_dim: u32) -> u32 {
    let row = 2 * head_dim;
    let queries = if queries_in_shared(blocks, columns, head_dim) { mma_queries(blocks) * row } else { 0 };
    mma_stages(head_dim) * 2 * MMA_KEYS * row + queries
}

/// A warp takes 32 queries, 64 keys at a time.
///
/// # Safety
/// As the [module](self) says.
#[kernel(
    E = [f16, bf16],
    (HEAD_DIM, K, N, MIN_BLOCKS) = [(64, 4, 8, 2), (128, 8, 16, 2)],
    name = "attention_prefill_{E}_mma32_h{HEAD_DIM}",
    max_threads = 128,
    min_blocks = MIN_BLOCKS,
)]
pub unsafe fn mma32<
    E: MmaElement + Group<2> + Source<HEAD_DIM>,
    const HEAD_DIM: usize,
    const K: usize,
    const N: usize,
>(
    a: Attention<E>,
) {
    // SAFETY: the kernel's own contract.
    unsafe { attention::<E, E, _, HEAD_DIM, K, N, 2, 8>(a, a.out) }
}

/// A warp takes 32 queries, a page of keys at a time.
///
/// # Safety
/// As the [module](self) says.
#[kernel(
    E = [f16, bf16],
    (HEAD_DIM, K, N, MIN_BLOCKS) = [(64, 4, 8, 3), (128, 8, 16, 2)],
    name = "attention_prefill_{E}_mma32p_h{HEAD_DIM}",
    max_threads = 128,
    min_blocks = MIN_BLOCKS,
)]
pub unsafe fn mma32p<
    E: MmaElement + Group<2> + Source<HEAD_DIM>,
    const HEAD_DIM: usize,
    const K: usize,
    const N: usize,
>(
    a: Attention<E>,
) {
    // SAFETY: the kernel's own contract.
    unsafe { attention::<E, E, _, HEAD_DIM, K, N, 2, 4>(a, a.out) }
}

/// A warp takes 16 queries, 64 keys at a time.
///
/// # Safety
/// As the [module](self) says.
#[kernel(
    E = [f16, bf16],
    (HEAD_DIM, K, N, MIN_BLOCKS) = [(64, 4, 8, 3), (128, 8, 16, 2), (256, 16, 32, 1)],
    name = "attention_prefill_{E}_mma16_h{HEAD_DIM}",
    max_threads = 128,
    min_blocks = MIN_BLOCKS,
)]
pub unsafe fn mma16<
    E: MmaElement + Group<2> + Source<HEAD_DIM>,
    const HEAD_DIM: usize,
    const K: usize,
    const N: usize,
>(
    a: Attention<E>,
) {
    // SAFETY: the kernel's own contract.
    unsafe { attention::<E, E, _, HEAD_DIM, K, N, 1, 8>(a, a.out) }
}

/// As [`mma32`] over pages of eight bits, which are decoded to tiles of f16; `out` of any format.
///
/// # Safety
/// As the [module](self) says.
#[kernel(
    E = [q8_0],
    (HEAD_DIM, K, N, MIN_BLOCKS) = [(64, 4, 8, 2), (128, 8, 16, 2)],
    name = "attention_prefill_{E}_mma32_h{HEAD_DIM}",
    max_threads = 128,
    min_blocks = MIN_BLOCKS,
)]
pub unsafe fn blocks32<E: Source<HEAD_DIM>, const HEAD_DIM: usize, const K: usize, const N: usize>(
    a: Attention<E>,
) {
    let out = AnyFloats { to: a.out.cast(), format: a.out_format };
    // SAFETY: the kernel's own contract.
    unsafe { attention::<f16, E, _, HEAD_DIM, K, N, 2, 8>(a, out) }
}

/// As [`mma16`] over pages of eight bits; with the bits of [`blocks32`].
///
/// # Safety
/// As the [module](self) says.
#[kernel(
    E = [q8_0],
    (HEAD_DIM, K, N, MIN_BLOCKS) = [(64, 4, 8, 3), (128, 8, 16, 2)],
    name = "attention_prefill_{E}_mma16_h{HEAD_DIM}",
    max_threads = 128,
    min_blocks = MIN_BLOCKS,
)]
pub unsafe fn blocks16<E: Source<HEAD_DIM>, const HEAD_DIM: usize, const K: usize, const N: usize>(
    a: Attention<E>,
) {
    let out = AnyFloats { to: a.out.cast(), format: a.out_format };
    // SAFETY: the kernel's own contract.
    unsafe { attention::<f16, E, _, HEAD_DIM, K, N, 1, 8>(a, out) }
}

/// # Safety
/// As for the kernels. `K` is `HEAD_DIM / 16`, `N` is `HEAD_DIM / 8`.
#[device]
#[inline(always)]
unsafe fn attention<
    E: MmaElement,
    S: Source<HEAD_DIM>,
    O: Output<2>,
    const HEAD_DIM: usize,
    const K: usize,
    const N: usize,
    const BLOCKS: usize,
    const COLUMNS: usize,
>(
    a: Attention<S>,
    out: O,
) {
    const { assert!(K * 16 == HEAD_DIM && N * 8 == HEAD_DIM) }
    // SAFETY: the kernel's own contract.
    unsafe {
        segments(
            &a,
            out,
            const { mma_queries(BLOCKS as u32) },
            |segment: Segment<E, S, O, HEAD_DIM>, first| {
                segment.attend::<K, N, BLOCKS, COLUMNS>(first);
            },
        );
    }
}
