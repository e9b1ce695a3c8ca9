//! What the kernel tests share: a device, inputs, poison, comparisons.

use qernel::batch::BatchLimits;
use qernel::cuda::{self, Activation, CudaOps, Device, KernelChoice, Tensor, is_ineligible};
use qernel::dtype::Dtype;
use qernel::error::Result;
use qernel::model::OpsConfig;
use qernel::ops::Ops;
use qernel::testing::Random;
use std::io::Write;
use std::rc::Rc;

/// Rows behind those that an operation works on; they must stay as they were.
pub const GUARD_ROWS: usize = 3;

/// Ragged numbers of columns, and two that variants with vector loads take.
pub const COLUMNS: [usize; 7] = [1, 19, 111, 989, 64, 896, 4864];

/// Ragged numbers of rows.
pub const ROWS: [usize; 4] = [1, 19, 111, 989];

/// Whether a case of so many elements is left out: compute-sanitizer makes kernels hundreds of times slower, and
/// `gpu-bundle/run --sanitizer` sets `QERNEL_TEST_SMALL` to keep to small cases there.
pub fn left_out(elements: usize) -> bool {
    const SMALL: usize = 100_000;
    elements > SMALL && std::env::var_os("QERNEL_TEST_SMALL").is_some()
}

/// The first GPU, or `None` after saying that the test is skipped. A GPU that cannot be opened fails the test.
pub fn device() -> Option<Rc<Device>> {
    if let Err(error) = cuda::probe() {
        // Not `eprintln`, which the test harness hides.
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let line = format!("{test}: skipped: no CUDA device ({error})\n");
        std::io::stderr().write_all(line.as_bytes()).ok();
        return None;
    }
    Some(Rc::new(Device::open(None).expect("the device opens")))
}

/// A shape for operations that know no heads.
pub fn plain_config() -> OpsConfig {
    OpsConfig {
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 64,
        rope_theta: 1e6,
        max_model_len: 64,
        limits: BatchLimits {
            max_num_tokens: 1024,
            max_num_sequences: 8,
            max_num_logits: 1024,
            max_blocks: 2,
        },
    }
}

/// Operations in `dtype` for [`plain_config`].
pub fn plain_ops(device: &Rc<Device>, dtype: Dtype) -> CudaOps {
    CudaOps::new(device, &plain_config(), dtype, KernelChoice::default()).expect("operations")
}

/// `count` values of a normal-like distribution with variance 1, which depend on seed and name alone.
pub fn random(seed: u64, name: &str, count: usize) -> Vec<f32> {
    Random::new(seed, name).take(count).collect()
}

/// `values` rounded to the nearest of `dtype`.
pub fn rounded(dtype: Dtype, values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| round(dtype, value)).collect()
}

/// `value` rounded to the nearest of `dtype`.
pub fn round(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F32 => value,
        Dtype::F16 => half::f16::from_f32(value).to_f32(),
        Dtype::Bf16 => half::bf16::from_f32(value).to_f32(),
    }
}

/// Unit roundoff of `dtype`: half the distance from 1 to the next value.
pub fn unit(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 2f64.powi(-24),
        Dtype::F16 => 2f64.powi(-11),
        Dtype::Bf16 => 2f64.powi(-8),
    }
}

/// Half the distance between the smallest values of `dtype`, where rounding is absolute.
pub fn smallest(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => 2f64.powi(-25),
        Dtype::F32 | Dtype::Bf16 => 2f64.powi(-134),
    }
}

/// A tensor of `n` rows with `values` and [`GUARD_ROWS`] of NaN.
pub fn tensor(ops: &mut CudaOps, n: usize, cols: usize, values: &[f32]) -> Tensor {
    assert_eq!(values.len(), n * cols);
    let mut tensor = poisoned(ops, n, cols);
    tensor.write(values).expect("inputs go up");
    tensor
}

/// A tensor of `n` rows and [`GUARD_ROWS`], all NaN.
pub fn poisoned(ops: &mut CudaOps, n: usize, cols: usize) -> Tensor {
    let rows = n + GUARD_ROWS;
    let mut tensor = ops.new_tensor(rows, cols).expect("memory");
    tensor.write(&vec![f32::NAN; rows * cols]).expect("poison goes up");
    tensor
}

/// An activation of `n` rows with `values` and [`GUARD_ROWS`] of NaN.
pub fn activation(ops: &mut CudaOps, n: usize, cols: usize, values: &[f32]) -> Activation {
    assert_eq!(values.len(), n * cols);
    let mut activation = poisoned_activation(ops, n, cols);
    activation.write(values).expect("inputs go up");
    activation
}

/// An activation of `n` rows and [`GUARD_ROWS`], all NaN.
pub fn poisoned_activation(ops: &mut CudaOps, n: usize, cols: usize) -> Activation {
    let rows = n + GUARD_ROWS;
    let mut activation = ops.new_activation(rows, cols).expect("memory");
    activation.write(&vec![f32::NAN; rows * cols]).expect("poison goes up");
    activation
}

/// Fails unless every value of the first `expected.len()` is within its tolerance and all behind are still NaN.
///
/// `tolerance` gets an index and the expected value; where it is called, a comment gives its reason.
pub fn assert_close(case: &str, found: &[f32], expected: &[f64], tolerance: impl Fn(usize, f64) -> f64) {
    let (values, guard) = found.split_at(expected.len());
    let mut worst = (0, 0.0);
    for (i, (&found, &expected)) in values.iter().zip(expected).enumerate() {
        let (difference, tolerance) = ((f64::from(found) - expected).abs(), tolerance(i, expected));
        // A NaN is not close. Infinities of one sign are equal and their difference is NaN.
        let close = difference <= tolerance || f64::from(found) == expected;
        if !close {
            let excess = if difference.is_nan() { f64::INFINITY } else { difference / tolerance };
            if excess > worst.1 {
                worst = (i, excess);
            }
        }
    }
    let (i, excess) = worst;
    assert!(
        excess == 0.0,
        "{case}: worst at {i}: found {}, expected {}, tolerance {:e} exceeded {excess:.1} times",
        values[i],
        expected[i],
        tolerance(i, expected[i])
    );
    if let Some(i) = guard.iter().position(|value| !value.is_nan()) {
        panic!("{case}: wrote {} at {} values behind the last row", guard[i], i);
    }
}

/// Fails unless the first values have the bits expected and all behind are still NaN.
pub fn assert_same_bits(case: &str, found: &[f32], expected: &[f32]) {
    let (values, guard) = found.split_at(expected.len());
    let differs = |(found, expected): (&f32, &f32)| found.to_bits() != expected.to_bits();
    if let Some(i) = values.iter().zip(expected).position(differs) {
        panic!(
            "{case}: at {i}: found {} ({:#x}), expected {} ({:#x})",
            values[i],
            values[i].to_bits(),
            expected[i],
            expected[i].to_bits()
        );
    }
    if let Some(i) = guard.iter().position(|value| !value.is_nan()) {
        panic!("{case}: wrote {} at {} values behind the last row", guard[i], i);
    }
}

/// The variants of an operation, and which of them computed a case so far.
pub struct Variants {
    op: &'static str,
    names: Vec<&'static str>,
    ran: Vec<bool>,
}

impl Variants {
    pub fn of(op: &'static str) -> Self {
        let (_, names) =
            cuda::kernels().into_iter().find(|(name, _)| *name == op).expect("an operation with variants");
        Self { op, ran: vec![false; names.len()], names }
    }

    /// Runs a case once with each variant that can compute it.
    pub fn each(&mut self, ops: &mut CudaOps, mut run: impl FnMut(&mut CudaOps, &str) -> Result<()>) {
        for (name, ran) in self.names.iter().zip(&mut self.ran) {
            let mut choice = KernelChoice::default();
            choice.set(self.op, name).expect("a variant of the table");
            ops.choose(choice).expect("the library that the variant needs");
            match run(ops, name) {
                Ok(()) => *ran = true,
                Err(error) if is_ineligible(&error) => {}
                Err(error) => panic!("{}={name}: {error}", self.op),
            }
        }
        ops.choose(KernelChoice::default()).expect("the default");
    }

    /// Fails if a variant was eligible for no case: then it was not tested.
    pub fn assert_all_ran(&self) {
        for (name, ran) in self.names.iter().zip(&self.ran) {
            assert!(ran, "{}={name} was eligible for no case", self.op);
        }
    }
}
