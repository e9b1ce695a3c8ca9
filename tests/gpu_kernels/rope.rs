//! Rotary position embedding, at the first and at the last positions of a long context.

use crate::harness::*;
use qernel::batch::{Batch, BatchLimits, SequenceRows, WantedLogits};
use qernel::cuda::{CudaOps, KernelChoice};
use qernel::dtype::Dtype;
use qernel::model::OpsConfig;
use qernel::ops::Ops;

const THETA: f32 = 1e6;
const CONTEXT: usize = 32_768;

/// The rotation in f64, from exact angles.
fn reference(x: &[f32], positions: &[u32], heads: usize, head_dim: usize) -> Vec<f64> {
    let half = head_dim / 2;
    let mut out = vec![0.0; x.len()];
    for (row, &position) in positions.iter().enumerate() {
        for head in 0..heads {
            let first = (row * heads + head) * head_dim;
            for j in 0..half {
                let frequency = f64::from(THETA).powf(-2.0 * j as f64 / head_dim as f64);
                let (sin, cos) = (f64::from(position) * frequency).sin_cos();
                let (a, b) = (f64::from(x[first + j]), f64::from(x[first + j + half]));
                out[first + j] = a * cos - b * sin;
                out[first + j + half] = b * cos + a * sin;
            }
        }
    }
    out
}

#[test]
fn rope_at_early_and_late_positions() {
    let Some(device) = device() else { return };
    for (heads, head_dim) in [(14, 64), (2, 64), (28, 128), (1, 128)] {
        let limits =
            BatchLimits { max_num_tokens: 256, max_num_sequences: 4, max_num_logits: 4, max_blocks: 1024 };
        let config = OpsConfig {
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim,
            rope_theta: THETA,
            max_model_len: CONTEXT,
            limits,
        };
        let ops = &mut CudaOps::new(&device, &config, Dtype::F32, KernelChoice::default()).unwrap();
        let pages: Vec<u32> = (0..1024).collect();
        let tokens = [0; 111];
        // One row at position 0, 19 in the middle, 111 that end with position 32,767.
        let part = |rows: usize, position| SequenceRows {
            tokens: &tokens[..rows],
            position,
            pages: &pages,
            logits: WantedLogits::None,
        };
        let host = Batch::new(&[part(1, 0), part(19, 1000), part(111, CONTEXT - 111)]);
        let n = host.num_tokens();
        let mut batch = ops.new_batch(&limits).unwrap();
        ops.upload(&host, &mut batch).unwrap();

        let case = format!("rope, {heads} heads of {head_dim}");
        let cols = heads * head_dim;
        let x = random(1, &case, n * cols);
        let expected = reference(&x, &host.positions, heads, head_dim);
        let mut tensor = tensor(ops, n, cols, &x);
        ops.rope(&batch, &mut tensor, heads).unwrap();
        // Cosine and sine are rounded once, then a product and a fused multiply-add round once each: three units of
        // roundoff of the two terms, |a| + |b|.
        let half = head_dim / 2;
        let tolerance = |i: usize, _| {
            let partner = if i % head_dim < half { i + half } else { i - half };
            3.0 * unit(Dtype::F32) * f64::from(x[i].abs() + x[partner].abs())
        };
        assert_close(&case, &tensor.to_host().unwrap(), &expected, tolerance);
    }
}
