//! How much memory a model takes and how many KV pages what is left can hold: arithmetic alone, for both devices.

use qernel_core::batch::BatchLimits;
use qernel_core::config::Config;
use qernel_core::dtype::Dtype;
use qernel_core::error::{Error, Result};
use qernel_core::kv_layout::{KvLayout, PAGE_SIZE};
use qernel_core::model::build::{self, Plan};

const MIB: f64 = 1024.0 * 1024.0;

/// What has to fit. All sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryRequest {
    /// Weights as they lie on the device; 0 where they stay in the file's memory map.
    pub weights: usize,
    /// Everything a step writes besides the KV cache: [`workspace_bytes`] and what the device
    /// adds.
    pub workspace: usize,
    /// What layers keep for one sequence whatever its length:
    /// [`StateLayout::slot_bytes`](qernel_core::kv_layout::StateLayout::slot_bytes).
    pub slot_bytes: usize,
    /// K and V of one page in all layers: [`KvLayout::page_bytes`].
    pub page_bytes: usize,
    /// Longest sequence, in tokens.
    pub max_model_len: usize,
    /// Sequences that may run at once.
    pub max_num_sequences: usize,
}

/// Where the memory goes. All sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct MemoryPlan {
    /// What may be used: free memory times the fraction.
    pub budget: usize,
    pub weights: usize,
    pub workspace: usize,
    /// Slots of `max_num_sequences` sequences.
    pub slots: usize,
    /// Pages of the KV cache: what is left, at most what `max_num_sequences` of full length could use.
    pub num_pages: usize,
    pub kv_cache: usize,
}

/// Shares `free` bytes, of which `fraction` may be used, out to weights, workspace and KV pages.
///
/// # Errors
/// [`Error::Request`] if `fraction` is not in `0 < fraction <= 1`; [`Error::Memory`] if not even one sequence of
/// `max_model_len` tokens fits, with all numbers and the longest context that would.
pub fn plan(free: usize, fraction: f64, request: &MemoryRequest) -> Result<MemoryPlan> {
    if !(fraction > 0.0 && fraction <= 1.0) {
        return Err(Error::Request(format!(
            "the fraction of memory to use must be above 0 and at most 1, not {fraction}"
        )));
    }
    let &MemoryRequest { weights, workspace, slot_bytes, page_bytes, max_model_len, max_num_sequences } =
        request;
    let slots = slot_bytes.saturating_mul(max_num_sequences);
    let budget = (free as f64 * fraction) as usize;
    let pages_per_sequence = max_model_len.div_ceil(PAGE_SIZE);
    let fixed = weights.saturating_add(workspace).saturating_add(slots);
    let left = budget.saturating_sub(fixed);
    let fitting = left / page_bytes.max(1);
    if fixed > budget || fitting < pages_per_sequence {
        let kv_cache = pages_per_sequence.saturating_mul(page_bytes);
        let advice = match fitting * PAGE_SIZE {
            0 => "no context fits: use a smaller model, another device, or a larger fraction".to_owned(),
            longest => format!("the largest context that fits is {longest} tokens"),
        };
        return Err(Error::Memory(format!(
            "weights {:.1} MiB + workspace {:.1} MiB + {}KV cache for {max_model_len} tokens {:.1} MiB = {:.1} MiB, \
             but only {:.1} MiB may be used ({fraction} of {:.1} MiB free); {advice}",
            weights as f64 / MIB,
            workspace as f64 / MIB,
            if slots > 0 {
                format!("recurrent states {:.1} MiB + ", slots as f64 / MIB)
            } else {
                String::new()
            },
            kv_cache as f64 / MIB,
            fixed.saturating_add(kv_cache) as f64 / MIB,
            budget as f64 / MIB,
            free as f64 / MIB,
        )));
    }
    let num_pages = fitting.min(pages_per_sequence.saturating_mul(max_num_sequences.max(1)));
    Ok(MemoryPlan { budget, weights, workspace, slots, num_pages, kv_cache: num_pages * page_bytes })
}

/// Bytes of everything a step writes besides the KV cache: the work buffers of the model, the batch's index arrays and the
/// RoPE table. `activation` is the format that matrix products read.
pub fn workspace_bytes(
    model: &Plan,
    config: &Config,
    limits: &BatchLimits,
    max_model_len: usize,
    activation: Dtype,
) -> usize {
    let BatchLimits { max_num_tokens: n, max_num_sequences: sequences, max_num_logits: logits, max_blocks } =
        *limits;
    let buffers = usize::try_from(model.workspace_bytes(limits, activation)).unwrap_or(usize::MAX);
    let block_table = sequences.saturating_mul(max_blocks);
    let indices = n.saturating_mul(4).saturating_add(2 * sequences + 1 + logits).saturating_add(block_table);
    let rope_table = max_model_len.saturating_mul(config.head_dim);
    buffers.saturating_add(indices.saturating_add(rope_table).saturating_mul(4))
}

/// The layout of a cache of `num_pages` pages for the model of `config`.
///
/// # Errors
/// As [`build::plan`] and [`StateLayout::pages`](qernel_core::kv_layout::StateLayout::pages).
pub fn kv_layout(config: &Config, dtype: Dtype, num_pages: usize) -> Result<KvLayout> {
    build::plan(config)?.state.pages(dtype, num_pages)
}

/// Bytes of main memory that a program may take without swapping, as Linux estimates it; `None` where
/// `/proc/meminfo` does not say.
pub fn available_memory() -> Option<usize> {
    parse_meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_meminfo(text: &str) -> Option<usize> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: MemoryRequest = MemoryRequest {
        weights: 1000,
        workspace: 200,
        slot_bytes: 0,
        page_bytes: 10,
        max_model_len: 4 * PAGE_SIZE,
        max_num_sequences: 3,
    };

    #[test]
    fn the_pool_takes_what_is_left() {
        let plan = plan(1400, 0.9, &REQUEST).unwrap();
        assert_eq!(plan.budget, 1260);
        assert_eq!((plan.num_pages, plan.kv_cache), (6, 60));
    }

    #[test]
    fn the_pool_is_never_larger_than_all_sequences_need() {
        assert_eq!(plan(1 << 30, 1.0, &REQUEST).unwrap().num_pages, 12);
    }

    #[test]
    fn too_little_names_the_largest_context_that_fits() {
        // Two pages fit beside the 1200 bytes.
        let text = plan(1225, 1.0, &REQUEST).unwrap_err().to_string();
        assert!(text.contains(&format!("is {} tokens", 2 * PAGE_SIZE)), "{text}");
    }

    #[test]
    fn slots_are_planned_for_every_sequence() {
        let plan = plan(1400, 0.9, &MemoryRequest { slot_bytes: 5, ..REQUEST }).unwrap();
        assert_eq!((plan.slots, plan.num_pages), (15, 4));
    }

    #[test]
    fn a_model_that_does_not_fit_says_so() {
        for free in [0, 1199, 1200, 1209] {
            let text = plan(free, 1.0, &REQUEST).unwrap_err().to_string();
            assert!(text.contains("no context fits"), "{free}: {text}");
        }
    }

    #[test]
    fn fractions_without_meaning_are_refused() {
        for fraction in [0.0, -0.5, 1.5, f64::NAN] {
            assert!(matches!(plan(1 << 20, fraction, &REQUEST), Err(Error::Request(_))), "{fraction}");
        }
    }

    #[test]
    fn enormous_requests_do_not_overflow() {
        let request = MemoryRequest { weights: usize::MAX, page_bytes: usize::MAX, ..REQUEST };
        assert!(matches!(plan(usize::MAX, 1.0, &request), Err(Error::Memory(_))));
    }

    #[test]
    fn meminfo_is_read_in_kib() {
        let text = "MemTotal:       24000 kB\nMemFree:        1 kB\nMemAvailable:   20000 kB\n";
        assert_eq!(parse_meminfo(text), Some(20_000 * 1024));
        assert_eq!(parse_meminfo("MemTotal: 1 kB\n"), None);
        assert_eq!(parse_meminfo("MemAvailable: many kB\n"), None);
    }
}
