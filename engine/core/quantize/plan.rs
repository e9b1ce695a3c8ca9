//! What becomes of each tensor of a file, decided before anything is computed.

use super::mixture::{Mixture, Model, Role, Wanted, fallback};
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::gguf::{Gguf, Tensor};
use crate::importance::ImportanceMatrix;
use regex::Regex;
use std::collections::{HashMap, HashSet};
use std::str::FromStr;

/// A format by the name that files have for it, in any case.
///
/// # Errors
/// [`Error::Request`] with all names.
pub fn format_named(text: &str) -> Result<MatrixFormat> {
    let named = |format: &&MatrixFormat| format.ggml_type().to_string().eq_ignore_ascii_case(text);
    MatrixFormat::ALL.iter().find(named).copied().ok_or_else(|| {
        let names: Vec<_> = MatrixFormat::ALL.iter().map(|format| format.ggml_type().to_string()).collect();
        Error::Request(format!("expected a format ({}), found {text:?}", names.join(", ")))
    })
}

/// `PATTERN=FORMAT`: the format of matrices whose name a regular expression is found in.
#[derive(Clone, Debug)]
pub struct Override {
    pattern: Regex,
    format: MatrixFormat,
}

impl FromStr for Override {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |what: String| {
            Error::Request(format!("expected PATTERN=FORMAT such as ffn_down=q6_k, found {text:?}{what}"))
        };
        let (pattern, format) = text.rsplit_once('=').ok_or_else(|| wrong(String::new()))?;
        let pattern = Regex::new(pattern).map_err(|error| wrong(format!(": {error}")))?;
        Ok(Self { pattern, format: format_named(format)? })
    }
}

/// What a file is to become.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub mixture: Mixture,
    /// Every matrix gets the mixture's format, if its rows are whole blocks of it.
    pub pure: bool,
    /// Of several that fit a name the first counts.
    pub overrides: Vec<Override>,
    /// Of the head.
    pub output: Option<MatrixFormat>,
    /// Of the embedding.
    pub embedding: Option<MatrixFormat>,
    /// The head stays as it is.
    pub leave_output: bool,
}

impl Recipe {
    /// The mixture as it is.
    pub fn new(mixture: Mixture) -> Self {
        Self {
            mixture,
            pure: false,
            overrides: Vec::new(),
            output: None,
            embedding: None,
            leave_output: false,
        }
    }
}

/// What becomes of a tensor.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    pub tensor: Tensor<'a>,
    /// Its format, and the one it gets; `None`: it is copied.
    pub formats: Option<[MatrixFormat; 2]>,
    /// Bytes that it takes in the new file.
    pub num_bytes: u64,
    /// The format that was meant for it, where its rows are no whole blocks of that.
    pub instead_of: Option<MatrixFormat>,
    /// What its values are multiplied by while they are read, one for each of its matrices: the second scales of NVFP4. Empty: 1.
    pub(super) scales: Vec<f32>,
}

/// Whether a tensor is a matrix that llama-quantize quantises: not the router of experts, norms, positions, convolutions.
fn is_quantised(tensor: &Tensor, recipe: &Recipe) -> bool {
    const KEPT: [&str; 7] = [
        "_norm.weight",
        "ffn_gate_inp.weight",
        "ssm_conv1d",
        "shortconv.conv.weight",
        "indexer.k_proj.weight",
        "indexer.q_proj.weight",
        "position_embd.weight",
    ];
    let name = tensor.name();
    let shape = tensor.shape();
    // As ggml counts dimensions: those outside that are 1 are none.
    let num_dims = shape.iter().skip_while(|&&size| size == 1).count();
    num_dims >= 2
        && name.ends_with("weight")
        && name != "token_types.weight"
        && !KEPT.iter().any(|part| name.contains(part))
        && !(recipe.leave_output && name == crate::weights::HEAD)
}

/// A number of the metadata, of the first layer where each has its own; 0 where there is none.
fn number(gguf: &Gguf, architecture: &str, key: &str) -> usize {
    let key = format!("{architecture}.{key}");
    let of_first = || gguf.get::<Vec<u32>>(&key).ok().flatten()?.into_iter().find(|&count| count > 0);
    let number = gguf.get::<u32>(&key).ok().flatten().or_else(of_first);
    number.map_or(0, |number| number as usize)
}

fn model(gguf: &Gguf, has_importance: bool) -> Result<Model> {
    let architecture: &str = gguf.require("general.architecture")?;
    let number = |key| number(gguf, architecture, key);
    let [num_layers, heads] = ["block_count", "attention.head_count"].map(number);
    let kv_heads = match number("attention.head_count_kv") {
        0 => heads,
        count => count,
    };
    let values = gguf.tensors().filter(|tensor| Role::of(tensor.name()) == Role::Values);
    Ok(Model {
        num_layers,
        heads_per_kv_head: heads / kv_heads.max(1),
        num_experts: number("expert_count"),
        is_70b: num_layers == 80
            && (architecture == "qwen2" || (architecture == "llama" && heads != kv_heads)),
        is_tied: gguf.tensor(crate::weights::HEAD).is_none(),
        has_importance,
        num_values: values.count(),
    })
}

/// The layer that a name is of.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Which each matrix of attention's values is of all of them, in the order of their layers.
fn places_of_values(gguf: &Gguf) -> HashMap<&str, usize> {
    let names = gguf.tensors().map(|tensor| tensor.name());
    let mut names: Vec<_> = names.filter(|name| Role::of(name) == Role::Values).collect();
    names.sort_by_key(|name| (layer(name), *name));
    names.into_iter().enumerate().map(|(i, name)| (name, i)).collect()
}

/// Refuses formats that values cannot be brought into.
///
/// # Errors
/// [`Error::Request`] naming the first tensor of such a format.
pub fn expect_encoders(steps: &[Step]) -> Result<()> {
    let without = |step: &Step| step.formats.map(|[_, to]| to).filter(|to| !to.has_encoder());
    match steps.iter().find_map(|step| Some((step.tensor.name(), without(step)?))) {
        None => Ok(()),
        Some((name, format)) => Err(Error::Request(format!(
            "{name}: there is no encoder for {} yet; take another type of file, or another format for such tensors with --tensor-type",
            format.ggml_type()
        ))),
    }
}

/// What becomes of every tensor of a file, in its order.
///
/// # Errors
/// [`Error::Gguf`] if metadata is missing or a tensor has a type whose size is not known; [`Error::Model`] for a file without weights, and for
/// a matrix in a format that is not computed with.
pub fn plan<'a>(
    gguf: &'a Gguf,
    recipe: &Recipe,
    importance: Option<&ImportanceMatrix>,
) -> Result<Vec<Step<'a>>> {
    if gguf.tensors().len() == 0 {
        return Err(Error::Model("the file holds no weights that could be quantised".to_owned()));
    }
    let model = model(gguf, importance.is_some())?;
    let places = places_of_values(gguf);
    let mut steps = Vec::new();
    let mut dropped = HashSet::new();
    for tensor in gguf.tensors() {
        let step = if is_quantised(&tensor, recipe) {
            let index = places.get(tensor.name()).copied().or_else(|| layer(tensor.name()));
            convert(gguf, tensor, recipe, &model, index.unwrap_or(0), &mut dropped)?
        } else {
            copy(tensor)?
        };
        steps.push(step);
    }
    steps.retain(|step| !dropped.contains(step.tensor.name()));
    Ok(steps)
}

fn copy(tensor: Tensor) -> Result<Step> {
    let num_bytes = match tensor.num_bytes() {
        Some(num_bytes) => num_bytes,
        None => tensor.data()?.len() as u64,
    };
    Ok(Step { tensor, formats: None, num_bytes, instead_of: None, scales: Vec::new() })
}

/// The step of a matrix. Tensors that the new format has no use for are added to `dropped`.
fn convert<'a>(
    gguf: &Gguf,
    tensor: Tensor<'a>,
    recipe: &Recipe,
    model: &Model,
    index: usize,
    dropped: &mut HashSet<String>,
) -> Result<Step<'a>> {
    let shape = tensor.shape();
    let cols = usize::try_from(shape[shape.len() - 1]).unwrap_or(usize::MAX);
    let wanted = Wanted {
        role: Role::of(tensor.name()),
        index,
        cols,
        has_experts: shape.len() > 2 && shape[shape.len() - 3] > 1,
    };
    let meant = recipe.format(model, tensor.name(), wanted);
    let to = fallback(meant, cols);
    let from = MatrixFormat::from_ggml(tensor.ggml_type()).ok_or_else(|| {
        Error::Model(format!(
            "{}: values of type {} are not computed with and cannot be brought into another format",
            tensor.name(),
            tensor.ggml_type()
        ))
    })?;
    if from == to {
        return copy(tensor);
    }
    let rows = tensor.num_values() / (cols as u64).max(1);
    let row_bytes = to.row_bytes(cols).map(|bytes| bytes as u64);
    let num_bytes = row_bytes.and_then(|bytes| bytes.checked_mul(rows)).ok_or_else(|| {
        Error::Model(format!("{}: {shape:?} of {to} are more bytes than can be counted", tensor.name()))
    })?;
    Ok(Step {
        formats: Some([from, to]),
        num_bytes,
        instead_of: (to != meant).then_some(meant),
        scales: scales(gguf, &tensor, from, dropped)?,
        tensor,
    })
}

/// The scales that an NVFP4 matrix has in a tensor beside it, which goes with its values.
fn scales(
    gguf: &Gguf,
    tensor: &Tensor,
    from: MatrixFormat,
    dropped: &mut HashSet<String>,
) -> Result<Vec<f32>> {
    let (MatrixFormat::NVFP4, Some(stem)) = (from, tensor.name().strip_suffix(".weight")) else {
        return Ok(Vec::new());
    };
    dropped.insert(format!("{stem}.input_scale"));
    let Some(scale) = gguf.tensor(&format!("{stem}.scale")) else { return Ok(Vec::new()) };
    dropped.insert(scale.name().to_owned());
    let shape = tensor.shape();
    let matrices = shape[..shape.len() - 2].iter().product::<u64>();
    let data = scale.data()?;
    let values: Vec<f32> = data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    if scale.ggml_type() != crate::gguf::GgmlType::F32 || ![1, matrices].contains(&(values.len() as u64)) {
        return Err(Error::Model(format!(
            "{}: expected one F32 value or {matrices}, found {:?} {}",
            scale.name(),
            scale.shape(),
            scale.ggml_type()
        )));
    }
    Ok(values)
}

impl Recipe {
    /// The format that is meant for a matrix.
    fn format(&self, model: &Model, name: &str, wanted: Wanted) -> MatrixFormat {
        let is_head = wanted.role == Role::Output || (wanted.role == Role::Embedding && model.is_tied);
        let asked = match wanted.role {
            Role::Embedding => self.embedding.or(if is_head { self.output } else { None }),
            Role::Output => self.output,
            _ => None,
        };
        let found = || self.overrides.iter().find(|of| of.pattern.is_match(name));
        let base = self.mixture.base();
        match asked.or_else(|| found().map(|of| of.format)) {
            Some(format) => format,
            None if self.pure || base.float().is_some() => base,
            None => self.mixture.format(model, wanted),
        }
    }
}
