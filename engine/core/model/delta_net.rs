//! What hybrids have besides the layers of other decoders: their metadata, and layers of linear attention by the gated delta rule.

use super::build::{BufferKind::*, BufferRows::*, Build, HeadRows, NormKind, Projection};
use crate::config::{Config, Keys, LinearSizes, MAX_HEADS, MAX_WIDTH};
use crate::error::{Error, Result};
use crate::kv_layout::LayerState;
use crate::ops::Types;
use crate::ops::hybrid::{CausalConv, Columns, DeltaNet, DeltaRule, DeltaScratch, ValueHeads};
use crate::ops::parts::RmsNorm;

/// Every so many layers one is of attention, where a file does not say otherwise.
const FULL_ATTENTION_INTERVAL: usize = 4;
/// The most tokens that a convolution sees, far above any model.
const MAX_TAPS: u64 = 64;

impl Config {
    /// The metadata that hybrids have.
    ///
    /// # Errors
    /// As [`Config::of_decoder`].
    pub fn of_hybrid(keys: &Keys) -> Result<Self> {
        let config = Self::of_decoder(keys)?;
        let num_blocks = config.num_hidden_layers;
        let num_nextn = keys.get::<u64>("nextn_predict_layers")?.unwrap_or(0);
        let num_layers = num_blocks.checked_sub(usize::try_from(num_nextn).unwrap_or(usize::MAX));
        let num_layers = num_layers.filter(|&layers| layers > 0).ok_or_else(|| {
            keys.invalid("nextn_predict_layers", num_nextn, &format!("fewer than {num_blocks}"))
        })?;
        Ok(Self {
            num_hidden_layers: num_layers,
            num_nextn_predict_layers: num_blocks - num_layers,
            linear: Some(linear_sizes(keys)?),
            linear_layers: linear_layers(keys, num_layers, num_blocks)?,
            // What has this name in layers of linear attention has nothing to do with K and V of others.
            fused_qkv: false,
            ..config
        })
    }
}

fn linear_sizes(keys: &Keys) -> Result<LinearSizes> {
    let key_heads = keys.size("ssm.group_count", MAX_HEADS)?;
    let value_heads = keys.size("ssm.time_step_rank", MAX_HEADS)?;
    let head_dim = keys.size("ssm.state_size", MAX_WIDTH)?;
    let inner = keys.size("ssm.inner_size", MAX_WIDTH)?;
    if !value_heads.is_multiple_of(key_heads) {
        let expected = format!("a multiple of the {key_heads} heads of K (ssm.group_count)");
        return Err(keys.invalid("ssm.time_step_rank", value_heads, &expected));
    }
    if !inner.is_multiple_of(value_heads) {
        return Err(keys.invalid(
            "ssm.inner_size",
            inner,
            &format!("a multiple of {value_heads} heads of V"),
        ));
    }
    if key_heads as u64 * head_dim as u64 > MAX_WIDTH {
        return Err(keys.invalid(
            "ssm.state_size",
            head_dim,
            &format!("at most {MAX_WIDTH} values in all heads"),
        ));
    }
    Ok(LinearSizes {
        linear_num_key_heads: key_heads,
        linear_num_value_heads: value_heads,
        linear_key_head_dim: head_dim,
        linear_value_head_dim: inner / value_heads,
        linear_conv_kernel_dim: keys.size("ssm.conv_kernel", MAX_TAPS)?,
    })
}

/// The layers of linear attention: those that a list of all blocks names, or all but each last of an interval.
fn linear_layers(keys: &Keys, num_layers: usize, num_blocks: usize) -> Result<Vec<usize>> {
    const LIST: &str = "attention.recurrent_layers";
    let layers = match keys.get::<Vec<bool>>(LIST)? {
        Some(list) if (num_layers..=num_blocks).contains(&list.len()) => {
            (0..num_layers).filter(|&i| list[i]).collect()
        }
        Some(list) => {
            let expected = format!("one for each of {num_layers} layers");
            return Err(keys.invalid(LIST, format!("a list of {}", list.len()), &expected));
        }
        None => linear_layers_by(interval(keys)?, num_layers),
    };
    if layers.len() == num_layers {
        return Err(Error::Model(format!(
            "none of {num_layers} layers is one of attention, which is not implemented"
        )));
    }
    Ok(layers)
}

fn interval(keys: &Keys) -> Result<usize> {
    Ok(keys.optional_size("full_attention_interval", MAX_WIDTH)?.unwrap_or(FULL_ATTENTION_INTERVAL))
}

/// The layers of linear attention where each last of `interval` is one of attention.
fn linear_layers_by(interval: usize, num_layers: usize) -> Vec<usize> {
    (0..num_layers).filter(|i| !(i + 1).is_multiple_of(interval)).collect()
}

/// The layers of linear attention of published models.
pub fn usual_linear_layers(num_layers: usize) -> Vec<usize> {
    linear_layers_by(FULL_ATTENTION_INTERVAL, num_layers)
}

/// A layer of linear attention, and which it is of those with slots.
pub struct Recurrent<T: Types> {
    pub slots: usize,
    pub part: DeltaNet<T::Weight, T::Vector>,
}

impl<T: Types> Recurrent<T> {
    /// Asks `b` for what the layer of that name needs.
    ///
    /// # Errors
    /// What `b` says.
    pub fn build<B: Build<T>>(
        b: &mut B,
        config: &Config,
        sizes: &LinearSizes,
        value_heads: ValueHeads,
        layer: &str,
    ) -> Result<Self> {
        let (hidden_size, eps) = (config.hidden_size, config.rms_norm_eps);
        let heads = sizes.linear_num_value_heads;
        let all = |name: &str, rows| Projection { name: format!("{layer}.{name}.weight"), rows, heads: None };
        let per_key_head = heads / sizes.linear_num_key_heads;
        // In one tensor: of each head of K β of its heads of V, then α.
        let [of_beta, of_alpha] =
            [0, per_key_head].map(|first| (first..first + per_key_head).collect::<Vec<_>>());
        let small = |name: &str, order| match value_heads {
            ValueHeads::Tiled => all(name, heads),
            ValueHeads::Grouped => {
                Projection { heads: Some(HeadRows { size: 2 * per_key_head, order }), ..all("ssm_ba", heads) }
            }
        };
        let projections = [
            all("attn_qkv", sizes.channels()),
            all("attn_gate", sizes.value_size()),
            small("ssm_beta", &of_beta),
            small("ssm_alpha", &of_alpha),
        ];
        let norm = b.norm(NormKind::Rms, &format!("{layer}.attn_norm"), hidden_size, eps)?;
        let in_proj = b.stacked(&projections, hidden_size, 0, None)?;
        let weight =
            b.table(&format!("{layer}.ssm_conv1d.weight"), sizes.channels(), sizes.linear_conv_kernel_dim)?;
        let bytes = sizes.slot_values().saturating_mul(size_of::<f32>());
        let recurrent = Self {
            slots: b.state(LayerState::Slot { bytes }),
            part: DeltaNet {
                norm,
                in_proj,
                conv: CausalConv { sizes: *sizes, weight },
                rule: DeltaRule {
                    sizes: *sizes,
                    value_heads,
                    decay: b.vector(&format!("{layer}.ssm_a"), heads, None)?,
                    dt_bias: b.vector(&format!("{layer}.ssm_dt.bias"), heads, None)?,
                    eps,
                },
                head_norm: RmsNorm {
                    weight: b.vector(
                        &format!("{layer}.ssm_norm.weight"),
                        sizes.linear_value_head_dim,
                        None,
                    )?,
                    eps,
                },
                out_proj: b.matrix(&format!("{layer}.ssm_out.weight"), hidden_size, sizes.value_size())?,
            },
        };
        // A rank has some heads of K and the heads of V that go with them: where those are tiled not one range of them.
        let of_values = match value_heads {
            ValueHeads::Tiled => vec![sizes.linear_num_key_heads; per_key_head],
            ValueHeads::Grouped => vec![heads],
        };
        let values: Vec<_> = of_values.iter().map(|heads| heads * sizes.linear_value_head_dim).collect();
        let channels = [&[sizes.key_size(); 2], &values[..]].concat();
        for (name, parts) in [
            ("attn_qkv.weight", &channels),
            ("ssm_conv1d.weight", &channels),
            ("attn_gate.weight", &values),
            ("ssm_out.weight", &values),
            ("ssm_beta.weight", &of_values),
            ("ssm_alpha.weight", &of_values),
            ("ssm_a", &of_values),
            ("ssm_dt.bias", &of_values),
        ] {
            b.in_parts(&format!("{layer}.{name}"), parts);
        }
        Ok(recurrent)
    }
}

/// The work buffers of layers of linear attention.
///
/// # Errors
/// What `b` says.
pub fn scratch<T: Types, B: Build<T>>(b: &mut B, sizes: &LinearSizes) -> Result<DeltaScratch<T>> {
    Ok(DeltaScratch {
        mixed: b.tensor(Tokens, Columns::of(sizes).cols)?,
        qkv: b.tensor(Tokens, sizes.channels())?,
        out: b.tensor(Tokens, sizes.value_size())?,
        gated: b.activation(Tokens, sizes.value_size(), Precise)?,
    })
}
