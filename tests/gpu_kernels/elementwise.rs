//! Operations that treat each value alone: add, add_bias, silu_mul, convert.

use crate::harness::*;
use qernel::cuda::{DeviceBuffer, convert};
use qernel::dtype::Dtype;
use qernel::ops::Ops;

#[test]
fn add_in_every_variant() {
    let Some(device) = device() else { return };
    let ops = &mut plain_ops(&device, Dtype::F32);
    let mut variants = Variants::of("add");
    for n in ROWS {
        for cols in COLUMNS {
            if left_out(n * cols) {
                continue;
            }
            variants.each(ops, |ops, variant| {
                let case = format!("add={variant} [{n}, {cols}]");
                let x = random(1, &case, n * cols);
                let delta = random(2, &case, n * cols);
                let expected: Vec<f32> = x.iter().zip(&delta).map(|(x, delta)| x + delta).collect();
                let mut x = tensor(ops, n, cols, &x);
                let delta = tensor(ops, n, cols, &delta);
                ops.add(n, &mut x, &delta)?;
                // One correctly rounded addition: the same bits.
                assert_same_bits(&case, &x.to_host()?, &expected);
                Ok(())
            });
        }
    }
    variants.assert_all_ran();
}

#[test]
fn add_bias_of_ragged_rows() {
    let Some(device) = device() else { return };
    let ops = &mut plain_ops(&device, Dtype::F32);
    for n in ROWS {
        for cols in COLUMNS {
            let case = format!("add_bias [{n}, {cols}]");
            let x = random(1, &case, n * cols);
            let bias = random(2, &case, cols);
            let expected: Vec<f32> =
                x.chunks(cols).flat_map(|row| row.iter().zip(&bias).map(|(x, bias)| x + bias)).collect();
            let mut x = tensor(ops, n, cols, &x);
            let bias = ops.load_vector(&bias).unwrap();
            ops.add_bias(n, &mut x, &bias).unwrap();
            // One correctly rounded addition: the same bits.
            assert_same_bits(&case, &x.to_host().unwrap(), &expected);
        }
    }
}

#[test]
fn silu_mul_in_every_format_and_variant() {
    let Some(device) = device() else { return };
    let mut variants = Variants::of("silu_mul");
    for dtype in Dtype::ALL {
        let ops = &mut plain_ops(&device, dtype);
        for n in [1, 19, 111] {
            for cols in COLUMNS {
                if left_out(n * cols) {
                    continue;
                }
                variants.each(ops, |ops, variant| {
                    let case = format!("silu_mul={variant} {dtype} [{n}, {cols}]");
                    // Wide enough for both tails of the exponential.
                    let mut gate: Vec<f32> =
                        random(1, &case, n * cols).iter().map(|value| value * 8.0).collect();
                    gate[0] = -100.0;
                    let up = random(2, &case, n * cols);
                    let silu = |gate: f64| gate / (1.0 + (-gate).exp());
                    let expected: Vec<f64> =
                        gate.iter().zip(&up).map(|(&g, &u)| silu(f64::from(g)) * f64::from(u)).collect();
                    let gate = tensor(ops, n, cols, &gate);
                    let up = tensor(ops, n, cols, &up);
                    let mut out = poisoned_activation(ops, n, cols);
                    ops.silu_mul(n, &gate, &up, &mut out)?;
                    // The last rounding, and before it 2^-20 for an exponential that is good to two units in the
                    // last place of an argument up to 40. Below the normal numbers of f32 a result may become zero.
                    let tolerance = |_, expected: f64| {
                        expected.abs() * (unit(dtype) + 2f64.powi(-20)) + smallest(dtype) + 2f64.powi(-126)
                    };
                    assert_close(&case, &out.to_host()?, &expected, tolerance);
                    Ok(())
                });
            }
        }
    }
    variants.assert_all_ran();
}

/// The bytes of `values` in `dtype`.
fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let value = |&value: &f32| match dtype {
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(value).collect()
}

#[test]
fn convert_between_all_formats() {
    let Some(device) = device() else { return };
    for from in Dtype::ALL {
        for to in Dtype::ALL.into_iter().filter(|&to| to != from) {
            for count in [1, 19, 111, 989, 100_003] {
                let case = format!("convert {from} to {to}, {count} values");
                let mut values = random(1, &case, count);
                // Beyond the range of f16, ties, subnormals of f16, and no numbers at all.
                let special =
                    [1e30, -70_000.0, 65_519.9, 65_520.0, 1.0 + 2f32.powi(-8), 3e-8, -0.0, f32::INFINITY];
                for (value, special) in values.iter_mut().rev().zip(special) {
                    *value = special;
                }
                let values = rounded(from, &values);
                let expected = encode(to, &values);
                let x = DeviceBuffer::from_slice(&device, &encode(from, &values)).unwrap();
                const GUARD: usize = 16;
                let poison = vec![0xAB; expected.len() + GUARD];
                let mut out = DeviceBuffer::from_slice(&device, &poison).unwrap();
                convert(&device, count, from, &x, to, &mut out).unwrap();
                let found = out.read(0, out.len()).unwrap();
                // Both round to nearest even: the same bits.
                let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
                assert_eq!(differs, None, "{case}: index of the first byte that differs");
                assert_eq!(found[expected.len()..], poison[expected.len()..], "{case}: wrote behind the end");
            }
        }
    }
}
