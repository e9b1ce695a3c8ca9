//! Reads memory and does nothing else: the ceiling that decoding is measured against.

#[device]
use cuda_std::memory;
use cuda_std::prelude::*;

/// Threads of a block.
pub const READ_THREADS: u32 = 512;

/// Independent 16-byte loads that a thread has in flight.
#[device]
const IN_FLIGHT: u64 = 8;

/// Reads words of 16 bytes once and writes the exclusive or of what each block has read, so that no load is idle.
#[kernel_args]
pub struct ReadBandwidth {
    pub num_words: u64,
    /// `[num_words]`, aligned to 16 bytes
    pub words: *const [u32; 4],
    /// u32, one value a block
    pub out: *mut u32,
}

/// - Any one-dimensional grid of [`READ_THREADS`]; thread `t` of `T` takes words `t`, `t + T`, …, eight at a time.
/// - Memory-bound: 16 bytes a load, no allocation in L1. A few blocks a multiprocessor saturate an H200.
///
/// # Safety
/// Arrays have the lengths of [`ReadBandwidth`].
#[kernel(E = [u32], name = "read_bandwidth_{E}_plain", max_threads = 512)]
pub unsafe fn plain(ReadBandwidth { num_words, words, out }: ReadBandwidth) {
    let stride = u64::from(thread::grid_dim_x()) * u64::from(READ_THREADS);
    let mut i =
        u64::from(thread::block_idx_x()) * u64::from(READ_THREADS) + u64::from(thread::thread_idx_x());
    let mut seen = 0;
    // SAFETY: indices stay below `num_words`; each block writes its own element of `out`.
    unsafe {
        while i + (IN_FLIGHT - 1) * stride < num_words {
            let mut loaded = [[0u32; 4]; IN_FLIGHT as usize];
            for j in 0..IN_FLIGHT {
                loaded[j as usize] = memory::load_nc_no_allocate(words.add((i + j * stride) as usize));
            }
            // By index: an array's iterator would put it into local memory.
            for j in 0..IN_FLIGHT as usize {
                let word = loaded[j];
                seen ^= word[0] ^ word[1] ^ word[2] ^ word[3];
            }
            i += IN_FLIGHT * stride;
        }
        while i < num_words {
            let word = memory::load_nc_no_allocate(words.add(i as usize));
            seen ^= word[0] ^ word[1] ^ word[2] ^ word[3];
            i += stride;
        }
        let warps = shared_array![u32; 16];
        let seen = warp::reduce(seen, |a, b| a ^ b);
        if warp::lane_id() == 0 {
            warps.set(warp::warp_id(), seen);
        }
        thread::sync_threads();
        if thread::thread_idx_x() == 0 {
            let mut all = 0;
            for w in 0..READ_THREADS / 32 {
                all ^= warps.get(w);
            }
            *out.add(thread::block_idx_x() as usize) = all;
        }
    }
}
