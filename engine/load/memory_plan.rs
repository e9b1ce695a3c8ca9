//! How much memory a model takes and how many KV pages what is left can hold: arithmetic alone, for both devices.

use super::runner::RunnerOptions;
use qernel_core::batch::BatchLimits;
use qernel_core::config::Config;
use qernel_core::dtype::Dtype;
use qernel_core::error::{Error, Result};
use qernel_core::host_memory;
use qernel_core::kv_format::KvFormats;
use qernel_core::kv_layout::{KvLayout, PAGE_SIZE};
use qernel_core::model::build::{self, Plan};

const MIB: f64 = 1024.0 * 1024.0;

/// The most pages of a cache: each token in it has a number of 32 bits.
const MAX_PAGES: usize = u32::MAX as usize / PAGE_SIZE;

/// How large the KV cache becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// As many pages, or fewer as less is left, in no more than `most` bytes.
    Pages { pages: usize, most: usize },
    /// As many bytes as somebody asked for.
    Bytes(usize),
}

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
    /// Slots of that many sequences: of those that may run at once, and copies of them.
    pub num_slots: usize,
    /// All that another model takes which drafts for this one, but for its pages: those are in `page_bytes`.
    pub draft_model: usize,
    /// Room for copies of slots beside those of `num_slots`, where it is of the same memory.
    pub host_checkpoints: usize,
    pub pool: Pool,
}

/// Where the memory goes. All sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct MemoryPlan {
    /// What may be used: free memory times the fraction.
    pub budget: usize,
    pub weights: usize,
    pub workspace: usize,
    /// Slots of `num_slots` sequences.
    pub slots: usize,
    /// All of a model that drafts but its pages.
    pub draft_model: usize,
    /// As in [`MemoryRequest`].
    pub host_checkpoints: usize,
    /// Pages of the KV cache, as [`Pool`] says.
    pub num_pages: usize,
    pub kv_cache: usize,
}

/// What a device has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Free {
    /// Bytes that nobody has taken.
    pub bytes: usize,
    /// Bytes that are taken, where the device tells.
    pub taken: Option<usize>,
    /// Share of the free bytes that may be used, above 0 and at most 1.
    pub fraction: f64,
}

/// Shares what is free out to weights, workspace and KV pages.
///
/// # Errors
/// [`Error::Request`] if the fraction is not in `0 < fraction <= 1`; [`Error::Memory`] if not even one sequence of
/// `max_model_len` tokens fits, or not as many pages as were asked for, with all numbers and what would fit.
pub fn plan(free: &Free, request: &MemoryRequest) -> Result<MemoryPlan> {
    let &Free { bytes: free_bytes, fraction, .. } = free;
    if !(fraction > 0.0 && fraction <= 1.0) {
        return Err(Error::Request(format!(
            "the fraction of memory to use must be above 0 and at most 1, not {fraction}"
        )));
    }
    let &MemoryRequest {
        weights,
        workspace,
        slot_bytes,
        page_bytes,
        max_model_len,
        num_slots,
        draft_model,
        host_checkpoints,
        pool,
    } = request;
    let slots = slot_bytes.saturating_mul(num_slots);
    let budget = (free_bytes as f64 * fraction) as usize;
    let of_model = weights.saturating_add(workspace).saturating_add(slots);
    let fixed = of_model.saturating_add(draft_model).saturating_add(host_checkpoints);
    let left = budget.saturating_sub(fixed);
    let pages_per_sequence = max_model_len.div_ceil(PAGE_SIZE);
    let pages = |bytes: usize| (bytes / page_bytes.max(1)).min(MAX_PAGES);
    let num_pages = match pool {
        Pool::Pages { pages: requested, most } => pages(left.min(most)).min(requested),
        Pool::Bytes(bytes) => pages(bytes),
    };
    let kv_cache = num_pages.max(pages_per_sequence).saturating_mul(page_bytes);
    if fixed > budget || kv_cache > left {
        let advice = match pages(left) * PAGE_SIZE {
            0 => "no context fits: use a smaller model, another device, or a larger fraction".to_owned(),
            longest => format!("the largest context that fits is {longest} tokens"),
        };
        let needed = [
            ("weights", weights),
            ("workspace", workspace),
            ("recurrent states", slots),
            ("the model that drafts", draft_model),
            ("--checkpoint-host-memory", host_checkpoints),
        ];
        let needed = needed.iter().filter(|(_, bytes)| *bytes > 0);
        let needed: String =
            needed.map(|(what, bytes)| format!("{what} {:.1} MiB + ", *bytes as f64 / MIB)).collect();
        let tokens = num_pages.max(pages_per_sequence).saturating_mul(PAGE_SIZE).max(max_model_len);
        let taken =
            free.taken.map_or(String::new(), |taken| format!(", {:.1} MiB are taken", taken as f64 / MIB));
        return Err(Error::Memory(format!(
            "{needed}KV cache for {tokens} tokens {:.1} MiB = {:.1} MiB, but only {:.1} MiB may be used ({fraction} of \
             {:.1} MiB free{taken}); {advice}",
            kv_cache as f64 / MIB,
            fixed.saturating_add(kv_cache) as f64 / MIB,
            budget as f64 / MIB,
            free_bytes as f64 / MIB,
        )));
    }
    if num_pages < pages_per_sequence {
        return Err(Error::Memory(format!(
            "a KV cache of {:.1} MiB holds {} tokens; one sequence of {max_model_len} tokens takes {:.1} MiB: give it more \
             (--kv-cache-memory) or ask for less context (--ctx-size)",
            num_pages as f64 * page_bytes as f64 / MIB,
            num_pages * PAGE_SIZE,
            kv_cache as f64 / MIB,
        )));
    }
    Ok(MemoryPlan {
        budget,
        weights,
        workspace,
        slots,
        draft_model,
        host_checkpoints,
        num_pages,
        kv_cache: num_pages * page_bytes,
    })
}

/// Bytes for copies of slots of `slot_bytes` that had to make room, where the model is in host memory. Beside a GPU they must be free, and count
/// nowhere.
///
/// # Errors
/// [`Error::Request`] if they are not.
pub fn host_checkpoints(options: &RunnerOptions, is_host: bool, slot_bytes: usize) -> Result<usize> {
    let bytes = if slot_bytes == 0 { 0 } else { options.checkpoint_host_memory };
    if is_host {
        return Ok(bytes);
    }
    match host_memory::available() {
        Some(free) if bytes > free => Err(Error::Request(format!(
            "--checkpoint-host-memory: {:.1} MiB are asked for, but only {:.1} MiB of host memory are free",
            bytes as f64 / MIB,
            free as f64 / MIB
        ))),
        _ => Ok(0),
    }
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
pub fn kv_layout(config: &Config, formats: impl Into<KvFormats>, num_pages: usize) -> Result<KvLayout> {
    build::plan(config)?.state.pages(formats, num_pages)
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
        num_slots: 3,
        draft_model: 0,
        host_checkpoints: 0,
        pool: Pool::Pages { pages: 12, most: usize::MAX },
    };

    /// The plan of a device that has `bytes` free and tells nothing else.
    fn plan(bytes: usize, fraction: f64, request: &MemoryRequest) -> Result<MemoryPlan> {
        super::plan(&Free { bytes, taken: None, fraction }, request)
    }

    #[test]
    fn the_pool_takes_what_is_left() {
        let plan = plan(1400, 0.9, &REQUEST).unwrap();
        assert_eq!(plan.budget, 1260);
        assert_eq!((plan.num_pages, plan.kv_cache), (6, 60));
    }

    #[test]
    fn the_pool_is_never_larger_than_was_requested() {
        assert_eq!(plan(1 << 30, 1.0, &REQUEST).unwrap().num_pages, 12);
    }

    #[test]
    fn the_pool_takes_no_more_than_it_may() {
        let request = |most| MemoryRequest { pool: Pool::Pages { pages: 4, most }, ..REQUEST };
        assert_eq!(plan(1 << 30, 1.0, &request(usize::MAX)).unwrap().num_pages, 4);
        assert_eq!(plan(1240, 1.0, &request(40)).unwrap().kv_cache, 40);
        let text = plan(1 << 30, 1.0, &request(39)).unwrap_err().to_string();
        assert!(text.contains("96 tokens; one sequence of 128 tokens"), "{text}");
        assert!(plan(1239, 1.0, &request(usize::MAX)).is_err());
    }

    #[test]
    fn a_cache_is_as_large_as_was_asked_for_or_refused() {
        let request = |bytes| MemoryRequest { pool: Pool::Bytes(bytes), ..REQUEST };
        assert_eq!(plan(1400, 1.0, &request(59)).unwrap().num_pages, 5);
        assert_eq!(plan(1400, 1.0, &request(200)).unwrap().num_pages, 20, "more than all sequences need");
        for (bytes, expected) in [
            (39, "holds 96 tokens; one sequence of 128 tokens"),
            (0, "holds 0 tokens"),
            (210, "KV cache for 672 tokens"),
            (usize::MAX, "only 0.0 MiB may be used"),
        ] {
            let error = plan(1400, 1.0, &request(bytes)).unwrap_err();
            assert!(matches!(&error, Error::Memory(text) if text.contains(expected)), "{bytes}: {error}");
        }
    }

    #[test]
    fn what_others_have_taken_is_said() {
        let free = Free { bytes: 1 << 20, taken: Some(5 << 20), fraction: 0.5 };
        let request = MemoryRequest { weights: 1 << 20, ..REQUEST };
        let text = super::plan(&free, &request).unwrap_err().to_string();
        assert!(text.contains("only 0.5 MiB may be used (0.5 of 1.0 MiB free, 5.0 MiB are taken)"), "{text}");
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
    fn a_model_that_drafts_is_counted() {
        let request = MemoryRequest { draft_model: 20, ..REQUEST };
        assert_eq!(plan(1400, 0.9, &request).unwrap().num_pages, 4);
        let text = plan(1225, 1.0, &request).unwrap_err().to_string();
        assert!(text.contains("the model that drafts 0.0 MiB"), "{text}");
    }

    #[test]
    fn copies_in_host_memory_are_counted_where_the_model_is_there_too() {
        let request = MemoryRequest { host_checkpoints: 20, ..REQUEST };
        let planned = plan(1400, 0.9, &request).unwrap();
        assert_eq!((planned.host_checkpoints, planned.num_pages), (20, 4));
        let text = plan(1225, 1.0, &request).unwrap_err().to_string();
        assert!(text.contains("--checkpoint-host-memory 0.0 MiB"), "{text}");
        let options = RunnerOptions { checkpoint_host_memory: 20, ..RunnerOptions::default() };
        let of = |is_host, slot_bytes| host_checkpoints(&options, is_host, slot_bytes).unwrap();
        assert_eq!([of(true, 5), of(true, 0), of(false, 5)], [20, 0, 0]);
        let options = RunnerOptions { checkpoint_host_memory: usize::MAX, ..options };
        let error = host_checkpoints(&options, false, 5).unwrap_err().to_string();
        assert!(
            error.contains("--checkpoint-host-memory: ") && error.contains("of host memory are free"),
            "{error}"
        );
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
}
