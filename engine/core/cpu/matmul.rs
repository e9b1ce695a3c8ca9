//! `out = x · weightᵀ`, straight from the memory map, with the same bits for a row alone and in a batch.
//!
//! Every output is one dot product: `in_features` in chunks of `CHUNK`, each chunk in sixteen lanes of fused
//! multiply-adds folded in a fixed order, the chunks added in order. How many rows and weights share a pass through
//! the registers changes nothing in that, so a token's values do not depend on what else is in the batch. A library
//! product that blocks by the batch's size cannot promise this. Measured per core at 512 rows of the 0.5B shapes,
//! against the gemm crate's 35 to 40 GMAC/s on the same weights: 40 to 51 with AVX-512, 27 to 31 with AVX2.
//!
//! A few rows (decode) are bound by memory: the weights are widened to f32 in registers and read once. Many rows
//! (prefill) are bound by arithmetic: blocks of weights are widened once into a scratch that stays in the L2 cache. Matrices of formats
//! that are not floats take that way for any number of rows.

use super::int8;
use super::kernels::{MatmulBlocks, MatmulKernels};
use super::simd::{Element, Isa, Kernel, LANES, Lanes, to_f32, with_element};
use super::team;
use super::tensor::{OutPtr, Tensor};
use crate::error::Result;
use crate::weights::Matrix;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::slice;

/// Values of `in_features` that are summed before the lanes are folded: 6 rows of it in f32 stay in a 32 KiB L1. A multiple of every
/// format's blocks.
const CHUNK: usize = 1024;

/// Up to this many rows weights are widened in registers, above it in scratch.
const FEW_ROWS: usize = 12;

/// Bytes of a row that are asked for before they are multiplied.
const AHEAD: usize = 1024;

/// Weight rows that share a pass where there is one row of `x`. They are a quarter of a task apart: a processor follows four long
/// streams faster than one (EPYC, two virtual cores, f16, rows of 896: 9.6 GB/s a thread with two neighbouring rows, 12.2 with one, 17.1
/// with four apart, 15.3 with loads alone).
const MOST_WEIGHT_ROWS: usize = 4;

/// Weight rows of one task where there are many: 32 * CHUNK f32 are 128 KiB of the L2 cache.
const MANY_ROWS_BLOCK: usize = 32;

/// Rows of the scratch are a cache line longer than a chunk: at a stride of 4 KiB they would all fall into the same
/// sets of the L1 cache.
const SCRATCH_STRIDE: usize = CHUNK + LANES;

/// `out[i][o] = Σ x[i][k] * weight[o][k]` for the first `n` rows: `[n, in_features] -> [n, out_features]`.
///
/// # Errors
/// [`crate::Error::Request`] if the shapes do not fit.
pub fn matmul(
    kernels: impl Into<MatmulKernels>,
    n: usize,
    x: &Tensor,
    weight: &Matrix,
    out: &mut Tensor,
) -> Result<()> {
    matmul_stacked(kernels, n, x, slice::from_ref(weight), false, out)
}

/// As [`matmul`] with the rows of all `weights`, one matrix below the other; with `accumulate` added to what is in `out`.
///
/// # Errors
/// As [`matmul`].
pub fn matmul_stacked(
    kernels: impl Into<MatmulKernels>,
    n: usize,
    x: &Tensor,
    weights: &[Matrix],
    accumulate: bool,
    out: &mut Tensor,
) -> Result<()> {
    let MatmulKernels { isa, blocks } = kernels.into();
    out.expect("matmul", "out", n, weights.iter().map(|weight| weight.rows).sum())?;
    let out_stride = out.cols();
    let mut first = 0;
    let mut integers = Vec::new();
    for weight in weights {
        x.expect("matmul", "x", n, weight.cols)?;
        weight.row_bytes()?;
        // SAFETY: the columns of `out` are those of all weights, checked above.
        let out = unsafe { OutPtr(out.values_mut().as_mut_ptr().add(first)) };
        let product = Product { x, weight, n, out, out_stride, accumulate };
        first += weight.rows;
        if blocks == MatmulBlocks::Int8 && int8::takes(weight.format) {
            integers.push(product);
        } else {
            multiply(isa, &product);
        }
    }
    int8::multiply(isa, n, x, &integers);
    Ok(())
}

/// The shapes fit.
fn multiply(isa: Isa, product: &Product) {
    let &Product { weight, n, .. } = product;
    if let Some(dtype) = weight.format.float().filter(|_| n <= FEW_ROWS) {
        let rows_of_task = few_rows_of_task(weight.rows);
        team::for_each(weight.rows.div_ceil(rows_of_task), |block| {
            let first = block * rows_of_task;
            let last = (first + rows_of_task).min(weight.rows);
            with_element!(dtype, E => {
                // SAFETY: shapes were checked; blocks are disjoint.
                unsafe { isa.run(FewRows::<E> { product, first, last, element: PhantomData }) }
            });
        });
    } else {
        team::for_each(weight.rows.div_ceil(MANY_ROWS_BLOCK), |block| {
            let first = block * MANY_ROWS_BLOCK;
            let last = (first + MANY_ROWS_BLOCK).min(weight.rows);
            many_rows(isa, product, first, last);
        });
    }
}

/// Of `rows` weight rows those of one task where there are few rows of `x`: many, since streams are long then, as long as that leaves tasks
/// for all threads.
pub(super) fn few_rows_of_task(rows: usize) -> usize {
    const LEAST: usize = 64;
    const MOST: usize = 256;
    (rows / (8 * rayon::current_num_threads())).next_multiple_of(LANES).clamp(LEAST, MOST)
}

/// A product whose shapes fit.
pub(super) struct Product<'a> {
    /// `[n, in_features]`
    pub x: &'a Tensor,
    /// `[out_features, in_features]`
    pub weight: &'a Matrix,
    pub n: usize,
    /// `[n, out_features]`
    pub out: OutPtr,
    /// From one row of `out` to the next, in values.
    pub out_stride: usize,
    /// Add to `out` instead of setting it.
    pub accumulate: bool,
}

/// All rows of `x` with the weight rows `first..last`, from the file's format.
struct FewRows<'a, E> {
    product: &'a Product<'a>,
    first: usize,
    last: usize,
    element: PhantomData<E>,
}

impl<E: Element> Kernel for FewRows<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Product { x, weight, n, out, out_stride, accumulate } = *self.product;
        let in_features = weight.cols;
        let side_by_side = if n == 1 { MOST_WEIGHT_ROWS } else { weight_rows::<L>(MOST_WEIGHT_ROWS) };
        let step = (self.last - self.first) / side_by_side;
        let apart = (self.first..self.first + step).map(|o| (o, side_by_side));
        let rest = (self.first + step * side_by_side..self.last).map(|o| (o, 1));
        for (o, w_rows) in apart.chain(rest) {
            for k in (0..in_features).step_by(CHUNK) {
                let mut i = 0;
                while i < n {
                    let x_rows = (n - i).min(max_x_rows::<L>());
                    let tile = Tile {
                        // SAFETY: i < n, k < in_features, o < out_features.
                        x: unsafe { x.values().as_ptr().add(i * in_features + k) },
                        x_stride: in_features,
                        // SAFETY: as above, in bytes.
                        w: unsafe { weight.data.as_ptr().add((o * in_features + k) * E::SIZE) },
                        w_stride: step * in_features * E::SIZE,
                        len: (in_features - k).min(CHUNK),
                        // SAFETY: as above.
                        out: unsafe { out.0.add(i * out_stride + o) },
                        out_stride,
                        out_step: step,
                        add: accumulate || k > 0,
                    };
                    // SAFETY: x_rows rows of x and w_rows of the weight are there.
                    unsafe { tile.run::<L, E, true>(x_rows, w_rows) };
                    i += x_rows;
                }
            }
        }
    }
}

/// All rows of `x` with the weight rows `first..last`, widened to f32 chunk by chunk.
fn many_rows(isa: Isa, product: &Product, first: usize, last: usize) {
    thread_local! {
        static SCRATCH: RefCell<Option<Tensor>> = const { RefCell::new(None) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let scratch = scratch.get_or_insert_with(|| {
            Tensor::new(MANY_ROWS_BLOCK, SCRATCH_STRIDE).expect("128 KiB of scratch memory")
        });
        let &Matrix { format, cols: in_features, scale, ref data, .. } = product.weight;
        let bytes_of = |values: usize| values / format.block_values() * format.block_bytes();
        for k in (0..in_features).step_by(CHUNK) {
            let len = (in_features - k).min(CHUNK);
            for o in first..last {
                let bytes = &data[bytes_of(o * in_features + k)..][..bytes_of(len)];
                let values = &mut scratch.values_mut()[(o - first) * SCRATCH_STRIDE..][..len];
                to_f32(isa, format, scale, bytes, values);
            }
            let chunk = ManyRows { product, scratch, first, last, k, len };
            // SAFETY: shapes were checked; blocks are disjoint.
            unsafe { isa.run(chunk) };
        }
    });
}

/// One chunk of `in_features` of [`many_rows`].
struct ManyRows<'a> {
    product: &'a Product<'a>,
    /// `[MANY_ROWS_BLOCK, SCRATCH_STRIDE]`
    scratch: &'a Tensor,
    first: usize,
    last: usize,
    k: usize,
    len: usize,
}

impl Kernel for ManyRows<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Product { x, weight, n, out, out_stride, accumulate } = *self.product;
        let in_features = weight.cols;
        let mut i = 0;
        while i < n {
            let x_rows = (n - i).min(max_x_rows::<L>());
            let mut o = self.first;
            while o < self.last {
                let w_rows = weight_rows::<L>(self.last - o);
                let tile = Tile {
                    // SAFETY: i < n, k < in_features.
                    x: unsafe { x.values().as_ptr().add(i * in_features + self.k) },
                    x_stride: in_features,
                    w: self.scratch.row(o - self.first).as_ptr().cast(),
                    w_stride: SCRATCH_STRIDE * size_of::<f32>(),
                    len: self.len,
                    // SAFETY: i < n, o < out_features.
                    out: unsafe { out.0.add(i * out_stride + o) },
                    out_stride,
                    out_step: 1,
                    add: accumulate || self.k > 0,
                };
                // SAFETY: x_rows rows of x and w_rows of the scratch are there.
                unsafe { tile.run::<L, super::simd::F32, false>(x_rows, w_rows) };
                o += w_rows;
            }
            i += x_rows;
        }
    }
}

/// Rows of `x` that share a pass: with the weights of [`weight_rows`] their sums just fit the registers.
const fn max_x_rows<L: Lanes>() -> usize {
    if L::MANY_REGISTERS { 6 } else { 3 }
}

/// Weight rows that share a pass, of `left`.
const fn weight_rows<L: Lanes>(left: usize) -> usize {
    let rows = if L::MANY_REGISTERS { 4 } else { 2 };
    if left >= rows { rows } else { 1 }
}

/// A few rows of `x` with a few rows of the weight over one chunk.
struct Tile {
    x: *const f32,
    /// In values.
    x_stride: usize,
    w: *const u8,
    /// In bytes.
    w_stride: usize,
    /// Values of the chunk.
    len: usize,
    out: *mut f32,
    /// From one row of `x` to the next, in values.
    out_stride: usize,
    /// From one row of the weight to the next, in values.
    out_step: usize,
    /// Add to `out` instead of setting it: every chunk but the first.
    add: bool,
}

impl Tile {
    /// Picks the unrolled loop. With `PREFETCH` it asks for what follows in each row of the weight, and behind it, as it goes.
    #[inline(always)]
    unsafe fn run<L: Lanes, E: Element, const PREFETCH: bool>(&self, x_rows: usize, w_rows: usize) {
        // SAFETY: the caller's: rows are there, `out` is this task's own.
        unsafe {
            match (x_rows, w_rows) {
                (1, 4) => self.unrolled::<L, E, 1, 4, PREFETCH>(),
                (2, 4) => self.unrolled::<L, E, 2, 4, PREFETCH>(),
                (3, 4) => self.unrolled::<L, E, 3, 4, PREFETCH>(),
                (4, 4) => self.unrolled::<L, E, 4, 4, PREFETCH>(),
                (5, 4) => self.unrolled::<L, E, 5, 4, PREFETCH>(),
                (6, 4) => self.unrolled::<L, E, 6, 4, PREFETCH>(),
                (1, 2) => self.unrolled::<L, E, 1, 2, PREFETCH>(),
                (2, 2) => self.unrolled::<L, E, 2, 2, PREFETCH>(),
                (3, 2) => self.unrolled::<L, E, 3, 2, PREFETCH>(),
                _ => {
                    for i in 0..x_rows {
                        let row = Tile {
                            x: self.x.add(i * self.x_stride),
                            out: self.out.add(i * self.out_stride),
                            ..*self
                        };
                        row.unrolled::<L, E, 1, 1, PREFETCH>();
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn unrolled<L: Lanes, E: Element, const X: usize, const W: usize, const PREFETCH: bool>(&self) {
        // SAFETY: reads len values of X rows and W weights, the last ones through a padded copy; writes X * W sums.
        unsafe {
            let mut sums = [[L::splat(0.0); W]; X];
            let whole = self.len / LANES * LANES;
            let mut k = 0;
            while k < whole {
                let mut w = [L::splat(0.0); W];
                for (j, w) in w.iter_mut().enumerate() {
                    let from = self.w.add(j * self.w_stride + k * E::SIZE);
                    if PREFETCH {
                        L::prefetch(from.wrapping_add(AHEAD));
                    }
                    *w = E::load(from);
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = L::load_f32(self.x.add(i * self.x_stride + k).cast());
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = x.mul_add(w, *sum);
                    }
                }
                k += LANES;
            }
            if k < self.len {
                let padded = |from: *const u8, size: usize, get: unsafe fn(*const u8) -> f32| {
                    let mut values = [0f32; LANES];
                    for (i, value) in values[..self.len - k].iter_mut().enumerate() {
                        *value = get(from.add((k + i) * size));
                    }
                    L::load_f32(values.as_ptr().cast())
                };
                for (i, sums) in sums.iter_mut().enumerate() {
                    let x = padded(self.x.add(i * self.x_stride).cast(), 4, super::simd::F32::get);
                    for (j, sum) in sums.iter_mut().enumerate() {
                        let w = padded(self.w.add(j * self.w_stride), E::SIZE, E::get);
                        *sum = x.mul_add(w, *sum);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                let mut folded = [0.0; W];
                if W == 4 {
                    folded.copy_from_slice(&L::sum4(std::array::from_fn(|j| sums[j % W])));
                } else {
                    for (folded, sum) in folded.iter_mut().zip(sums) {
                        *folded = sum.sum();
                    }
                }
                for (j, folded) in folded.into_iter().enumerate() {
                    let out = &mut *self.out.add(i * self.out_stride + j * self.out_step);
                    *out = if self.add { *out + folded } else { folded };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::testing::Random;
    use half::{bf16, f16};

    fn random(name: &str, rows: usize, cols: usize) -> Tensor {
        let mut tensor = Tensor::new(rows, cols).unwrap();
        for (value, random) in tensor.values_mut().iter_mut().zip(Random::new(7, name)) {
            *value = random;
        }
        tensor
    }

    /// Random weights that start at an odd address, and their values.
    fn weight(dtype: Dtype, rows: usize, cols: usize) -> (Matrix, Vec<f32>) {
        let mut bytes = vec![0u8];
        let mut values = Vec::new();
        for value in Random::new(7, dtype.name()).take(rows * cols) {
            match dtype {
                Dtype::F32 => bytes.extend(value.to_le_bytes()),
                Dtype::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                Dtype::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            }
            values.push(match dtype {
                Dtype::F32 => value,
                Dtype::F16 => f16::from_f32(value).to_f32(),
                Dtype::Bf16 => bf16::from_f32(value).to_f32(),
            });
        }
        let data = bytes::Bytes::from(bytes).slice(1..);
        (Matrix { name: "weight".into(), format: dtype.into(), rows, cols, scale: 1.0, data }, values)
    }

    #[test]
    fn every_shape_equals_a_sum_in_f64_and_every_row_equals_itself_alone() {
        for (dtype, isa) in Dtype::ALL.iter().flat_map(|&d| Isa::available().into_iter().map(move |i| (d, i)))
        {
            for (rows, cols) in [(1, 1), (3, 19), (111, 989), (37, 1025), (65, 2064)] {
                let (weight, values) = weight(dtype, rows, cols);
                let x = random("x", 19, cols);
                // Poisoned, with one row more than is computed.
                let mut out = Tensor::new(20, rows).unwrap();
                out.values_mut().fill(f32::NAN);
                matmul(isa, 19, &x, &weight, &mut out).unwrap();
                assert!(out.row(19).iter().all(|v| v.is_nan()), "wrote behind the last row");
                for i in 0..19 {
                    for o in 0..rows {
                        let terms = x
                            .row(i)
                            .iter()
                            .zip(&values[o * cols..])
                            .map(|(&x, &w)| f64::from(x) * f64::from(w));
                        let exact: f64 = terms.clone().sum();
                        // cols / 16 roundings of half a unit in each lane, seldom all in one direction.
                        let tolerance = 1e-6 * terms.map(f64::abs).sum::<f64>();
                        let difference = (f64::from(out.row(i)[o]) - exact).abs();
                        assert!(
                            difference <= tolerance,
                            "{dtype} {isa:?} [{rows}, {cols}] at ({i}, {o}): {} instead of {exact}",
                            out.row(i)[o]
                        );
                    }
                }
                for n in [1, 2, 5, 8, 12, 13] {
                    let mut few = Tensor::new(n, rows).unwrap();
                    matmul(isa, n, &x, &weight, &mut few).unwrap();
                    assert_eq!(
                        few.values(),
                        out.first(n),
                        "{dtype} {isa:?} [{rows}, {cols}]: {n} rows differ"
                    );
                }
            }
        }
    }

    #[test]
    fn stacked_weights_are_multiplied_one_below_the_other_and_added_where_asked() {
        let isa = Isa::best();
        for n in [1, 13] {
            let x = random("x", n, 1100);
            let parts = [1, 2, 3].map(|i| weight(Dtype::F16, 7 * i, 1100).0);
            let mut out = Tensor::new(n, 42).unwrap();
            matmul_stacked(isa, n, &x, &parts, false, &mut out).unwrap();
            let mut first = 0;
            for part in &parts {
                let mut alone = Tensor::new(n, part.rows).unwrap();
                matmul(isa, n, &x, part, &mut alone).unwrap();
                for i in 0..n {
                    assert_eq!(&out.row(i)[first..][..part.rows], alone.row(i), "{n} rows, row {i}");
                }
                first += part.rows;
            }
            let mut sum = Tensor::new(n, 42).unwrap();
            sum.values_mut().fill(1.0);
            matmul_stacked(isa, n, &x, &parts, true, &mut sum).unwrap();
            for (sum, out) in sum.values().iter().zip(out.values()) {
                assert!((sum - out - 1.0).abs() <= 1e-5 * (1.0 + out.abs()), "{sum} instead of {out} + 1");
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (weight, _) = weight(Dtype::F16, 3, 19);
        let (x, mut out) = (random("x", 2, 19), Tensor::new(2, 3).unwrap());
        assert!(matmul(Isa::best(), 3, &x, &weight, &mut out).is_err());
        assert!(matmul(Isa::best(), 1, &random("x", 2, 18), &weight, &mut out).is_err());
        assert!(matmul(Isa::best(), 1, &x, &weight, &mut Tensor::new(2, 4).unwrap()).is_err());
    }
}
