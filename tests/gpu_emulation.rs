//! The emulator against a GPU: what is exact or has its rounding specified agrees bit for bit (what Rust leaves open
//! apart, see `left_open`), what the hardware approximates within the bounds that `cuda_std` states. Needs the
//! feature `gpu-tests` and a GPU (`tests/common/gpu.rs`), of compute capability 9.0: the tensor cores of others add
//! differently, and there the tests say that they are skipped.
//!
//! `cargo test --release --features gpu-tests --test gpu_emulation -- --nocapture`

#[path = "common/gpu.rs"]
mod gpu;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Debug;

use cuda_driver as _;
use cuda_std::emulation::{Emulator, Format, HOPPER, Model, Options, multiply};
use cuda_std::launch::{DevicePtr, DevicePtrMut, Kernel, LaunchConfig, Launcher};
use cuda_std_test_kernels::{
    APPROXIMATE, EXACT, PTX_SM_90A, WGMMA_SHARED_BYTES, compare_approximate, compare_atomics, compare_exact,
    compare_ldmatrix, compare_mma, compare_mma_integers, compare_mma_tf32, compare_warp,
    compare_wgmma_bf16_n64, compare_wgmma_bf16_n128, compare_wgmma_f16_n64, compare_wgmma_f16_n128,
    compare_wgmma_f16_n256,
};
use cust::memory::{CopyDestination, DeviceBuffer};
use cust::module::Module;
use cust::sys;
use qernel::testing::Random;

/// Where kernels run: the GPU or the emulator.
trait Machine: Launcher<Error: Debug> {
    fn upload(&self, bytes: &[u8]) -> u64;
    fn download(&self, from: u64, bytes: &mut [u8]);
}

impl Machine for Emulator {
    fn upload(&self, bytes: &[u8]) -> u64 {
        let address = self.allocate(bytes.len());
        // SAFETY: just allocated.
        unsafe { self.write(address, bytes) };
        address
    }

    fn download(&self, from: u64, bytes: &mut [u8]) {
        // SAFETY: nothing runs.
        unsafe { self.read(from, bytes) }
    }
}

/// The first GPU.
struct Gpu {
    buffers: RefCell<HashMap<u64, DeviceBuffer<u8>>>,
    module: Module,
    _context: cust::context::Context,
}

impl Gpu {
    fn open() -> Option<Self> {
        let (major, minor) = gpu::first()?.compute_capability;
        if major != 9 {
            gpu::skip(&format!("compute capability {major}.{minor}, and what is emulated is 9.0"));
            return None;
        }
        let context = cust::quick_init().expect("a context");
        let module = Module::from_ptx(PTX_SM_90A, &[]).expect("the PTX loads");
        Some(Self { buffers: RefCell::default(), module, _context: context })
    }
}

impl Launcher for Gpu {
    type Error = sys::CUresult;

    unsafe fn launch(
        &self,
        kernel: &'static Kernel,
        config: &LaunchConfig,
        params: &mut [*mut c_void],
    ) -> Result<(), sys::CUresult> {
        let function = self.module.get_function(kernel.name).expect("the module has the kernel");
        let ([gx, gy, gz], [bx, by, bz]) = (config.grid, config.block);
        // SAFETY: the caller vouches for the parameters; then it is waited for.
        let result = unsafe {
            match sys::cuLaunchKernel(
                function.to_raw(),
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                config.shared_bytes,
                std::ptr::null_mut(),
                params.as_mut_ptr(),
                std::ptr::null_mut(),
            ) {
                sys::CUresult::CUDA_SUCCESS => sys::cuCtxSynchronize(),
                refused => refused,
            }
        };
        if result == sys::CUresult::CUDA_SUCCESS { Ok(()) } else { Err(result) }
    }
}

impl Machine for Gpu {
    fn upload(&self, bytes: &[u8]) -> u64 {
        let buffer = DeviceBuffer::from_slice(bytes).expect("memory");
        let address = buffer.as_device_ptr().as_raw();
        self.buffers.borrow_mut().insert(address, buffer);
        address
    }

    fn download(&self, from: u64, bytes: &mut [u8]) {
        let buffers = self.buffers.borrow();
        buffers[&from].index(0..bytes.len()).copy_to(bytes).expect("a copy");
    }
}

/// Any pattern, often a special one.
fn any_bits(random: &mut Random) -> u32 {
    const SPECIAL: [u32; 12] = [
        0,
        1,
        0x8000_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x0080_0000,
        0x007f_ffff,
        0x3f80_0000,
        0x7f7f_ffff,
        0x4b00_0001,
        0x3f00_0000,
    ];
    let word = random.next_u64();
    match word % 8 {
        0 => SPECIAL[(word >> 40) as usize % SPECIAL.len()],
        // Moderate exponents, so that sums and roundings matter.
        1..=4 => (word >> 32) as u32 & 0x807f_ffff | (117 + (word >> 8) as u32 % 20) << 23,
        _ => (word >> 32) as u32,
    }
}

/// A finite number of moderate size.
fn float(random: &mut Random, largest: f32) -> f32 {
    ((random.next_u64() >> 40) as f32 / 8_388_608.0 - 1.0) * largest
}

/// Words of a launch's output.
fn run(
    machine: &impl Machine,
    input: &[u32],
    output_words: usize,
    launch: impl FnOnce(u64, u64),
) -> Vec<u32> {
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let (from, to) = (machine.upload(&bytes(input)), machine.upload(&vec![0; 4 * output_words]));
    launch(from, to);
    let mut out = vec![0; 4 * output_words];
    machine.download(to, &mut out);
    out.chunks(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect()
}

/// A launch on both machines.
macro_rules! both {
    ($gpu:expr, $input:expr, $words:expr, $config:expr, |$from:ident, $to:ident| $kernel:ident($($argument:expr),*)) => {{
        let emulator = Emulator::new(Options::default());
        let config: LaunchConfig = $config;
        // SAFETY: the buffers have the sizes that the kernel asks for.
        let on_gpu = run($gpu, $input, $words, |$from, $to| unsafe {
            $kernel($gpu, &config, $($argument),*).expect("the GPU runs it")
        });
        // SAFETY: as above.
        let emulated = run(&emulator, $input, $words, |$from, $to| unsafe {
            $kernel(&emulator, &config, $($argument),*).expect("the emulator runs it")
        });
        (on_gpu, emulated)
    }};
}

fn grid(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
}

/// Whether Rust allows both results of one of its own operators or methods: it leaves open which NaN they give, and
/// which of two zeros `max` and `min` give.
fn left_open(name: &str, input: &[u32], gpu: u32, emulated: u32) -> bool {
    let [gpu, emulated] = [gpu, emulated].map(f32::from_bits);
    let nan = gpu.is_nan() && emulated.is_nan();
    let zeros = || input.iter().chain([&gpu.to_bits(), &emulated.to_bits()]).all(|bits| bits << 1 == 0);
    match name {
        "division" => nan,
        "max" | "min" => nan || zeros(),
        _ => false,
    }
}

/// Compares columns of results bit by bit; says for each how many differ.
fn same_bits(
    what: &str,
    columns: usize,
    names: &[&str],
    input: &[u32],
    gpu: &[u32],
    emulated: &[u32],
) -> usize {
    let per_row = input.len() / (gpu.len() / columns).max(1);
    let mut differing = 0;
    for column in 0..columns {
        let name = names.get(column).copied().unwrap_or("");
        let row = |i: usize| &input[i / columns * per_row..][..per_row];
        let (open, wrong): (Vec<_>, Vec<_>) = (column..gpu.len())
            .step_by(columns)
            .filter(|&i| gpu[i] != emulated[i])
            .partition(|&i| left_open(name, row(i), gpu[i], emulated[i]));
        if !open.is_empty() {
            println!("{what}, column {column} {name}: {} differ where Rust leaves it open", open.len());
        }
        if let Some(&first) = wrong.first() {
            println!(
                "{what}, column {column} {name}: {} of {} differ; row {}: input {:x?}, GPU {:#010x}, emulator {:#010x}",
                wrong.len(),
                gpu.len() / columns,
                first / columns,
                row(first),
                gpu[first],
                emulated[first]
            );
        }
        differing += wrong.len();
    }
    differing
}

#[test]
fn exact_operations_have_the_same_bits() {
    let Some(gpu) = &Gpu::open() else { return };
    let mut random = Random::new(1, "exact");
    let n = 1 << 16;
    let pairs: Vec<u32> = (0..2 * n).map(|_| any_bits(&mut random)).collect();
    let (on_gpu, emulated) = both!(gpu, &pairs, 21 * n, grid(256, 256), |from, to| compare_exact(
        n as u32,
        DevicePtr::from_raw(from),
        DevicePtrMut::from_raw(to)
    ));
    let mut differing = same_bits("exact", 21, &EXACT, &pairs, &on_gpu, &emulated);

    let words: Vec<u32> = (0..32 * 512).map(|_| any_bits(&mut random)).collect();
    let (on_gpu, emulated) = both!(gpu, &words, 26 * words.len(), grid(512, 32), |from, to| compare_warp(
        DevicePtr::from_raw(from),
        DevicePtrMut::from_raw(to)
    ));
    differing += same_bits("warp", 26, &[], &words, &on_gpu, &emulated);

    let (on_gpu, emulated) =
        both!(gpu, &[0], 14 * 32, grid(1, 32), |_from, to| compare_ldmatrix(DevicePtrMut::from_raw(to)));
    differing += same_bits("ldmatrix", 14, &[], &[], &on_gpu, &emulated);

    let words: Vec<u32> = (0..3 * 64 * 64).map(|_| any_bits(&mut random)).collect();
    let (on_gpu, emulated) = both!(gpu, &words, 10 * 64 * 64, grid(64, 64), |from, to| compare_atomics(
        DevicePtrMut::from_raw(from),
        DevicePtrMut::from_raw(to)
    ));
    differing += same_bits("atomics", 10, &[], &words, &on_gpu, &emulated);
    assert_eq!(differing, 0, "results differ; see above");
}

#[test]
fn approximations_are_within_their_bounds() {
    let Some(gpu) = &Gpu::open() else { return };
    let mut random = Random::new(2, "approximate");
    let n = 1 << 16;
    let x: Vec<f32> = (0..n)
        .map(|i| match i % 4 {
            0 => float(&mut random, std::f32::consts::PI),
            1 => float(&mut random, 80.0),
            2 => float(&mut random, 1.0).abs() + 1e-3,
            _ => f32::from_bits(any_bits(&mut random)),
        })
        .collect();
    let bits: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
    let (on_gpu, emulated) = both!(gpu, &bits, 9 * n, grid(256, 256), |from, to| compare_approximate(
        n as u32,
        DevicePtr::from_raw(from),
        DevicePtrMut::from_raw(to)
    ));
    let mut worst = [(0.0f64, 0.0f32, 0.0f32, 0.0f32); APPROXIMATE.len()];
    for (i, (&gpu, &emulated)) in on_gpu.iter().zip(&emulated).enumerate() {
        let (x, column, a, b) = (x[i / 9], i % 9, f32::from_bits(gpu), f32::from_bits(emulated));
        let (difference, size) =
            ((f64::from(a) - f64::from(b)).abs(), f64::from(b).abs().max(f64::from(f32::MIN_POSITIVE)));
        // The stated bound, and half a unit in the last place, which the emulator's own rounding is off.
        let half_unit = size * 2f64.powi(-24);
        let bound = half_unit
            + match column {
                0 | 8 => size * 2f64.powi(-22),
                1 => size * 2f64.powf(-22.9),
                2 => size * 2f64.powi(-22),
                3 => size * 2f64.powi(-23),
                4 => size * 2f64.powi(-21) * f64::from(x).abs().max(1.0),
                5 if x > 0.5 && x < 2.0 => 2f64.powi(-22),
                5 => size * 2f64.powi(-22),
                _ if x.abs() > std::f32::consts::PI => continue,
                _ => 2f64.powf(-20.9),
            };
        // All of these give one NaN: another, or one on one side alone, is beyond any bound.
        let error = if gpu == emulated || a == b { 0.0 } else { difference / bound };
        if error.is_nan() || error > worst[column].0 {
            worst[column] = (error, x, a, b);
        }
    }
    for (name, (error, x, gpu, emulated)) in APPROXIMATE.iter().zip(worst) {
        let bits = [x, gpu, emulated].map(f32::to_bits);
        println!(
            "{name}: at worst {error:.3} of the bound, at {x:e}: GPU {gpu:e}, emulator {emulated:e} ({bits:08x?})"
        );
    }
    for (name, worst) in APPROXIMATE.iter().zip(worst) {
        assert!(worst.0 <= 1.0, "{name} is beyond its bound; see above");
    }
}

/// Fragments of random numbers in two formats, with exponents near each other and far apart.
fn fragments(warps: usize) -> Vec<u32> {
    let mut random = Random::new(3, "fragments");
    let mut words = Vec::new();
    for warp in 0..warps {
        for _lane in 0..32 {
            for place in 0..10 {
                let spread = [1.0, 64.0, 3e4][warp % 3];
                let mut value = || match random.next_u64() % 16 {
                    0 => 0.0,
                    1 => float(&mut random, 1.0) / spread,
                    _ => float(&mut random, spread.sqrt()),
                };
                words.push(if place >= 6 {
                    (value() * [1.0, 1e-3, 1e3][warp / 3 % 3]).to_bits()
                } else {
                    // Halves that are moderate numbers in f16 as well as in bf16: its upper bits.
                    let (low, high) = (half::f16::from_f32(value()), half::f16::from_f32(value()));
                    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
                });
            }
        }
    }
    words
}

#[test]
fn tensor_cores_have_the_same_bits() {
    let Some(gpu) = &Gpu::open() else { return };
    let warps = 900;
    let words = fragments(warps);
    let (on_gpu, emulated) =
        both!(gpu, &words, 16 * 32 * warps, grid(warps as u32, 32), |from, to| compare_mma(
            DevicePtr::from_raw(from),
            DevicePtrMut::from_raw(to)
        ));
    let differing = same_bits("mma", 16, &[], &words, &on_gpu, &emulated);
    if differing == 0 {
        println!("mma: {} results have the same bits", on_gpu.len());
        return;
    }
    // Which parameters would fit, for whoever has a GPU of another generation.
    for (format, name) in [(Format::F16, "f16"), (Format::Bf16, "bf16")] {
        for depth in [16, 8] {
            for block_products in [4, 8, 16] {
                for extra_bits in 0..=4 {
                    let model = Model { block_products, extra_bits };
                    let first = if depth == 8 { 4 } else { 0 } + if format == Format::Bf16 { 8 } else { 0 };
                    let wrong =
                        (0..warps).map(|warp| mismatches(model, format, depth, &words, warp, first, &on_gpu));
                    let wrong: usize = wrong.sum();
                    println!("{name}, k = {depth}, {model:?}: {wrong} of {} differ", 128 * warps);
                }
            }
        }
    }
    panic!("{differing} results differ from {HOPPER:?}; see above");
}

#[test]
fn tensor_cores_multiply_bytes_exactly() {
    let Some(gpu) = &Gpu::open() else { return };
    let mut random = Random::new(5, "bytes");
    let words: Vec<u32> = (0..10 * 32 * 64).map(|_| random.next_u64() as u32).collect();
    let (on_gpu, emulated) = both!(gpu, &words, 9 * 32 * 64, grid(64, 32), |from, to| compare_mma_integers(
        DevicePtr::from_raw(from),
        DevicePtrMut::from_raw(to)
    ));
    assert_eq!(same_bits("mma of bytes", 9, &[], &words, &on_gpu, &emulated), 0, "see above");
}

#[test]
fn tensor_cores_multiply_tf32_as_emulated() {
    let Some(gpu) = &Gpu::open() else { return };
    let mut random = Random::new(6, "tf32");
    let warps = 256;
    let words: Vec<u32> = (0..10 * 32 * warps).map(|_| float(&mut random, 1.0).to_bits()).collect();
    let (on_gpu, emulated) =
        both!(gpu, &words, 4 * 32 * warps, grid(warps as u32, 32), |from, to| compare_mma_tf32(
            DevicePtr::from_raw(from),
            DevicePtrMut::from_raw(to)
        ));
    println!(
        "mma of tf32: {} of {} differ",
        same_bits("mma of tf32", 4, &[], &words, &on_gpu, &emulated),
        on_gpu.len()
    );
    for (&found, &expected) in on_gpu.iter().zip(&emulated) {
        let (found, expected) = (f32::from_bits(found), f32::from_bits(expected));
        assert!((found - expected).abs() <= 4.0 * f32::EPSILON, "{found} instead of {expected}");
    }
}

#[test]
fn warpgroups_have_the_same_bits() {
    let Some(gpu) = &Gpu::open() else { return };
    let mut random = Random::new(7, "warpgroups");
    // A, then 256 columns of B; products of very different sizes, as f16 or bf16.
    let mut tiles = |narrow: bool| -> Vec<u32> {
        let mut half = || {
            let value = float(&mut random, 1.0) * [1.0, 1e-3, 30.0][random.next_u64() as usize % 3];
            u32::from(if narrow {
                half::f16::from_f32(value).to_bits()
            } else {
                half::bf16::from_f32(value).to_bits()
            })
        };
        (0..(64 + 256) * 32).map(|_| half() | half() << 16).collect()
    };
    let config = LaunchConfig { shared_bytes: WGMMA_SHARED_BYTES, ..grid(1, 128) };
    macro_rules! compare {
        ($($name:ident, $n:literal, $narrow:literal;)*) => { $({
            let words = tiles($narrow);
            let b = 64 * 64 * 2;
            let (on_gpu, emulated) = both!(gpu, &words, 3 * 128 * $n, config.clone(), |from, to| $name(
                DevicePtr::from_raw(from),
                DevicePtr::from_raw(from + b),
                DevicePtrMut::from_raw(to)
            ));
            let name = stringify!($name);
            let differing: Vec<usize> = on_gpu
                .chunks(128 * $n)
                .zip(emulated.chunks(128 * $n))
                .map(|(gpu, emulated)| gpu.iter().zip(emulated).filter(|(a, b)| a != b).count())
                .collect();
            println!("{name}: of {} sums of each kind {differing:?} differ", 128 * $n);
            assert_eq!(differing, [0; 3], "{name}");
        })* };
    }
    compare! {
        compare_wgmma_f16_n64, 32, true;
        compare_wgmma_f16_n128, 64, true;
        compare_wgmma_f16_n256, 128, true;
        compare_wgmma_bf16_n64, 32, false;
        compare_wgmma_bf16_n128, 64, false;
    }
}

/// How many results of a warp differ from a model's.
fn mismatches(
    model: Model,
    format: Format,
    depth: usize,
    words: &[u32],
    warp: usize,
    first: usize,
    gpu: &[u32],
) -> usize {
    let mut lanes = [[0; 10]; 32];
    for (lane, io) in lanes.iter_mut().enumerate() {
        let own = &words[(32 * warp + lane) * 10..][..10];
        io.copy_from_slice(own);
        if depth == 8 {
            // a0, a1, b0 and c, as `compare_mma` uses them.
            *io = [own[0], own[1], own[4], own[6], own[7], own[8], own[9], 0, 0, 0];
        }
    }
    let d = multiply(model, format, depth, &lanes);
    (0..128).filter(|i| d[i / 4][i % 4] != gpu[(32 * warp + i / 4) * 16 + first + i % 4]).count()
}
