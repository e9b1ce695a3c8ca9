//! The read bandwidth of main memory, measured.

use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Bytes to read: more than any processor's caches.
const BYTES: usize = 256 << 20;
/// Bytes that one task reads.
const CHUNK: usize = 4 << 20;
/// Passes, of which the fastest counts: the ceiling is what the memory can do, not what it does on average.
const PASSES: usize = 4;

/// Bytes a second that all threads together read from main memory; takes about a tenth of a second.
pub(super) fn read_bandwidth() -> f64 {
    let words = vec![1u64; BYTES / 8];
    let pass = || {
        let start = Instant::now();
        let sum: u64 = words.par_chunks(CHUNK / 8).map(|chunk| black_box(chunk).iter().sum::<u64>()).sum();
        black_box(sum);
        start.elapsed().as_secs_f64()
    };
    let fastest = (0..PASSES).map(|_| pass()).fold(f64::INFINITY, f64::min);
    BYTES as f64 / fastest
}
