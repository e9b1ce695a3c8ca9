//! Scales that leave the least error: values are rounded in steps of several sizes, and of each rounding the scale is taken that least
//! squares give it; the best of them stays. Larger values and those that matter more weigh more.
//!
//! The idea of trying steps around the one that the extremes give, and the weights, are those of ggml's k-quants (ggml/src/ggml-quants.c).

/// Sums are kept in as many lanes, which are added in a fixed order at the end: the same bytes on every processor.
const LANES: usize = 8;

/// What the values of a block weigh: those of formats with more values have as many.
pub(super) type Weights = [f32; 256];

/// `importance * sqrt(mean(x²) + x²)` of each value, of mean 1; importance is that of the value's column, 1 where none is known.
pub(super) fn weigh(values: &[f32], importance: Option<&[f32]>) -> Weights {
    let count = values.len() as f32;
    let mean_square = values.iter().map(|x| x * x).sum::<f32>() / count;
    let mut weights = [1.0; 256];
    for (i, (weight, x)) in weights.iter_mut().zip(values).enumerate() {
        *weight = (mean_square + x * x).sqrt() * importance.map_or(1.0, |importance| importance[i]);
    }
    let mean = weights[..values.len()].iter().sum::<f32>() / count;
    if mean.is_normal() {
        weights.iter_mut().for_each(|weight| *weight /= mean);
        weights
    } else {
        [1.0; 256]
    }
}

/// The nearest whole number, the even one of two; for magnitudes below 2^22.
#[inline(always)]
pub(super) fn whole(x: f32) -> f32 {
    // Numbers of this size have no fraction.
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

/// The nearest whole number from `min` to `max`.
#[inline(always)]
pub(super) fn within(min: f32, max: f32) -> impl Fn(f32) -> f32 {
    move |x| whole(x.clamp(min, max))
}

/// `steps`, and those around it: `count` to each side, `apart`.
pub(super) fn around(steps: f32, count: i8, apart: f32) -> impl Iterator<Item = f32> {
    (-count..=count).map(move |i| steps + apart * f32::from(i))
}

/// The `d` of `d * q` with whole `q` from `lowest`, a negative number, to `-lowest - 1`: the value of the largest magnitude goes to `lowest`,
/// or with importances nearly.
pub(super) fn step(values: &[f32], importance: Option<&[f32]>, lowest: f32) -> f32 {
    let largest = super::largest(values);
    if importance.is_none() {
        return largest / lowest;
    }
    let weights = weigh(values, importance);
    let inverses = around(lowest, 9, 0.1).map(|steps| steps * super::inverse(largest));
    scale(values, &weights[..values.len()], inverses, within(lowest, -lowest - 1.0))
}

/// The `d` and `m` of `d * q + m` with `q` from 0 to `levels`: from the least value to the greatest, or with importances nearly.
pub(super) fn steps_from(values: &[f32], importance: Option<&[f32]>, levels: f32) -> (f32, f32) {
    if importance.is_none() {
        let (min, max) = super::range(values);
        return ((max - min) / levels, min);
    }
    line(values, &weigh(values, importance)[..values.len()], levels, f32::INFINITY)
}

fn sum(lanes: [f32; LANES]) -> f32 {
    lanes.iter().sum()
}

/// Lanes of values and of weights.
#[inline(always)]
fn lanes<'a>(
    values: &'a [f32],
    weights: &'a [f32],
) -> impl Iterator<Item = (&'a [f32; LANES], &'a [f32; LANES])> {
    debug_assert!(values.len().is_multiple_of(LANES) && values.len() == weights.len());
    values.as_chunks().0.iter().zip(weights.as_chunks().0)
}

/// The `d` for which `d * round(x / d)` come nearest to the values; tried are steps of `1 / inverse`.
#[inline(always)]
pub(super) fn scale(
    values: &[f32],
    weights: &[f32],
    inverses: impl Iterator<Item = f32>,
    round: impl Fn(f32) -> f32,
) -> f32 {
    let (mut best, mut d) = (0.0, 0.0);
    for inverse in inverses {
        let [mut of_xq, mut of_qq] = [[0.0; LANES]; 2];
        for (x, weight) in lanes(values, weights) {
            for l in 0..LANES {
                let q = round(x[l] * inverse);
                of_xq[l] += weight[l] * x[l] * q;
                of_qq[l] += weight[l] * q * q;
            }
        }
        let (xq, qq) = (sum(of_xq), sum(of_qq));
        // What is left of the weighted sum of squares is `Σ w x² - xq² / qq`.
        if qq > 0.0 && xq * xq > best * qq {
            (best, d) = (xq * xq / qq, xq / qq);
        }
    }
    d
}

/// The `m` for which `d * q + m` with `q` from 0 to `levels` come nearest to the values, where `m` is about `near`.
#[inline(always)]
pub(super) fn minimum(values: &[f32], weights: &[f32], d: f32, levels: f32, near: f32) -> f32 {
    let inverse = super::inverse(d);
    let [mut of_w, mut of_rest] = [[0.0; LANES]; 2];
    for (x, weight) in lanes(values, weights) {
        for l in 0..LANES {
            let q = whole(((x[l] - near) * inverse).clamp(0.0, levels));
            of_w[l] += weight[l];
            of_rest[l] += weight[l] * (x[l] - d * q);
        }
    }
    sum(of_rest) / sum(of_w)
}

/// `d` and `m`, at most `most`, for which `d * q + m` with `q` from 0 to `levels` come nearest to the values.
#[inline(always)]
pub(super) fn line(values: &[f32], weights: &[f32], levels: f32, most: f32) -> (f32, f32) {
    let (min, max) = super::range(values);
    let min = min.min(most);
    if max.is_nan() || min.is_nan() || max <= min {
        return (0.0, min);
    }
    let [mut of_w, mut of_x] = [[0.0; LANES]; 2];
    for (x, weight) in lanes(values, weights) {
        for l in 0..LANES {
            of_w[l] += weight[l];
            of_x[l] += weight[l] * x[l];
        }
    }
    let (w, x) = (sum(of_w), sum(of_x));
    let (mut best, mut line) = (f32::INFINITY, ((max - min) / levels, min));
    for steps in around(levels, 10, 0.1) {
        let inverse = steps / (max - min);
        let [mut of_q, mut of_qq, mut of_xq] = [[0.0; LANES]; 3];
        for (x, weight) in lanes(values, weights) {
            for l in 0..LANES {
                let q = whole(((x[l] - min) * inverse).clamp(0.0, levels));
                of_q[l] += weight[l] * q;
                of_qq[l] += weight[l] * q * q;
                of_xq[l] += weight[l] * q * x[l];
            }
        }
        let (q, qq, xq) = (sum(of_q), sum(of_qq), sum(of_xq));
        let determinant = w * qq - q * q;
        let (mut d, mut m) = ((w * xq - x * q) / determinant, (qq * x - q * xq) / determinant);
        if m > most {
            (d, m) = ((xq - most * q) / qq, most);
        }
        // The weighted sum of squares of `d * q + m - x`, but for that of `x`.
        let error = d * (d * qq - 2.0 * xq) + m * (m * w - 2.0 * x) + 2.0 * d * m * q;
        if error < best && d > 0.0 {
            (best, line) = (error, (d, m));
        }
    }
    line
}
