//! The fused operations of a decode step.

use super::{batch_of, matmul::places};
use crate::batch::BatchLimits;
use crate::cuda::{Activation, CudaBatch, CudaOps, KvCache, Tensor, Weight, fused_max_rows, precise_dtype};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::{KvLayout, PAGE_SIZE};
use crate::lab::case::{Case, Cases, Cost, Instance, Workload, plain_config};
use crate::lab::findings::Findings;
use crate::lab::values::*;
use crate::ops::{Ops, OpsConfig, Qkv};
use rayon::prelude::*;

pub const MATMUL_ADD: Cases =
    Cases { op: "matmul_add", checks: matmul_add_checks, timings: matmul_add_timings };
pub const NORM_GATE_UP: Cases =
    Cases { op: "norm_gate_up", checks: || checks(Kind::GateUp), timings: |w| timings(Kind::GateUp, w) };
pub const NORM_MATMUL: Cases =
    Cases { op: "norm_matmul", checks: || checks(Kind::Head), timings: |w| timings(Kind::Head, w) };
pub const NORM_QKV_ROPE: Cases = Cases { op: "norm_qkv_rope", checks: qkv_checks, timings: qkv_timings };

/// Of weights: there are no kernels of f32.
const DTYPES: [Dtype; 2] = [Dtype::F16, Dtype::Bf16];
const EPS: f32 = 1e-6;

/// What a product of `cols` terms may be off, of the sum of its terms' magnitudes: as for `matmul`, and sixteen roundings
/// of a norm before it.
fn relative(cols: usize) -> f64 {
    ((cols as f64).sqrt() + 24.0) * 2.0 * unit(Dtype::F32)
}

/// A row times the rows of a matrix, in f64: sums, and the sums of magnitudes.
fn products(x: &[f64], weight: &[f32]) -> Vec<(f64, f64)> {
    let row = |w: &[f32]| {
        let terms = x.iter().zip(w).map(|(&x, &w)| x * f64::from(w));
        terms.fold((0.0, 0.0), |(sum, magnitude), term: f64| (sum + term, magnitude + term.abs()))
    };
    weight.par_chunks(x.len()).map(row).collect()
}

/// The norm of a row in f64.
fn normed(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let scale = 1.0 / (squares / x.len() as f64 + f64::from(EPS)).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect()
}

/// What stands behind a norm.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    GateUp,
    Head,
}

/// `[n, rows, cols]`.
type Shape = [usize; 3];

fn checks(kind: Kind) -> Vec<Case> {
    const SHAPES: [Shape; 12] = [
        [1, 1, 8],
        [1, 19, 64],
        [2, 111, 104],
        [3, 37, 896],
        [4, 19, 1000],
        [1, 16, 3584],
        [1, 4864, 896],
        [4, 4864, 896],
        [5, 37, 896],
        [6, 19, 1000],
        [8, 1, 400],
        [8, 4864, 896],
    ];
    let of = |dtype| shapes(&SHAPES, dtype).map(move |shape| normed_case(kind, dtype, shape, 1.0));
    let mut cases: Vec<Case> = DTYPES.into_iter().flat_map(of).collect();
    if kind == Kind::GateUp {
        // Most results are beyond the range of f16.
        cases.extend(DTYPES.map(|dtype| normed_case(kind, dtype, [2, 111, 104], 1000.0)));
    }
    cases
}

fn timings(kind: Kind, workload: &Workload) -> Vec<Case> {
    let config = &workload.config;
    let rows = if kind == Kind::Head { config.vocab_size } else { config.intermediate_size };
    few_rows(workload)
        .map(|n| normed_case(kind, workload.dtype, [n, rows, config.hidden_size], 1.0))
        .collect()
}

/// Those shapes, beginning with the number of rows, that there are kernels for.
fn shapes<const N: usize>(all: &[[usize; N]], dtype: Dtype) -> impl Iterator<Item = [usize; N]> {
    all.iter().copied().filter(move |shape| shape[0] <= fused_max_rows(dtype))
}

/// Those numbers of rows of the workload that the kernels take.
fn few_rows(workload: &Workload) -> impl Iterator<Item = usize> {
    let most = fused_max_rows(workload.dtype);
    workload.rows.iter().copied().filter(move |&n| n <= most)
}

/// `scale` is that of the norm's weight.
fn normed_case(kind: Kind, dtype: Dtype, shape: Shape, scale: f32) -> Case {
    let [n, rows, cols] = shape;
    let large = if scale > 1.0 { ", large" } else { "" };
    let matrices = if kind == Kind::GateUp { 2 } else { 1 };
    let out_size = if kind == Kind::GateUp { precise_dtype(dtype).size() } else { 4 };
    Case {
        dtype,
        shape: format!("x [{n}, {cols}], weight [{rows}, {cols}]{large}"),
        work: matrices * n * rows * cols / 8,
        cost: Cost {
            bytes: (matrices * rows * cols * dtype.size() + n * (4 * cols + rows * out_size)) as f64,
            flops: 2.0 * (matrices * n * rows) as f64 * cols as f64,
        },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(Normed::new(ops, seed, kind, shape, scale)?))),
    }
}

/// `norm_gate_up` or `norm_matmul`.
struct Normed {
    kind: Kind,
    shape: Shape,
    host_x: Vec<f32>,
    /// Indices of the results that are compared, ascending.
    places: Vec<usize>,
    /// For each place the result in f64, and its tolerance but for the last rounding.
    expected: Vec<(f64, f64)>,
    x: Tensor,
    norm: crate::cuda::DeviceBuffer<f32>,
    /// One, or gate and up.
    weights: Vec<Weight>,
    out: Tensor,
    gated: Activation,
}

impl Normed {
    fn new(ops: &mut CudaOps, seed: u64, kind: Kind, shape: Shape, scale: f32) -> Result<Self> {
        let [n, rows, cols] = shape;
        let (dtype, name) = (ops.dtype(), format!("fused {shape:?}"));
        let host_x = random(seed, &name, n * cols);
        let host_norm: Vec<f32> =
            random(seed, &format!("{name}: norm"), cols).iter().map(|w| w * scale).collect();
        let gated = ops.new_precise_activation(n + GUARD_ROWS, rows)?;
        let largest = if gated.dtype() == Dtype::F16 { 65504.0 } else { f64::INFINITY };
        let matrix = |what: &str| {
            rounded(
                dtype,
                random(seed, &format!("{name}: {what}"), rows * cols).iter().map(|w| w / 8.0).collect(),
            )
        };
        let hosts: Vec<Vec<f32>> =
            if kind == Kind::GateUp { vec![matrix("gate"), matrix("up")] } else { vec![matrix("head")] };
        let places = places(seed, n * rows, cols);
        let rows_of_x: Vec<Vec<f64>> = host_x.chunks(cols).map(|x| normed(x, &host_norm)).collect();
        let expected = places
            .par_iter()
            .map(|&place| {
                let at = |host: &[f32]| {
                    products(&rows_of_x[place / rows], &host[place % rows * cols..][..cols])[0]
                };
                let (sum, magnitude) = at(&hosts[0]);
                let tolerance = magnitude * relative(cols);
                let Some(up) = hosts.get(1) else { return (sum, tolerance) };
                let (up, up_magnitude) = at(up);
                let silu = sum / (1.0 + (-sum).exp());
                // The derivative of SiLU is below 1.1; its exponential and quotient cost 2^-20.
                let error = 1.1 * tolerance * up.abs() + silu.abs() * up_magnitude * relative(cols);
                ((silu * up).clamp(-largest, largest), error + (silu * up).abs() * 2f64.powi(-20))
            })
            .collect();
        Ok(Self {
            kind,
            shape,
            places,
            expected,
            x: tensor(ops, n, cols, &host_x)?,
            host_x,
            norm: ops.load_vector(&host_norm)?,
            weights: hosts.iter().map(|host| weight(ops, dtype, rows, cols, host)).collect::<Result<_>>()?,
            out: poisoned(ops, n, rows)?,
            gated,
        })
    }

    fn run(&mut self, ops: &mut CudaOps, n: usize) -> Result<()> {
        let Self { x, norm, weights, out, gated, .. } = self;
        match self.kind {
            Kind::Head => ops.norm_matmul(n, x, norm, EPS, &weights[0], out),
            Kind::GateUp => ops.norm_gate_up(n, x, norm, EPS, &weights[0], &weights[1], gated),
        }
    }

    fn found(&self) -> Result<Vec<f32>> {
        if self.kind == Kind::Head { self.out.to_host() } else { self.gated.to_host() }
    }
}

impl Instance for Normed {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_tensor(&mut self.x, &self.host_x)?;
        fill_tensor(&mut self.out, &[])?;
        fill_activation(&mut self.gated, &[])
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        self.run(ops, self.shape[0])
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let [n, rows, cols] = self.shape;
        let found = self.found()?;
        let dtype = if self.kind == Kind::Head { Dtype::F32 } else { self.gated.dtype() };
        let values = self.places.iter().map(|&place| (place, found[place]));
        findings.places("out", values, |place| {
            let (expected, tolerance) =
                self.expected[self.places.binary_search(&place).expect("one of them")];
            (expected, tolerance + expected.abs() * unit(dtype) + smallest(dtype))
        });
        findings.untouched("out", &found[n * rows..]);
        // Rows have the same bits alone and in a batch.
        for row in (0..n).filter(|_| n > 1) {
            self.reset(ops)?;
            let alone = self.host_x[row * cols..][..cols].to_vec();
            fill_tensor(&mut self.x, &alone)?;
            self.run(ops, 1)?;
            findings.same_bits(
                "a row alone, against the batch",
                &self.found()?[..rows],
                &found[row * rows..][..rows],
            );
        }
        Ok(())
    }
}

fn matmul_add_checks() -> Vec<Case> {
    const SHAPES: [Shape; 11] = [
        [1, 1, 8],
        [1, 19, 64],
        [2, 111, 104],
        [3, 37, 896],
        [1, 19, 4864],
        [4, 9, 4864],
        [1, 896, 896],
        [4, 896, 4864],
        [5, 19, 104],
        [7, 37, 896],
        [8, 896, 4864],
    ];
    let mut cases = Vec::new();
    for dtype in DTYPES {
        for shape in shapes(&SHAPES, dtype) {
            cases.push(matmul_add_case(dtype, dtype, shape, ""));
            if precise_dtype(dtype) != dtype {
                cases.push(matmul_add_case(dtype, precise_dtype(dtype), shape, ""));
            }
        }
    }
    cases
}

fn matmul_add_timings(workload: &Workload) -> Vec<Case> {
    let (config, dtype) = (&workload.config, workload.dtype);
    let q_size = config.num_attention_heads * config.head_dim;
    let projections =
        [("o_proj", q_size, dtype), ("down_proj", config.intermediate_size, precise_dtype(dtype))];
    let of =
        |n| projections.map(|(name, cols, x)| matmul_add_case(dtype, x, [n, config.hidden_size, cols], name));
    few_rows(workload).flat_map(of).collect()
}

fn matmul_add_case(dtype: Dtype, x_dtype: Dtype, shape: Shape, name: &'static str) -> Case {
    let [n, rows, cols] = shape;
    let space = if name.is_empty() { "" } else { " " };
    Case {
        dtype,
        shape: format!("{name}{space}x {x_dtype} [{n}, {cols}], weight [{rows}, {cols}]"),
        work: n * rows * cols / 8,
        cost: Cost {
            bytes: (rows * cols * dtype.size() + n * cols * x_dtype.size() + 8 * n * rows) as f64,
            flops: 2.0 * (n * rows) as f64 * cols as f64,
        },
        config: plain_config(),
        prepare: Box::new(move |ops, seed| Ok(Box::new(MatmulAdd::new(ops, seed, x_dtype, shape)?))),
    }
}

struct MatmulAdd {
    shape: Shape,
    host_x: Vec<f32>,
    residual: Vec<f32>,
    expected: Vec<(f64, f64)>,
    x: Activation,
    weight: Weight,
    out: Tensor,
}

impl MatmulAdd {
    fn new(ops: &mut CudaOps, seed: u64, x_dtype: Dtype, shape: Shape) -> Result<Self> {
        let [n, rows, cols] = shape;
        let (dtype, name) = (ops.dtype(), format!("matmul_add {shape:?}"));
        let host_x = rounded(x_dtype, random(seed, &name, n * cols));
        let host_weight = rounded(dtype, random(seed, &format!("{name}: weight"), rows * cols));
        let residual = random(seed, &format!("{name}: residual"), n * rows);
        let mut expected = Vec::new();
        for (x, residual) in host_x.chunks(cols).zip(residual.chunks(rows)) {
            let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
            expected.extend(products(&x, &host_weight).into_iter().zip(residual).map(
                |((sum, magnitude), &r)| {
                    let sum = sum + f64::from(r);
                    (sum, magnitude * relative(cols) + sum.abs() * unit(Dtype::F32))
                },
            ));
        }
        let x = if x_dtype == dtype {
            activation(ops, n, cols, &host_x)?
        } else {
            ops.new_precise_activation(n + GUARD_ROWS, cols)?
        };
        let (weight, out) = (weight(ops, dtype, rows, cols, &host_weight)?, poisoned(ops, n, rows)?);
        Ok(Self { shape, host_x, residual, expected, x, weight, out })
    }
}

impl Instance for MatmulAdd {
    fn reset(&mut self, _: &mut CudaOps) -> Result<()> {
        fill_activation(&mut self.x, &self.host_x)?;
        fill_tensor(&mut self.out, &self.residual)
    }

    fn launch(&mut self, ops: &mut CudaOps) -> Result<()> {
        ops.matmul_add(self.shape[0], &self.x, &self.weight, &mut self.out)
    }

    fn compare(&mut self, ops: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let [n, rows, cols] = self.shape;
        let found = self.out.to_host()?;
        findings.places("out", found.iter().copied().enumerate().take(n * rows), |i| self.expected[i]);
        findings.untouched("out", &found[n * rows..]);
        for row in (0..n).filter(|_| n > 1) {
            fill_activation(&mut self.x, &self.host_x[row * cols..][..cols])?;
            fill_tensor(&mut self.out, &self.residual[row * rows..][..rows])?;
            ops.matmul_add(1, &self.x, &self.weight, &mut self.out)?;
            let alone = self.out.to_host()?;
            findings.same_bits(
                "a row alone, against the batch",
                &alone[..rows],
                &found[row * rows..][..rows],
            );
        }
        Ok(())
    }
}

/// `[n, hidden_size, num_attention_heads, num_key_value_heads, head_dim]`
type QkvShape = [usize; 5];

fn qkv_checks() -> Vec<Case> {
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
            cases.extend([true, false].map(|bias| qkv_case(dtype, shape, bias)));
        }
    }
    cases
}

fn qkv_timings(workload: &Workload) -> Vec<Case> {
    let c = &workload.config;
    let shape = |n| [n, c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim];
    few_rows(workload).map(|n| qkv_case(workload.dtype, shape(n), true)).collect()
}

fn qkv_case(dtype: Dtype, shape: QkvShape, bias: bool) -> Case {
    let [n, hidden_size, heads, kv_heads, head_dim] = shape;
    let rows = (heads + 2 * kv_heads) * head_dim;
    let biases = if bias { "biases" } else { "no biases" };
    Case {
        dtype,
        shape: format!("x [{n}, {hidden_size}], {heads} and {kv_heads} heads of {head_dim}, {biases}"),
        work: n * rows * hidden_size / 8,
        cost: Cost {
            bytes: (rows * hidden_size * dtype.size() + 4 * n * (hidden_size + rows)) as f64,
            flops: 2.0 * (n * rows) as f64 * hidden_size as f64,
        },
        config: OpsConfig {
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rope_theta: 1e6,
            max_model_len: 64,
            limits: BatchLimits { max_num_tokens: 8, max_num_sequences: 8, max_num_logits: 8, max_blocks: 2 },
        },
        prepare: Box::new(move |ops, seed| Ok(Box::new(NormQkvRope::new(ops, seed, shape, bias)?))),
    }
}

struct NormQkvRope {
    shape: QkvShape,
    batch: CudaBatch,
    slots: Vec<u32>,
    /// For q, k and v: results and tolerances in f64, `[n, heads * head_dim]`.
    expected: [Vec<(f64, f64)>; 3],
    x: Tensor,
    norm: crate::cuda::DeviceBuffer<f32>,
    weights: Vec<Weight>,
    biases: Vec<crate::cuda::DeviceBuffer<f32>>,
    q: Tensor,
    cache: KvCache,
}

impl NormQkvRope {
    fn new(ops: &mut CudaOps, seed: u64, shape: QkvShape, bias: bool) -> Result<Self> {
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
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        let mut expected = [Vec::new(), Vec::new(), Vec::new()];
        for (part, heads) in [heads, kv_heads, kv_heads].into_iter().enumerate() {
            let rows = heads * head_dim;
            let host = rounded(dtype, random(seed, &format!("{name}: weight {part}"), rows * hidden_size));
            let host_bias = random(seed, &format!("{name}: bias {part}"), rows);
            for (x, &position) in rows_of_x.iter().zip(&batch_host.positions) {
                let row = products(x, &host);
                let value = |i: usize| {
                    let (sum, magnitude) = row[i];
                    let bias = if bias { f64::from(host_bias[i]) } else { 0.0 };
                    (sum + bias, magnitude * relative(hidden_size) + (sum + bias).abs() * unit(Dtype::F32))
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
            weights.push(weight(ops, dtype, rows, hidden_size, &host)?);
            if bias {
                biases.push(ops.load_vector(&host_bias)?);
            }
        }
        let layout =
            KvLayout { num_layers: 1, num_pages: 2 * n, num_key_value_heads: kv_heads, head_dim, dtype };
        Ok(Self {
            shape,
            batch,
            slots: batch_host.slots.clone(),
            expected,
            x: tensor(ops, n, hidden_size, &host_x)?,
            norm: ops.load_vector(&host_norm)?,
            weights,
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
        let qkv = Qkv {
            norm,
            eps: EPS,
            q: &weights[0],
            k: &weights[1],
            v: &weights[2],
            q_bias: biases.first(),
            k_bias: biases.get(1),
            v_bias: biases.get(2),
        };
        ops.norm_qkv_rope(batch, 0, x, &qkv, q, cache)
    }

    fn compare(&mut self, _: &mut CudaOps, _: &str, findings: &mut Findings) -> Result<()> {
        let [n, _, heads, kv_heads, head_dim] = self.shape;
        let q = self.q.to_host()?;
        let (of_q, cols) = (&self.expected[0], heads * head_dim);
        findings.places("q", q.iter().copied().enumerate().take(n * cols), |i| of_q[i]);
        findings.untouched("q", &q[n * cols..]);
        let dtype = self.cache.layout().dtype;
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
