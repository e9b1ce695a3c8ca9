//! The norm, alone and fused with the residual addition.

use crate::harness::*;
use qernel::dtype::Dtype;
use qernel::ops::Ops;

const EPS: f32 = 1e-6;

/// The norm of each row in f64.
fn reference(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let row = |row: &[f32]| {
        let squares: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let scale = 1.0 / (squares / row.len() as f64 + f64::from(EPS)).sqrt();
        row.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect::<Vec<_>>()
    };
    x.chunks(weight.len()).flat_map(row).collect()
}

/// The last rounding, and before it: half of the error of a sum of squares in which each thread adds `cols / 256`
/// terms and ten butterfly steps follow, and six roundings of mean, root, quotient and products.
fn tolerance(dtype: Dtype, cols: usize) -> impl Fn(usize, f64) -> f64 {
    let sum = (cols as f64 / 256.0 + 10.0) / 2.0 + 6.0;
    move |_, expected| expected.abs() * (unit(dtype) + sum * unit(Dtype::F32)) + smallest(dtype)
}

/// Every kind of row: ordinary, tiny (where eps counts), large.
fn rows(case: &str, n: usize, cols: usize) -> Vec<f32> {
    let mut x = random(1, case, n * cols);
    for (i, row) in x.chunks_mut(cols).enumerate() {
        let scale = [1.0, 1e-4, 300.0][i % 3];
        row.iter_mut().for_each(|x| *x *= scale);
    }
    x
}

#[test]
fn rms_norm_in_every_format_and_variant() {
    let Some(device) = device() else { return };
    let mut variants = Variants::of("rms_norm");
    for dtype in Dtype::ALL {
        let ops = &mut plain_ops(&device, dtype);
        for n in [1, 19, 111] {
            for cols in COLUMNS {
                if left_out(n * cols) {
                    continue;
                }
                variants.each(ops, |ops, variant| {
                    let case = format!("rms_norm={variant} {dtype} [{n}, {cols}]");
                    let x = rows(&case, n, cols);
                    let weight = random(2, &case, cols);
                    let expected = reference(&x, &weight);
                    let x = tensor(ops, n, cols, &x);
                    let weight = ops.load_vector(&weight)?;
                    let mut out = poisoned_activation(ops, n, cols);
                    ops.rms_norm(n, &x, &weight, EPS, &mut out)?;
                    assert_close(&case, &out.to_host()?, &expected, tolerance(dtype, cols));
                    Ok(())
                });
            }
        }
    }
    variants.assert_all_ran();
}

#[test]
fn add_rms_norm_is_the_addition_then_the_norm() {
    let Some(device) = device() else { return };
    let mut variants = Variants::of("add_rms_norm");
    for dtype in Dtype::ALL {
        let ops = &mut plain_ops(&device, dtype);
        for n in [1, 19, 111] {
            for cols in COLUMNS {
                if left_out(n * cols) {
                    continue;
                }
                variants.each(ops, |ops, variant| {
                    let case = format!("add_rms_norm={variant} {dtype} [{n}, {cols}]");
                    let x = rows(&case, n, cols);
                    let delta = random(3, &case, n * cols);
                    let weight = random(2, &case, cols);
                    let sum: Vec<f32> = x.iter().zip(&delta).map(|(x, delta)| x + delta).collect();
                    let expected = reference(&sum, &weight);
                    let mut x = tensor(ops, n, cols, &x);
                    let delta = tensor(ops, n, cols, &delta);
                    let weight = ops.load_vector(&weight)?;
                    let mut out = poisoned_activation(ops, n, cols);
                    ops.add_rms_norm(n, &mut x, &delta, &weight, EPS, &mut out)?;
                    // One correctly rounded addition: the same bits.
                    assert_same_bits(&format!("{case}: x"), &x.to_host()?, &sum);
                    let found = out.to_host()?;
                    assert_close(&case, &found, &expected, tolerance(dtype, cols));

                    // The same bits as the two operations one after the other.
                    let mut choice = qernel::cuda::KernelChoice::default();
                    choice.set("rms_norm", variant)?;
                    ops.choose(choice)?;
                    let mut alone = poisoned_activation(ops, n, cols);
                    ops.rms_norm(n, &x, &weight, EPS, &mut alone)?;
                    assert_same_bits(&format!("{case}: fused"), &found, &alone.to_host()?[..n * cols]);
                    Ok(())
                });
            }
        }
    }
    variants.assert_all_ran();
}
