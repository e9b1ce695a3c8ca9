//! Opens a model on a device.

use super::{ModelRunner, OpsConfig, Runner, qwen2};
use crate::batch::BatchLimits;
use crate::config::Config;
use crate::cpu::CpuOps;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::kv_cache::{KvLayout, pages_for};
use crate::weights::Weights;

/// How large batches and contexts may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunnerOptions {
    /// Longest sequence in tokens; at most the model's `max_position_embeddings`.
    pub max_model_len: usize,
    /// Rows of a step; also the length of a prefill chunk.
    pub max_num_tokens: usize,
    /// Sequences of a step.
    pub max_num_sequences: usize,
    /// Logit rows of a step, where that is more than `max_num_sequences`.
    pub max_num_logits: usize,
    /// Tokens that all sequences together may have in the KV cache.
    pub kv_tokens: usize,
}

/// Loads `weights` on the device that `device` names, `cpu` or `auto`, and allocates pages and work buffers.
/// `progress` is called with the bytes of weights loaded so far and with their sum.
///
/// # Errors
/// [`Error::Request`] for an unknown device or options out of range, [`Error::Memory`] where pages and buffers do not
/// fit, [`Error::Device`] if the device fails.
pub fn open_runner(
    device: &str,
    weights: &Weights,
    config: &Config,
    options: &RunnerOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Box<dyn Runner>> {
    let RunnerOptions { max_model_len, max_num_tokens, max_num_sequences, max_num_logits, kv_tokens } =
        *options;
    if max_model_len == 0 || max_model_len > config.max_position_embeddings {
        return Err(Error::Request(format!(
            "a context of {max_model_len} tokens was asked for; this model takes 1 to {}",
            config.max_position_embeddings
        )));
    }
    if max_num_tokens == 0 || max_num_sequences == 0 {
        return Err(Error::Request("a step needs at least one row and one sequence".into()));
    }
    let limits = BatchLimits {
        max_num_tokens,
        max_num_sequences,
        max_num_logits: max_num_logits.max(max_num_sequences),
        max_blocks: pages_for(max_model_len),
    };
    let ops_config = OpsConfig::new(config, max_model_len, limits);
    let layout = |dtype| KvLayout {
        dtype,
        num_layers: config.num_hidden_layers,
        // Sequences do not share pages, so each may leave its last one partly empty.
        num_pages: pages_for(kv_tokens) + max_num_sequences,
        num_key_value_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    };
    match device {
        "cpu" | "auto" => {
            let layout = layout(Dtype::F32);
            if let Some(available) = available_memory() {
                // The weights stay in the memory map, which the system may drop and read again.
                let workspace = qwen2::workspace_bytes(config, &limits, Dtype::F32);
                check_memory(workspace, &layout, available)?;
            }
            let ops = CpuOps::new(&ops_config)?;
            Ok(Box::new(ModelRunner::new(ops, weights, config, &ops_config, layout, progress)?))
        }
        _ => Err(Error::Request(format!("unknown device `{device}`: expected auto or cpu"))),
    }
}

/// Compares what work buffers and pages take with what is available, all in bytes.
fn check_memory(workspace: u64, layout: &KvLayout, available: u64) -> Result<()> {
    let pages = layout.num_pages as u64 * layout.page_bytes() as u64;
    if workspace.saturating_add(pages) <= available {
        return Ok(());
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let fit = available.saturating_sub(workspace) / (layout.page_bytes() as u64).max(1);
    Err(Error::Memory(format!(
        "work buffers take {} MiB and KV pages {} MiB, {} MiB are available; the largest context that fits is {} tokens",
        mib(workspace),
        mib(pages),
        available >> 20,
        fit.saturating_mul(crate::kv_cache::PAGE_SIZE as u64)
    )))
}

/// Bytes that the system can give without swapping, where it says so (Linux).
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TinyModel;

    #[test]
    fn too_little_memory_names_the_context_that_fits() {
        let layout = KvLayout {
            dtype: Dtype::F32,
            num_layers: 2,
            num_pages: 100,
            num_key_value_heads: 1,
            head_dim: 64,
        };
        assert!(check_memory(1 << 20, &layout, (1 << 20) + 100 * 32_768).is_ok());
        let error = check_memory(1 << 20, &layout, (1 << 20) + 3 * 32_768).unwrap_err();
        assert!(error.to_string().ends_with("the largest context that fits is 96 tokens"), "{error}");
        assert!(check_memory(u64::MAX, &layout, 1).is_err());
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let gguf = TinyModel::default().gguf();
        let config = Config::from_gguf(&gguf).unwrap();
        let weights = Weights::from_gguf(&gguf, &config).unwrap();
        let fine = RunnerOptions {
            max_model_len: 64,
            max_num_tokens: 8,
            max_num_sequences: 1,
            max_num_logits: 1,
            kv_tokens: 64,
        };
        let open = |device: &str, options| open_runner(device, &weights, &config, &options, &mut |_, _| ());
        assert!(open("cpu", fine).is_ok());
        assert!(matches!(open("abacus", fine), Err(Error::Request(_))));
        let too_long = RunnerOptions { max_model_len: 2049, ..fine };
        assert!(matches!(open("cpu", too_long), Err(Error::Request(_))));
        assert!(matches!(open("cpu", RunnerOptions { max_num_tokens: 0, ..fine }), Err(Error::Request(_))));
        let too_large = RunnerOptions { kv_tokens: 1 << 50, ..fine };
        assert!(matches!(open("cpu", too_large), Err(Error::Memory(_))));
    }
}
