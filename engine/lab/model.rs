//! A whole model with other kernels than the default ones: what that does to its speed and to its answers.

mod report;

pub use report::{Agreement, Measured, Report, Share, Shares};

use super::timed_ops::{Laps, Stopwatch, TimedOps};
use crate::batch::{Batch, LogitRows, SequenceRows};
use crate::config::Config;
use crate::cpu::CpuOps;
use crate::cpu::kernels::MatmulBlocks;
use crate::cuda::{CudaOps, Device, KernelChoice};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_layout::{KvLayout, pages_for};
use crate::ops::{Ops, OpsConfig};
use crate::sampler::{SamplingParams, SamplingRow};
use crate::stats::Stats;
use crate::weights::Weights;
use qernel_core::model::{ModelRunner, Runner};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

/// Logit rows of a step: they are 39 MB for a vocabulary of 152 k.
pub const LOGIT_ROWS: usize = 64;

/// Sequences: two choices of kernels, each with pages of its own.
pub const NUM_SEQUENCES: usize = 2;

/// Decode steps whose operations are timed.
const TIMED_STEPS: usize = 16;

/// What is run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The variants to compare with: the default ones, or some of them fixed.
    pub against: KernelChoice,
    /// Tokens that are prefilled, and whose logits are compared.
    pub prompt: Vec<u32>,
    /// Tokens that are generated after them, greedily.
    pub decode_tokens: usize,
    /// How often both are timed.
    pub repetitions: usize,
    /// Rows of a prefill step.
    pub batch_size: usize,
}

/// Operations that may have kernels to choose from.
trait Choose {
    fn choose(&mut self, choice: &KernelChoice) -> Result<()>;
}

impl Choose for CpuOps {
    fn choose(&mut self, _: &KernelChoice) -> Result<()> {
        Ok(())
    }
}

impl Choose for CudaOps {
    fn choose(&mut self, choice: &KernelChoice) -> Result<()> {
        CudaOps::choose(self, choice.clone())
    }
}

impl<O: Ops + Choose> Choose for TimedOps<O> {
    fn choose(&mut self, choice: &KernelChoice) -> Result<()> {
        self.inner_mut().choose(choice)
    }
}

/// Where a model is measured, and what fits there.
pub struct Place {
    /// `None` is the CPU.
    pub device: Option<Rc<Device>>,
    /// For [`NUM_SEQUENCES`] sequences of [`Plan::max_model_len`] tokens, and steps of [`Plan::max_num_tokens`] rows and
    /// [`LOGIT_ROWS`] logit rows.
    pub ops_config: OpsConfig,
    pub layout: KvLayout,
    /// Of matrices on a GPU.
    pub dtype: Dtype,
    /// How the CPU multiplies with matrices in blocks.
    pub cpu_blocks: MatmulBlocks,
}

impl Plan {
    /// Tokens of the sequence that is measured.
    pub fn max_model_len(&self) -> usize {
        self.prompt.len() + self.decode_tokens
    }

    /// Rows of its largest step.
    pub fn max_num_tokens(&self) -> usize {
        self.batch_size.min(self.prompt.len())
    }

    /// Refuses what a model cannot run.
    ///
    /// # Errors
    /// [`Error::Request`] where nothing is to be measured, or more tokens than the model's context.
    pub fn check(&self, config: &Config) -> Result<()> {
        if self.prompt.is_empty() || self.decode_tokens == 0 || self.repetitions == 0 || self.batch_size == 0
        {
            return Err(Error::Request(
                "at least one prompt token, decode token, repetition and row is needed".into(),
            ));
        }
        if self.max_model_len() > config.max_position_embeddings {
            return Err(Error::Request(format!(
                "{} prompt tokens and {} decode tokens are more than this model's context of {}",
                self.prompt.len(),
                self.decode_tokens,
                config.max_position_embeddings
            )));
        }
        Ok(())
    }
}

/// Measures a model with the kernels `asked`, and compares them with those of the plan. On the CPU both are ignored, and
/// [`Place::cpu_blocks`] says what is measured.
///
/// The model is loaded twice, one after the other: as the engine runs it, and with a stop-watch around each operation.
///
/// # Errors
/// As [`Plan::check`]; [`Error::Request`] for a variant that cannot compute the model; what the device says.
pub fn measure(
    weights: &Weights,
    config: &Config,
    place: &Place,
    asked: &KernelChoice,
    plan: &Plan,
) -> Result<Report> {
    plan.check(config)?;
    let mut choices = vec![plan.against.clone()];
    let quiet = &mut |_, _| ();
    let Place { device, ops_config, layout, dtype, cpu_blocks } = place;
    match device {
        None => {
            let ops = CpuOps::new(ops_config)?.with_blocks(*cpu_blocks);
            let runner = ModelRunner::new(ops, weights, config, ops_config, *layout, quiet)?;
            let whole = Bench { runner, plan }.whole(&choices)?;
            let stopwatch = Rc::new(RefCell::new(Stopwatch::host()));
            let ops = TimedOps::new(CpuOps::new(ops_config)?.with_blocks(*cpu_blocks), stopwatch.clone());
            let runner = ModelRunner::new(ops, weights, config, ops_config, *layout, quiet)?;
            let shares = Bench { runner, plan }.shares(&choices, &stopwatch)?;
            Ok(report(plan, whole, shares))
        }
        Some(device) => {
            if *asked != plan.against && *asked != KernelChoice::default() {
                choices.push(asked.clone());
            }
            let ops = CudaOps::new(device, ops_config, *dtype, KernelChoice::default())?;
            let runner = ModelRunner::new(ops, weights, config, ops_config, *layout, quiet)?;
            let whole = Bench { runner, plan }.whole(&choices)?;
            let host = device.is_emulated();
            let stopwatch = if host { Stopwatch::host() } else { Stopwatch::events(device) };
            let stopwatch = Rc::new(RefCell::new(stopwatch));
            let ops = CudaOps::new(device, ops_config, *dtype, KernelChoice::default())?;
            let ops = TimedOps::new(ops, stopwatch.clone());
            let runner = ModelRunner::new(ops, weights, config, ops_config, *layout, quiet)?;
            let shares = Bench { runner, plan }.shares(&choices, &stopwatch)?;
            Ok(report(plan, whole, shares))
        }
    }
}

/// What was measured of the model as the engine runs it.
struct Whole {
    device: String,
    /// Of each choice.
    repetitions: Vec<Vec<Repetition>>,
    agreement: Option<Agreement>,
}

/// Seconds of one repetition, and what it said.
struct Repetition {
    prefill_s: f64,
    decode_s: f64,
    tokens: Vec<u32>,
}

fn report(plan: &Plan, whole: Whole, shares: Vec<[Shares; 2]>) -> Report {
    let both = whole.repetitions.into_iter().zip(shares);
    let mut measured = both.map(|(repetitions, [prefill, decode])| {
        let prefills: Vec<f64> = repetitions.iter().map(|repetition| repetition.prefill_s).collect();
        let step = |repetition: &Repetition| repetition.decode_s / plan.decode_tokens as f64;
        let steps: Vec<f64> = repetitions.iter().map(step).collect();
        let (prefill_s, decode_step_s) = (Stats::of(&prefills), Stats::of(&steps));
        Measured {
            prefill_s,
            decode_step_s,
            prefill_tokens_per_s: plan.prompt.len() as f64 / prefill_s.median,
            decode_tokens_per_s: 1.0 / decode_step_s.median,
            prefill,
            decode,
            tokens: repetitions.into_iter().next().map(|repetition| repetition.tokens).unwrap_or_default(),
        }
    });
    Report {
        device: whole.device,
        prompt_tokens: plan.prompt.len(),
        decode_tokens: plan.decode_tokens,
        repetitions: plan.repetitions,
        default: measured.next().expect("the default is always measured"),
        chosen: measured.next(),
        agreement: whole.agreement,
    }
}

/// A loaded model and what is to be done with it.
struct Bench<'a, O: Ops> {
    runner: ModelRunner<O>,
    plan: &'a Plan,
}

impl<O: Ops + Choose> Bench<'_, O> {
    /// Times whole prefills and continuations with each choice, and compares the answers of the first two.
    fn whole(mut self, choices: &[KernelChoice]) -> Result<Whole> {
        let mut repetitions: Vec<Vec<Repetition>> = choices.iter().map(|_| Vec::new()).collect();
        // Turns are taken, so that whatever drifts does so for both.
        for _ in 0..self.plan.repetitions {
            for (choice, repetitions) in choices.iter().zip(&mut repetitions) {
                self.runner.ops_mut().choose(choice)?;
                // The first run after a choice loads kernels and records the steps that the second one replays.
                self.run()?;
                repetitions.push(self.run()?);
            }
        }
        let agreement = match (choices, &repetitions[..]) {
            ([default, chosen], [a, b]) => {
                Some(self.agreement([default, chosen], [&a[0].tokens, &b[0].tokens])?)
            }
            _ => None,
        };
        Ok(Whole { device: self.runner.device_name(), repetitions, agreement })
    }

    /// A prefill and a greedy continuation.
    fn run(&mut self) -> Result<Repetition> {
        let start = Instant::now();
        let first = self.prefill()?;
        let prefill_s = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let tokens = self.decode(first, self.plan.decode_tokens)?;
        Ok(Repetition { prefill_s, decode_s: start.elapsed().as_secs_f64(), tokens })
    }

    /// Prefills the prompt; the token that follows it.
    fn prefill(&mut self) -> Result<u32> {
        let plan = self.plan;
        let mut token = 0;
        for position in (0..plan.prompt.len()).step_by(plan.batch_size) {
            let end = plan.prompt.len().min(position + plan.batch_size);
            let is_last = end == plan.prompt.len();
            let logits = if is_last { LogitRows::Last } else { LogitRows::None };
            if let Some(sampled) = self.step(&plan.prompt[position..end], position, logits)? {
                token = sampled;
            }
        }
        Ok(token)
    }

    /// `first`, and the tokens that `count` steps after the prompt draw.
    fn decode(&mut self, first: u32, count: usize) -> Result<Vec<u32>> {
        let mut tokens = vec![first];
        for i in 0..count {
            let token = self.step(&[tokens[i]], self.plan.prompt.len() + i, LogitRows::Last)?;
            tokens.extend(token);
        }
        Ok(tokens)
    }

    fn step(&mut self, tokens: &[u32], position: usize, logits: LogitRows) -> Result<Option<u32>> {
        let pages = self.pages(0);
        let batch = Batch::new(&[SequenceRows { tokens, position, pages: &pages, logits }]);
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let greedy = SamplingRow::new(params, (position + tokens.len()) as u32);
        let rows = if batch.num_logits() > 0 { vec![greedy] } else { Vec::new() };
        Ok(self.runner.step(&batch, &rows)?.first().copied())
    }

    /// Pages of the first or the second of two sequences.
    fn pages(&self, sequence: usize) -> Vec<u32> {
        let count = pages_for(self.runner.max_model_len());
        (sequence * count..(sequence + 1) * count).map(|page| page as u32).collect()
    }

    /// Compares the logits of every position of the prompt: its first half as a prompt, the second token by token, as
    /// a decode step computes them.
    fn agreement(&mut self, choices: [&KernelChoice; 2], greedy: [&[u32]; 2]) -> Result<Agreement> {
        let plan = self.plan;
        let vocab_size = self.runner.vocab_size();
        let chunk = LOGIT_ROWS.min(plan.batch_size).min(plan.prompt.len());
        let mut divergences = Vec::new();
        let mut same = 0;
        let (mut position, half) = (0, plan.prompt.len() / 2);
        while position < plan.prompt.len() {
            let count = if position < half { chunk.min(half - position) } else { 1 };
            let tokens = &plan.prompt[position..position + count];
            let mut logits = Vec::new();
            for (sequence, choice) in choices.into_iter().enumerate() {
                self.runner.ops_mut().choose(choice)?;
                let pages = self.pages(sequence);
                let rows = SequenceRows { tokens, position, pages: &pages, logits: LogitRows::All };
                logits.push(self.runner.logits(&Batch::new(&[rows]))?);
            }
            for (p, q) in logits[0].chunks(vocab_size).zip(logits[1].chunks(vocab_size)) {
                divergences.push(kl_divergence(p, q));
                same += usize::from(argmax(p) == argmax(q));
            }
            position += count;
        }
        let positions = divergences.len();
        // A NaN is the largest of all.
        let worst = (0..positions).max_by(|&a, &b| divergences[a].total_cmp(&divergences[b])).unwrap_or(0);
        let [default, chosen] = greedy;
        Ok(Agreement {
            positions,
            kl_mean: divergences.iter().sum::<f64>() / positions as f64,
            kl_max: divergences[worst],
            kl_max_at: worst,
            same_argmax: same as f64 / positions as f64,
            common_prefix: default.iter().zip(chosen).take_while(|(a, b)| a == b).count(),
        })
    }
}

impl<O: Ops + Choose> Bench<'_, TimedOps<O>> {
    /// Where the time of a prefill and of a decode step goes, with each choice.
    fn shares(
        mut self,
        choices: &[KernelChoice],
        stopwatch: &RefCell<Stopwatch>,
    ) -> Result<Vec<[Shares; 2]>> {
        let count = self.plan.decode_tokens.min(TIMED_STEPS);
        let timed = |bench: &mut Self, count: usize, work: &dyn Fn(&mut Self) -> Result<()>| {
            stopwatch.borrow_mut().run();
            let start = Instant::now();
            work(bench)?;
            let seconds = start.elapsed().as_secs_f64();
            let laps = stopwatch.borrow_mut().take()?;
            Ok(shares(&laps, seconds, count as f64))
        };
        let mut all = Vec::new();
        for choice in choices {
            self.runner.ops_mut().choose(choice)?;
            // The first run of a kernel loads it.
            let first = self.prefill()?;
            self.decode(first, count)?;
            let prefill = timed(&mut self, 1, &|bench| bench.prefill().map(drop))?;
            let decode = timed(&mut self, count, &|bench| bench.decode(first, count).map(drop))?;
            all.push([prefill, decode]);
        }
        Ok(all)
    }
}

/// Laps by operation, each divided by `count`.
fn shares(laps: &Laps, timed_s: f64, count: f64) -> Shares {
    let mut operations: Vec<Share> = Vec::new();
    for &(op, seconds) in laps {
        let place = operations.iter().position(|share| share.op == op).unwrap_or_else(|| {
            operations.push(Share { op, calls: 0.0, seconds: 0.0, share: 0.0 });
            operations.len() - 1
        });
        operations[place].calls += 1.0 / count;
        operations[place].seconds += seconds / count;
    }
    let sum: f64 = operations.iter().map(|share| share.seconds).sum();
    for share in &mut operations {
        share.share = if sum > 0.0 { share.seconds / sum } else { 0.0 };
    }
    operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Shares { timed_s: timed_s / count, operations }
}

/// `Σ p ln(p / q)` of the distributions that two rows of logits stand for, in nats; in f64, and never below 0 but for
/// rounding.
fn kl_divergence(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        f64::from(max) + sum.ln()
    };
    let (p_sum, q_sum) = (log_sum(p), log_sum(q));
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let (p, q) = (f64::from(p) - p_sum, f64::from(q) - q_sum);
        p.exp() * (p - q)
    });
    terms.sum()
}

/// Index of the largest value, the first of equal ones.
fn argmax(values: &[f32]) -> usize {
    (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::BatchLimits;
    use crate::dtype::Dtype;
    use crate::testing::TinyModel;

    /// The CPU, with room for the plan.
    fn cpu(config: &Config, plan: &Plan) -> Place {
        let pages = pages_for(plan.max_model_len());
        let limits = BatchLimits {
            max_num_tokens: plan.max_num_tokens(),
            max_num_sequences: NUM_SEQUENCES,
            max_num_logits: LOGIT_ROWS,
            max_blocks: pages,
        };
        let layout = KvLayout {
            formats: Dtype::F32.into(),
            num_layers: config.num_hidden_layers,
            num_pages: NUM_SEQUENCES * pages,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        };
        let ops_config = OpsConfig::new(config, plan.max_model_len(), limits);
        Place { device: None, ops_config, layout, dtype: Dtype::F32, cpu_blocks: MatmulBlocks::default() }
    }

    #[test]
    fn divergence_is_zero_for_shifted_logits_and_known_for_two_classes() {
        assert!(kl_divergence(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0]).abs() < 1e-12);
        // p = (1/2, 1/2), q = (1/4, 3/4): ln 2 - ln(3)/2.
        let found = kl_divergence(&[0.0, 0.0], &[0.0, 3f32.ln()]);
        assert!((found - (2f64.ln() - 3f64.ln() / 2.0)).abs() < 1e-7, "{found}");
        assert!(kl_divergence(&[0.0, 0.0], &[0.0, f32::NAN]).is_nan());
    }

    #[test]
    fn calls_are_added_up_by_operation() {
        let laps = vec![("matmul", 2.0), ("add", 1.0), ("matmul", 5.0)];
        let shares = shares(&laps, 10.0, 2.0);
        assert_eq!(shares.timed_s, 5.0);
        assert_eq!(shares.operations[0], Share { op: "matmul", calls: 1.0, seconds: 3.5, share: 0.875 });
        assert_eq!(shares.operations[1].op, "add");
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
    }

    #[test]
    fn a_model_on_the_cpu_is_measured_and_its_operations_counted() {
        let model = TinyModel::default();
        let gguf = model.gguf();
        let config = Config::from_gguf(&gguf).unwrap();
        let weights = Weights::from_gguf(&gguf, &config).unwrap();
        let against = KernelChoice::default();
        let plan =
            Plan { prompt: (1..40).collect(), decode_tokens: 5, repetitions: 3, batch_size: 16, against };
        let (place, asked) = (cpu(&config, &plan), KernelChoice::default());
        let report = measure(&weights, &config, &place, &asked, &plan).unwrap();
        assert_eq!(report.default.tokens.len(), 6);
        assert_eq!(report.default.prefill_s.samples, 3);
        assert!(report.chosen.is_none() && report.agreement.is_none());
        let calls =
            |shares: &Shares, op| shares.operations.iter().find(|share| share.op == op).unwrap().calls;
        let layers = model.num_hidden_layers as f64;
        // Two products a layer, two that are added to the residual stream, and the head.
        assert!((calls(&report.default.decode, "matmul") - (2.0 * layers + 1.0)).abs() < 1e-9);
        assert!((calls(&report.default.decode, "matmul_add") - 2.0 * layers).abs() < 1e-9);
        // Three chunks: the last has logits, the others end with the last layer's K and V.
        assert_eq!(calls(&report.default.prefill, "matmul"), 3.0 * 2.0 * layers - 2.0 + 1.0);
        assert_eq!(calls(&report.default.prefill, "matmul_add"), 3.0 * 2.0 * layers - 4.0);
        let sum: f64 = report.default.decode.operations.iter().map(|share| share.share).sum();
        assert!((sum - 1.0).abs() < 1e-9);
        let too_long = Plan { decode_tokens: 5000, ..plan };
        assert!(matches!(measure(&weights, &config, &place, &asked, &too_long), Err(Error::Request(_))));
    }

    /// The choice between operations is the device's; here both choices compute the same, so they must agree fully.
    #[test]
    fn equal_kernels_agree_fully() {
        let gguf = TinyModel::default().gguf();
        let config = Config::from_gguf(&gguf).unwrap();
        let weights = Weights::from_gguf(&gguf, &config).unwrap();
        let against = KernelChoice::default();
        let plan =
            Plan { prompt: (1..40).collect(), decode_tokens: 5, repetitions: 1, batch_size: 16, against };
        let Place { ops_config, layout, .. } = cpu(&config, &plan);
        let ops = CpuOps::new(&ops_config).unwrap();
        let runner = ModelRunner::new(ops, &weights, &config, &ops_config, layout, &mut |_, _| ()).unwrap();
        let choices = [KernelChoice::default(), KernelChoice::parse("rms_norm=plain").unwrap()];
        let agreement = Bench { runner, plan: &plan }.whole(&choices).unwrap().agreement.unwrap();
        assert_eq!((agreement.positions, agreement.same_argmax, agreement.common_prefix), (39, 1.0, 6));
        assert!(agreement.kl_max.abs() < 1e-12, "{agreement:?}");
    }
}
