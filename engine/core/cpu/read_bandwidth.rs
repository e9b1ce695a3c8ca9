//! The read bandwidth of the memory that the weights lie in, measured.

use super::simd::{Isa, Kernel, Lanes};
use bytes::Bytes;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes that a pass reads for each thread at least, the weights of a small model several times, so that waking the threads is no
/// part of it.
const LEAST_OF_THREAD: usize = 8 << 20;
/// The most bytes of weights that are read: more than most processors' caches.
const MOST: usize = 256 << 20;
/// Bytes of a page of memory, or fewer.
const PAGE: usize = 4096;
/// Bytes that one task reads.
const TASK: usize = 1 << 20;
/// Passes that are made at least, and the time after which no more are. The fastest counts: the ceiling is what the memory can do, not
/// what it does on average.
const PASSES: usize = 6;
const TIME: Duration = Duration::from_millis(100);

/// Bytes a second that all threads together read of `weights` where they are; `None` where there are none. Takes about a tenth of a
/// second where they were read before, and no memory.
///
/// A pass reads all of them, as a decode step does: weights that fit into a cache are read from there.
pub(super) fn read_bandwidth(isa: Isa, weights: &[Bytes]) -> Option<f64> {
    // SAFETY: any bytes are a u64.
    let words = |bytes| unsafe { <[u8]>::align_to::<u64>(bytes) }.1;
    let pieces = weights.iter().flat_map(|weights| weights.chunks(TASK)).map(words);
    let pieces: Vec<&[u64]> = pieces.take(MOST / TASK).filter(|words| !words.is_empty()).collect();
    // A page of a file is in this program's memory once it was touched.
    let touched = pieces.par_iter().map(|words| words.iter().step_by(PAGE / 8).fold(0, |a, b| a ^ b));
    black_box(touched.reduce(|| 0, |a, b| a ^ b));
    let all: usize = pieces.iter().map(|words| size_of_val(*words)).sum();
    let rounds = (LEAST_OF_THREAD * rayon::current_num_threads()).checked_div(all)? + 1;
    let tasks: Vec<&[u64]> = (0..rounds).flat_map(|_| pieces.iter().copied()).collect();
    let (start, mut passes, mut fastest) = (Instant::now(), 0, 0.0);
    while passes < PASSES || start.elapsed() < TIME {
        let start = Instant::now();
        let seen = tasks.par_iter().map(|words| {
            // SAFETY: the kernels demand nothing but their instructions.
            unsafe { if passes % 2 == 0 { isa.run(Read::<64>(words)) } else { isa.run(Read::<8>(words)) } }
        });
        black_box(seen.reduce(|| 0, |a, b| a ^ b));
        fastest = f64::max(fastest, (rounds * all) as f64 / start.elapsed().as_secs_f64());
        passes += 1;
    }
    Some(fastest)
}

/// The exclusive or of all words, `TURN` by `TURN` from four places: a thread has more loads under way than one stream lets it have. Turns of
/// 64 words are read with the widest registers in several chains; turns of a cache line keep all four streams under way all the time. Which is
/// the faster depends on the processor.
struct Read<'a, const TURN: usize>(&'a [u64]);

impl<const TURN: usize> Kernel for Read<'_, TURN> {
    type Output = u64;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> u64 {
        const STREAMS: usize = 4;
        let all = |words: &[u64]| words.iter().fold(0, |all, word| all ^ word);
        let stream = self.0.len() / (STREAMS * TURN) * TURN;
        let (streams, rest) = self.0.split_at(STREAMS * stream);
        let mut seen = all(rest);
        for at in (0..stream).step_by(TURN) {
            for i in 0..STREAMS {
                seen ^= all(&streams[i * stream + at..][..TURN]);
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read_once() {
        for len in [0, 1, 255, 256, 257, 1000, 4099] {
            let words: Vec<u64> =
                (0..len).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << (i % 64)).collect();
            let expected = words.iter().fold(0, |all, word| all ^ word);
            for isa in Isa::available() {
                // SAFETY: it demands nothing but its instructions.
                let seen = unsafe { [isa.run(Read::<64>(&words)), isa.run(Read::<8>(&words))] };
                assert_eq!(seen, [expected; 2], "{len} words, {isa:?}");
            }
        }
    }

    #[test]
    fn weights_of_any_size_and_place_have_a_bandwidth() {
        assert_eq!(read_bandwidth(Isa::best(), &[]), None);
        assert_eq!(read_bandwidth(Isa::best(), &[Bytes::from_static(&[1, 2, 3])]), None);
        let weights = Bytes::from(vec![3; (1 << 20) + 5]);
        let rate = read_bandwidth(Isa::best(), &[weights.slice(1..), weights]).unwrap();
        assert!(rate > 1e6 && rate.is_finite(), "{rate}");
    }
}
