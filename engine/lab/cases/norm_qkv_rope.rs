//! What comes before attention, in one kernel.

use super::batch_of;
use super::fused::{
    DTYPES, EPS, few_rows, matrix_of, normed, products, require_units, shapes, timed_formats, unit_formats,
};
use crate::batch::BatchLimits;
use crate::cuda::{CudaBatch, CudaOps, DeviceBuffer, KvCache, Tensor, Weight, fused_takes_units};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::{KvLayout, PAGE_SIZE};
use crate::lab::case::{Case, Cases, Cost, Instance, Workload};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::parts::RmsNorm;
use crate::ops::{Ops, OpsConfig};
use crate::rope::Rotation;
use qernel_core::formats::MatrixFormat;

pub const CASES: Cases = Cases { op: "norm_qkv_rope", checks, timings };

/// `[n, hidden_size, num_attention_heads, num_key_value_heads, head_dim]`
type QkvShape = [usize; 5];

fn checks() -> Vec<Case> {
    const SHAPES: [QkvShape; 8] = [
        [1, 8, 1, 1, 64],
        [2, 104, 3, 1, 64],
        [4, 64, 2, 2, 128],
        [3, 896, 14, 2, 64],
        [1, 3584, 4, 1, 128],
        [5, 400, 3, 1, 64],
        [7, 896, 2, 2, 128],
        [8, 896, 14, 2, 64],
    ];
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for shape in shapes(&SHAPES, dtype) {
            cases.extend([true, false].map(|bias| case([dtype.into(); 2], shape, bias)));
        }
    }
    // Units of a row instead of the hidden size.
    const UNITS: [QkvShape; 4] = [[1, 1, 1, 1, 64], [4, 7, 3, 1, 64], [8, 4, 2, 2, 128], [2, 17, 1, 1, 64]];
    for (formats, cols) in unit_pairs() {
        let shapes =
            UNITS.map(|[n, units, heads, kv_heads, head_dim]| [n, units * cols, heads, kv_heads, head_dim]);
        cases.extend(shapes.map(|shape| case(formats, shape, shape[0] > 1)));
    }
    cases
}

/// The formats of Q and K, and of V, that there are kernels for where they are repacked, with the columns of a unit.
fn unit_pairs() -> Vec<([MatrixFormat; 2], usize)> {
    let all = || unit_formats();
    let pairs = all().flat_map(|(q, cols)| all().map(move |(v, of_v)| (q, v, cols, of_v)));
    let known = pairs.filter(|&(q, v, cols, of_v)| cols == of_v && fused_takes_units(q, v));
    known.map(|(q, v, cols, _)| ([q, v], cols)).collect()
}

fn timings(workload: &Workload) -> Vec<Case> {
    let c = &workload.config;
    let shape = |n| [n, c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim];
    let formats = timed_formats(workload, c.hidden_size);
    formats.flat_map(|format| few_rows(workload).map(move |n| case([format; 2], shape(n), true))).collect()
}

/// `formats` are those of Q and K, and of V.
fn case(formats: [MatrixFormat; 2], shape: QkvShape, bias: bool) -> Case {
    let [n, hidden_size, heads, kv_heads, head_dim] = shape;
    let dtype = formats[0].float().unwrap_or(Dtype::F16);
    let row_bytes = |format: MatrixFormat| format.row_bytes(hidden_size).unwrap_or(0);
    let weight_bytes =
        head_dim * ((heads + kv_heads) * row_bytes(formats[0]) + kv_heads * row_bytes(formats[1]));
    let name = match formats {
        [q, _] if q.float().is_some() => String::new(),
        [q, v] => format!("{q} and {v}, "),
    };
    let rows = (heads + 2 * kv_heads) * head_dim;
    let biases = if bias { "biases" } else { "no biases" };
    Case {
        dtype,
        shape: format!("{name}x [{n}, {hidden_size}], {heads} and {kv_heads} heads of {head_dim}, {biases}"),
        work: n * rows * hidden_size / 8,
        cost: Cost {
            bytes: (weight_bytes + 4 * n * (hidden_size + rows)) as f64,
            flops: 2.0 * (n * rows) as f64 * hidden_size as f64,
        },
        config: OpsConfig {
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rotation: Rotation::new(1e6, head_dim),
            experts: None,
            linear: None,
            max_model_len: 64,
            limits: BatchLimits { max_num_tokens: 8, max_num_sequences: 8, max_num_logits: 8, max_blocks: 2 },
        },
        prepare: Box::new(move |ops, seed| {
            require_units(ops, CASES.op, formats[0])?;
            Ok(Box::new(NormQkvRope::new(ops, seed, formats, shape, bias)?))
        }),
    }
}

struct NormQkvRope {
    shape: QkvShape,
    batch: CudaBatch,
    slots: Vec<u32>,
    /// For q, k and v: results and tolerances in f64, `[n, heads * head_dim]`.
    expected: [Vec<(f64, f64)>; 3],
    x: Tensor,
    norm: RmsNorm<DeviceBuffer<f32>>,
    weights: Vec<Weight>,
    biases: Vec<DeviceBuffer<f32>>,
    q: Tensor,
    cache: KvCache,
}

impl NormQkvRope {
    fn new(
        ops: &mut CudaOps,
        seed: u64,
        formats: [MatrixFormat; 2],
        shape: QkvShape,
        bias: bool,
    ) -> Result<Self> {
        let [n, hidden_size, heads, kv_heads, head_dim] = shape;
        let (dtype, name) = (ops.dtype(), format!("norm_qkv_rope {shape:?}"));
        let pages = shuffled(seed, &name, 2 * n);
        let sequences: Vec<_> = (0..n).map(|s| (1, (17 * s + 5) % 64, &pages[2 * s..2 * s + 2])).collect();
        let limits =
            BatchLimits { max_num_tokens: 8, max_num_sequences: 8, max_num_logits: 8, max_blocks: 2 };
        let (batch_host, batch) = batch_of(ops, &limits, &sequences)?;
        let host_x = random(seed, &name, n * hidden_size);
        let host_norm = random(seed, &format!("{name}: norm"), hidden_size);
        let rows_of_x: Vec<Vec<f64>> = host_x.chunks(hidden_size).map(|x| normed(x, &host_norm)).collect();
        let (mut matrices, mut biases) = (Vec::new(), Vec::new());
        let mut expected = [Vec::new(), Vec::new(), Vec::new()];
        for (part, heads) in [heads, kv_heads, kv_heads].into_iter().enumerate() {
            let rows = heads * head_dim;
            let format = formats[usize::from(part == 2)];
            let of_part = format!("{name}: weight {part}");
            let values = random(seed, &of_part, rows * hidden_size);
            let (matrix, host) = matrix_of(format, seed, &of_part, [rows, hidden_size], &values);
            let host_bias = random(seed, &format!("{name}: bias {part}"), rows);
            for (x, &position) in rows_of_x.iter().zip(&batch_host.positions) {
                let row = products(x, &host, format);
                let value = |i: usize| {
                    let (sum, tolerance) = row[i];
                    let bias = if bias { f64::from(host_bias[i]) } else { 0.0 };
                    (sum + bias, tolerance + (sum + bias).abs() * unit(Dtype::F32))
                };
                expected[part].extend((0..rows).map(|i| {
                    let (d, half) = (i % head_dim, head_dim / 2);
                    if part == 2 {
                        return value(i);
                    }
                    let j = d % half;
                    let angle = f64::from(position) * 1e6f64.powf(-2.0 * j as f64 / head_dim as f64);
                    let (sin, cos) = angle.sin_cos();
                    let partner = if d < half { i + half } else { i - half };
                    let ((a, a_off), (b, b_off)) = (value(i), value(partner));
                    let rotated = if d < half { a * cos - b * sin } else { a * cos + b * sin };
                    (rotated, a_off + b_off + 3.0 * unit(Dtype::F32) * (a.abs() + b.abs()))
                }));
            }
            matrices.push(matrix);
            if bias {
                biases.push(ops.load_vector(&host_bias)?);
            }
        }
        let layout = KvLayout {
            num_layers: 1,
            num_pages: 2 * n,
            num_key_value_heads: kv_heads,
            head_dim,
            formats: dtype.into(),
        };
        Ok(Self {
            shape,
            batch,
            slots: batch_host.slots.clone(),
            expected,
            x: tensor(ops, n, hidden_size, &host_x)?,
            norm: RmsNorm { weight: ops.load_vector(&host_norm)?, eps: EPS },
            weights: ops.load_stacked(&matrices, head_dim / 2)?.matrices,
            biases,
            q: poisoned(ops, n, heads * head_dim)?,
            cache: ops.new_kv_cache(&layout)?,
        })
    }
}

impl Instance for NormQkvRope {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.q, &[])?;
        self.cache.fill(0xFF)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        let Self { batch, x, norm, weights, biases, q, cache, .. } = self;
        let weights = [&weights[0], &weights[1], &weights[2]];
        let biases = [0, 1, 2].map(|i| biases.get(i));
        ops.fused_norm_qkv_rope(batch, 0, x, norm, weights, biases, q, cache)
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let [n, _, heads, kv_heads, head_dim] = self.shape;
        let q = self.q.to_host()?;
        let (of_q, cols) = (&self.expected[0], heads * head_dim);
        findings.places("q", q.iter().copied().enumerate().take(n * cols), |i| of_q[i]);
        findings.guard_intact("q", &q[n * cols..]);
        let dtype = ops.dtype();
        let (k, v) = self.cache.read(0)?;
        for (name, pages, expected) in [("k", k, &self.expected[1]), ("v", v, &self.expected[2])] {
            let place = |i: usize| {
                let (row, head, d) = (i / (kv_heads * head_dim), i / head_dim % kv_heads, i % head_dim);
                let (page, slot) =
                    (self.slots[row] as usize / PAGE_SIZE, self.slots[row] as usize % PAGE_SIZE);
                ((page * kv_heads + head) * PAGE_SIZE + slot) * head_dim + d
            };
            findings.places(name, (0..expected.len()).map(|i| (i, pages[place(i)])), |i| {
                let (value, tolerance) = expected[i];
                (value, tolerance + value.abs() * unit(dtype) + smallest(dtype))
            });
            let written = pages.iter().filter(|value| !value.is_nan()).count();
            findings.expect(written == expected.len(), || {
                format!("{name}: {written} values of the pages were written, not {}", expected.len())
            });
        }
        Ok(())
    }
}
