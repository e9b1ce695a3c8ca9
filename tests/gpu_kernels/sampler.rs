//! The sampler's kernels against the CPU's sampler.
//!
//! Both draw by the same number of the same generator, so they agree but where a rounding of 2^-24 moves a threshold or a
//! boundary between two tokens' shares: for that, a hundredth of a per cent of all rows may differ.

use crate::harness::*;
use qernel::cpu;
use qernel::dtype::Dtype;
use qernel::ops::Ops;
use qernel::sampler::{SamplingParams, SamplingRow};

/// Rows of one launch.
const N: usize = 64;

fn plain() -> SamplingParams {
    SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplingParams::default() }
}

fn row(params: SamplingParams, position: usize) -> SamplingRow {
    SamplingRow { params, position: position as u32, index: (position % 3) as u32, counts: Vec::new() }
}

/// Draws `rows` on both devices and returns how many differ.
fn differing(vocab_size: usize, logits: &[f32], rows: &[SamplingRow], case: &str) -> Option<usize> {
    let device = device()?;
    let ops = &mut plain_ops(&device, Dtype::F32);
    let mut tensor = tensor(ops, rows.len(), vocab_size, logits);
    let drawn = ops.sample(&mut tensor, rows).unwrap_or_else(|error| panic!("{case}: {error}"));
    let guard = &tensor.to_host().unwrap()[rows.len() * vocab_size..];
    assert!(guard.iter().all(|value| value.is_nan()), "{case}: wrote behind the last row");
    let expected =
        logits.chunks(vocab_size).zip(rows).map(|(l, row)| cpu::sampler::sample(&mut l.to_vec(), row));
    Some(drawn.iter().zip(expected).filter(|(gpu, cpu)| **gpu != *cpu).count())
}

#[test]
fn every_filter_alone_and_together_draws_what_the_cpu_draws() {
    let settings: [(&str, SamplingParams); 12] = [
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
    let (mut draws, mut different) = (0, 0);
    for vocab_size in [1, 19, 111, 989, 1024, 32_000, 151_936] {
        if left_out(N * vocab_size) {
            continue;
        }
        for (name, params) in &settings {
            let case = format!("{name}, vocabulary {vocab_size}");
            // Variance 4, near that of a trained model's logits.
            let logits: Vec<f32> = random(7, &case, N * vocab_size).iter().map(|l| 2.0 * l).collect();
            let rows: Vec<SamplingRow> =
                (0..N).map(|i| row(SamplingParams { seed: 1000 + i as u64, ..params.clone() }, i)).collect();
            let Some(count) = differing(vocab_size, &logits, &rows, &case) else { return };
            let exact = params.is_greedy() || params.top_k == 1 || vocab_size == 1;
            assert!(count <= if exact { 0 } else { 1 }, "{case}: {count} of {N} draws differ");
            draws += N;
            different += count;
        }
    }
    assert!(different * 1000 <= draws, "{different} of {draws} draws differ");
}

#[test]
fn rows_of_one_launch_may_ask_for_different_things() {
    let vocab_size = 989;
    let params = |i: usize| match i % 4 {
        0 => SamplingParams { temperature: 0.0, ..plain() },
        1 => SamplingParams { top_k: 5, seed: 3, ..plain() },
        2 => SamplingParams { top_p: 0.5, seed: 4, ..plain() },
        _ => plain(),
    };
    let rows: Vec<SamplingRow> = (0..N).map(|i| row(params(i), i)).collect();
    let logits = random(3, "mixed", N * vocab_size);
    let Some(count) = differing(vocab_size, &logits, &rows, "mixed") else { return };
    assert!(count <= 1, "{count} of {N} draws differ");
}

#[test]
fn penalties_are_applied_to_their_own_row() {
    let vocab_size = 111;
    let params = SamplingParams {
        temperature: 0.0,
        repeat_penalty: 1.7,
        presence_penalty: 0.4,
        frequency_penalty: 0.2,
        ..plain()
    };
    let rows: Vec<SamplingRow> = (0..N)
        .map(|i| SamplingRow {
            counts: (0..i as u32)
                .filter(|token| token % 2 == 0)
                .map(|token| (token, 1 + token % 3))
                .collect(),
            ..row(params.clone(), i)
        })
        .collect();
    let logits = random(5, "penalties", N * vocab_size);
    let Some(count) = differing(vocab_size, &logits, &rows, "penalties") else { return };
    // IEEE division, multiplication and subtraction in the same order.
    assert_eq!(count, 0);
}

#[test]
fn ties_and_infinities_are_taken_in_the_order_of_ids() {
    let vocab_size = if left_out(N * 4864) { 1200 } else { 4864 };
    // Seven different values, so that thresholds fall on ties; a third of the logits are -inf.
    let logits: Vec<f32> = random(9, "ties", N * vocab_size)
        .iter()
        .map(|l| if *l < -0.4 { f32::NEG_INFINITY } else { (l * 2.0).round().min(4.0) })
        .collect();
    for (name, params) in [
        ("top_k", SamplingParams { top_k: vocab_size as i32 / 7, ..plain() }),
        ("top_p", SamplingParams { top_p: 0.77, ..plain() }),
        ("both", SamplingParams { top_k: vocab_size as i32 / 3, top_p: 0.6, min_p: 0.05, ..plain() }),
        ("greedy", SamplingParams { temperature: 0.0, ..plain() }),
    ] {
        let rows: Vec<SamplingRow> =
            (0..N).map(|i| row(SamplingParams { seed: 5, ..params.clone() }, i)).collect();
        let Some(count) = differing(vocab_size, &logits, &rows, name) else { return };
        assert!(count <= 1, "{name}: {count} of {N} draws differ");
    }
}

#[test]
fn draws_follow_the_distribution() {
    let Some(device) = device() else { return };
    let ops = &mut plain_ops(&device, Dtype::F32);
    let one = [1.0f32, 0.0, -1.0, 2.0, 0.5, -3.0];
    // Tens of thousands of draws of six tokens.
    let rounds = if left_out(1 << 20) { 4 } else { 40 };
    let n = 1000;
    let mut counts = [0.0f64; 6];
    for round in 0..rounds {
        let rows: Vec<SamplingRow> =
            (0..n).map(|i| row(SamplingParams { seed: 11, ..plain() }, round * n + i)).collect();
        let mut logits = tensor(ops, n, one.len(), &one.repeat(n));
        for token in ops.sample(&mut logits, &rows).unwrap() {
            counts[token as usize] += 1.0;
        }
    }
    let sum: f64 = one.iter().map(|l| f64::from(*l).exp()).sum();
    let draws = (rounds * n) as f64;
    let chi_squared: f64 = counts
        .iter()
        .zip(&one)
        .map(|(count, logit)| {
            let expected = f64::from(*logit).exp() / sum * draws;
            (count - expected).powi(2) / expected
        })
        .sum();
    // 5 degrees of freedom: 20.5 is exceeded once in a thousand times; the seed is fixed.
    assert!(chi_squared < 20.5, "chi-squared {chi_squared}: {counts:?}");
}

#[test]
fn logits_without_a_token_to_draw_are_an_error() {
    let Some(device) = device() else { return };
    let ops = &mut plain_ops(&device, Dtype::F32);
    let mut logits = tensor(ops, 1, 111, &[f32::NEG_INFINITY; 111]);
    let error = ops.sample(&mut logits, &[row(plain(), 0)]).unwrap_err();
    assert!(error.to_string().contains("no token to draw"), "{error}");
}

#[test]
fn the_bandwidth_that_is_measured_is_a_device_s() {
    let Some(device) = device() else { return };
    let measured = plain_ops(&device, Dtype::F32).read_bandwidth().unwrap().expect("a real device");
    // Several times the fastest device of today; a debugging tool may slow it down without limit.
    assert!((1e6..4e13).contains(&measured), "{measured:e} bytes a second");
}
