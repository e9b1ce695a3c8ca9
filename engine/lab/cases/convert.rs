//! Conversion between number formats, and splitting f32 into two parts of bf16.

use crate::cuda::{CudaOps, DeviceBuffer, Narrowing, convert, encode, f16_scale, split_to_bf16};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;

pub const CASES: Cases = Cases { op: "convert", checks, timings };

const COUNTS: [usize; 5] = [1, 19, 111, 989, 100_003];

/// Bytes behind the results, and what is in them.
const GUARD: usize = 64;
const POISON: u8 = 0xAB;

fn checks() -> Vec<Case> {
    let mut cases = Vec::new();
    for from in Dtype::ALL {
        for to in Dtype::ALL.into_iter().filter(|&to| to != from) {
            cases.extend(COUNTS.map(|count| case(from, to, count)));
        }
    }
    cases.extend(COUNTS.map(split_case));
    for count in COUNTS.into_iter().chain([64, 4096]) {
        for from in [Weights::InPlace, Weights::Bf16, Weights::F32] {
            // Such as suit f16, and such as do not.
            cases.extend([1.0, 2f32.powi(20), 2f32.powi(-20)].map(|scale| narrow_case(from, count, scale)));
        }
    }
    cases
}

/// The inputs of products with bf16 weights, where a GEMM of the library follows.
fn timings(workload: &Workload) -> Vec<Case> {
    workload.rows.iter().map(|&n| split_case(n * workload.config.hidden_size)).collect()
}

fn case(from: Dtype, to: Dtype, count: usize) -> Case {
    Case {
        dtype: from,
        shape: format!("{count} to {to}"),
        work: count,
        cost: Cost { bytes: (count * (from.size() + to.size())) as f64, flops: 0.0 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let values = rounded(from, inputs(seed, &format!("convert {from} to {to}, {count}"), count));
            let expected = encode(to, &values);
            let x = DeviceBuffer::from_slice(ops.device(), &encode(from, &values))?;
            let out = DeviceBuffer::zeroed(ops.device(), expected.len() + GUARD)?;
            Ok(Box::new(Convert { from, to, count, expected, x, out }))
        }),
    }
}

/// Ordinary values, and at the end some beyond the range of f16, ties, subnormals of f16, and no numbers at all.
fn inputs(seed: u64, name: &str, count: usize) -> Vec<f32> {
    let mut values = random(seed, name, count);
    let special = [1e30, -70_000.0, 65_519.9, 65_520.0, 1.0 + 2f32.powi(-8), 3e-8, -0.0, f32::INFINITY];
    for (value, special) in values.iter_mut().rev().zip(special) {
        *value = special;
    }
    values
}

struct Convert {
    from: Dtype,
    to: Dtype,
    count: usize,
    expected: Vec<u8>,
    x: DeviceBuffer<u8>,
    out: DeviceBuffer<u8>,
}

impl Instance for Convert {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        self.out.fill(POISON)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        convert(ops.device(), self.count, self.from, &self.x, self.to, &mut self.out)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let found = self.out.read(0, self.out.len())?;
        // Both round to nearest even: the same bits.
        compare_bytes(findings, &found, &self.expected, self.to.size());
        Ok(())
    }
}

/// The bytes of values that must be the same, and poison behind them.
fn compare_bytes(findings: &mut Findings, found: &[u8], expected: &[u8], size: usize) {
    let (values, guard) = found.split_at(expected.len());
    findings.compared += expected.len() / size;
    let differs =
        values.chunks(size).zip(expected.chunks(size)).position(|(found, expected)| found != expected);
    findings.expect(differs.is_none(), || {
        let i = differs.unwrap_or_default();
        let at = i * size..(i + 1) * size;
        format!("out: at {i}: found bytes {:x?}, expected {:x?}", &values[at.clone()], &expected[at])
    });
    let untouched = guard.iter().all(|&byte| byte == POISON);
    findings.expect(untouched, || "out: wrote behind the last value".into());
}

fn split_case(count: usize) -> Case {
    Case {
        dtype: Dtype::F32,
        shape: format!("{count} to two parts of bf16"),
        work: count,
        cost: Cost { bytes: 8.0 * count as f64, flops: count as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let values = random(seed, &format!("split {count}"), count);
            let high = rounded(Dtype::Bf16, values.clone());
            let low: Vec<f32> = values.iter().zip(&high).map(|(x, high)| x - high).collect();
            let room = 2 * count.next_multiple_of(8) + GUARD / 2;
            Ok(Box::new(Split {
                count,
                high: encode(Dtype::Bf16, &high),
                low: encode(Dtype::Bf16, &low),
                x: DeviceBuffer::from_slice(ops.device(), &values)?,
                halves: DeviceBuffer::zeroed(ops.device(), room)?,
            }))
        }),
    }
}

struct Split {
    count: usize,
    high: Vec<u8>,
    low: Vec<u8>,
    x: DeviceBuffer<f32>,
    halves: DeviceBuffer<u16>,
}

impl Instance for Split {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        self.halves.fill(POISON)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        split_to_bf16(ops.device(), self.count, &self.x, &mut self.halves)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let found: Vec<u8> =
            self.halves.read(0, self.halves.len())?.iter().flat_map(|value| value.to_le_bytes()).collect();
        let second = 2 * self.count.next_multiple_of(8);
        // A rounding to nearest even, an exact difference, and another rounding: the same bits.
        compare_bytes(findings, &found[..second], &self.high, 2);
        compare_bytes(findings, &found[second..], &self.low, 2);
        Ok(())
    }
}

/// What weights are converted to f16 from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weights {
    /// bf16, where they are.
    InPlace,
    Bf16,
    F32,
}

/// Weights that are `scale` times ordinary ones.
fn narrow_case(from: Weights, count: usize, scale: f32) -> Case {
    let dtype = if from == Weights::F32 { Dtype::F32 } else { Dtype::Bf16 };
    let place = if from == Weights::InPlace { ", in place" } else { "" };
    let scaled = if scale == 1.0 { String::new() } else { format!(", times {scale:e}") };
    Case {
        dtype,
        shape: format!("{count} weights to f16{place}{scaled}"),
        work: count,
        cost: Cost { bytes: (count * (2 * dtype.size() + 2)) as f64, flops: 0.0 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let values = random(seed, &format!("narrow {count} from {dtype}"), count);
            let values = rounded(dtype, values.iter().map(|value| value * scale).collect());
            let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            let scale = f16_scale(largest.to_bits());
            let scaled: Vec<f32> = values.iter().map(|value| value * scale).collect();
            Ok(Box::new(Narrow {
                from,
                count,
                weights: encode(dtype, &values),
                expected: encode(Dtype::F16, &scaled),
                largest,
                x: DeviceBuffer::zeroed(ops.device(), count * dtype.size())?,
                out: DeviceBuffer::zeroed(ops.device(), count * dtype.size() + GUARD)?,
                narrowing: Narrowing::new(ops.device()),
            }))
        }),
    }
}

struct Narrow {
    from: Weights,
    count: usize,
    weights: Vec<u8>,
    expected: Vec<u8>,
    largest: f32,
    x: DeviceBuffer<u8>,
    out: DeviceBuffer<u8>,
    narrowing: Narrowing,
}

impl Instance for Narrow {
    fn reset(&mut self, ops: &mut CudaOps) -> Result<()> {
        self.narrowing = Narrowing::new(ops.device());
        self.out.fill(POISON)?;
        let target = if self.from == Weights::InPlace { &mut self.out } else { &mut self.x };
        target.write(0, &self.weights)
    }

    fn launch(&mut self, _: &mut CudaOps) -> Result<()> {
        let Self { count, x, out, narrowing, .. } = self;
        match self.from {
            Weights::InPlace => narrowing.narrow_in_place(*count, out),
            Weights::Bf16 => narrowing.narrow(*count, Dtype::Bf16, x, out),
            Weights::F32 => narrowing.narrow(*count, Dtype::F32, x, out),
        }
    }

    fn repeats(&self) -> bool {
        self.from != Weights::InPlace
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let found = self.out.read(0, self.expected.len() + GUARD)?;
        // A power of two, and a rounding to nearest even: the same bits.
        compare_bytes(findings, &found, &self.expected, 2);
        let (largest, expected) = (self.narrowing.largest()?, self.largest);
        findings.expect(largest.iter().all(|&found| found == expected) && !largest.is_empty(), || {
            format!("the largest magnitude: found {largest:?}, expected {expected:?}")
        });
        Ok(())
    }
}
