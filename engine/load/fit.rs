//! What fits on a device: the longest context, the largest batch and the pages of the KV cache.

use super::memory_plan::{self, Free, MemoryPlan, MemoryRequest, Pool};
use super::runner::{KvCacheSize, ModelData, RunnerOptions};
use qernel_core::batch::BatchLimits;
use qernel_core::config::Config;
use qernel_core::dtype::Dtype;
use qernel_core::error::{Error, Result};
use qernel_core::host_memory;
use qernel_core::kv_format::KvFormats;
use qernel_core::kv_layout::{KvLayout, PAGE_SIZE, pages_for};
use qernel_core::model::build;
use qernel_core::ops::OpsConfig;

/// Bytes of a KV cache on the CPU that are not worth saving: up to these it holds a whole context for each sequence.
pub const SMALL_CACHE: usize = 128 << 20;

/// Tokens of context that a sequence gets on the CPU without asking for more, whatever the model claims to be made for.
pub const MODEST_CONTEXT: usize = 32_768;

/// The largest batch, the longest context and the KV cache that fit in the host's memory, of which the cache takes no more than half
/// unless somebody asks for more.
///
/// # Errors
/// [`Error::Memory`] with the numbers where they do not.
pub fn fit_cpu(config: &Config, options: &RunnerOptions) -> Result<(OpsConfig, KvLayout)> {
    fit(config, options, &cpu_budget(options))
}

/// As [`fit_cpu`], with a model that drafts for this one.
pub(crate) fn fit_cpu_with(
    model: &ModelData,
    draft: Option<&ModelData>,
    options: &RunnerOptions,
) -> Result<FittedPair> {
    let draft = draft.map(|draft| Box::new((draft.config.clone(), cpu_budget(options))));
    let weights = model.weights.adapter_bytes();
    fit_pair(model.config, options, &MemoryBudget { draft, weights, ..cpu_budget(options) })
}

fn cpu_budget(options: &RunnerOptions) -> MemoryBudget {
    // Where the system does not say what is available, the allocator will.
    let free = host_memory::available().unwrap_or(usize::MAX / 2);
    MemoryBudget {
        free: Free { bytes: free, taken: None, fraction: options.memory_fraction },
        shared: true,
        weights: 0,
        activation: Dtype::F32,
        kv: KvFormats { k: options.kv_types[0].on_cpu(), v: options.kv_types[1].on_cpu() },
        max_num_tokens: CPU_NUM_TOKENS,
        has_experts: true,
        extra: Box::new(|_, _, _, _| 0),
        matrix: Dtype::F32,
        draft: None,
    }
}

/// Rows of a step where nobody asks for more or fewer.
pub(crate) const CPU_NUM_TOKENS: usize = 512;

/// Bytes that a device takes besides a model's buffers, with matrices of a float format and pages of these.
pub(crate) type Extra = Box<dyn Fn(&Config, &OpsConfig, Dtype, KvFormats) -> usize>;

/// What a device has and what a model takes there, in bytes.
pub(crate) struct MemoryBudget {
    pub free: Free,
    /// Others use the memory too.
    pub shared: bool,
    /// Weights that are copied to it; 0 where they stay in the file's memory map.
    pub weights: usize,
    /// Of what norms and SwiGLU write.
    pub activation: Dtype,
    /// Of KV pages.
    pub kv: KvFormats,
    /// Rows of a step where the options leave them open.
    pub max_num_tokens: usize,
    /// Whether some experts are computed on the device, and not all on the host.
    pub has_experts: bool,
    /// What the device takes besides the model's buffers.
    pub extra: Extra,
    /// Of matrices that are floats.
    pub matrix: Dtype,
    /// Of a model that drafts for this one, on the same device; of its memory alone what it takes counts.
    pub draft: Option<Box<(Config, MemoryBudget)>>,
}

impl MemoryBudget {
    /// The context that is requested: the one that was asked for, or the model's, but where others use the memory too no more than is
    /// modest.
    fn context(&self, config: &Config, options: &RunnerOptions) -> usize {
        let modest = MODEST_CONTEXT.saturating_mul(options.max_num_sequences);
        let most = if self.shared { modest } else { usize::MAX };
        options.max_model_len.unwrap_or(config.max_position_embeddings.min(most))
    }

    /// The most bytes that the cache takes: half of what is free where others use the memory too and nobody asked for more, and of that
    /// the share that other models leave it.
    fn most(&self, options: &RunnerOptions) -> usize {
        let share = |bytes: f64| (bytes * options.cache_share) as usize;
        match options.kv_cache {
            KvCacheSize::Bytes(bytes) => bytes,
            KvCacheSize::Auto if self.shared && options.max_model_len.is_none() => {
                share(self.free.bytes as f64 / 2.0)
            }
            _ if options.cache_share < 1.0 => share(self.free.bytes as f64 * self.free.fraction),
            _ => usize::MAX,
        }
    }

    /// What a cache for sequences of `max_model_len` tokens is, with pages of `page_bytes`.
    fn pool(&self, options: &RunnerOptions, max_model_len: usize, page_bytes: usize) -> Pool {
        let all = pages_for(max_model_len).saturating_mul(options.max_num_sequences);
        let pages = match options.kv_cache {
            KvCacheSize::Bytes(bytes) => return Pool::Bytes(bytes),
            _ if !self.shared => all,
            KvCacheSize::Auto => all.min(SMALL_CACHE / page_bytes),
            KvCacheSize::Tokens(tokens) => pages_for(tokens),
        };
        Pool::Pages { pages: pages.max(pages_for(max_model_len)), most: self.most(options) }
    }
}

/// The longest context and the number of pages that fit.
pub(crate) fn fit(
    config: &Config,
    options: &RunnerOptions,
    budget: &MemoryBudget,
) -> Result<(OpsConfig, KvLayout)> {
    fit_pair(config, options, budget).map(|(fitted, _)| fitted)
}

/// What a model is made with, and likewise one that drafts for it.
pub(crate) type FittedPair = ((OpsConfig, KvLayout), Option<(OpsConfig, KvLayout)>);

/// As [`fit`], with a model that drafts: it has as many pages.
pub(crate) fn fit_pair(
    config: &Config,
    options: &RunnerOptions,
    budget: &MemoryBudget,
) -> Result<FittedPair> {
    let (fitted, plan) = plan_pair(config, options, budget)?;
    let max_model_len = fitted.0.0.max_model_len;
    warn_if_short(config, options, budget, max_model_len);
    tracing::info!(?plan, max_model_len, "memory");
    Ok(fitted)
}

/// Says so where less than the requested context fits.
pub(crate) fn warn_if_short(
    config: &Config,
    options: &RunnerOptions,
    budget: &MemoryBudget,
    max_model_len: usize,
) {
    if max_model_len < budget.context(config, options) {
        tracing::warn!(
            "a context of {max_model_len} tokens is what fits; the model was made for {}",
            config.max_position_embeddings
        );
    }
}

/// [`fit_pair`] with the plan that it follows from.
pub(crate) fn plan_pair(
    config: &Config,
    options: &RunnerOptions,
    budget: &MemoryBudget,
) -> Result<(FittedPair, MemoryPlan)> {
    let requested = budget.context(config, options);
    let mut max_model_len = requested;
    let shortest = options.shortest_context;
    if options.max_model_len.is_none() {
        let page_bytes = page_bytes(config, budget)?.max(1);
        let held = (budget.most(options) / page_bytes).saturating_mul(PAGE_SIZE);
        max_model_len = requested.min(held.max(shortest));
    }
    loop {
        match plan(config, options, budget, max_model_len) {
            Err(Error::Memory(_)) if options.max_model_len.is_none() && max_model_len > shortest => {
                max_model_len = (max_model_len / 2).max(shortest);
            }
            Err(error) => return Err(error),
            Ok((ops_config, draft, plan)) => {
                let layout = |config: &Config, budget: &MemoryBudget| {
                    memory_plan::kv_layout(config, budget.kv, plan.num_pages)
                };
                let of_draft = |of: &(Config, MemoryBudget)| layout(&of.0, &of.1);
                let draft_layout = budget.draft.as_deref().map(of_draft).transpose()?;
                return Ok((((ops_config, layout(config, budget)?), draft.zip(draft_layout)), plan));
            }
        }
    }
}

/// K and V of a page, with those of a model that drafts.
pub(crate) fn page_bytes(config: &Config, budget: &MemoryBudget) -> Result<usize> {
    let of = |config: &Config, budget: &MemoryBudget| -> Result<usize> {
        Ok(build::plan(config)?.state.pages(budget.kv, 1)?.page_bytes())
    };
    let draft = budget.draft.as_deref().map_or(Ok(0), |(config, budget)| of(config, budget))?;
    Ok(of(config, budget)?.saturating_add(draft))
}

/// What a model takes beside its pages.
struct Needs {
    ops_config: OpsConfig,
    workspace: usize,
    slot_bytes: usize,
    /// K and V of a page.
    page_bytes: usize,
}

fn needs(
    config: &Config,
    options: &RunnerOptions,
    budget: &MemoryBudget,
    max_model_len: usize,
) -> Result<Needs> {
    // All sequences together have no more.
    let all_tokens = max_model_len.saturating_mul(options.max_num_sequences);
    let limits = BatchLimits {
        max_num_tokens: options.max_num_tokens.unwrap_or(budget.max_num_tokens.min(all_tokens)),
        max_num_sequences: options.max_num_sequences,
        // A sequence draws a token behind each of its drafts.
        max_num_logits: (options.max_num_logits)
            .max(options.max_num_sequences.saturating_mul(1 + options.max_drafts)),
        max_blocks: pages_for(max_model_len),
    };
    let mut ops_config = OpsConfig::new(config, max_model_len, limits);
    ops_config.experts = ops_config.experts.filter(|_| budget.has_experts);
    let model = build::plan(config)?;
    let workspace = memory_plan::workspace_bytes(&model, config, &limits, max_model_len, budget.activation);
    let workspace = workspace.saturating_add((budget.extra)(config, &ops_config, budget.matrix, budget.kv));
    let page_bytes = model.state.pages(budget.kv, 1)?.page_bytes();
    Ok(Needs { ops_config, workspace, slot_bytes: model.state.slot_bytes(), page_bytes })
}

fn plan(
    config: &Config,
    options: &RunnerOptions,
    budget: &MemoryBudget,
    max_model_len: usize,
) -> Result<(OpsConfig, Option<OpsConfig>, MemoryPlan)> {
    let Needs { ops_config, workspace, slot_bytes, mut page_bytes } =
        needs(config, options, budget, max_model_len)?;
    // Where sequences draft, the state before is kept of each.
    let num_slots = options.max_num_sequences.saturating_mul(1 + usize::from(options.max_drafts > 0));
    let (mut draft, mut draft_model) = (None, 0_usize);
    if let Some((config, budget)) = budget.draft.as_deref() {
        let max_model_len = max_model_len.min(config.max_position_embeddings);
        let rows = ops_config.limits.max_num_tokens;
        let needs = needs(config, &options.of_draft_model(rows), budget, max_model_len)?;
        draft_model = (budget.weights.saturating_add(needs.workspace))
            .saturating_add(needs.slot_bytes.saturating_mul(num_slots));
        page_bytes = page_bytes.saturating_add(needs.page_bytes);
        draft = Some(needs.ops_config);
    }
    let request = MemoryRequest {
        weights: budget.weights,
        workspace,
        slot_bytes,
        page_bytes: page_bytes.max(1),
        max_model_len,
        num_slots: num_slots.saturating_add(options.checkpoints),
        draft_model,
        host_checkpoints: memory_plan::host_checkpoints(options, budget.shared, slot_bytes)?,
        pool: budget.pool(options, max_model_len, page_bytes.max(1)),
    };
    let plan = memory_plan::plan(&budget.free, &request)?;
    Ok((ops_config, draft, plan))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::KvType;
    use bytes::Bytes;
    use qernel_core::kv_format::KvFormat;
    use qernel_core::testing::TinyModel;
    use qernel_core::weights::{Adapter, LowRank, Matrix, Weights};
    use std::collections::BTreeMap;

    fn config() -> Config {
        Config::from_gguf(&TinyModel::default().gguf()).unwrap()
    }

    fn budget(free: usize) -> MemoryBudget {
        MemoryBudget {
            free: Free { bytes: free, taken: None, fraction: 0.9 },
            shared: false,
            weights: 1 << 20,
            activation: Dtype::F16,
            kv: Dtype::F16.into(),
            max_num_tokens: 8,
            has_experts: true,
            extra: Box::new(|_, _, _, _| 1 << 10),
            matrix: Dtype::F16,
            draft: None,
        }
    }

    /// The budget on a machine whose memory others use too.
    fn shared(free: usize) -> MemoryBudget {
        MemoryBudget { shared: true, ..budget(free) }
    }

    fn page_bytes(config: &Config) -> usize {
        build::plan(config).unwrap().state.pages(Dtype::F16, 1).unwrap().page_bytes()
    }

    #[test]
    fn the_whole_context_of_the_model_where_it_fits_and_a_shorter_one_where_not() {
        let config = config();
        let options = RunnerOptions { max_num_tokens: Some(8), ..RunnerOptions::default() };
        let (ops, layout) = fit(&config, &options, &budget(1 << 30)).unwrap();
        assert_eq!(ops.max_model_len, config.max_position_embeddings);
        assert_eq!(layout.num_pages, pages_for(config.max_position_embeddings));
        let enough = plan(&config, &options, &budget(1 << 30), 1024).unwrap().2;
        let free = ((enough.weights + enough.workspace + enough.kv_cache) as f64 / 0.9) as usize + 2;
        assert_eq!(fit(&config, &options, &budget(free)).unwrap().0.max_model_len, 1024);
    }

    #[test]
    fn adapters_are_counted() {
        let (gguf, config) = (TinyModel::default().gguf(), config());
        let weights = Weights::from_gguf(&gguf, &config).unwrap();
        let options = RunnerOptions { max_model_len: Some(64), ..RunnerOptions::default() };
        let fits = |weights: &Weights| {
            fit_cpu_with(&ModelData { weights, config: &config }, None, &options).map(|_| ())
        };
        fits(&weights).unwrap();
        // Nothing is allocated for what it claims.
        let matrix = |rows, cols| Matrix {
            name: "claim".into(),
            format: Dtype::F32.into(),
            rows,
            cols,
            scale: 1.0,
            data: Bytes::new(),
        };
        let update = LowRank { a: matrix(1 << 20, 1 << 24), b: matrix(1, 1 << 20), scale: 1.0 };
        let updates = BTreeMap::from([("blk.0.attn_q.weight".to_owned(), update)]);
        let adapted = weights.with_adapters(vec![Adapter { name: "huge".into(), scale: 1.0, updates }]);
        let error = fits(&adapted).unwrap_err();
        assert!(matches!(&error, Error::Memory(text) if text.contains("weights 67108868.0 MiB")), "{error}");
    }

    #[test]
    fn a_context_that_was_asked_for_is_an_error_where_it_does_not_fit() {
        let options = RunnerOptions { max_model_len: Some(2048), ..RunnerOptions::default() };
        let error = fit(&config(), &options, &budget(3 << 20)).unwrap_err();
        assert!(matches!(&error, Error::Memory(text) if text.contains("2048 tokens")), "{error}");
    }

    #[test]
    fn shared_memory_is_taken_for_the_context_once_and_a_claim_takes_nothing() {
        let (config, options) = (config(), RunnerOptions::for_sequences(64));
        let fits = |config: &Config, options: &RunnerOptions, free| {
            fit(config, options, &shared(free)).map(|(ops, layout)| (ops.max_model_len, layout.num_pages))
        };
        // A page of this model is 64 KiB in its two layers, all of 64 sequences 128 MiB.
        assert_eq!(page_bytes(&config), 32 << 10);
        assert_eq!(fits(&config, &options, 1 << 40).unwrap(), (2048, SMALL_CACHE / (32 << 10)));
        let large = Config { num_hidden_layers: 128, ..config.clone() };
        assert_eq!(
            fits(&large, &options, 1 << 40).unwrap(),
            (2048, 64),
            "once, not for each of 64 sequences"
        );
        let tokens = RunnerOptions { kv_cache: KvCacheSize::Tokens(10_000), ..options.clone() };
        assert_eq!(fits(&large, &tokens, 1 << 40).unwrap(), (2048, 313));

        let claim = Config { max_position_embeddings: 1 << 24, ..large.clone() };
        for sequences in [1, 4] {
            let (len, pages) = fits(&claim, &RunnerOptions::for_sequences(sequences), 1 << 40).unwrap();
            let modest = sequences * MODEST_CONTEXT;
            assert_eq!((len, pages), (modest, pages_for(modest)));
        }
        let asked = RunnerOptions { max_model_len: Some(1 << 20), ..RunnerOptions::default() };
        assert_eq!(fits(&claim, &asked, 1 << 40).unwrap().0, 1 << 20);
    }

    #[test]
    fn shared_memory_is_taken_to_the_half_unless_somebody_asks_for_more() {
        let large = Config { num_hidden_layers: 128, ..config() };
        let page = page_bytes(&large);
        let options = RunnerOptions { max_num_tokens: Some(8), ..RunnerOptions::default() };
        let fits = |options: &RunnerOptions| {
            // Half of it is 33 pages, what is behind weights and buffers more than 40.
            fit(&large, options, &shared(66 * page + 1))
                .map(|(ops, layout)| (ops.max_model_len, layout.num_pages))
        };
        assert_eq!(fits(&options).unwrap(), (33 * PAGE_SIZE, 33));
        let asked = RunnerOptions { max_model_len: Some(40 * PAGE_SIZE), ..options.clone() };
        assert_eq!(fits(&asked).unwrap(), (40 * PAGE_SIZE, 40));
        let tokens = RunnerOptions { kv_cache: KvCacheSize::Tokens(40 * PAGE_SIZE), ..options.clone() };
        assert!(fits(&tokens).unwrap().1 >= 40);
        let error = fit(&large, &options, &shared(15 * page)).unwrap_err();
        assert!(
            matches!(&error, Error::Memory(text) if text.contains("one sequence of 256 tokens")),
            "{error}"
        );
    }

    #[test]
    fn a_cache_of_any_size_may_be_asked_for() {
        let config = config();
        for place in [shared(1 << 40), budget(1 << 40)] {
            let asked = |pages: usize, max_model_len| {
                let kv_cache = KvCacheSize::Bytes(pages * page_bytes(&config) + 1);
                let options = RunnerOptions { kv_cache, max_model_len, ..RunnerOptions::default() };
                fit(&config, &options, &place).map(|(ops, layout)| (ops.max_model_len, layout.num_pages))
            };
            assert_eq!(asked(1000, None).unwrap(), (2048, 1000), "more than a sequence needs");
            assert_eq!(asked(20, None).unwrap(), (640, 20));
            assert_eq!(asked(20, Some(600)).unwrap(), (600, 20));
            for (pages, max_model_len) in [(7, None), (20, Some(641)), (1 << 30, None)] {
                let error = asked(pages, max_model_len).unwrap_err();
                assert!(matches!(error, Error::Memory(_)), "{pages} {max_model_len:?}: {error}");
            }
        }
    }

    #[test]
    fn a_model_that_drafts_has_as_many_pages_and_they_are_counted() {
        let config = config();
        let pair = |free| {
            let small = Config { num_hidden_layers: 1, ..config.clone() };
            let draft = Some(Box::new((small, MemoryBudget { weights: 1 << 19, ..budget(0) })));
            let options =
                RunnerOptions { max_num_tokens: Some(8), max_drafts: 4, ..RunnerOptions::default() };
            fit_pair(&config, &options, &MemoryBudget { draft, ..budget(free) })
        };
        let ((ops, layout), draft) = pair(1 << 30).unwrap();
        let (draft_ops, draft_layout) = draft.unwrap();
        assert_eq!((layout.num_pages, draft_layout.num_pages), (64, 64));
        assert_eq!((layout.num_layers, draft_layout.num_layers), (2, 1));
        assert_eq!((ops.limits.max_num_logits, draft_ops.limits.max_num_logits), (5, 1));
        let Err(Error::Memory(text)) = pair(1 << 20) else { panic!("both fit in as little") };
        assert!(text.contains("the model that drafts 0."), "{text}");
        let ((_, short), _) = pair(4 << 20).unwrap();
        assert!(short.num_pages < 64, "{}", short.num_pages);
    }

    #[test]
    fn a_model_leaves_others_their_share_and_has_a_context_of_use() {
        let config = config();
        let fitted = |free, cache_share, shortest_context| {
            let options = RunnerOptions {
                max_num_tokens: Some(8),
                max_num_sequences: 64,
                cache_share,
                shortest_context,
                ..RunnerOptions::default()
            };
            fit(&config, &options, &budget(free)).map(|(ops, layout)| (ops.max_model_len, layout.num_pages))
        };
        let of_whole =
            |free| plan(&config, &RunnerOptions::for_sequences(64), &budget(free), 2048).unwrap().2;
        let free = 64 << 20;
        let all = (free as f64 * 0.9) as usize;
        let (context, pages) = fitted(free, 0.25, 256).unwrap();
        assert_eq!((context, pages), (2048, all / 4 / page_bytes(&config)));
        assert!(pages < of_whole(free).num_pages);
        // Where a quarter is too little for a whole context, and all for one of use.
        let free = 4 << 20;
        let short = fitted(free, 0.25, 32).unwrap().0;
        assert!(short < 1024, "{short}");
        assert!(matches!(fitted(free, 0.25, 1024), Err(Error::Memory(_))));
        assert!(matches!(fitted(free, 1.0, 2048), Err(Error::Memory(_))));
    }

    #[test]
    fn pages_have_the_format_that_was_asked_for() {
        let formats = |kv_types| {
            let options = RunnerOptions { kv_types, max_num_tokens: Some(8), ..RunnerOptions::default() };
            fit_cpu(&config(), &options).unwrap().1.formats
        };
        let [f16, f32, bf16] = [Dtype::F16, Dtype::F32, Dtype::Bf16].map(KvFormat::Float);
        let types = [KvType::Auto, KvType::Precise, KvType::Only(bf16)];
        assert_eq!(types.map(|kind| formats([kind; 2])), [f16, f32, bf16].map(KvFormats::both));
        let mixed = formats([KvType::Only(KvFormat::Q8_0), KvType::Auto]);
        assert_eq!(mixed, KvFormats { k: KvFormat::Q8_0, v: f16 });
    }

    #[test]
    fn as_much_memory_holds_more_tokens_in_eight_bits() {
        let pages = |kv_types| {
            let kv_cache = KvCacheSize::Bytes(1 << 20);
            let options =
                RunnerOptions { kv_types, kv_cache, max_model_len: Some(256), ..RunnerOptions::default() };
            fit_cpu(&config(), &options).unwrap().1.num_pages
        };
        // Of 32 KiB in f16.
        let q8_0 = KvType::Only(KvFormat::Q8_0);
        assert_eq!(pages([KvType::Auto; 2]), 32);
        assert_eq!(pages([q8_0; 2]), 32 * 64 / 34);
        assert_eq!(pages([KvType::Auto, q8_0]), 32 * 128 / 98);
    }
}
