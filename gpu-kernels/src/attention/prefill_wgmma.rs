//! Attention of rows with `wgmma`, the tensor cores' instruction of a warpgroup. sm_90a.
//!
//! FlashAttention-3's division of labour (Shah et al. 2024): the block's first warpgroup copies tiles of K and V, each of the others has 64 queries. Scores of a
//! step are multiplied while the weights of the step before are multiplied with their values and become weights themselves meanwhile; and warpgroups take turns,
//! so that one's products run while the others take powers.
//!
//! # Arithmetic
//! That of [`prefill_mma`](super::prefill_mma), bit for bit: the same queries and steps of 64 keys, the same references, weights and sums; `wgmma` adds 16 products after
//! the other as `mma` does.
//!
//! # Keys and values
//! A tile of 64 keys by 64 dimensions is 8 KiB, swizzled as [`Descriptor`](cuda_std::wgmma::Descriptor) says; heads of 128 have two side by side. One thread copies the pages as boxes of a
//! matrix, some stages ahead. Of the last step's values, where the sequence has fewer keys, all threads of its warpgroup copy words: keys behind the last one become zeros, since
//! what weighs 0 must not be NaN.
//!
//! # Contract
//! `softmax(q · kᵀ / sqrt(HEAD_DIM)) · v` for the rows of all sequences that are not skipped. Arguments: see [`Attention`]. Queries are numbered as in
//! [`prefill_mma`](super::prefill_mma); a block has [`wgmma_queries`] of them.
//!
//! Grid `[num_key_value_heads, ceil(num_tokens * heads_per_group / wgmma_queries), 1]`, exact; block `[wgmma_threads, 1, 1]`; dynamic shared memory
//! [`wgmma_shared_bytes`].
//!
//! Safety: grid, block and shared memory are as above, arrays are as described and aligned to 16 bytes, `out` overlaps nothing.

use cuda_std::prelude::*;

use super::Attention;
#[device]
use super::{
    mma_segment::{Segment, segments},
    mma_stages::Source,
    wgmma_segment::Pipeline,
};
#[device]
use crate::vector::Group;
#[device]
use cuda_std::{
    mma::MmaElement,
    wgmma::{self, WgmmaElement},
};

/// Keys of a step.
pub const WGMMA_KEYS: u32 = 64;

/// Warpgroups with queries.
pub const fn wgmma_groups(head_dim: u32) -> u32 {
    if head_dim == 64 { 3 } else { 2 }
}

/// Queries (a row and a head each) of a block.
pub const fn wgmma_queries(head_dim: u32) -> u32 {
    64 * wgmma_groups(head_dim)
}

/// Threads of a block.
pub const fn wgmma_threads(head_dim: u32) -> u32 {
    128 * (1 + wgmma_groups(head_dim))
}

/// Bytes of a step's keys, and of its values.
pub(super) const fn wgmma_tile_bytes(head_dim: u32) -> u32 {
    WGMMA_KEYS * head_dim * 2
}

/// Steps whose keys and values are in shared memory, or on their way.
pub(super) const WGMMA_STAGES: u32 = 4;

/// Bytes of dynamic shared memory: stages, their barriers, and room to begin at a multiple of 1,024.
pub const fn wgmma_shared_bytes(head_dim: u32) -> u32 {
    1024 + WGMMA_STAGES * (2 * wgmma_tile_bytes(head_dim) + 4 * 8)
}

/// # Safety
/// As the [module](self) says.
#[kernel(
    E = [f16, bf16],
    (HEAD_DIM, SUMS, N, PARTS, GROUPS, THREADS) = [(64, 32, 8, 1, 3, 512), (128, 64, 16, 2, 2, 384)],
    name = "attention_prefill_{E}_wgmma_h{HEAD_DIM}",
    max_threads = THREADS,
    min_blocks = 1,
    requires = "sm_90a",
)]
pub unsafe fn wgmma<
    E: MmaElement + WgmmaElement<32> + WgmmaElement<SUMS> + Group<2> + Source<HEAD_DIM>,
    const HEAD_DIM: usize,
    const SUMS: usize,
    const N: usize,
    const PARTS: usize,
    const GROUPS: u32,
    const THREADS: u32,
>(
    a: Attention<E>,
) {
    // SAFETY: the kernel's own contract.
    unsafe {
        let pipeline = Pipeline::<HEAD_DIM>::start(GROUPS);
        let warpgroup = warp::shuffle_idx(thread::thread_idx_x() / 128, 0);
        if warpgroup == 0 {
            if HEAD_DIM == 64 {
                wgmma::decrease_registers::<32>()
            } else {
                wgmma::decrease_registers::<40>()
            }
            let mut copier = pipeline.copier([a.k_map, a.v_map]);
            segments(&a, a.out, 64 * GROUPS, |segment: Segment<E, E, _, HEAD_DIM>, _| {
                segment.copy_steps(&mut copier);
            });
        } else {
            if HEAD_DIM == 64 {
                wgmma::increase_registers::<160>()
            } else {
                wgmma::increase_registers::<232>()
            }
            let mut reader = pipeline.reader(warpgroup, GROUPS);
            segments(&a, a.out, 64 * GROUPS, |segment: Segment<E, E, _, HEAD_DIM>, first| {
                segment.attend_steps::<SUMS, N, PARTS>(&mut reader, first);
            });
        }
    }
}
