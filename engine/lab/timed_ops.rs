//! Operations with a stop-watch around each call.

use crate::batch::{Batch, BatchLimits};
use crate::cuda::{Device, Timer};
use crate::error::Result;
use crate::kv_cache::KvLayout;
use crate::ops::{Ops, Qkv, QkvBias, Stacked};
use crate::sampler::SamplingRow;
use crate::weights::Matrix;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

/// Seconds of each operation that was called, in order of the calls.
pub type Laps = Vec<(&'static str, f64)>;

/// Times stretches of what a device does.
pub struct Stopwatch {
    clock: Clock,
    names: Vec<&'static str>,
    /// Off: calls cost nothing.
    running: bool,
}

enum Clock {
    /// The host's clock: for operations that are done when their call returns.
    Host { started: Instant, seconds: Vec<f64> },
    /// Events on the device's stream: several are queued before the first is read.
    Events { device: Rc<Device>, timers: Vec<Timer> },
}

/// Laps of one [`Timer`]; a step of 24 layers has about 400.
const LAPS: usize = 512;

impl Stopwatch {
    /// For operations that are done when their call returns, as those of the CPU are.
    pub fn host() -> Self {
        Self::new(Clock::Host { started: Instant::now(), seconds: Vec::new() })
    }

    /// For operations that are queued on the device's stream.
    pub fn events(device: &Rc<Device>) -> Self {
        Self::new(Clock::Events { device: device.clone(), timers: Vec::new() })
    }

    fn new(clock: Clock) -> Self {
        Self { clock, names: Vec::new(), running: false }
    }

    /// Begins to time; forgets what was timed before.
    pub fn run(&mut self) {
        self.names.clear();
        if let Clock::Host { seconds, .. } = &mut self.clock {
            seconds.clear();
        }
        self.running = true;
    }

    /// Stops timing and answers what was timed, once the device has done it.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if something that was timed failed.
    pub fn take(&mut self) -> Result<Laps> {
        self.running = false;
        let names = std::mem::take(&mut self.names);
        let seconds = |lap: usize| match &mut self.clock {
            Clock::Host { seconds, .. } => Ok(seconds[lap]),
            Clock::Events { timers, .. } => timers[lap / LAPS].seconds(lap % LAPS),
        };
        let laps = (0..names.len()).map(seconds).collect::<Result<Vec<_>>>()?;
        Ok(names.into_iter().zip(laps).collect())
    }

    fn start(&mut self) -> Result<()> {
        let lap = self.names.len();
        match &mut self.clock {
            _ if !self.running => {}
            Clock::Host { started, .. } => *started = Instant::now(),
            Clock::Events { device, timers } => {
                if timers.len() <= lap / LAPS {
                    timers.push(Timer::new(device, LAPS)?);
                }
                timers[lap / LAPS].start(lap % LAPS)?;
            }
        }
        Ok(())
    }

    fn stop(&mut self, name: &'static str) -> Result<()> {
        let lap = self.names.len();
        match &mut self.clock {
            _ if !self.running => return Ok(()),
            Clock::Host { started, seconds } => seconds.push(started.elapsed().as_secs_f64()),
            Clock::Events { timers, .. } => timers[lap / LAPS].stop(lap % LAPS)?,
        }
        self.names.push(name);
        Ok(())
    }
}

/// [`Ops`] that times its calls while its [`Stopwatch`] runs. Each operation of a step is queued on its own: what a device
/// records and replays as a whole ([`Ops::run_step`]) cannot be timed in parts.
pub struct TimedOps<O> {
    inner: O,
    stopwatch: Rc<RefCell<Stopwatch>>,
}

impl<O: Ops> TimedOps<O> {
    /// `inner`, timed by `stopwatch`, which the caller shares to start it and to read it.
    pub fn new(inner: O, stopwatch: Rc<RefCell<Stopwatch>>) -> Self {
        Self { inner, stopwatch }
    }

    /// The operations that are timed.
    pub fn inner_mut(&mut self) -> &mut O {
        &mut self.inner
    }

    fn timed<T>(&mut self, name: &'static str, call: impl FnOnce(&mut O) -> Result<T>) -> Result<T> {
        self.stopwatch.borrow_mut().start()?;
        let result = call(&mut self.inner)?;
        self.stopwatch.borrow_mut().stop(name)?;
        Ok(result)
    }
}

impl<O: Ops> Ops for TimedOps<O> {
    type Tensor = O::Tensor;
    type Activation = O::Activation;
    type Weight = O::Weight;
    type Vector = O::Vector;
    type KvCache = O::KvCache;
    type Batch = O::Batch;

    fn new_tensor(&mut self, rows: usize, cols: usize) -> Result<O::Tensor> {
        self.inner.new_tensor(rows, cols)
    }

    fn new_activation(&mut self, rows: usize, cols: usize) -> Result<O::Activation> {
        self.inner.new_activation(rows, cols)
    }

    fn new_precise_activation(&mut self, rows: usize, cols: usize) -> Result<O::Activation> {
        self.inner.new_precise_activation(rows, cols)
    }

    fn new_product(&mut self, rows: usize, cols: usize) -> Result<O::Activation> {
        self.inner.new_product(rows, cols)
    }

    fn new_kv_cache(&mut self, layout: &KvLayout) -> Result<O::KvCache> {
        self.inner.new_kv_cache(layout)
    }

    fn new_batch(&mut self, limits: &BatchLimits) -> Result<O::Batch> {
        self.inner.new_batch(limits)
    }

    fn load_matrix(&mut self, matrix: &Matrix) -> Result<O::Weight> {
        self.inner.load_matrix(matrix)
    }

    fn load_stacked(&mut self, matrices: &[&Matrix]) -> Result<Stacked<O::Weight>> {
        self.inner.load_stacked(matrices)
    }

    fn finish_loading(&mut self) -> Result<()> {
        self.inner.finish_loading()
    }

    fn load_vector(&mut self, values: &[f32]) -> Result<O::Vector> {
        self.inner.load_vector(values)
    }

    fn upload(&mut self, host: &Batch, batch: &mut O::Batch) -> Result<()> {
        self.timed("upload", |ops| ops.upload(host, batch))
    }

    fn embed(&mut self, batch: &O::Batch, table: &O::Weight, out: &mut O::Tensor) -> Result<()> {
        self.timed("embed", |ops| ops.embed(batch, table, out))
    }

    fn rms_norm(
        &mut self,
        n: usize,
        x: &O::Tensor,
        weight: &O::Vector,
        eps: f32,
        out: &mut O::Activation,
    ) -> Result<()> {
        self.timed("rms_norm", |ops| ops.rms_norm(n, x, weight, eps, out))
    }

    fn matmul(&mut self, n: usize, x: &O::Activation, weight: &O::Weight, out: &mut O::Tensor) -> Result<()> {
        self.timed("matmul", |ops| ops.matmul(n, x, weight, out))
    }

    fn matmul_accumulate(
        &mut self,
        n: usize,
        x: &O::Activation,
        weight: &O::Weight,
        out: &mut O::Tensor,
    ) -> Result<()> {
        self.timed("matmul", |ops| ops.matmul_accumulate(n, x, weight, out))
    }

    fn matmul_rounded(
        &mut self,
        n: usize,
        x: &O::Activation,
        weight: &O::Weight,
        out: &mut O::Activation,
    ) -> Result<()> {
        self.timed("matmul", |ops| ops.matmul_rounded(n, x, weight, out))
    }

    fn bias_rope_kv(
        &mut self,
        batch: &O::Batch,
        layer: usize,
        qkv: &O::Tensor,
        bias: &QkvBias<O::Vector>,
        q: &mut O::Tensor,
        cache: &mut O::KvCache,
    ) -> Result<()> {
        self.timed("bias_rope_kv", |ops| ops.bias_rope_kv(batch, layer, qkv, bias, q, cache))
    }

    fn attention(
        &mut self,
        batch: &O::Batch,
        layer: usize,
        q: &O::Tensor,
        cache: &O::KvCache,
        out: &mut O::Activation,
    ) -> Result<()> {
        self.timed("attention", |ops| ops.attention(batch, layer, q, cache, out))
    }

    fn attention_of_wanted(
        &mut self,
        batch: &O::Batch,
        layer: usize,
        q: &O::Tensor,
        cache: &O::KvCache,
        out: &mut O::Activation,
    ) -> Result<()> {
        self.timed("attention", |ops| ops.attention_of_wanted(batch, layer, q, cache, out))
    }

    fn silu_mul(&mut self, n: usize, gate_up: &O::Activation, out: &mut O::Activation) -> Result<()> {
        self.timed("silu_mul", |ops| ops.silu_mul(n, gate_up, out))
    }

    fn add(&mut self, n: usize, x: &mut O::Tensor, delta: &O::Tensor) -> Result<()> {
        self.timed("add", |ops| ops.add(n, x, delta))
    }

    fn gather_rows(&mut self, batch: &O::Batch, x: &O::Tensor, out: &mut O::Tensor) -> Result<()> {
        self.timed("gather_rows", |ops| ops.gather_rows(batch, x, out))
    }

    fn product_rows(&self, n: usize) -> usize {
        self.inner.product_rows(n)
    }

    fn is_fused(&self, batch: &O::Batch, hidden_size: usize) -> bool {
        self.inner.is_fused(batch, hidden_size)
    }

    fn norm_qkv_rope(
        &mut self,
        batch: &O::Batch,
        layer: usize,
        x: &O::Tensor,
        weights: &Qkv<O::Weight, O::Vector>,
        q: &mut O::Tensor,
        cache: &mut O::KvCache,
    ) -> Result<()> {
        self.timed("norm_qkv_rope", |ops| ops.norm_qkv_rope(batch, layer, x, weights, q, cache))
    }

    fn matmul_add(
        &mut self,
        n: usize,
        x: &O::Activation,
        weight: &O::Weight,
        out: &mut O::Tensor,
    ) -> Result<()> {
        self.timed("matmul_add", |ops| ops.matmul_add(n, x, weight, out))
    }

    fn norm_gate_up(
        &mut self,
        n: usize,
        x: &O::Tensor,
        norm: &O::Vector,
        eps: f32,
        gate: &O::Weight,
        up: &O::Weight,
        out: &mut O::Activation,
    ) -> Result<()> {
        self.timed("norm_gate_up", |ops| ops.norm_gate_up(n, x, norm, eps, gate, up, out))
    }

    fn norm_matmul(
        &mut self,
        n: usize,
        x: &O::Tensor,
        norm: &O::Vector,
        eps: f32,
        weight: &O::Weight,
        out: &mut O::Tensor,
    ) -> Result<()> {
        self.timed("norm_matmul", |ops| ops.norm_matmul(n, x, norm, eps, weight, out))
    }

    fn prepare_sampling(&mut self, logits: &O::Tensor, rows: &[SamplingRow]) -> Result<()> {
        self.timed("prepare_sampling", |ops| ops.prepare_sampling(logits, rows))
    }

    fn draw(&mut self, logits: &mut O::Tensor) -> Result<()> {
        self.timed("draw", |ops| ops.draw(logits))
    }

    fn fetch_drawn(&mut self) -> Result<()> {
        self.inner.fetch_drawn()
    }

    fn drawn(&mut self) -> Result<Vec<u32>> {
        self.inner.drawn()
    }

    fn forget_drawn(&mut self) {
        self.inner.forget_drawn();
    }

    fn runs_ahead(&self) -> bool {
        self.inner.runs_ahead()
    }

    fn read(&mut self, n: usize, x: &O::Tensor) -> Result<Vec<f32>> {
        self.inner.read(n, x)
    }

    fn read_row(&mut self, row: usize, x: &O::Tensor) -> Result<Vec<f32>> {
        self.inner.read_row(row, x)
    }

    fn device_name(&self) -> String {
        self.inner.device_name()
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        self.inner.read_bandwidth()
    }
}
