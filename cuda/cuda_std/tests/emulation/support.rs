//! Buffers and launches for the tests.

use cuda_std::emulation::{Defect, Emulator, Options, Report};
use cuda_std::prelude::*;

/// A device with a seed.
pub fn emulator(seed: u64) -> Emulator {
    Emulator::new(Options { seed, ..Options::default() })
}

/// A grid in one dimension.
pub fn grid(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
}

/// The same with dynamic shared memory.
pub fn with_shared(config: LaunchConfig, shared_bytes: u32) -> LaunchConfig {
    LaunchConfig { shared_bytes, ..config }
}

/// A buffer with these values.
pub fn buffer<T: Bits>(emulator: &Emulator, values: &[T]) -> DevicePtrMut<T> {
    let address = emulator.allocate(size_of_val(values));
    // SAFETY: a `Bits` type has no byte that is not initialised; the buffer is this long.
    unsafe {
        let bytes = std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values));
        emulator.write(address, bytes);
    }
    DevicePtrMut::from_raw(address)
}

/// The first `count` values of a buffer.
pub fn values<T: Bits + Default>(emulator: &Emulator, buffer: DevicePtrMut<T>, count: usize) -> Vec<T> {
    let mut values = vec![T::default(); count];
    // SAFETY: every pattern of bytes is a `Bits` value.
    unsafe {
        let bytes = std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), count * size_of::<T>());
        emulator.read(buffer.as_raw(), bytes);
    }
    values
}

/// Zeros.
pub fn zeros(emulator: &Emulator, count: usize) -> DevicePtrMut<u32> {
    buffer(emulator, &vec![0u32; count])
}

/// The line of `kernel` in a source text that ends with `mark`.
pub fn line(source: &str, kernel: &str, mark: &str) -> u32 {
    let start = source.lines().position(|line| line.contains(&format!("unsafe fn {kernel}("))).expect(kernel);
    let found = source.lines().enumerate().skip(start).find(|(_, line)| line.ends_with(mark)).expect(mark);
    found.0 as u32 + 1
}

/// Runs a launch with a few seeds; all must report `defect` at the line of `kernel` that is marked in `source`.
pub fn caught_in(
    source: &str,
    kernel: &str,
    defect: Defect,
    launch: impl Fn(&Emulator) -> Result<(), Report>,
) {
    for seed in 0..8 {
        let report = launch(&emulator(seed)).expect_err(kernel);
        let text = report.to_string();
        assert_eq!(report.defect, defect, "{text}");
        assert_eq!(report.kernel, kernel, "{text}");
        assert!(report.file.contains("tests/emulation/"), "{text}");
        let here = line(source, kernel, "// HERE");
        if let Some(other) = &report.other
            && defect == Defect::Race
        {
            // Which of the two comes first depends on the schedule.
            let pair = [here, line(source, kernel, "// OTHER")];
            assert!([[report.line, other.line], [other.line, report.line]].contains(&pair), "{text}");
        } else {
            assert_eq!(report.line, here, "{text}");
        }
    }
}

/// Seeds over which a correct kernel must be left alone.
const SEEDS: u64 = 100;

/// Runs a launch with many seeds; none may report anything.
pub fn clean(launch: impl Fn(&Emulator) -> Result<(), Report>) {
    for seed in 0..SEEDS {
        if let Err(report) = launch(&emulator(seed)) {
            panic!("{report}");
        }
    }
}
