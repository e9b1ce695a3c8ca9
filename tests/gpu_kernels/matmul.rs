//! Products with weights: cuBLAS and the kernels that need no library.

use crate::harness::*;
use bytes::Bytes;
use qernel::cuda::CudaOps;
use qernel::dtype::Dtype;
use qernel::ops::Ops;
use qernel::weights::Matrix;

/// A matrix in `dtype` as a file would have it.
fn matrix(dtype: Dtype, rows: usize, cols: usize, values: &[f32]) -> Matrix {
    let value = |&value: &f32| match dtype {
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
    };
    let data: Vec<u8> = values.iter().flat_map(value).collect();
    Matrix { name: "test".into(), dtype, rows, cols, data: Bytes::from(data) }
}

/// `x · weightᵀ` in f64, and beside each sum the sum of magnitudes, for the tolerance.
fn reference(n: usize, rows: usize, cols: usize, x: &[f32], weight: &[f32]) -> (Vec<f64>, Vec<f64>) {
    let mut sums = Vec::with_capacity(n * rows);
    let mut magnitudes = Vec::with_capacity(n * rows);
    for x in x.chunks(cols) {
        for weight in weight.chunks(cols) {
            let (mut sum, mut magnitude) = (0.0, 0.0);
            for (&x, &weight) in x.iter().zip(weight) {
                let product = f64::from(x) * f64::from(weight);
                sum += product;
                magnitude += product.abs();
            }
            sums.push(sum);
            magnitudes.push(magnitude);
        }
    }
    (sums, magnitudes)
}

/// Errors of single additions in f32 go in both directions and grow with the root of their number; tensor cores
/// truncate, which costs a factor of two.
fn tolerance(cols: usize, magnitudes: &[f64]) -> impl Fn(usize, f64) -> f64 {
    let relative = ((cols as f64).sqrt() + 8.0) * 2.0 * unit(Dtype::F32);
    move |i, _| magnitudes[i] * relative
}

#[test]
fn matmul_in_every_format_and_variant() {
    let Some(device) = device() else { return };
    let mut variants = Variants::of("matmul");
    let shapes = [
        (1, 1, 1),
        (1, 19, 111),
        (19, 111, 19),
        (111, 19, 989),
        (3, 989, 1),
        (1, 896, 896),
        (19, 128, 896),
        (5, 896, 4864),
        (111, 130, 64),
    ];
    for dtype in Dtype::ALL {
        let ops = &mut plain_ops(&device, dtype);
        for (n, rows, cols) in shapes {
            if left_out(n * rows * cols / 16) {
                continue;
            }
            variants.each(ops, |ops, variant| {
                let case = format!("matmul={variant} {dtype} x [{n}, {cols}], weight [{rows}, {cols}]");
                let x = rounded(dtype, &random(1, &case, n * cols));
                let weight = rounded(dtype, &random(2, &case, rows * cols));
                let (expected, magnitudes) = reference(n, rows, cols, &x, &weight);
                let x = activation(ops, n, cols, &x);
                let weight = ops.load_matrix(&matrix(dtype, rows, cols, &weight))?;
                let mut out = poisoned(ops, n, rows);
                ops.matmul(n, &x, &weight, &mut out)?;
                assert_close(&case, &out.to_host()?, &expected, tolerance(cols, &magnitudes));
                Ok(())
            });
        }
    }
    variants.assert_all_ran();
}

/// Norms and SwiGLU hand f32 to products with bf16 weights: nothing of it may be rounded to bf16.
#[test]
fn f32_inputs_keep_their_precision_with_bf16_weights() {
    let Some(device) = device() else { return };
    let mut variants = Variants::of("matmul");
    let ops = &mut plain_ops(&device, Dtype::Bf16);
    for (n, rows, cols) in [(1, 19, 111), (3, 989, 64), (8, 130, 896), (9, 130, 896), (111, 896, 4864)] {
        if left_out(n * rows * cols / 16) {
            continue;
        }
        let run = |ops: &mut CudaOps, variant: &str| {
            let case = format!("matmul={variant}, f32 x [{n}, {cols}], bf16 weight [{rows}, {cols}]");
            let x = random(1, &case, n * cols);
            let weight = rounded(Dtype::Bf16, &random(2, &case, rows * cols));
            let (expected, magnitudes) = reference(n, rows, cols, &x, &weight);
            let mut operand = ops.new_precise_activation(n + GUARD_ROWS, cols)?;
            assert_eq!(operand.dtype(), Dtype::F32);
            operand.write(&[x, vec![f32::NAN; GUARD_ROWS * cols]].concat())?;
            let weight = ops.load_matrix(&matrix(Dtype::Bf16, rows, cols, &weight))?;
            let mut out = poisoned(ops, n, rows);
            ops.matmul(n, &operand, &weight, &mut out)?;
            // Two parts of bf16 keep 16 bits of x; the rest is as in any product.
            let sums = tolerance(cols, &magnitudes);
            let split = 2f64.powi(-16);
            assert_close(&case, &out.to_host()?, &expected, |i, e| sums(i, e) + split * magnitudes[i]);
            Ok(())
        };
        run(ops, "default").unwrap();
        variants.each(ops, run);
    }
    variants.assert_all_ran();
}

#[test]
fn rows_have_the_same_bits_alone_and_in_a_batch() {
    let Some(device) = device() else { return };
    let (n, rows, cols) = (19, 130, 896);
    for dtype in Dtype::ALL {
        let ops = &mut plain_ops(&device, dtype);
        for variant in ["gemv", "plain"] {
            let case = format!("matmul={variant} {dtype}");
            ops.choose(qernel::cuda::KernelChoice::parse(&format!("matmul={variant}")).unwrap()).unwrap();
            let x = rounded(dtype, &random(1, &case, n * cols));
            let weight = rounded(dtype, &random(2, &case, rows * cols));
            let weight = ops.load_matrix(&matrix(dtype, rows, cols, &weight)).unwrap();
            let mut run = |x: &[f32]| {
                let n = x.len() / cols;
                let x = activation(ops, n, cols, x);
                let mut out = poisoned(ops, n, rows);
                ops.matmul(n, &x, &weight, &mut out).unwrap();
                out.to_host().unwrap()[..n * rows].to_vec()
            };
            let together = run(&x);
            for (i, row) in x.chunks(cols).enumerate() {
                assert_same_bits(&format!("{case}, row {i}"), &run(row), &together[i * rows..][..rows]);
            }
        }
    }
}

#[test]
fn matrices_of_other_formats_are_converted_when_they_are_loaded() {
    let Some(device) = device() else { return };
    let (n, rows, cols) = (3, 19, 111);
    for dtype in Dtype::ALL {
        let ops = &mut plain_ops(&device, dtype);
        for from in Dtype::ALL {
            let case = format!("weights {from}, computed in {dtype}");
            let x = rounded(dtype, &random(1, &case, n * cols));
            let weight = rounded(from, &random(2, &case, rows * cols));
            let (expected, magnitudes) = reference(n, rows, cols, &x, &rounded(dtype, &weight));
            let x = activation(ops, n, cols, &x);
            let weight = ops.load_matrix(&matrix(from, rows, cols, &weight)).unwrap();
            assert_eq!(weight.dtype(), dtype);
            let mut out = poisoned(ops, n, rows);
            ops.matmul(n, &x, &weight, &mut out).unwrap();
            assert_close(&case, &out.to_host().unwrap(), &expected, tolerance(cols, &magnitudes));
        }
    }
}

/// More than one chunk of the pinned buffers, of a size that is no multiple of anything.
#[test]
fn large_weights_arrive_whole() {
    let Some(device) = device() else { return };
    if left_out(70_000_003) {
        return;
    }
    let bytes: Vec<u8> = (0..70_000_003_u64).map(|i| ((i * 0x9e37_79b9) >> 13) as u8).collect();
    let mut uploader = qernel::cuda::Uploader::new(&device).unwrap();
    let mut buffer = qernel::cuda::DeviceBuffer::<u8>::zeroed(&device, bytes.len() + 5).unwrap();
    uploader.upload(&bytes, &mut buffer).unwrap();
    let found = buffer.read(0, buffer.len()).unwrap();
    assert_eq!(found.iter().zip(&bytes).position(|(found, expected)| found != expected), None);
    assert_eq!(found[bytes.len()..], [0; 5]);
    assert!(uploader.upload(&[0; 9], &mut qernel::cuda::DeviceBuffer::zeroed(&device, 8).unwrap()).is_err());
}
