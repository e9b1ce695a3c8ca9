//! Code books: some values at a time become the entry that is nearest to all of them together. Every entry is tried, which takes its time.

use super::fit::{around, scale, weigh, whole};
use super::{inverse, largest};

/// The most entries that a book has.
const MOST: usize = 2048;

/// Entries, value by value: all first values, then all second ones.
pub(super) struct Book {
    num_entries: usize,
    values: Vec<f32>,
}

impl Book {
    /// The book of `entries` of `width` values of `bits` bits, each of which stands for one of `numbers`.
    pub fn new(entries: &[u16], width: usize, bits: usize, numbers: &[f32]) -> Self {
        let mask = (1 << bits) - 1;
        let of = |k: usize| entries.iter().map(move |entry| numbers[usize::from(entry >> (bits * k) & mask)]);
        Self { num_entries: entries.len(), values: (0..width).flat_map(of).collect() }
    }

    /// Values of an entry.
    pub fn width(&self) -> usize {
        self.values.len() / self.num_entries
    }

    /// The `k`th value of an entry.
    pub fn value(&self, entry: usize, k: usize) -> f32 {
        self.values[k * self.num_entries + entry]
    }

    /// The entry whose values are nearest to `targets`, the first of equal ones, and the weighted sum of the squares of what is between, but
    /// for that of the targets.
    #[inline(always)]
    pub fn nearest(&self, targets: &[f32], weights: &[f32]) -> (usize, f32) {
        const LANES: usize = 8;
        let mut room = [0.0_f32; MOST];
        let errors = &mut room[..self.num_entries];
        for ((values, target), weight) in self.values.chunks_exact(self.num_entries).zip(targets).zip(weights)
        {
            let twice = 2.0 * target;
            for (error, value) in errors.iter_mut().zip(values) {
                *error += weight * (value * (value - twice));
            }
        }
        let mut least = [f32::INFINITY; LANES];
        for errors in errors.as_chunks::<LANES>().0 {
            for l in 0..LANES {
                least[l] = if errors[l] < least[l] { errors[l] } else { least[l] };
            }
        }
        let least = least.into_iter().fold(f32::INFINITY, f32::min);
        (errors.iter().position(|&error| error == least).unwrap_or(0), least)
    }
}

/// How a format uses its book.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Values that have a scale in common.
    pub sub_block: usize,
    /// The largest number of an entry.
    pub largest: f32,
    /// Of eight signs an even number is minus.
    pub even_signs: bool,
}

/// A block of 256 values `step * scale * entry` with signs, where scales are odd numbers up to 31.
pub(super) struct Fit {
    /// `(scale - 1) / 2` of each sub-block.
    pub scales: [u8; 16],
    /// Of eight values each, set where they are negative.
    pub signs: [u8; 32],
    pub entries: [u16; 64],
}

/// The nearest odd number from 1 to 31.
#[inline(always)]
fn odd(x: f32) -> f32 {
    2.0 * whole(((x - 1.0) * 0.5).clamp(0.0, 15.0)) + 1.0
}

impl Fit {
    /// Brings values into a format; `steps` gives what the block can have as its step that is near one.
    #[inline(always)]
    pub fn new(
        values: &[f32],
        importance: Option<&[f32]>,
        book: &Book,
        layout: Layout,
        steps: impl FnOnce(f32) -> f32,
    ) -> Self {
        let weights = weigh(values, importance);
        let (magnitudes, signs) = without_signs(values, &weights, layout.even_signs);
        let size = layout.sub_block;
        let count = values.len() / size;
        let [mut exact, mut sums] = [[0.0_f32; 16]; 2];
        let sub_blocks = magnitudes.chunks_exact(size).zip(weights.chunks_exact(size));
        for (b, (magnitudes, weights)) in sub_blocks.clone().enumerate() {
            exact[b] = scale_of_entries(magnitudes, weights, book, layout.largest);
            sums[b] = weights.iter().sum();
        }
        let inverses = around(31.0, 4, 0.5).map(|top| top * inverse(largest(&exact)));
        let step = steps(scale(&exact[..count], &sums[..count], inverses, odd));
        let inverse_step = inverse(step);
        let mut fit = Self { scales: [0; 16], signs, entries: [0; 64] };
        let mut entries = fit.entries.iter_mut();
        for (b, (magnitudes, weights)) in sub_blocks.enumerate() {
            let scale = odd(exact[b] * inverse_step);
            fit.scales[b] = ((scale - 1.0) * 0.5) as u8;
            let inverse = inverse(step * scale);
            for_each_group(magnitudes, weights, book.width(), inverse, |targets, weights| {
                if let Some(entry) = entries.next() {
                    *entry = book.nearest(targets, weights).0 as u16;
                }
            });
        }
        fit
    }
}

/// Calls `each` with the values of each entry in steps of `1 / inverse`, and their weights.
#[inline(always)]
fn for_each_group(
    values: &[f32],
    weights: &[f32],
    width: usize,
    inverse: f32,
    mut each: impl FnMut(&[f32], &[f32]),
) {
    for (values, weights) in values.chunks_exact(width).zip(weights.chunks_exact(width)) {
        let mut room = [0.0; 8];
        let targets = &mut room[..width];
        targets.iter_mut().zip(values).for_each(|(target, value)| *target = value * inverse);
        each(targets, weights);
    }
}

/// Magnitudes and the signs that they lack. Where the number of minus signs must be even and is not, the value that matters least has the
/// wrong one, and its magnitude is negative.
fn without_signs(values: &[f32], weights: &[f32], even: bool) -> ([f32; 256], [u8; 32]) {
    let (mut magnitudes, mut signs) = ([0.0; 256], [0; 32]);
    let groups = values.chunks_exact(8).zip(weights.chunks_exact(8)).zip(magnitudes.chunks_exact_mut(8));
    for (((values, weights), magnitudes), signs) in groups.zip(&mut signs) {
        let bit = |(k, x): (usize, &f32)| u8::from(x.is_sign_negative()) << k;
        *signs = values.iter().enumerate().map(bit).sum();
        magnitudes.iter_mut().zip(values).for_each(|(magnitude, x)| *magnitude = x.abs());
        if even && signs.count_ones() % 2 == 1 {
            let cost = |k: usize| weights[k] * values[k] * values[k];
            let cheapest = (1..8).fold(0, |best, k| if cost(k) < cost(best) { k } else { best });
            *signs ^= 1 << cheapest;
            magnitudes[cheapest] = -magnitudes[cheapest];
        }
    }
    (magnitudes, signs)
}

/// The scale for which entries come nearest to a sub-block's magnitudes.
#[inline(always)]
fn scale_of_entries(magnitudes: &[f32], weights: &[f32], book: &Book, most: f32) -> f32 {
    let max = magnitudes.iter().copied().fold(0.0, f32::max);
    // A NaN among them is no scale either.
    if max.is_nan() || max <= 0.0 {
        return 0.0;
    }
    let mut best = Tried::default();
    for share in around(1.0, 4, 0.06) {
        best = best.or(Tried::new(magnitudes, weights, book, share * most / max));
    }
    best.or(Tried::new(magnitudes, weights, book, inverse(best.scale))).scale
}

/// What steps of some size are good for.
#[derive(Clone, Copy, Default)]
struct Tried {
    /// By how much the error is less than without any steps.
    gain: f32,
    /// The scale that least squares give for the entries.
    scale: f32,
}

impl Tried {
    #[inline(always)]
    fn new(magnitudes: &[f32], weights: &[f32], book: &Book, inverse: f32) -> Self {
        let (mut xq, mut qq) = (0.0, 0.0);
        for_each_group(magnitudes, weights, book.width(), inverse, |targets, weights| {
            let (entry, _) = book.nearest(targets, weights);
            for (k, (target, weight)) in targets.iter().zip(weights).enumerate() {
                let q = book.value(entry, k);
                xq += weight * target * q;
                qq += weight * q * q;
            }
        });
        Self::of(xq, qq, inverse)
    }

    /// From sums over values in steps of `1 / inverse`.
    fn of(xq: f32, qq: f32, inverse: f32) -> Self {
        let xq = xq / inverse;
        if qq > 0.0 && xq > 0.0 { Self { gain: xq * xq / qq, scale: xq / qq } } else { Self::default() }
    }

    fn or(self, other: Self) -> Self {
        if other.gain > self.gain { other } else { self }
    }
}
