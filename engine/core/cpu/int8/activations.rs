//! Rows of inputs in eight bits, with a scale for each 32 values.

use crate::cpu::simd::{Isa, Kernel, Lanes};
use crate::cpu::team;
use crate::cpu::tensor::Tensor;

/// Values that share a scale.
pub(super) const BLOCK: usize = 32;

/// Rows whose values are `scale * q`, `q` from -127 to 127.
#[derive(Debug, Default)]
pub(super) struct Activations {
    pub cols: usize,
    /// `[rows, cols]`
    pub values: Vec<i8>,
    /// `[rows, cols / 32]`
    pub scales: Vec<f32>,
    /// Sums of `q`, `[rows, cols / 16]`. Exact.
    pub sums16: Vec<f32>,
    /// Sums of `q`, `[rows, cols / 32]`. Exact.
    pub sums32: Vec<f32>,
}

impl Activations {
    /// Holds `count` rows of `x` from row `first`, whose columns are whole blocks.
    pub fn hold(&mut self, isa: Isa, x: &Tensor, first: usize, count: usize) {
        /// Values below which one core is done before another has started.
        const WORTH_WAKING: usize = 1 << 16;
        self.cols = x.cols();
        let (cols, blocks) = (self.cols, self.cols / BLOCK);
        self.values.resize(count * cols, 0);
        self.scales.resize(count * blocks, 0.0);
        self.sums16.resize(count * blocks * 2, 0.0);
        self.sums32.resize(count * blocks, 0.0);
        let rows = self.values.chunks_exact_mut(cols).zip(self.scales.chunks_exact_mut(blocks));
        let sums = self.sums16.chunks_exact_mut(2 * blocks).zip(self.sums32.chunks_exact_mut(blocks));
        let rows = rows.zip(sums).enumerate().map(|(i, ((values, scales), (sums16, sums32)))| {
            let x = x.row(first + i);
            Quantise { x, values, scales, sums16, sums32 }
        });
        // SAFETY: the kernel demands nothing but its instructions.
        team::for_each_of(rows.collect(), WORTH_WAKING.div_ceil(cols), |row| unsafe { isa.run(row) });
    }
}

/// A row.
struct Quantise<'a> {
    x: &'a [f32],
    values: &'a mut [i8],
    scales: &'a mut [f32],
    sums16: &'a mut [f32],
    sums32: &'a mut [f32],
}

impl Kernel for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { x, values, scales, sums16, sums32 } = self;
        let blocks = x.as_chunks::<BLOCK>().0.iter().zip(values.as_chunks_mut::<BLOCK>().0);
        for (b, (x, values)) in blocks.enumerate() {
            scales[b] = quantise(x, values);
            let sums: [i32; 2] = std::array::from_fn(|half| {
                values[16 * half..][..16].iter().map(|&value| i32::from(value)).sum()
            });
            (sums16[2 * b], sums16[2 * b + 1]) = (sums[0] as f32, sums[1] as f32);
            sums32[b] = (sums[0] + sums[1]) as f32;
        }
    }
}

/// The nearest multiples of a 127th of the largest magnitude, to even where two are near; answers that step, which is NaN where a value is.
#[inline(always)]
fn quantise(x: &[f32; BLOCK], values: &mut [i8; BLOCK]) -> f32 {
    /// Below it the steps have no inverse; such values become 0.
    const LEAST: f32 = 1e-30;
    /// `1.5 * 2^23`: what is added to it is rounded to an integer, its low bits.
    const ROUND: f32 = 12_582_912.0;
    // As integers the magnitudes have their order, with NaN the largest of all.
    let magnitude = x.iter().fold(0, |largest, x| largest.max(x.to_bits() & i32::MAX as u32));
    let largest = f32::from_bits(magnitude);
    let inverse = if largest < LEAST { 0.0 } else { 127.0 / largest };
    for (value, x) in values.iter_mut().zip(x) {
        *value =
            ((x * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32).clamp(-127, 127) as i8;
    }
    largest / 127.0
}
