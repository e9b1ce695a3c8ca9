//! The five kernels, each with inputs of some size: how it is launched, what must come out, and what it costs at least.

use crate::cublas::Call;
use cuda_std::launch::{DevicePtr, LaunchConfig, Launcher};
use example_kernels::{self as kernels, Expected};
use example_kernels_steps::machine::Machine;
use half::f16;

type Launch<M> = Box<dyn Fn(&M) -> Result<(), <M as Launcher>::Error>>;

/// A kernel with inputs on a machine.
pub struct Case<M: Machine> {
    pub name: &'static str,
    pub size: Vec<usize>,
    pub cost: Cost,
    /// What cuBLAS does instead.
    pub library: Option<Call>,
    /// Queues it.
    pub launch: Launch<M>,
    /// Where its result is.
    result: DevicePtr<f32>,
    /// From the inputs, in f64.
    expected: Box<dyn Fn() -> Vec<Expected>>,
}

/// What any implementation must do.
#[derive(Clone, Copy)]
pub struct Cost {
    /// Bytes that memory gives and takes.
    pub bytes: usize,
    /// Operations.
    pub operations: usize,
    pub on_tensor_cores: bool,
}

impl<M: Machine> Case<M> {
    /// Runs it once and compares: the largest difference as a share of what roundings explain.
    ///
    /// # Errors
    /// What the machine says, or where a value is further off than that.
    pub fn check(&self, machine: &M) -> Result<f64, String> {
        let expected = (self.expected)();
        let fault = |error: M::Error| error.to_string();
        (self.launch)(machine).map_err(fault)?;
        let found = machine.download(self.result, expected.len()).map_err(fault)?;
        let mut worst = 0.0f64;
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let difference = (f64::from(*found) - expected.value).abs();
            if difference.is_nan() || difference > expected.tolerance {
                return Err(format!(
                    "{} {:?}: value {i} is {found}; expected {} within {:e}",
                    self.name, self.size, expected.value, expected.tolerance
                ));
            }
            worst = worst.max(if difference > 0.0 { difference / expected.tolerance } else { 0.0 });
        }
        Ok(worst)
    }
}

/// `count` numbers from 0 to 1, or from -1 to 1 where `signed`, by Steele, Lea and Flood's SplitMix64.
fn random(mut seed: u64, count: usize, signed: bool) -> Vec<f32> {
    let mut next = || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32;
        if signed { 2.0 * unit - 1.0 } else { unit }
    };
    (0..count).map(|_| next()).collect()
}

fn config(grid: [usize; 3], block: [u32; 3]) -> LaunchConfig {
    LaunchConfig { grid: grid.map(|blocks| blocks as u32), block, shared_bytes: 0 }
}

/// Blocks of a grid whose threads go on a grid further: enough to fill a large GPU.
fn blocks(n: usize, block: u32) -> usize {
    n.div_ceil(block as usize).min(2048)
}

pub fn saxpy<M: Machine>(machine: &M, n: usize) -> Result<Case<M>, M::Error> {
    const A: f32 = 0.7;
    let (x, y) = (random(1, n, true), random(2, n, true));
    let (x_ptr, y_ptr) = (DevicePtr::from(machine.upload(&x)?), machine.upload(&y)?);
    let config = config([blocks(n, kernels::SAXPY_BLOCK), 1, 1], [kernels::SAXPY_BLOCK, 1, 1]);
    Ok(Case {
        name: "saxpy",
        size: vec![n],
        cost: Cost { bytes: 12 * n, operations: 2 * n, on_tensor_cores: false },
        library: Some(Call::Saxpy { n, a: A, x: x_ptr, y: y_ptr }),
        // SAFETY: both have `n` values.
        launch: Box::new(move |machine| unsafe {
            kernels::saxpy(machine, &config, n as u32, A, x_ptr, y_ptr)
        }),
        result: y_ptr.into(),
        expected: Box::new(move || kernels::saxpy_reference(A, &x, &y)),
    })
}

pub fn sum<M: Machine>(machine: &M, n: usize) -> Result<Case<M>, M::Error> {
    let x = random(3, n, false);
    let num_blocks = blocks(n, kernels::SUM_BLOCK);
    let x_ptr = DevicePtr::from(machine.upload(&x)?);
    let (of_blocks, out) = (machine.upload(&vec![0.0f32; num_blocks])?, machine.upload(&[0.0f32])?);
    let first = config([num_blocks, 1, 1], [kernels::SUM_BLOCK, 1, 1]);
    let second = config([1, 1, 1], [kernels::SUM_BLOCK, 1, 1]);
    Ok(Case {
        name: "sum",
        size: vec![n],
        cost: Cost { bytes: 4 * n, operations: n, on_tensor_cores: false },
        library: Some(Call::Asum { n, x: x_ptr, out }),
        // SAFETY: `x` has `n` values, `of_blocks` one a block, `out` one.
        launch: Box::new(move |machine| unsafe {
            kernels::sum(machine, &first, n as u32, x_ptr, of_blocks)?;
            kernels::sum(machine, &second, num_blocks as u32, of_blocks.into(), out)
        }),
        result: out.into(),
        expected: Box::new(move || vec![kernels::sum_reference(&x, num_blocks)]),
    })
}

/// [`sum`] by a kernel that lacks a barrier.
pub fn race<M: Machine>(machine: &M) -> Result<(), M::Error> {
    let x = machine.upload(&random(4, 1000, false))?;
    let out = machine.upload(&[0.0f32])?;
    let config = config([1, 1, 1], [kernels::SUM_BLOCK, 1, 1]);
    // SAFETY: as for `sum`, but for the race, which the emulator survives.
    unsafe { kernels::sum_without_barrier(machine, &config, 1000, x.into(), out) }
}

pub fn softmax<M: Machine>(machine: &M, [rows, cols]: [usize; 2]) -> Result<Case<M>, M::Error> {
    let x: Vec<f32> = random(5, rows * cols, true).iter().map(|x| 4.0 * x).collect();
    let (x_ptr, out) = (machine.upload(&x)?, machine.upload(&vec![0.0f32; rows * cols])?);
    let config = config([rows, 1, 1], [kernels::SOFTMAX_BLOCK, 1, 1]);
    Ok(Case {
        name: "softmax",
        size: vec![rows, cols],
        // An exponential counts as one.
        cost: Cost { bytes: 8 * rows * cols, operations: 5 * rows * cols, on_tensor_cores: false },
        library: None,
        // SAFETY: both have `rows * cols` values.
        launch: Box::new(move |machine| unsafe {
            kernels::softmax(machine, &config, cols as u32, x_ptr.into(), out)
        }),
        result: out.into(),
        expected: Box::new(move || kernels::softmax_reference(&x, cols)),
    })
}

pub fn matmul<M: Machine>(machine: &M, size: [usize; 3]) -> Result<Case<M>, M::Error> {
    let [m, n, k] = size;
    let (a, b) = (random(6, m * k, true), random(7, k * n, true));
    let [a_ptr, b_ptr] = [DevicePtr::from(machine.upload(&a)?), DevicePtr::from(machine.upload(&b)?)];
    let c = machine.upload(&vec![0.0f32; m * n])?;
    let tiles = |length: usize| length.div_ceil(kernels::MATMUL_TILE as usize);
    let config = config([tiles(n), tiles(m), 1], [16, 16, 1]);
    Ok(Case {
        name: "matmul",
        size: size.into(),
        cost: Cost { bytes: 4 * (m * k + k * n + m * n), operations: 2 * m * n * k, on_tensor_cores: false },
        library: Some(Call::Gemm { size, a: a_ptr, b: b_ptr, c }),
        // SAFETY: the matrices have these sizes, the grid has a block for each tile.
        launch: Box::new(move |machine| unsafe {
            kernels::matmul(machine, &config, m as u32, n as u32, k as u32, a_ptr, b_ptr, c)
        }),
        result: c.into(),
        expected: Box::new(move || kernels::matmul_reference(&a, &b, k)),
    })
}

/// `m` and `n` are multiples of 64, `k` of 32.
pub fn matmul_tensor_cores<M: Machine>(machine: &M, size: [usize; 3]) -> Result<Case<M>, M::Error> {
    let [m, n, k] = size;
    let tile = kernels::MMA_TILE as usize;
    assert!(m % tile == 0 && n % tile == 0 && k % kernels::MMA_DEPTH as usize == 0, "{size:?}: whole tiles");
    let halves = |seed, count| random(seed, count, true).into_iter().map(f16::from_f32).collect::<Vec<_>>();
    let (a, b) = (halves(8, m * k), halves(9, n * k));
    let [a_ptr, b_ptr] = [DevicePtr::from(machine.upload(&a)?), DevicePtr::from(machine.upload(&b)?)];
    let c = machine.upload(&vec![0.0f32; m * n])?;
    let config = config([n / tile, m / tile, 1], [kernels::MMA_BLOCK, 1, 1]);
    Ok(Case {
        name: "matmul_tensor_cores",
        size: size.into(),
        cost: Cost {
            bytes: 2 * (m * k + n * k) + 4 * m * n,
            operations: 2 * m * n * k,
            on_tensor_cores: true,
        },
        library: Some(Call::GemmF16 { size, a: a_ptr, b: b_ptr, c }),
        // SAFETY: the matrices have these sizes, which are whole tiles; buffers are aligned to 256 bytes.
        launch: Box::new(move |machine| unsafe {
            kernels::matmul_tensor_cores(machine, &config, n as u32, k as u32, a_ptr, b_ptr, c)
        }),
        result: c.into(),
        expected: Box::new(move || kernels::matmul_tensor_cores_reference(&a, &b, k)),
    })
}

/// Small cases, none of them a round number where the kernel takes any.
pub fn small<M: Machine>(machine: &M) -> Result<Vec<Case<M>>, M::Error> {
    let mut cases = Vec::new();
    for n in [1, 1000, 70_001] {
        cases.push(saxpy(machine, n)?);
        cases.push(sum(machine, n)?);
    }
    for size in [[1, 1], [3, 19], [5, 1000]] {
        cases.push(softmax(machine, size)?);
    }
    for size in [[1, 1, 1], [70, 65, 33], [128, 64, 48]] {
        cases.push(matmul(machine, size)?);
    }
    for size in [[64, 64, 32], [128, 192, 96]] {
        cases.push(matmul_tensor_cores(machine, size)?);
    }
    Ok(cases)
}

/// Cases that keep a GPU busy.
pub fn large<M: Machine>(machine: &M) -> Result<Vec<Case<M>>, M::Error> {
    Ok(vec![
        saxpy(machine, 1 << 26)?,
        sum(machine, 1 << 26)?,
        softmax(machine, [8192, 4096])?,
        matmul(machine, [4096, 4096, 4096])?,
        matmul_tensor_cores(machine, [4096, 4096, 4096])?,
    ])
}
