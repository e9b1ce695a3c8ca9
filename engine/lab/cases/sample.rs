//! The sampler's kernels against the CPU's sampler.
//!
//! Both draw by the same number of the same generator, so they agree but where a rounding of 2^-24 moves a threshold or a
//! boundary between two tokens' shares: one draw of a case may differ, none where nothing is rounded. The absolute error of
//! a case is the number of draws that differ.

use crate::cpu;
use crate::cuda::{CudaOps, Tensor};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::{Difference, Findings};
use crate::lab::values::*;
use crate::ops::Ops;
use crate::sampler::{SamplingParams, SamplingRow, TokenMask};
use rayon::prelude::*;
use std::sync::Arc;

pub const CASES: Cases = Cases { op: "sample", checks, timings };

/// Rows of one launch.
const N: usize = 24;

/// Rows where a few show what is to be seen, so that an emulator can be given many cases.
const FEW: usize = 4;

/// How logits are drawn.
#[derive(Clone, Copy)]
enum Logits {
    /// Normal with variance 4, near that of a trained model's logits.
    Normal,
    /// Normal with variance 64: few tokens have most of the probability, as a trained model is often sure.
    Sharp,
    /// Seven different values, so that thresholds fall on ties; a third of the logits are -inf.
    Ties,
    /// As normal ones, but for most rows no token can be drawn: a logit is NaN or infinite, or all are -inf.
    Broken,
}

fn plain() -> SamplingParams {
    SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplingParams::default() }
}

pub(super) fn checks() -> Vec<Case> {
    let mut cases = Vec::new();
    let filters: [(&'static str, SamplingParams); 12] = [
        ("plain", plain()),
        ("cold", SamplingParams { temperature: 0.3, ..plain() }),
        ("hot", SamplingParams { temperature: 3.0, ..plain() }),
        ("top_k 1", SamplingParams { top_k: 1, ..plain() }),
        ("top_k 40", SamplingParams { top_k: 40, ..plain() }),
        ("top_k beyond the vocabulary", SamplingParams { top_k: 1 << 20, ..plain() }),
        ("top_p 0.9", SamplingParams { top_p: 0.9, ..plain() }),
        ("top_p 0", SamplingParams { top_p: 0.0, ..plain() }),
        ("min_p 0.1", SamplingParams { min_p: 0.1, ..plain() }),
        ("min_p 1", SamplingParams { min_p: 1.0, ..plain() }),
        ("llama.cpp's defaults", SamplingParams::default()),
        ("greedy", SamplingParams { temperature: 0.0, ..SamplingParams::default() }),
    ];
    for vocab_size in [1, 19, 111, 989, 1024, 32_000, 151_936] {
        // Two that are not beside the others' edges take every third.
        let step = if matches!(vocab_size, 111 | 1024) { 3 } else { 1 };
        for (name, params) in filters.iter().step_by(step) {
            let exact = params.is_greedy() || params.top_k == 1 || vocab_size == 1;
            let rows = move |i, params: &SamplingParams| row(params, i, i as u64);
            let params = vec![params.clone()];
            let n = if vocab_size <= 1024 { FEW } else { N };
            cases.push(case(name, n, vocab_size, Logits::Normal, u32::from(!exact), params, rows));
        }
    }
    let both = SamplingParams { temperature: 0.7, top_p: 0.95, min_p: 0.02, ..plain() };
    let sharp = [
        ("sharp, top_p 0.9", SamplingParams { top_p: 0.9, ..plain() }),
        ("sharp, min_p 0.01", SamplingParams { min_p: 0.01, ..plain() }),
        ("sharp, top_p and min_p", both),
    ];
    for vocab_size in [989, 9000, 151_936] {
        for (name, params) in &sharp {
            let params = vec![params.clone()];
            let n = if vocab_size <= 1024 { FEW } else { N };
            cases.push(case(name, n, vocab_size, Logits::Sharp, 1, params, |i, params| {
                row(params, i, i as u64)
            }));
        }
    }
    // Rows of one launch may ask for different things.
    let mixed = vec![
        SamplingParams { temperature: 0.0, ..plain() },
        SamplingParams { top_k: 5, ..plain() },
        SamplingParams { top_p: 0.5, ..plain() },
        plain(),
    ];
    cases.push(case("mixed", N, 989, Logits::Normal, 1, mixed, |i, params| row(params, i, 0)));
    // IEEE division, multiplication and subtraction in the same order: nothing may differ.
    let penalties = SamplingParams {
        temperature: 0.0,
        repeat_penalty: 1.7,
        presence_penalty: 0.4,
        frequency_penalty: 0.2,
        ..plain()
    };
    cases.push(case("penalties", N, 111, Logits::Normal, 0, vec![penalties], |i, params| SamplingRow {
        counts: (0..i as u32).filter(|token| token % 2 == 0).map(|token| (token, 1 + token % 3)).collect(),
        ..row(params, i, 0)
    }));
    // Every third row may draw all tokens, the others a third of them; the last word of a mask is not whole.
    let masked = vec![SamplingParams { temperature: 0.0, ..plain() }, plain(), SamplingParams::default()];
    for vocab_size in [19, 989] {
        cases.push(case("masked", N, vocab_size, Logits::Normal, 1, masked.clone(), move |i, params| {
            let word = |w: usize| 0x9249_2492u32.rotate_left((i + w) as u32);
            let words = (0..vocab_size.div_ceil(32)).map(word).collect();
            let allowed = (i % 3 != 0).then(|| Arc::new(TokenMask::from_words(words)));
            SamplingRow { allowed, ..row(params, i, 0) }
        }));
    }
    for vocab_size in [1200, 4864] {
        for (name, params) in [
            ("ties, top_k", SamplingParams { top_k: vocab_size as i32 / 7, ..plain() }),
            ("ties, top_p", SamplingParams { top_p: 0.77, ..plain() }),
            (
                "ties, both",
                SamplingParams { top_k: vocab_size as i32 / 3, top_p: 0.6, min_p: 0.05, ..plain() },
            ),
            ("ties, greedy", SamplingParams { temperature: 0.0, ..plain() }),
        ] {
            cases.push(case(name, FEW, vocab_size, Logits::Ties, 1, vec![params], |i, params| {
                row(params, i, 0)
            }));
        }
    }
    for vocab_size in [19, 989, 9000] {
        for (name, params) in [
            ("broken, greedy", SamplingParams { temperature: 0.0, ..plain() }),
            ("broken, all", plain()),
            ("broken, top_k", SamplingParams { top_k: 5, ..plain() }),
            ("broken, long top_k", SamplingParams { top_k: vocab_size as i32 - 3, ..plain() }),
            ("broken, top_p", SamplingParams { top_p: 0.9, ..plain() }),
            ("broken, llama.cpp's defaults", SamplingParams::default()),
        ] {
            let rows = |i, params: &SamplingParams| row(params, i, i as u64);
            cases.push(case(name, FEW, vocab_size, Logits::Broken, 1, vec![params], rows));
        }
    }
    cases
}

/// Greedy, and the default chain. Both wait for the tokens: these times have the way to the host and back in them.
pub(super) fn timings(workload: &Workload) -> Vec<Case> {
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let settings = [("greedy", greedy), ("llama.cpp's defaults", SamplingParams::default())];
    let of = |&n: &usize| {
        settings.clone().map(|(name, params)| {
            let vocab_size = workload.config.vocab_size;
            case(name, n, vocab_size, Logits::Normal, 1 + n as u32 / 64, vec![params], |i, params| {
                row(params, i, i as u64)
            })
        })
    };
    workload.rows.iter().flat_map(of).collect()
}

/// Rows of different positions and sequences; `seed` is added to the parameters' own.
fn row(params: &SamplingParams, i: usize, seed: u64) -> SamplingRow {
    let params = SamplingParams { seed: params.seed.wrapping_add(seed), ..params.clone() };
    SamplingRow { index: (i % 3) as u32, ..SamplingRow::new(params, i as u32) }
}

/// Rows that take their parameters in turn.
fn case(
    name: &'static str,
    n: usize,
    vocab_size: usize,
    logits: Logits,
    allowed: u32,
    params: Vec<SamplingParams>,
    row: impl Fn(usize, &SamplingParams) -> SamplingRow + 'static,
) -> Case {
    // The filters look for their threshold in several passes over a row.
    let work = n * vocab_size;
    Case {
        dtype: Dtype::F32,
        shape: format!("{name}, [{n}, {vocab_size}]"),
        work,
        cost: Cost { bytes: 4.0 * work as f64, flops: work as f64 },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| {
            let values = random(seed, &format!("logits: {name}, {n}, {vocab_size}"), n * vocab_size);
            let values: Vec<f32> = match logits {
                Logits::Normal => values.iter().map(|l| 2.0 * l).collect(),
                Logits::Sharp => values.iter().map(|l| 8.0 * l).collect(),
                Logits::Broken => {
                    let mut values: Vec<f32> = values.iter().map(|l| 2.0 * l).collect();
                    for (i, row) in values.chunks_mut(vocab_size).enumerate() {
                        let place = i * 7 % vocab_size;
                        match i % 4 {
                            0 => row[place] = f32::NAN,
                            1 => row[place] = f32::INFINITY,
                            2 => row.fill(f32::NEG_INFINITY),
                            _ => row[place] = f32::NEG_INFINITY,
                        }
                    }
                    values
                }
                Logits::Ties => {
                    let tie =
                        |l: &f32| if *l < -0.4 { f32::NEG_INFINITY } else { (l * 2.0).round().min(4.0) };
                    values.iter().map(tie).collect()
                }
            };
            let rows: Vec<SamplingRow> = (0..n)
                .map(|i| {
                    let params = &params[i % params.len()];
                    row(i, &SamplingParams { seed: params.seed.wrapping_add(seed), ..params.clone() })
                })
                .collect();
            let draw = |(l, row): (&[f32], &SamplingRow)| cpu::sample::sample(&mut l.to_vec(), row);
            let expected = values.par_chunks(vocab_size).zip(&rows).map(draw).collect();
            let logits = tensor(ops, n, vocab_size, &values)?;
            Ok(Box::new(Sample { allowed, rows, values, expected, logits, sampled: Vec::new() }))
        }),
    }
}

struct Sample {
    allowed: u32,
    rows: Vec<SamplingRow>,
    values: Vec<f32>,
    expected: Vec<u32>,
    logits: Tensor,
    sampled: Vec<u32>,
}

impl Instance for Sample {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.logits, &self.values)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        self.sampled = ops.sample(&mut self.logits, &self.rows)?;
        Ok(())
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        findings.guard_intact("logits", &self.logits.to_host()?[self.values.len()..]);
        findings.compared += self.expected.len();
        let mut differing = (0..self.expected.len()).filter(|&i| self.sampled[i] != self.expected[i]);
        let Some(index) = differing.next() else { return Ok(()) };
        let different = 1 + differing.count() as u32;
        let (found, expected) = (f64::from(self.sampled[index]), f64::from(self.expected[index]));
        let (count, allowed) = (f64::from(different), f64::from(self.allowed));
        let ratio = count / allowed;
        findings.absolute = count;
        findings.worst = Some(Difference { of: "tokens", index, found, expected, tolerance: allowed, ratio });
        findings.expect(different <= self.allowed, || {
            let n = self.expected.len();
            format!(
                "{different} of {n} draws differ, first in row {index}: found {found}, expected {expected}"
            )
        });
        Ok(())
    }

    /// The filters leave other logits than they found.
    fn repeats(&self) -> bool {
        false
    }
}
