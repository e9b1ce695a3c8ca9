//! What a case of an operation is.

use super::findings::Findings;
use crate::batch::BatchLimits;
use crate::config::Config;
use crate::cuda::{CudaOps, Device, KernelChoice};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::OpsConfig;
use crate::rope::Rotation;
use std::rc::Rc;

/// The most [`Case::work`] of a case that an emulator or a sanitizer, hundreds of times slower than the device, should
/// be given.
pub const SMALL_WORK: usize = 120_000;

/// The cases of an operation: one file in `engine/lab/cases/` each.
pub struct Cases {
    /// As in [`crate::cuda::operations`].
    pub op: &'static str,
    /// Every dtype and ragged shape that the operation is checked with.
    pub checks: fn() -> Vec<Case>,
    /// The shapes in which a model needs it, to be timed.
    pub timings: fn(&Workload) -> Vec<Case>,
}

/// The model, the rows of a step and the context that timings are for.
#[derive(Clone, Debug)]
pub struct Workload {
    pub config: Config,
    /// Of the weights and of cached K and V.
    pub dtype: Dtype,
    /// Rows of a step, each a case.
    pub rows: Vec<usize>,
    /// Tokens in the cache of each sequence, each a case of attention.
    pub contexts: Vec<usize>,
}

/// What an operation must read, write and compute at least: each operand once, and the products and sums of its formula.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    pub bytes: f64,
    /// A multiply-add counts as two.
    pub flops: f64,
}

/// One operation in one dtype and one shape.
pub struct Case {
    /// Of the weights or of the result, whichever the operation's kernels are named by.
    pub dtype: Dtype,
    /// For people; with operation and dtype it names the case.
    pub shape: String,
    /// How long an emulator takes, roughly in elements that a plain operation touches.
    pub work: usize,
    pub cost: Cost,
    /// What the operations must be made for.
    pub config: OpsConfig,
    /// Draws the inputs from the seed and computes the reference.
    pub prepare: Prepare,
}

/// Makes an [`Instance`] of a case from a seed.
pub type Prepare = Box<dyn Fn(&mut CudaOps, u64) -> Result<Box<dyn Instance>>>;

/// A case with its buffers on a device.
pub trait Instance {
    /// Puts the inputs in place and poison where results will be.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    fn reset(&mut self, ops: &mut CudaOps) -> Result<()>;

    /// Computes it once, with the kernels that `ops` was told to use.
    ///
    /// # Errors
    /// Those of the operation; a variant that cannot compute the case is [`crate::cuda::is_ineligible`].
    fn launch(&mut self, ops: &mut CudaOps) -> Result<()>;

    /// Compares the results of the last launch, made by `variant`, with the reference.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the launch failed.
    fn compare(&mut self, ops: &mut CudaOps, variant: &str, findings: &mut Findings) -> Result<()>;

    /// The variant that the engine takes for it, where that is not the first of the table that can compute it.
    fn default_variant(&self) -> Option<&'static str> {
        None
    }

    /// Whether launching again and again without a reset takes the same time each.
    fn repeats(&self) -> bool {
        true
    }
}

/// A shape for operations that know no heads.
pub fn plain_config() -> OpsConfig {
    let limits =
        BatchLimits { max_num_tokens: 1024, max_num_sequences: 8, max_num_logits: 1024, max_blocks: 2 };
    OpsConfig {
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 64,
        rotation: Rotation::new(1e6, 64),
        experts: None,
        linear: None,
        max_model_len: 64,
        limits,
    }
}

/// A choice of kernels that asks for this variant, and for a matrix product that needs no library.
///
/// # Errors
/// [`crate::Error::Request`] that lists what exists.
pub fn choose(op: &str, variant: &str) -> Result<KernelChoice> {
    let mut choice = KernelChoice::parse("matmul=plain")?;
    if crate::cuda::operations().iter().any(|known| known.name == op && known.selectable) {
        choice.set(op, variant)?;
    }
    Ok(choice)
}

/// A device, and the operations that were made last: neighbouring cases share them.
pub struct Session {
    device: Rc<Device>,
    last: Option<(Dtype, OpsConfig, CudaOps)>,
}

impl Session {
    /// A session on `device`, which may be emulated.
    pub fn new(device: &Rc<Device>) -> Self {
        Self { device: device.clone(), last: None }
    }

    /// The device.
    pub fn device(&self) -> &Rc<Device> {
        &self.device
    }

    /// Operations of that dtype and configuration.
    ///
    /// # Errors
    /// As [`CudaOps::new`].
    pub fn ops(&mut self, dtype: Dtype, config: &OpsConfig) -> Result<&mut CudaOps> {
        let choice = KernelChoice::parse("matmul=plain")?;
        if self.last.as_ref().is_none_or(|(d, c, _)| (*d, c) != (dtype, config)) {
            // First give back the memory of those before.
            self.last = None;
            self.last =
                Some((dtype, config.clone(), CudaOps::new(&self.device, config, dtype, choice.clone())?));
        }
        let ops = &mut self.last.as_mut().expect("made above").2;
        // What was chosen last may decide how matrices are loaded.
        ops.choose(choice)?;
        Ok(ops)
    }
}
