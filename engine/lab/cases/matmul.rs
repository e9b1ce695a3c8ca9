//! Products with weights: cuBLAS and the kernels that need no library.

use crate::cuda::{Activation, CudaOps, KernelChoice, Tensor, Weight};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::Ops;
use crate::testing::Random;
use rayon::prelude::*;

pub const CASES: Cases = Cases { op: "matmul", checks, timings };

/// The variant that goes through the library: its last bits depend on the number of rows.
const CUBLAS: &str = "cublas";

/// A reference of more multiply-adds than this is computed for some of the results only.
const WHOLE_REFERENCE: usize = 1 << 29;
/// For how many, then.
const SOME: usize = 4096;

/// What the weights are multiplied with.
pub const SCALE: f32 = 0.25;

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Out {
    /// Written in f32.
    Written,
    /// Written in f16 where the device thinks it better, else in f32.
    Rounded,
    /// Added to what is there, in f32.
    Added,
}

/// `[n, rows, cols]`: x `[n, cols]`, weight `[rows, cols]`.
type Shape = [usize; 3];

fn checks() -> Vec<Case> {
    const SHAPES: [Shape; 13] = [
        [1, 1, 1],
        [1, 19, 111],
        [19, 111, 19],
        [111, 19, 989],
        [3, 989, 1],
        [1, 896, 896],
        [19, 128, 896],
        [19, 130, 896],
        [5, 896, 4864],
        [111, 130, 64],
        // Few rows of x, whole and in parts of what a kernel takes at once; rows longer than what it loads at once.
        [2, 70, 896],
        [6, 19, 64],
        [4, 37, 2056],
    ];
    // Norms and SwiGLU hand f32 to products with bf16 weights: nothing of it may be rounded to bf16.
    const MIXED: [Shape; 8] = [
        [1, 19, 111],
        [3, 989, 64],
        [3, 19, 64],
        [8, 130, 896],
        [9, 130, 896],
        [9, 19, 111],
        [111, 896, 4864],
        [6, 37, 2056],
    ];
    let plain = Dtype::ALL.into_iter().flat_map(|dtype| SHAPES.map(|shape| case(dtype, dtype, shape, "")));
    let mixed = MIXED.map(|shape| case(Dtype::Bf16, Dtype::F32, shape, ""));
    const SOME_SHAPES: [Shape; 3] = [[1, 19, 111], [19, 130, 896], [111, 1024, 64]];
    let others = Dtype::ALL.into_iter().flat_map(|dtype| {
        let x_dtype = crate::cuda::precise_dtype(dtype);
        let of = move |out| SOME_SHAPES.map(|shape| product(dtype, x_dtype, shape, "", out));
        [Out::Rounded, Out::Added].into_iter().flat_map(of)
    });
    plain.chain(mixed).chain(others).collect()
}

/// Every projection of the model.
fn timings(workload: &Workload) -> Vec<Case> {
    let config = &workload.config;
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let q_size = config.num_attention_heads * config.head_dim;
    let kv_size = config.num_key_value_heads * config.head_dim;
    // What norms and SwiGLU write, and what attention writes.
    let precise = crate::cuda::precise_dtype(workload.dtype);
    let projections = [
        ("qkv_proj", q_size + 2 * kv_size, hidden, precise, Out::Written),
        ("o_proj", hidden, q_size, workload.dtype, Out::Added),
        ("gate_up_proj", 2 * intermediate, hidden, precise, Out::Rounded),
        ("down_proj", hidden, intermediate, precise, Out::Added),
        ("lm_head", config.vocab_size, hidden, precise, Out::Written),
    ];
    let mut cases = Vec::new();
    for (name, rows, cols, x_dtype, out) in projections {
        let of = |&n: &usize| product(workload.dtype, x_dtype, [n, rows, cols], name, out);
        cases.extend(workload.rows.iter().map(of));
    }
    cases
}

/// A large product of that dtype, whose rate is the device's ceiling for arithmetic.
pub fn largest(dtype: Dtype) -> Case {
    case(dtype, dtype, [4096, 8192, 8192], "ceiling")
}

fn case(dtype: Dtype, x_dtype: Dtype, shape: Shape, name: &'static str) -> Case {
    product(dtype, x_dtype, shape, name, Out::Written)
}

fn product(dtype: Dtype, x_dtype: Dtype, shape: Shape, name: &'static str, out: Out) -> Case {
    let [n, rows, cols] = shape;
    let becomes = match out {
        Out::Written => "",
        Out::Rounded => ", rounded",
        Out::Added => ", added",
    };
    let x_format = if x_dtype == dtype { String::new() } else { format!(" {x_dtype}") };
    let space = if name.is_empty() { "" } else { " " };
    let bytes = n * cols * x_dtype.size() + rows * cols * dtype.size() + n * rows * 4;
    Case {
        dtype,
        shape: format!("{name}{space}x{x_format} [{n}, {cols}], weight [{rows}, {cols}]{becomes}"),
        // A multiply-add is one of many in a thread.
        work: n * rows * cols / 16,
        cost: Cost { bytes: bytes as f64, flops: 2.0 * (n * rows) as f64 * cols as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(Matmul::new(ops, seed, x_dtype, shape, out)?))),
    }
}

struct Matmul {
    shape: Shape,
    /// x is f32 and the weights are bf16.
    mixed: bool,
    host_x: Vec<f32>,
    /// Indices of the results that are compared, ascending.
    places: Vec<usize>,
    /// For each place the sum in f64, and the sum of magnitudes, for the tolerance.
    expected: Vec<(f64, f64)>,
    x: Activation,
    weight: Weight,
    out: Tensor,
    /// In the place of `out`.
    rounded: Option<Activation>,
    /// What is in `out` before.
    before: Option<Vec<f32>>,
}

impl Matmul {
    fn new(ops: &mut CudaOps, seed: u64, x_dtype: Dtype, shape: Shape, out: Out) -> Result<Self> {
        let [n, rows, cols] = shape;
        let dtype = ops.dtype();
        let name = format!("matmul {shape:?}");
        let host_x = rounded(x_dtype, random(seed, &name, n * cols));
        let host_weight = rounded(dtype, random(seed, &format!("{name}: weight"), rows * cols));
        let places = places(seed, n * rows, cols);
        let before = (out == Out::Added).then(|| random(seed, &format!("{name}: before"), n * rows));
        let expected = places
            .par_iter()
            .map(|place| {
                let x = &host_x[place / rows * cols..][..cols];
                let weight = &host_weight[place % rows * cols..][..cols];
                let products = x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * f64::from(w * SCALE));
                let before = before.as_ref().map_or(0.0, |before| f64::from(before[*place]));
                products.fold((before, before.abs()), |(sum, magnitude), p| (sum + p, magnitude + p.abs()))
            })
            .collect();
        let mixed = x_dtype != dtype;
        let mut weight = weight(ops, dtype, rows, cols, &host_weight)?;
        weight.set_scale(SCALE);
        Ok(Self {
            shape,
            mixed,
            places,
            expected,
            x: operand(ops, mixed, n, cols, &host_x)?,
            host_x,
            weight,
            out: poisoned(ops, n, rows)?,
            rounded: (out == Out::Rounded).then(|| ops.new_product(n + GUARD_ROWS, rows)).transpose()?,
            before,
        })
    }

    /// The results, and what rounding them once more may cost each.
    fn found(&self) -> Result<(Vec<f32>, Dtype)> {
        match &self.rounded {
            Some(rounded) => Ok((rounded.to_host()?, rounded.dtype())),
            None => Ok((self.out.to_host()?, Dtype::F32)),
        }
    }

    /// The results of some rows of x, computed alone.
    fn alone(&self, ops: &mut CudaOps, row: usize) -> Result<Vec<f32>> {
        let [_, rows, cols] = self.shape;
        let x = operand(ops, self.mixed, 1, cols, &self.host_x[row * cols..][..cols])?;
        let mut out = poisoned(ops, 1, rows)?;
        ops.matmul(1, &x, &self.weight, &mut out)?;
        out.to_host()
    }

    fn compare_found(&self, of: &'static str, found: &[f32], format: Dtype, findings: &mut Findings) {
        let [n, rows, cols] = self.shape;
        // Errors of single additions in f32 go in both directions and grow with the root of their number; tensor cores
        // truncate, which costs a factor of two. Two parts of bf16 keep 16 bits of an f32 input.
        let sums = ((cols as f64).sqrt() + 8.0) * 2.0 * unit(Dtype::F32);
        let relative = if self.mixed { sums + 2f64.powi(-16) } else { sums };
        let values = self.places.iter().map(|&place| (place, found[place]));
        findings.places(of, values, |place| {
            let i = self.places.binary_search(&place).expect("one of the places");
            let (sum, magnitude) = self.expected[i];
            let rounding =
                if format == Dtype::F32 { 0.0 } else { sum.abs() * unit(format) + smallest(format) };
            (sum, magnitude * relative + rounding)
        });
        findings.guard_intact(of, &found[n * rows..]);
        let poison = found[..n * rows].iter().position(|value| value.is_nan());
        findings.expect(poison.is_none(), || format!("{of}: not a number at {}", poison.unwrap_or_default()));
    }
}

impl Instance for Matmul {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        if let Some(rounded) = &mut self.rounded {
            // Not a number in f32 and, half by half, in f16.
            rounded.set_dtype(Dtype::F32)?;
            rounded.write(&vec![f32::from_bits(u32::MAX); rounded.rows() * rounded.cols()])?;
        }
        fill_tensor(&mut self.out, self.before.as_deref().unwrap_or_default())
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        if let Some(rounded) = &mut self.rounded {
            return ops.matmul_rounded(self.shape[0], &self.x, &self.weight, rounded);
        }
        if self.before.is_some() {
            return ops.matmul_accumulate(self.shape[0], &self.x, &self.weight, &mut self.out);
        }
        ops.matmul(self.shape[0], &self.x, &self.weight, &mut self.out)
    }

    fn default_variant(&self) -> Option<&'static str> {
        let [n, _, cols] = self.shape;
        crate::cuda::preferred_matmul(self.weight.dtype()?, self.x.dtype(), n, cols)
    }

    fn compare(&mut self, ops: &mut CudaOps, variant: &str, findings: &mut Findings) -> Result<()> {
        let [n, rows, _] = self.shape;
        let (found, format) = self.found()?;
        self.compare_found("out", &found, format, findings);
        let x_dtype = self.x.dtype();
        findings.expect(!self.mixed || x_dtype == Dtype::F32, || format!("x: expected f32, found {x_dtype}"));
        if variant == CUBLAS {
            if self.mixed {
                // What is taken where nothing is asked for depends on the number of rows.
                self.reset(ops)?;
                ops.choose(KernelChoice::default())?;
                self.launch(ops)?;
                let (found, format) = self.found()?;
                self.compare_found("out by default", &found, format, findings);
            }
            return Ok(());
        }
        if self.before.is_some() {
            return Ok(());
        }
        // Rows have the same bits alone and in a batch.
        let some = [0, n / 2, n - 1];
        for row in (0..n).filter(|row| n > 1 && (n < 20 || some.contains(row))) {
            let alone = self.alone(ops, row)?;
            findings.same_bits("a row alone, against the batch", &alone, &found[row * rows..][..rows]);
        }
        Ok(())
    }
}

/// x in the format of the weights, or in f32 where those are bf16.
fn operand(ops: &mut CudaOps, mixed: bool, n: usize, cols: usize, x: &[f32]) -> Result<Activation> {
    if !mixed {
        return activation(ops, n, cols, x);
    }
    let mut operand = ops.new_precise_activation(n + GUARD_ROWS, cols)?;
    fill_activation(&mut operand, x)?;
    Ok(operand)
}

/// All of `count` results, or some of them where each costs so many multiply-adds that all would take long.
pub fn places(seed: u64, count: usize, cols: usize) -> Vec<usize> {
    if count.saturating_mul(cols) <= WHOLE_REFERENCE || count <= SOME {
        return (0..count).collect();
    }
    let mut random = Random::new(seed, "places");
    let mut places: Vec<_> = (0..SOME).map(|_| (random.next_u64() % count as u64) as usize).collect();
    places.extend([0, count - 1]);
    places.sort_unstable();
    places.dedup();
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::case::choose;

    #[test]
    fn large_results_are_compared_in_some_places_with_the_last() {
        assert_eq!(places(1, 3, 5), [0, 1, 2]);
        let some = places(1, 512 * 151_936, 896);
        assert!((SOME / 2..=SOME + 2).contains(&some.len()));
        assert_eq!((some[0], *some.last().unwrap()), (0, 512 * 151_936 - 1));
    }

    #[test]
    fn rows_alone_need_no_library() {
        assert_eq!(choose("matmul", "gemv").unwrap().get("matmul"), Some("gemv"));
        assert_eq!(choose("rms_norm", "plain").unwrap().get("matmul"), Some("plain"));
    }
}
