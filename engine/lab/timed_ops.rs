//! Operations with a stop-watch around each call.

use crate::batch::{Batch, BatchLimits};
use crate::cuda::{Device, Timer};
use crate::error::Result;
use crate::kv_layout::{KvLayout, SlotLayout};
use crate::ops::experts::ExpertOps;
use crate::ops::hybrid::{CausalConv, DeltaNet, DeltaRule, Gate, HybridOps};
use crate::ops::keep::KeepOps;
use crate::ops::lora::{LoraOps, Update};
use crate::ops::parts::{
    AttentionIn, Experts, LayerNorm, Linear, MlpIn, Norm, NormMatmul, QkNorm, RmsNorm, Router,
};
use crate::ops::ranks::RankOps;
use crate::ops::{Ops, Rows, Stacked, Types};
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

    /// As [`TimedOps::timed`] for a part of a layer that the device may have no kernel for: then nothing was done, and nothing is timed.
    fn timed_part(&mut self, name: &'static str, call: impl FnOnce(&mut O) -> Result<bool>) -> Result<bool> {
        self.stopwatch.borrow_mut().start()?;
        let computed = call(&mut self.inner)?;
        if computed {
            self.stopwatch.borrow_mut().stop(name)?;
        }
        Ok(computed)
    }
}

impl<O: Ops> Types for TimedOps<O> {
    type Tensor = O::Tensor;
    type Activation = O::Activation;
    type Weight = O::Weight;
    type Vector = O::Vector;
    type KvCache = O::KvCache;
    type States = O::States;
    type Batch = O::Batch;
}

/// Operations that are timed under a name.
macro_rules! timed {
    ($($name:literal: $op:ident($($argument:ident: $type:ty),*);)*) => { $(
        fn $op(&mut self, $($argument: $type),*) -> Result<()> {
            self.timed($name, |ops| ops.$op($($argument),*))
        }
    )* };
}

/// Parts of a layer that are timed under their names.
macro_rules! timed_parts {
    ($($op:ident($($argument:ident: $type:ty),*);)*) => { $(
        fn $op(&mut self, $($argument: $type),*) -> Result<bool> {
            self.timed_part(stringify!($op), |ops| ops.$op($($argument),*))
        }
    )* };
}

/// Operations that are not timed.
macro_rules! untimed {
    ($($op:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => { $(
        fn $op(&mut self, $($argument: $type),*) -> $result {
            self.inner.$op($($argument),*)
        }
    )* };
}

impl<O: Ops> HybridOps for TimedOps<O> {
    untimed! {
        new_states(layout: &SlotLayout) -> Result<O::States>;
        copy_state(from: &O::States, slot: usize, to: &mut O::States, place: usize) -> Result<()>;
        bound_delta_net(name: &str, part: &DeltaNet<O::Weight, O::Vector>) -> Result<()>;
    }

    timed! {
        "causal_conv": causal_conv(
            batch: &O::Batch, layer: usize, conv: &CausalConv<O::Vector>, x: &O::Tensor, states: &mut O::States,
            out: &mut O::Tensor
        );
        "delta_rule": delta_rule(
            batch: &O::Batch, layer: usize, rule: &DeltaRule<O::Vector>, mixed: &O::Tensor, qkv: &O::Tensor,
            states: &mut O::States, out: &mut O::Tensor
        );
        "gated_norm": gated_norm(
            n: usize, x: &O::Tensor, norm: &RmsNorm<O::Vector>, gate: Gate<O::Tensor, O::Weight>, out: &mut O::Activation
        );
        "widen": widen(n: usize, x: &O::Activation, out: &mut O::Tensor);
        "sigmoid_mul": sigmoid_mul(n: usize, gate: &O::Tensor, rows: &mut O::Activation);
    }

    timed_parts! {
        delta_step(
            batch: &O::Batch, layer: usize, part: &DeltaNet<O::Weight, O::Vector>, mixed: &O::Tensor, states: &mut O::States,
            out: &mut O::Activation
        );
    }
}

impl<O: Ops> KeepOps for TimedOps<O> {
    untimed! {
        read_page(cache: &O::KvCache, page: usize) -> Result<Vec<u8>>;
        write_page(cache: &mut O::KvCache, page: usize, bytes: &[u8]) -> Result<()>;
        read_slot(states: &O::States, slot: usize) -> Result<Vec<u8>>;
        write_slot(states: &mut O::States, slot: usize, bytes: &[u8]) -> Result<()>;
    }

    fn order(&self) -> &'static str {
        self.inner.order()
    }
}

impl<O: Ops> LoraOps for TimedOps<O> {
    untimed! {
        reserve_rank(rank: usize) -> Result<()>;
    }

    timed! {
        "lora_add": lora_add(
            rows: Rows<O::Batch>, x: &O::Activation, update: &Update<O::Vector>, out: &mut O::Tensor
        );
        "matmul": matmul_unrounded(n: usize, x: &O::Activation, weight: &O::Weight, out: &mut O::Activation);
        "lora_add": lora_add_product(
            rows: Rows<O::Batch>, x: &O::Activation, update: &Update<O::Vector>, weight: &O::Weight, out: &mut O::Activation
        );
    }

    fn has_adapters(&self, batch: &O::Batch) -> bool {
        self.inner.has_adapters(batch)
    }
}

impl<O: Ops> ExpertOps for TimedOps<O> {
    untimed! {
        load_experts(matrix: &Matrix, num_experts: usize) -> Result<O::Weight>;
        load_gate_up_experts(gate_up: [&Matrix; 2], num_experts: usize) -> Result<[O::Weight; 2]>;
    }

    timed! {
        "route": route(n: usize, x: &O::Activation, router: &Router<O::Vector>, chosen: &mut O::Tensor);
        "sort_experts": sort_experts(n: usize, chosen: &O::Tensor, matrices: [&O::Weight; 3]);
        "experts_in": experts_in(
            n: usize, x: &O::Activation, chosen: &O::Tensor, gate_up: [&O::Weight; 2], inner: &mut O::Tensor
        );
        "experts_out": experts_out(
            n: usize, inner: &O::Tensor, chosen: &O::Tensor, down: &O::Weight, out: &mut O::Tensor
        );
    }

    timed_parts! {
        norm_route(
            n: usize, x: &O::Tensor, part: &Experts<O::Weight, O::Vector>, normed: &mut O::Activation, chosen: &mut O::Tensor
        );
        add_host_experts(
            n: usize, part: &Experts<O::Weight, O::Vector>, normed: &O::Activation, chosen: &O::Tensor, x: &mut O::Tensor
        );
    }
}

impl<O: Ops> RankOps for TimedOps<O> {
    timed! {
        "add_ranks": add_ranks(rows: Rows<O::Batch>, part: &mut O::Tensor, x: &mut O::Tensor);
        "gather_ranks": gather_ranks(n: usize, part: &O::Tensor, out: &mut O::Tensor);
    }
}

impl<O: Ops> Ops for TimedOps<O> {
    untimed! {
        new_tensor(rows: usize, cols: usize) -> Result<O::Tensor>;
        new_activation(rows: usize, cols: usize) -> Result<O::Activation>;
        new_precise_activation(rows: usize, cols: usize) -> Result<O::Activation>;
        new_product(rows: usize, cols: usize) -> Result<O::Activation>;
        new_kv_cache(layout: &KvLayout) -> Result<O::KvCache>;
        new_batch(limits: &BatchLimits) -> Result<O::Batch>;
        load_matrix(matrix: &Matrix) -> Result<O::Weight>;
        load_stacked(matrices: &[Matrix], apart: usize) -> Result<Stacked<O::Weight>>;
        finish_loading() -> Result<()>;
        bound_attention(name: &str, part: &AttentionIn<O::Weight, O::Vector>) -> Result<()>;
        bound_mlp(name: &str, part: &MlpIn<O::Weight, O::Vector>) -> Result<()>;
        bound_experts(name: &str, part: &Experts<O::Weight, O::Vector>) -> Result<()>;
        bound_norm(name: &str, norm: &Norm<O::Vector>) -> Result<()>;
        load_vector(values: &[f32]) -> Result<O::Vector>;
        warm_up(most: usize) -> Result<()>;
        copy_tokens_to_host() -> Result<()>;
        take_tokens() -> Result<Vec<u32>>;
        discard_tokens() -> ();
        read(n: usize, x: &O::Tensor) -> Result<Vec<f32>>;
        read_row(row: usize, x: &O::Tensor) -> Result<Vec<f32>>;
        read_bandwidth() -> Result<Option<f64>>;
    }

    timed! {
        "upload": upload(host: &Batch, batch: &mut O::Batch);
        "embed": embed(batch: &O::Batch, table: &O::Weight, out: &mut O::Tensor);
        "add_positions": add_positions(batch: &O::Batch, table: &O::Vector, x: &mut O::Tensor);
        "rms_norm": rms_norm(n: usize, x: &O::Tensor, norm: &RmsNorm<O::Vector>, out: &mut O::Activation);
        "layer_norm": layer_norm(n: usize, x: &O::Tensor, norm: &LayerNorm<O::Vector>, out: &mut O::Activation);
        "matmul": matmul(n: usize, x: &O::Activation, weight: &O::Weight, out: &mut O::Tensor);
        "matmul_add": matmul_add(rows: Rows<O::Batch>, x: &O::Activation, weight: &O::Weight, out: &mut O::Tensor);
        "add_bias": add_bias(n: usize, bias: &O::Vector, x: &mut O::Tensor);
        "matmul": matmul_rounded(n: usize, x: &O::Activation, weight: &O::Weight, out: &mut O::Activation);
        "bias_rope_kv": bias_rope_kv(
            batch: &O::Batch, layer: usize, qkv: &O::Tensor, bias: [Option<&O::Vector>; 3], norm: Option<&QkNorm<O::Vector>>,
            q: &mut O::Tensor, cache: &mut O::KvCache
        );
        "attention": attention(
            batch: &O::Batch, layer: usize, q: &O::Tensor, cache: &O::KvCache, out: &mut O::Activation
        );
        "attention": attention_of_logit_rows(
            batch: &O::Batch, layer: usize, q: &O::Tensor, cache: &O::KvCache, out: &mut O::Activation
        );
        "quantise_kv": store_rows(cache: &mut O::KvCache);
        "silu_mul": silu_mul(n: usize, weights: &Stacked<O::Weight>, gate_up: &O::Activation, out: &mut O::Activation);
        "bias_gelu": bias_gelu(
            n: usize, projection: &Linear<O::Weight, O::Vector>, x: &O::Activation, out: &mut O::Activation
        );
        "gate_rows": gate_rows(n: usize, x: &O::Activation, gate: &O::Vector, rows: &mut O::Activation);
        "gather_rows": gather_rows(batch: &O::Batch, x: &O::Tensor, out: &mut O::Tensor);
        "prepare_sampling": prepare_sampling(logits: &O::Tensor, rows: &[SamplingRow]);
        "sample": queue_sampling(logits: &mut O::Tensor);
    }

    timed_parts! {
        norm_qkv_rope(
            rows: Rows<O::Batch>, layer: usize, part: &AttentionIn<O::Weight, O::Vector>, x: &O::Tensor, q: &mut O::Tensor,
            cache: &mut O::KvCache
        );
        norm_gate_up(
            rows: Rows<O::Batch>, part: &MlpIn<O::Weight, O::Vector>, x: &O::Tensor, out: &mut O::Activation
        );
        gated_matmul(
            n: usize, x: &O::Activation, weights: &Stacked<O::Weight>, out: &mut O::Activation
        );
        norm_matmul(
            rows: Rows<O::Batch>, part: &NormMatmul<O::Weight, O::Vector>, x: &O::Tensor, logits: &mut O::Tensor
        );
    }

    fn product_rows(&self, n: usize) -> usize {
        self.inner.product_rows(n)
    }

    fn runs_ahead(&self) -> bool {
        self.inner.runs_ahead()
    }

    fn device_name(&self) -> String {
        self.inner.device_name()
    }
}
