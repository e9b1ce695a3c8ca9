//! The test that docs/kernels.md shows: what one of a kernel looks like.

use cuda_std::emulation::{Emulator, Options};
use cuda_std::prelude::*;
use example_kernels::steps::numbers;

#[test]
fn numbers_counts_blocks_and_threads() {
    for seed in 0..4 {
        let emulator = Emulator::new(Options { seed, ..Options::default() });
        let out = DevicePtrMut::from_raw(emulator.allocate(12 * 4));
        let config = LaunchConfig { grid: [3, 1, 1], block: [4, 1, 1], shared_bytes: 0 };
        let mut last = [0; 4];
        // SAFETY: a place for each of the 12 threads, of which the last is read.
        unsafe {
            numbers(&emulator, &config, out).unwrap();
            emulator.read(out.add(11).as_raw(), &mut last);
        }
        assert_eq!(u32::from_ne_bytes(last), 203, "seed {seed}");
    }
}
