//! What the engine does around the launches: refusing, loading, converting, drawing, measuring.

use crate::gpu::device;
use crate::harness::*;
use bytes::Bytes;
use cust::device::DeviceAttribute;
use qernel::batch::{Batch, BatchLimits, LogitRows, SequenceRows};
use qernel::cuda::{CudaOps, DeviceBuffer, KernelChoice, Uploader, encode};
use qernel::dtype::Dtype;
use qernel::kv_layout::KvLayout;
use qernel::lab::case::plain_config;
use qernel::lab::findings::Findings;
use qernel::lab::values::*;
use qernel::ops::{Ops, OpsConfig};
use qernel::sampler::{NO_TOKEN, SamplingParams, SamplingRow};
use qernel::weights::Matrix;

const LIMITS: BatchLimits =
    BatchLimits { max_num_tokens: 256, max_num_sequences: 4, max_num_logits: 256, max_blocks: 8 };

/// Sequences of 1, 111 and 19 rows on shuffled pages.
fn ragged(num_pages: usize) -> Batch {
    let pages = shuffled(4, "pages", num_pages);
    let tokens: Vec<u32> = (0..111).map(|token| token % 10).collect();
    let part = |rows: usize, position, pages| SequenceRows {
        tokens: &tokens[..rows],
        position,
        pages,
        logits: LogitRows::All,
    };
    Batch::new(&[part(1, 70, &pages[..3]), part(111, 5, &pages[3..7]), part(19, 0, &pages[7..8])])
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_launched() {
    let Some(device) = device() else { return };
    let config = OpsConfig { max_model_len: 256, ..plain_config() };
    let ops = &mut CudaOps::new(&device, &config, Dtype::Bf16, KernelChoice::default()).unwrap();
    let mut batch = ops.new_batch(&LIMITS).unwrap();
    let host = ragged(8);
    let n = host.num_tokens();
    ops.upload(&host, &mut batch).unwrap();
    let qkv = tensor(ops, n, 256, &vec![0.0; n * 256]).unwrap();
    let layout = KvLayout {
        formats: Dtype::Bf16.into(),
        num_layers: 1,
        num_pages: 7,
        num_key_value_heads: 1,
        head_dim: 64,
    };
    let mut cache = ops.new_kv_cache(&layout).unwrap();
    let none = [None; 3];
    let mut q = ops.new_tensor(n, 128).unwrap();
    let refused = ops.bias_rope_kv(&batch, 0, &qkv, none, None, &mut q, &mut cache).unwrap_err();
    assert!(refused.to_string().contains("slot"), "page 7 of 7: {refused}");
    let mut out = poisoned_activation(ops, n, 128).unwrap();
    assert!(ops.attention(&batch, 0, &q, &cache, &mut out).is_err(), "page 7 of 7");
    let wrong = KvLayout { formats: Dtype::F16.into(), ..layout };
    assert!(ops.new_kv_cache(&wrong).is_err(), "pages of another format");

    let mut short = ops.new_tensor(n - 1, 64).unwrap();
    let delta = ops.new_tensor(n, 64).unwrap();
    assert!(ops.add(n, &mut short, &delta).is_err(), "too few rows");
    let mut narrow = ops.new_tensor(n, 63).unwrap();
    assert!(ops.add(n, &mut narrow, &delta).is_err(), "other columns");
    let bias = ops.load_vector(&[0.0; 63]).unwrap();
    let short = [None, Some(&bias), None];
    let refused = ops.bias_rope_kv(&batch, 0, &qkv, short, None, &mut q, &mut cache).unwrap_err();
    assert!(refused.to_string().contains("63"), "a short bias: {refused}");

    let mut inconsistent = host.clone();
    inconsistent.positions[1] += 1;
    assert!(ops.upload(&inconsistent, &mut batch).is_err(), "positions");
    // A batch that was refused leaves none behind.
    assert!(ops.bias_rope_kv(&batch, 0, &qkv, none, None, &mut q, &mut cache).is_ok());
    let mut inconsistent = host;
    inconsistent.kv_len[0] = 1000;
    assert!(ops.upload(&inconsistent, &mut batch).is_err(), "kv_len");
}

#[test]
fn matrices_of_other_formats_are_converted_when_they_are_loaded() {
    let Some(device) = device() else { return };
    let (n, rows, cols) = (3, 19, 111);
    for dtype in Dtype::ALL {
        let ops = &mut plain_ops(&device, dtype);
        for from in Dtype::ALL {
            let case = format!("weights {from}, computed in {dtype}");
            let x = rounded(dtype, random(1, &case, n * cols));
            let weight = rounded(from, random(2, &case, rows * cols));
            let data = Bytes::from(encode(from, &weight));
            let matrix = Matrix { name: "test".into(), format: from.into(), rows, cols, scale: 1.0, data };
            let loaded = ops.load_matrix(&matrix).unwrap();
            assert_eq!(loaded.dtype(), Some(dtype));
            let operand = activation(ops, n, cols, &x).unwrap();
            let mut out = poisoned(ops, n, rows).unwrap();
            ops.matmul(n, &operand, &loaded, &mut out).unwrap();

            let weight = rounded(dtype, weight);
            let sums = |part: fn(f64) -> f64| -> Vec<f64> {
                let dot = |x: &[f32], w: &[f32]| {
                    x.iter().zip(w).map(|(&x, &w)| part(f64::from(x) * f64::from(w))).sum::<f64>()
                };
                x.chunks(cols).flat_map(|x| weight.chunks(cols).map(move |w| dot(x, w))).collect()
            };
            let (expected, magnitudes) = (sums(|product| product), sums(f64::abs));
            // As any product: errors of single additions grow with the root of their number, tensor cores truncate.
            let relative = ((cols as f64).sqrt() + 8.0) * 2.0 * unit(Dtype::F32);
            let mut findings = Findings::default();
            findings.close("out", &out.to_host().unwrap(), &expected, |i, _| magnitudes[i] * relative);
            assert!(findings.passed(), "{case}: {:?}", findings.failures);
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
    let mut uploader = Uploader::new(&device).unwrap();
    let mut buffer = DeviceBuffer::<u8>::zeroed(&device, bytes.len() + 5).unwrap();
    uploader.upload(&bytes, &mut buffer).unwrap();
    let found = buffer.read(0, buffer.len()).unwrap();
    assert_eq!(found.iter().zip(&bytes).position(|(found, expected)| found != expected), None);
    assert_eq!(found[bytes.len()..], [0; 5]);
    assert!(uploader.upload(&[0; 9], &mut DeviceBuffer::zeroed(&device, 8).unwrap()).is_err());
}

fn row(position: usize) -> SamplingRow {
    let params = SamplingParams {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 11,
        ..SamplingParams::default()
    };
    SamplingRow { index: (position % 3) as u32, ..SamplingRow::new(params, position as u32) }
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
        let rows: Vec<SamplingRow> = (0..n).map(|i| row(round * n + i)).collect();
        let mut logits = tensor(ops, n, one.len(), &one.repeat(n)).unwrap();
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
fn logits_without_a_token_to_draw_are_said_row_by_row() {
    let Some(device) = device() else { return };
    let ops = &mut plain_ops(&device, Dtype::F32);
    let rows = [[f32::NEG_INFINITY; 111], [f32::NAN; 111], [0.0; 111]];
    let mut logits = tensor(ops, 3, 111, rows.as_flattened()).unwrap();
    let sampled = ops.sample(&mut logits, &[row(0), row(1), row(2)]).unwrap();
    assert_eq!(sampled[..2], [NO_TOKEN; 2]);
    assert!(sampled[2] < 111, "{sampled:?}");
}

#[test]
fn the_bandwidth_that_is_measured_is_a_device_s() {
    let Some(device) = device() else { return };
    let measured = plain_ops(&device, Dtype::F32).read_bandwidth().unwrap().expect("a real device");
    let device = cust::device::Device::get_device(0).unwrap();
    let attribute = |attribute| f64::from(device.get_attribute(attribute).unwrap());
    // A clock in kHz whose both edges move data, a width in bits.
    let peak = attribute(DeviceAttribute::MemoryClockRate)
        * 1e3
        * 2.0
        * attribute(DeviceAttribute::GlobalMemoryBusWidth)
        / 8.0;
    assert!(peak > 1e10, "{peak:e} bytes a second, says the driver");
    // A debugging tool slows it down without limit.
    let least = if max_work().is_some() { 1e6 } else { peak / 10.0 };
    assert!((least..peak * 1.1).contains(&measured), "{measured:e} of {peak:e} bytes a second");
}
