//! The hub's names of tensors -> GGUF's.

use super::architecture::Architecture;

/// Where a tensor of the folder belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// It is not computed with.
    None,
    /// It is a tensor of this name.
    Tensor(String),
    /// It is the matrix of one expert of this tensor.
    Expert(String, u64),
    /// Of each expert gate, then up, one below the other.
    GateUp { gate: String, up: String },
    /// Of each head of K its Q, K, V and what gates V.
    GroupedQkvz { qkv: String, z: String },
}

/// Parts of a layer: the hub's name without `.weight` and `.bias`, and GGUF's.
const LAYER: [(&str, &str); 20] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("linear_attn.in_proj_qkv", "attn_qkv"),
    ("linear_attn.in_proj_z", "attn_gate"),
    ("linear_attn.in_proj_b", "ssm_beta"),
    ("linear_attn.in_proj_a", "ssm_alpha"),
    ("linear_attn.in_proj_ba", "ssm_ba"),
];

/// The same of layers of linear attention, whole names.
const LINEAR: [(&str, &str); 5] = [
    ("linear_attn.conv1d.weight", "ssm_conv1d.weight"),
    ("linear_attn.A_log", "ssm_a"),
    ("linear_attn.dt_bias", "ssm_dt.bias"),
    ("linear_attn.norm.weight", "ssm_norm.weight"),
    ("linear_attn.out_proj.weight", "ssm_out.weight"),
];

/// GPT-2's.
const GPT2_LAYER: [(&str, &str); 6] = [
    ("ln_1", "attn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("ln_2", "ffn_norm"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
];

/// Tensors around the layers.
const AROUND: [(&str, &str); 7] = [
    ("embed_tokens.weight", "token_embd.weight"),
    ("norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
    ("wte.weight", "token_embd.weight"),
    ("wpe.weight", "position_embd.weight"),
    ("ln_f.weight", "output_norm.weight"),
    ("ln_f.bias", "output_norm.bias"),
];

/// Before names of the text model, the longest first.
const PREFIXES: [&str; 5] =
    ["model.language_model.", "language_model.model.", "language_model.", "model.", "transformer."];

/// Parts that read pictures.
const OTHER_MODELS: [&str; 2] = ["visual.", "model.visual."];

/// Before names of the blocks that draft further tokens.
const DRAFTS: [&str; 2] = ["mtp.", "model.mtp."];

/// What of the first of them is no part of a layer.
const AROUND_DRAFT: [(&str, &str); 5] = [
    ("fc.weight", "eh_proj.weight"),
    ("pre_fc_norm_embedding.weight", "enorm.weight"),
    ("pre_fc_norm_hidden.weight", "hnorm.weight"),
    ("norm.weight", "shared_head_norm.weight"),
    ("embed_tokens.weight", "embed_tokens.weight"),
];

/// The name behind the one of the blocks that draft.
fn of_drafts(name: &str) -> Option<&str> {
    DRAFTS.iter().find_map(|prefix| name.strip_prefix(prefix))
}

/// How many blocks that draft a hybrid has, whose tensors have these names; 0 for others, whose blocks are passed over.
pub(super) fn num_drafts<'a>(
    architecture: &Architecture,
    names: impl Iterator<Item = &'a str> + Clone,
) -> u64 {
    let rest = names.filter_map(of_drafts);
    let has = |prefix: &str| rest.clone().any(|name| name.starts_with(prefix));
    if !architecture.is_hybrid || !has("fc.") {
        return 0;
    }
    (0..).take_while(|i| has(&format!("layers.{i}."))).count() as u64
}

/// Where a tensor of the blocks that draft belongs, `num_drafts` of which stand behind `num_layers` others; `None` for one of another part.
pub(super) fn draft_target(
    architecture: &Architecture,
    num_layers: u64,
    num_drafts: u64,
    name: &str,
) -> Option<Target> {
    let rest = of_drafts(name)?;
    if num_drafts == 0 {
        return Some(Target::None);
    }
    if let Some((number, rest)) = rest.strip_prefix("layers.").and_then(|rest| rest.split_once('.'))
        && let Ok(number) = number.parse::<u64>()
    {
        // Numbers behind a gap are of no block.
        let is_there = number < num_drafts;
        return Some(if is_there {
            of_layer(architecture, &format!("blk.{}", num_layers + number), rest)
        } else {
            Target::None
        });
    }
    // One that nobody knows keeps its name, by which it is refused where the block is wanted.
    let to = AROUND_DRAFT.iter().find(|(from, _)| *from == rest).map_or(rest, |(_, to)| to);
    Some(Target::Tensor(format!("blk.{num_layers}.nextn.{to}")))
}

/// Where the tensor of this name belongs. One of a layer that nobody knows keeps its name there, so that it is refused by it.
pub(super) fn target(architecture: &Architecture, name: &str) -> Target {
    if OTHER_MODELS.iter().any(|prefix| name.starts_with(prefix)) || is_computed(name) {
        return Target::None;
    }
    let short = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    if let Some((_, to)) = AROUND.iter().find(|(from, _)| *from == short) {
        return Target::Tensor((*to).to_owned());
    }
    let layer = short
        .strip_prefix("layers.")
        .or_else(|| short.strip_prefix("h."))
        .and_then(|rest| rest.split_once('.'));
    match layer {
        Some((number, rest)) if number.parse::<u32>().is_ok() => {
            of_layer(architecture, &format!("blk.{number}"), rest)
        }
        _ => Target::Tensor(name.to_owned()),
    }
}

/// Whether it is computed from the configuration, or a mask.
fn is_computed(name: &str) -> bool {
    [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"].iter().any(|end| name.ends_with(end))
}

fn of_layer(architecture: &Architecture, layer: &str, rest: &str) -> Target {
    let tensor = |to: &str| Target::Tensor(format!("{layer}.{to}"));
    if let Some((_, to)) = LINEAR.iter().find(|(from, _)| *from == rest) {
        return tensor(to);
    }
    if let Some(expert) = rest.strip_prefix("mlp.experts.") {
        return of_experts(layer, expert).unwrap_or_else(|| tensor(rest));
    }
    let Some((part, kind @ ("weight" | "bias"))) = rest.rsplit_once('.') else { return tensor(rest) };
    match part {
        "post_attention_layernorm" if architecture.is_hybrid => {
            return tensor(&format!("post_attention_norm.{kind}"));
        }
        "post_attention_layernorm" => return tensor(&format!("ffn_norm.{kind}")),
        "linear_attn.in_proj_qkvz" => {
            return Target::GroupedQkvz {
                qkv: format!("{layer}.attn_qkv.{kind}"),
                z: format!("{layer}.attn_gate.{kind}"),
            };
        }
        _ => {}
    }
    let parts: &[(&str, &str)] = if architecture.is_gpt2() { &GPT2_LAYER } else { &LAYER };
    match parts.iter().find(|(from, _)| *from == part) {
        Some((_, to)) => tensor(&format!("{to}.{kind}")),
        None => tensor(rest),
    }
}

/// What stands behind `mlp.experts.`: a number and one matrix, or the matrices of all.
fn of_experts(layer: &str, rest: &str) -> Option<Target> {
    let stacked = |part: &str| format!("{layer}.ffn_{part}_exps.weight");
    match rest.strip_suffix(".weight").unwrap_or(rest) {
        "gate_up_proj" => return Some(Target::GateUp { gate: stacked("gate"), up: stacked("up") }),
        "down_proj" => return Some(Target::Tensor(stacked("down"))),
        _ => {}
    }
    let (number, part) = rest.split_once('.')?;
    let part = part.strip_suffix("_proj.weight").filter(|part| ["gate", "up", "down"].contains(part))?;
    Some(Target::Expert(stacked(part), number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_ggufs() {
        let tensor = |name: &str| Target::Tensor(name.to_owned());
        let of = |model_type: &str, name: &str| target(Architecture::named(model_type).unwrap(), name);
        for (model_type, name, expected) in [
            ("qwen2", "model.layers.3.self_attn.k_proj.bias", "blk.3.attn_k.bias"),
            ("qwen3", "layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
            (
                "qwen3_5",
                "model.language_model.layers.7.post_attention_layernorm.weight",
                "blk.7.post_attention_norm.weight",
            ),
            ("qwen3_5", "model.language_model.layers.0.linear_attn.A_log", "blk.0.ssm_a"),
            ("gpt2", "transformer.h.1.mlp.c_proj.weight", "blk.1.ffn_down.weight"),
            ("gpt2", "wpe.weight", "position_embd.weight"),
            ("llama", "lm_head.weight", "output.weight"),
            // Refused by their names.
            ("llama", "model.layers.0.self_attn.sinks", "blk.0.self_attn.sinks"),
            ("llama", "score.weight", "score.weight"),
        ] {
            assert_eq!(of(model_type, name), tensor(expected), "{name}");
        }
        for name in ["model.visual.blocks.0.attn.qkv.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]
        {
            assert_eq!(of("qwen3_5", name), Target::None, "{name}");
        }
        let drafts = |model_type: &str, names: &[&str]| {
            let architecture = Architecture::named(model_type).unwrap();
            let num = num_drafts(architecture, names.iter().copied());
            (num, names.iter().map(|name| draft_target(architecture, 24, num, name)).collect::<Vec<_>>())
        };
        let names = [
            "mtp.fc.weight",
            "mtp.layers.0.self_attn.q_proj.weight",
            "model.mtp.norm.weight",
            "mtp.layers.2.a",
            "norm.weight",
        ];
        let [fc, q, norm] = ["nextn.eh_proj.weight", "attn_q.weight", "nextn.shared_head_norm.weight"]
            .map(|name| Some(tensor(&format!("blk.24.{name}"))));
        assert_eq!(drafts("qwen3_5", &names), (1, vec![fc, q, norm, Some(Target::None), None]));
        let none = Some(Target::None);
        assert_eq!(drafts("qwen3", &names[..2]), (0, vec![none.clone(), none.clone()]));
        assert_eq!(drafts("qwen3_5", &names[1..2]), (0, vec![none]));
        let expert = of("qwen3_moe", "model.layers.2.mlp.experts.12.down_proj.weight");
        assert_eq!(expert, Target::Expert("blk.2.ffn_down_exps.weight".to_owned(), 12));
        let (gate, up) = ("blk.2.ffn_gate_exps.weight".to_owned(), "blk.2.ffn_up_exps.weight".to_owned());
        assert_eq!(of("qwen3_5_moe", "model.layers.2.mlp.experts.gate_up_proj"), Target::GateUp { gate, up });
    }
}
