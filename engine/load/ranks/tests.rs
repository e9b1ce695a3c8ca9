//! Ranks of tests that fail in one way or another.

use crate::device_choice::DeviceChoice;
use crate::runner::{RunnerOptions, open_runner};
use qernel_core::batch::{Batch, BatchLimits};
use qernel_core::config::Config;
use qernel_core::error::{Error, Result};
use qernel_core::kv_layout::KvLayout;
use qernel_core::model::Runner;
use qernel_core::sampler::SamplingRow;
use qernel_core::testing::TinyModel;
use qernel_core::weights::Weights;
use std::time::Duration;

/// What a rank does in its second step.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Fault {
    None,
    Error,
    Panic,
    Silence,
    OtherTokens,
}

/// A runner on the CPU with a fault.
struct Faulty {
    inner: Box<dyn Runner>,
    steps: usize,
    fault: Fault,
}

/// How long a silent rank is waited for.
pub(super) const LIMIT: Duration = Duration::from_millis(100);

impl Faulty {
    /// Does what the fault is in the second step; whether tokens are others than they should be.
    fn fails(&mut self) -> Result<bool> {
        self.steps += 1;
        match self.fault {
            Fault::Error if self.steps == 2 => return Err(Error::Device("broken".into())),
            Fault::Panic if self.steps == 2 => panic!("a rank of a test panics"),
            Fault::Silence if self.steps == 2 => std::thread::sleep(20 * LIMIT),
            _ => {}
        }
        Ok(self.fault == Fault::OtherTokens && self.steps == 2)
    }
}

impl Runner for Faulty {
    fn limits(&self) -> &BatchLimits {
        self.inner.limits()
    }

    fn kv_layout(&self) -> &KvLayout {
        self.inner.kv_layout()
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn max_model_len(&self) -> usize {
        self.inner.max_model_len()
    }

    fn step(&mut self, batch: &Batch, rows: &[SamplingRow]) -> Result<Vec<u32>> {
        let mut tokens = self.inner.step(batch, rows)?;
        if self.fails()? {
            tokens.iter_mut().for_each(|token| *token += 1);
        }
        Ok(tokens)
    }

    fn logits(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        self.fails()?;
        self.inner.logits(batch)
    }

    fn device_name(&self) -> String {
        self.inner.device_name()
    }

    fn read_bandwidth(&mut self) -> Result<Option<f64>> {
        Ok(Some(1.0))
    }
}

/// A rank with a fault.
pub(super) fn rank(fault: Fault) -> Result<Box<dyn Runner>> {
    let gguf = TinyModel::default().gguf();
    let config = Config::from_gguf(&gguf)?;
    let weights = Weights::from_gguf(&gguf, &config)?;
    let options =
        RunnerOptions { device: DeviceChoice::Cpu, max_model_len: Some(64), ..RunnerOptions::default() };
    let inner = open_runner(&weights, &config, &options, &mut |_, _| ())?;
    Ok(Box::new(Faulty { inner, steps: 0, fault }))
}
