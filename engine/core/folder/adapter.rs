//! Adapters in folders, as PEFT saves them: `adapter_config.json` and `adapter_model.safetensors`.

use super::architecture::Architecture;
use super::fault;
use super::files::Files;
use super::json::{Fields, shown};
use super::names::{Target, target};
use super::safetensors::{self, Dtype, Stored};
use super::tensors::neighbours;
use crate::config::Config;
use crate::disk::Access;
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::weights::{Adapter, Half, Matrix, TensorSpec};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What the folder of an adapter must have.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Before the names of modules, once for PEFT's own model and once for what it wraps.
const PREFIX: &str = "base_model.model.";

/// Ways to begin a training that leave the model's own weights alone.
const BEGINNINGS: [&str; 4] = ["gaussian", "eva", "orthogonal", "loftq"];

/// What an adapter may have that is more than updates of matrices: the field, what it must be, and what it is otherwise.
const REFUSED: [(&str, &[&str], &str); 13] = [
    ("use_dora", &["false"], "DoRA"),
    ("use_qalora", &["false"], "QALoRA"),
    ("lora_bias", &["false"], "updates with biases"),
    ("bias", &["\"none\""], "biases that were trained too"),
    ("modules_to_save", &["[]"], "modules that were trained as a whole"),
    ("layer_replication", &["[]"], "layers that are used several times"),
    ("trainable_token_indices", &["[]", "{}"], "tokens that were trained"),
    ("target_parameters", &["[]"], "updates of parameters that are no modules"),
    ("alora_invocation_tokens", &["[]"], "updates from a token on"),
    ("use_bdlora", &["false"], "updates in blocks"),
    ("arrow_config", &[], "choices between adapters"),
    ("kasa_config", &[], "singular values"),
    ("monteclora_config", &[], "mixtures of updates"),
];

/// Opens the adapter of a folder, for the model of `config`, which takes updates of the matrices `adaptable`.
///
/// # Errors
/// [`Error::Model`] that lists all that does not fit the model; [`Error::Folder`] and [`Error::Io`] where the folder cannot be read.
pub fn open_adapter(
    folder: &Path,
    access: Access,
    name: &str,
    config: &Config,
    adaptable: &[TensorSpec],
) -> Result<Adapter> {
    let files = Files { folder, access };
    let missing = |file: &str| {
        Error::Folder(format!("{} has no {file}: expected an adapter as PEFT saves it", folder.display()))
    };
    let fields = Fields::read(&files, ADAPTER_CONFIG)?.ok_or_else(|| missing(ADAPTER_CONFIG))?;
    let (bytes, _) = files.weights(WEIGHTS)?.ok_or_else(|| missing(WEIGHTS))?;
    let scaling = Scaling::read(&fields)?;
    let architecture = Architecture::of_config(config)?;
    let mut problems = refused(&fields)?;
    let (mut halves, mut scales) = (Vec::new(), BTreeMap::new());
    for (tensor, stored) in safetensors::read(WEIGHTS, &bytes)? {
        match half(&tensor, &stored, architecture, config) {
            Ok((module, half)) => {
                scales.insert(half.target.clone(), scaling.of(module));
                halves.push(half);
            }
            Err(problem) => problems.push(problem),
        }
    }
    let scale = |target: &str, rank: usize| match scales.get(target) {
        Some(&(expected, scale)) if expected == rank as u64 => Ok(scale),
        Some((expected, _)) => {
            Err(format!("{target}: its rank is {rank}, and {ADAPTER_CONFIG} says {expected}"))
        }
        None => Err(format!("{target}: {ADAPTER_CONFIG} does not know it")),
    };
    Adapter::of_halves(name, halves, adaptable, scale, problems)
}

/// What of the configuration would change answers and is not computed.
fn refused(fields: &Fields) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let kind = fields.require("peft_type", Fields::string)?;
    if kind != "LORA" {
        problems.push(format!("`peft_type` is {kind:?}, expected \"LORA\""));
    }
    for (key, neutral, what) in REFUSED {
        if let Some(value) = fields.get(key).filter(|value| !neutral.contains(&value.to_string().as_str())) {
            problems.push(format!("`{key}` is {}: {what} are not computed", shown(value)));
        }
    }
    if let Some(Value::String(beginning)) = fields.get("init_lora_weights")
        && !BEGINNINGS.contains(&beginning.as_str())
    {
        problems.push(format!(
            "`init_lora_weights` is {beginning:?}, which changes the model's own weights: save the adapter as a usual one (PEFT's \
             path_initial_model_for_weight_conversion)"
        ));
    }
    Ok(problems)
}

/// What updates are multiplied with.
struct Scaling {
    rank: u64,
    alpha: f64,
    /// By the root of the rank and not by the rank.
    by_root: bool,
    /// For modules whose names end so.
    ranks: Vec<(String, u64)>,
    alphas: Vec<(String, f64)>,
}

impl Scaling {
    fn read(fields: &Fields) -> Result<Self> {
        let patterns = |key: &str| -> Result<Fields> { Ok(fields.object(key)?.unwrap_or_default()) };
        let (ranks, alphas) = (patterns("rank_pattern")?, patterns("alpha_pattern")?);
        let keys = |fields: &Fields| {
            fields.values.keys().map(|key| plain_pattern(fields, key)).collect::<Result<Vec<_>>>()
        };
        Ok(Self {
            rank: fields.require("r", Fields::integer)?,
            alpha: fields.require("lora_alpha", Fields::number)?,
            by_root: fields.flag("use_rslora")?.unwrap_or(false),
            ranks: (keys(&ranks)?.into_iter())
                .map(|(key, name)| Ok((name, ranks.require(&key, Fields::integer)?)))
                .collect::<Result<_>>()?,
            alphas: (keys(&alphas)?.into_iter())
                .map(|(key, name)| Ok((name, alphas.require(&key, Fields::number)?)))
                .collect::<Result<_>>()?,
        })
    }

    /// The rank of a module's update, and what it is multiplied with.
    fn of(&self, module: &str) -> (u64, f32) {
        let rank = of_pattern(&self.ranks, module).unwrap_or(self.rank);
        let alpha = of_pattern(&self.alphas, module).unwrap_or(self.alpha);
        let divisor = if self.by_root { (rank as f64).sqrt() } else { rank as f64 };
        (rank, (alpha / divisor) as f32)
    }
}

/// The first pattern that is the end of a module's name, of whole parts.
fn of_pattern<T: Copy>(patterns: &[(String, T)], module: &str) -> Option<T> {
    let is_end =
        |end: &str| module.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    patterns.iter().find(|(end, _)| is_end(end)).map(|&(_, value)| value)
}

/// A pattern with the end of names that it stands for. PEFT takes regular expressions; those that it writes itself are names.
fn plain_pattern(fields: &Fields, key: &str) -> Result<(String, String)> {
    let name = key.strip_prefix('^').unwrap_or(key).replace("\\.", ".");
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
        return Err(fault(
            &fields.file,
            format!(
                "the pattern {key:?} is a regular expression; expected names of modules, or ends of such"
            ),
        ));
    }
    Ok((key.to_owned(), name))
}

/// A tensor as one of both matrices of an update, with the name of its module; or what is wrong with it.
fn half<'a>(
    name: &'a str,
    stored: &Stored,
    architecture: &Architecture,
    config: &Config,
) -> Result<(&'a str, Half), String> {
    let parts = [("lora_A", false), ("lora_B", true)].into_iter().find_map(|(part, is_b)| {
        let module = name.strip_suffix(".weight")?.strip_suffix(part)?.strip_suffix('.')?;
        Some((module, is_b))
    });
    let Some((module, is_b)) = parts else {
        return Err(format!(
            "{name}: expected tensors that end in lora_A.weight or lora_B.weight; others are not computed"
        ));
    };
    let short = module.strip_prefix(PREFIX).unwrap_or(module);
    let Target::Tensor(to) = target(architecture, &format!("{short}.weight")) else {
        return Err(format!("{name}: adapters of this module are not computed"));
    };
    let format = match &stored.dtype {
        Dtype::F32 => MatrixFormat::F32,
        Dtype::F16 => MatrixFormat::F16,
        Dtype::Bf16 => MatrixFormat::Bf16,
        other => return Err(format!("{name}: it is {other}, expected F32, F16 or BF16")),
    };
    let &[rows, cols] = &stored.shape[..] else {
        return Err(format!("{name}: its shape is {:?}, expected a matrix", stored.shape));
    };
    // Fits: as many values as the file holds.
    let (rows, cols) = (rows as usize, cols as usize);
    let matrix = Matrix { name: name.to_owned(), format, rows, cols, scale: 1.0, data: stored.data.clone() };
    let matrix = if is_b { in_order_of_ggufs(matrix, &to, architecture, config)? } else { matrix };
    Ok((short, Half { name: name.to_owned(), target: to, is_b, matrix }))
}

/// The rows of an update in the order that the model's matrix has in GGUF.
fn in_order_of_ggufs(
    matrix: Matrix,
    target: &str,
    architecture: &Architecture,
    config: &Config,
) -> Result<Matrix, String> {
    let heads = match target.rsplit_once(".attn_").map(|(_, part)| part) {
        Some("q.weight") => config.num_attention_heads,
        Some("k.weight") => config.num_key_value_heads,
        _ => return Ok(matrix),
    };
    if !architecture.has_halves {
        return Ok(matrix);
    }
    let order = neighbours(&matrix.name, matrix.rows, heads as u64).map_err(|error| error.to_string())?;
    matrix.of_heads(matrix.rows, &order).map_err(|error| error.to_string())
}
