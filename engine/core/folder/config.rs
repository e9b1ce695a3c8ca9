//! `config.json` -> GGUF's metadata, in the spelling of llama.cpp's converter.

use super::architecture::Architecture;
use super::fault;
use super::files::Files;
use super::json::Fields;
use super::quantization::Quantization;
use crate::error::{Error, Result};
use crate::gguf::write::Value;

/// Keys with their values, in the order in which they are written.
pub(super) type Metadata = Vec<(String, Value)>;

/// A model as `config.json` describes it.
pub(super) struct Model {
    pub architecture: &'static Architecture,
    /// The fields of the model of text: those of `text_config`, and around it the others.
    pub config: Fields,
    pub num_layers: u64,
    /// Blocks behind them that draft, as far as there are tensors.
    pub num_drafts: u64,
    pub hidden_size: u64,
    pub num_heads: u64,
    pub num_kv_heads: u64,
    pub head_dim: u64,
    /// `None` where the MLP is one for all tokens.
    pub num_experts: Option<u64>,
    pub is_tied: bool,
    pub quantization: Quantization,
    pub linear: Option<Linear>,
}

/// Sizes of layers of linear attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    pub key_heads: u64,
    pub value_heads: u64,
    pub key_dim: u64,
    pub value_dim: u64,
    pub kernel: u64,
}

impl Linear {
    fn new(config: &Fields) -> Result<Self> {
        let heads = |key: &str| size_up_to(config, key, MAX_HEADS);
        let head_dim = |key: &str| size_up_to(config, key, MAX_HEAD_DIM);
        let linear = Self {
            key_heads: heads("linear_num_key_heads")?,
            value_heads: heads("linear_num_value_heads")?,
            key_dim: head_dim("linear_key_head_dim")?,
            value_dim: head_dim("linear_value_head_dim")?,
            kernel: head_dim("linear_conv_kernel_dim")?,
        };
        if !linear.value_heads.is_multiple_of(linear.key_heads) {
            let expected = format!("a multiple of the {} heads of K", linear.key_heads);
            return Err(config.invalid("linear_num_value_heads", linear.value_heads, &expected));
        }
        Ok(linear)
    }
}

/// A size that must be there; far below what would overflow in products of two.
fn size(config: &Fields, key: &str) -> Result<u64> {
    size_up_to(config, key, 1 << 24)
}

/// The same up to `most`.
fn size_up_to(config: &Fields, key: &str, most: u64) -> Result<u64> {
    let value = config.require(key, Fields::integer)?;
    if (1..=most).contains(&value) {
        Ok(value)
    } else {
        Err(config.invalid(key, value, &format!("1 to {most}")))
    }
}

/// The most heads of a layer, and the most values of one: products of four stay within 64 bits.
const MAX_HEADS: u64 = 1 << 12;
const MAX_HEAD_DIM: u64 = 1 << 16;

/// The first of several keys that is there, by which it is called.
fn first_size(config: &Fields, keys: &[&str]) -> Result<u64> {
    size(config, keys.iter().find(|key| config.get(key).is_some()).unwrap_or(&keys[0]))
}

impl Model {
    /// Takes what others need of it out of `config.json`.
    ///
    /// # Errors
    /// [`Error::Folder`] for an architecture or a feature that is not implemented, and for fields that are missing or of another type.
    pub(super) fn new(whole: &Fields) -> Result<Self> {
        let mut config = whole.clone();
        if let Some(text) = whole.object("text_config")? {
            config.values.extend(text.values);
        }
        let architecture = Architecture::named(config.require("model_type", Fields::string)?)?;
        let num_heads = first_size(&config, &["num_attention_heads", "n_head"])?;
        let hidden_size = first_size(&config, &["hidden_size", "n_embd"])?;
        let head_dim = match config.get("head_dim") {
            Some(_) => size_up_to(&config, "head_dim", MAX_HEAD_DIM)?,
            None => (hidden_size / num_heads).min(MAX_HEAD_DIM),
        };
        let model = Self {
            architecture,
            num_layers: first_size(&config, &["num_hidden_layers", "n_layer"])?,
            num_drafts: 0,
            hidden_size,
            num_heads,
            num_kv_heads: match config.get("num_key_value_heads") {
                Some(_) => size(&config, "num_key_value_heads")?,
                None => num_heads,
            },
            head_dim,
            num_experts: match architecture.renormalises {
                // Newer files have the second.
                Some(_) => Some(first_size(&config, &["num_experts", "num_local_experts"])?),
                None => None,
            },
            // transformers ties GPT-2's, and others only where they say so.
            is_tied: config.flag("tie_word_embeddings")?.unwrap_or(architecture.is_gpt2()),
            quantization: Quantization::new(&config)?,
            linear: if architecture.is_hybrid { Some(Linear::new(&config)?) } else { None },
            config,
        };
        model.refuse_unimplemented()?;
        Ok(model)
    }

    /// Refuses what would change the answers and is not computed.
    fn refuse_unimplemented(&self) -> Result<()> {
        let Self { architecture, config, .. } = self;
        for key in ["hidden_act", "activation_function"] {
            if let Some(found) = config.string(key)?.filter(|&found| found != architecture.activation) {
                return Err(config.invalid(
                    key,
                    format!("{found:?}"),
                    &format!("{:?}; others are not implemented", architecture.activation),
                ));
            }
        }
        let neutral = [
            ("scale_attn_by_inverse_layer_idx", false),
            ("reorder_and_upcast_attn", false),
            ("add_cross_attention", false),
            ("scale_attn_weights", true),
        ];
        for (key, expected) in neutral {
            if config.flag(key)?.is_some_and(|found| found != expected) {
                return Err(config.invalid(
                    key,
                    !expected,
                    &format!("{expected}; the other is not implemented"),
                ));
            }
        }
        let Some(renormalises) = architecture.renormalises else { return Ok(()) };
        // Hybrids have no such field: they do it always.
        if config.flag("norm_topk_prob")?.unwrap_or(renormalises) != renormalises {
            let expected =
                format!("{renormalises}, as all published models of {} have it", architecture.name);
            return Err(config.invalid("norm_topk_prob", !renormalises, &expected));
        }
        if config.integer("decoder_sparse_step")?.is_some_and(|step| step != 1)
            || config.list("mlp_only_layers")?.is_some_and(|layers| !layers.is_empty())
        {
            return Err(fault(
                &config.file,
                "some layers have no experts (`decoder_sparse_step`, `mlp_only_layers`), which is not implemented",
            ));
        }
        Ok(())
    }

    /// The metadata of the model, without those of the vocabulary. `file_type` is llama.cpp's number of the format of most matrices.
    pub(super) fn metadata(&self, files: &Files, file_type: u32) -> Result<Metadata> {
        let &Self { architecture, ref config, hidden_size, .. } = self;
        let mut out: Metadata = vec![("general.architecture".to_owned(), architecture.name.into())];
        out.extend(files.name().map(|name| ("general.name".to_owned(), name.into())));
        out.push(("general.file_type".to_owned(), file_type.into()));
        let mut add = |key: &str, value: Value| out.push((format!("{}.{key}", architecture.name), value));
        // Sizes are below 2^24.
        let int = |value: u64| Value::U32(value as u32);
        let context = first_size(config, &["max_position_embeddings", "n_positions", "n_ctx"])?;
        add("context_length", int(context));
        add("embedding_length", int(hidden_size));
        add("block_count", int(self.num_layers + self.num_drafts));
        if self.num_drafts > 0 {
            add("nextn_predict_layers", int(self.num_drafts));
        }
        let intermediate_size =
            match ["intermediate_size", "n_inner"].iter().find(|key| config.get(key).is_some()) {
                Some(key) => Some(size(config, key)?),
                None if architecture.is_gpt2() => Some(4 * hidden_size),
                None => None,
            };
        if let Some(size) = intermediate_size {
            add("feed_forward_length", int(size));
        }
        add("attention.head_count", int(self.num_heads));
        if !architecture.is_gpt2() {
            add("attention.head_count_kv", int(self.num_kv_heads));
            add("attention.key_length", int(self.head_dim));
            add("attention.value_length", int(self.head_dim));
        }
        let (eps, key) = match architecture.is_gpt2() {
            true => ("layer_norm_epsilon", "attention.layer_norm_epsilon"),
            false => ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        };
        add(key, Value::F32(config.require(eps, Fields::number)? as f32));
        if let Some(size) = config.integer("vocab_size")? {
            add("vocab_size", int(size.min(1 << 24)));
        }
        for (key, value) in
            rope(self, context)?.into_iter().chain(self.experts()?).chain(self.linear_layers()?)
        {
            add(key, value);
        }
        if let Some(window) = self.sliding_window()? {
            // A window beyond any context is none.
            add("attention.sliding_window", u32::try_from(window).unwrap_or(u32::MAX).into());
        }
        if let Some(pooling) = super::tokenizer::pooling(files)? {
            add("pooling_type", pooling.into());
        }
        Ok(out)
    }

    /// Tokens that a token sees, where that is not the whole context.
    fn sliding_window(&self) -> Result<Option<u64>> {
        // Qwen's files have the number without using it.
        let is_used =
            self.config.flag("use_sliding_window")?.unwrap_or(!self.architecture.name.starts_with("qwen"));
        if is_used { self.config.integer("sliding_window") } else { Ok(None) }
    }

    fn experts(&self) -> Result<Vec<(&'static str, Value)>> {
        let Some(num_experts) = self.num_experts else { return Ok(Vec::new()) };
        let mut out = vec![("expert_count", Value::U32(num_experts as u32))];
        for (from, to) in [
            ("num_experts_per_tok", "expert_used_count"),
            ("moe_intermediate_size", "expert_feed_forward_length"),
        ] {
            out.push((to, Value::U32(size(&self.config, from)? as u32)));
        }
        if let Some(shared) = self.config.integer("shared_expert_intermediate_size")?.filter(|&size| size > 0)
        {
            out.push(("expert_shared_feed_forward_length", Value::U32(shared.min(1 << 24) as u32)));
        }
        Ok(out)
    }

    fn linear_layers(&self) -> Result<Vec<(&'static str, Value)>> {
        let Some(linear) = self.linear else { return Ok(Vec::new()) };
        let mut out: Vec<(&str, Value)> = [
            ("ssm.conv_kernel", linear.kernel),
            ("ssm.state_size", linear.key_dim),
            ("ssm.group_count", linear.key_heads),
            ("ssm.time_step_rank", linear.value_heads),
            ("ssm.inner_size", linear.value_heads * linear.value_dim),
        ]
        .map(|(key, value)| (key, Value::U32(value as u32)))
        .into();
        if let Some(interval) = self.config.integer("full_attention_interval")? {
            out.push(("full_attention_interval", Value::U32(interval.min(1 << 24) as u32)));
        }
        if let Some(kinds) = self.config.list("layer_types")? {
            if kinds.len() as u64 != self.num_layers {
                let found = format!("a list of {}", kinds.len());
                return Err(self.config.invalid(
                    "layer_types",
                    found,
                    &format!("one for each of the {} layers", self.num_layers),
                ));
            }
            let of_drafts = (0..self.num_drafts).map(|_| false);
            let recurrent: Vec<bool> =
                kinds.iter().map(|kind| kind == "linear_attention").chain(of_drafts).collect();
            out.push(("attention.recurrent_layers", recurrent.into()));
        }
        Ok(out)
    }
}

/// What `rope_parameters`, or the older `rope_theta` and `rope_scaling`, say of rotation.
fn rope(model: &Model, context: u64) -> Result<Vec<(&'static str, Value)>> {
    let Model { architecture, config, head_dim, .. } = model;
    let mut out = Vec::new();
    if architecture.is_gpt2() {
        return Ok(out);
    }
    let parameters = rope_parameters(config)?;
    let theta = match parameters.number("rope_theta")? {
        Some(theta) => Some(theta),
        None => config.number("rope_theta")?,
    };
    let mut add = |key, value: Value| out.push((key, value));
    let float = |value: f64| Value::F32(value as f32);
    add("rope.freq_base", float(theta.unwrap_or(10_000.0)));
    let share = match parameters.number("partial_rotary_factor")? {
        Some(share) => Some(share),
        None => config.number("partial_rotary_factor")?,
    };
    let share = share.unwrap_or(if architecture.is_hybrid { 0.25 } else { 1.0 });
    add("rope.dimension_count", Value::U32((*head_dim as f64 * share) as u32));
    if matches!(architecture.name, "qwen35" | "qwen35moe" | "qwen2vl" | "qwen3vl" | "qwen3vlmoe") {
        add("rope.dimension_sections", sections(&parameters)?.into());
    }
    let kind = rope_type(&parameters)?;
    let factor = parameters.number("factor")?;
    match kind {
        // Llama 3's are a tensor; sections of pictures' positions are all the same for text.
        "default" | "llama3" | "mrope" => {}
        "linear" => {
            add("rope.scaling.type", kind.into());
            add("rope.scaling.factor", float(parameters.require("factor", Fields::number)?));
        }
        "yarn" => {
            let original = parameters.integer("original_max_position_embeddings")?.unwrap_or(context);
            let factor = parameters.require("factor", Fields::number)?;
            add("rope.scaling.type", kind.into());
            add("rope.scaling.factor", float(factor));
            add("rope.scaling.original_context_length", Value::U32(original.min(1 << 24) as u32));
            for (from, to) in
                [("beta_fast", "rope.scaling.yarn_beta_fast"), ("beta_slow", "rope.scaling.yarn_beta_slow")]
            {
                if let Some(value) = parameters.number(from)? {
                    add(to, float(value));
                }
            }
            // There it stands for all of the factor, in GGUF for what comes on top of YaRN's own.
            if let Some(whole) = parameters.number("attention_factor")? {
                add("rope.scaling.yarn_attn_factor", float(whole / (1.0 + 0.1 * factor.max(1.0).ln())));
            }
        }
        // Refused by its name when the model is run.
        other => {
            add("rope.scaling.type", other.into());
            add("rope.scaling.factor", float(factor.unwrap_or(1.0)));
        }
    }
    Ok(out)
}

fn rope_parameters(config: &Fields) -> Result<Fields> {
    let parameters = match config.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => config.object("rope_scaling")?,
    };
    Ok(parameters.unwrap_or_default())
}

fn rope_type(parameters: &Fields) -> Result<&str> {
    let kind = match parameters.string("rope_type")? {
        Some(kind) => Some(kind),
        None => parameters.string("type")?,
    };
    Ok(kind.unwrap_or("default"))
}

/// How many pairs of a head are rotated by each of the four positions of pictures; published models have these.
fn sections(parameters: &Fields) -> Result<Vec<i32>> {
    let Some(list) = parameters.list("mrope_section")? else { return Ok(vec![11, 11, 10, 0]) };
    let mut sections: Vec<i32> =
        list.iter().filter_map(|count| i32::try_from(count.as_i64()?).ok()).collect();
    if sections.len() != list.len() || list.len() > 4 {
        return Err(parameters.invalid(
            "mrope_section",
            format!("a list of {}", list.len()),
            "up to four whole numbers",
        ));
    }
    sections.resize(4, 0);
    Ok(sections)
}

/// By what Llama 3.1 and later divide each frequency, `[head_dim / 2]`; `None` for others.
///
/// Source: transformers' `_compute_llama3_parameters`.
pub(super) fn rope_factors(model: &Model) -> Result<Option<Vec<f32>>> {
    let Model { config, head_dim, .. } = model;
    let parameters = rope_parameters(config)?;
    if rope_type(&parameters)? != "llama3" {
        return Ok(None);
    }
    let number = |key: &str, default: f64| Ok::<_, Error>(parameters.number(key)?.unwrap_or(default));
    let theta = match parameters.number("rope_theta")? {
        Some(theta) => theta,
        None => config.number("rope_theta")?.unwrap_or(10_000.0),
    };
    let (factor, low, high) =
        (number("factor", 8.0)?, number("low_freq_factor", 1.0)?, number("high_freq_factor", 4.0)?);
    let original = number("original_max_position_embeddings", 8192.0)?;
    let of_pair = |j: u64| {
        let turns = original * theta.powf(-2.0 * j as f64 / *head_dim as f64) / std::f64::consts::TAU;
        let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    };
    Ok(Some((0..head_dim / 2).map(of_pair).collect()))
}
