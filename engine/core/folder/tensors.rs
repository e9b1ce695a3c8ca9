//! The tensors of a folder as those of a GGUF file: their names, their order, and what is done to their values.

use super::config::{Linear, Model, rope_factors};
use super::fault;
use super::grouped::{self, Grouped};
use super::make::{Change, Kind, Recipe, Source};
use super::names::{Target, draft_target, target};
use super::safetensors::{Dtype, Stored};
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::gguf::Assembled;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What scales of FP8 are called behind the name of their matrix.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];
/// Further tensors of FP8 checkpoints: scales of activations and caches, which are not rounded here.
const UNUSED_SCALES: [&str; 5] = [".input_scale", ".k_scale", ".v_scale", ".kv_scale", ".activation_scale"];
/// Matrices that converters keep in f32, since they are small and sensitive.
const PRECISE: [&str; 5] = [
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "ssm_conv1d.weight",
    "position_embd.weight",
    "rope_freqs.weight",
];

/// All tensors, and llama.cpp's number of the format that most matrices have.
pub(super) fn all(model: &Model, mut stored: BTreeMap<String, Stored>) -> Result<(Vec<Assembled>, u32)> {
    let grouped = grouped::take(model.quantization.layout, &mut stored)?;
    let mut list =
        List { model, stored: &stored, grouped, tensors: BTreeMap::new(), experts: BTreeMap::new() };
    for name in stored.keys() {
        list.add(name)?;
    }
    list.stack_experts()?;
    list.check_head();
    if let Some(factors) = rope_factors(model)? {
        let data: Bytes = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect::<Vec<_>>().into();
        let stored = Stored { dtype: Dtype::F32, shape: vec![factors.len() as u64], data };
        let source = Source::new("rope_freqs", &stored, None, model.quantization.fp8_block)?;
        list.insert("rope_freqs.weight", stored.shape, Recipe::plain(source, MatrixFormat::F32));
    }
    let file_type = list.file_type();
    let assembled = list.tensors.into_iter().map(|(name, Tensor { shape, recipe })| {
        let ggml_type = recipe.to.ggml_type();
        let of_name = name.clone();
        Assembled { name, shape, ggml_type, make: Arc::new(move || recipe.make(&of_name)) }
    });
    Ok((assembled.collect(), file_type))
}

/// A tensor that is made.
struct Tensor {
    shape: Vec<u64>,
    recipe: Recipe,
}

/// The tensors so far.
struct List<'a> {
    model: &'a Model,
    stored: &'a BTreeMap<String, Stored>,
    /// Those of them that are integers in groups.
    grouped: BTreeMap<String, Arc<Grouped>>,
    tensors: BTreeMap<String, Tensor>,
    /// Of each tensor of experts their matrices, by number.
    experts: BTreeMap<String, BTreeMap<u64, &'a str>>,
}

impl<'a> List<'a> {
    fn add(&mut self, name: &'a str) -> Result<()> {
        let is_scale = SCALES
            .iter()
            .any(|end| name.strip_suffix(end).is_some_and(|matrix| self.stored.contains_key(matrix)));
        if is_scale || UNUSED_SCALES.iter().any(|end| name.ends_with(end)) || self.is_filler(name) {
            return Ok(());
        }
        let Model { architecture, num_layers, num_drafts, .. } = *self.model;
        let of_draft = draft_target(architecture, num_layers, num_drafts, name);
        match of_draft.unwrap_or_else(|| target(architecture, name)) {
            Target::None => Ok(()),
            Target::Tensor(to) if to == "output.weight" && self.model.is_tied => Ok(()),
            Target::Tensor(to) if self.has_rows_as_columns(name) => self.experts_by_column(name, &to, None),
            Target::Tensor(to) => self.plain(name, &to),
            Target::Expert(to, number) => match self.experts.entry(to).or_default().insert(number, name) {
                Some(other) => {
                    Err(Error::Folder(format!("`{other}` and `{name}` are the same tensor of the model")))
                }
                None => Ok(()),
            },
            Target::GateUp { gate, up } if self.has_rows_as_columns(name) => {
                self.experts_by_column(name, &gate, Some(0))?;
                self.experts_by_column(name, &up, Some(1))
            }
            Target::GateUp { gate, up } => self.gate_up(name, [&gate, &up]),
            Target::GroupedQkvz { qkv, z } => self.grouped_qkvz(name, [&qkv, &z]),
        }
    }

    /// AutoGPTQ saves a bias with every matrix, zeros where the model has none.
    fn is_filler(&self, name: &str) -> bool {
        let Some(base) = name.strip_suffix(".bias") else { return false };
        let may_have_one = ["q_proj", "k_proj", "v_proj"].iter().any(|end| base.ends_with(end));
        let is_quantised = self.grouped.contains_key(&format!("{base}.weight"));
        !may_have_one && is_quantised && self.stored[name].data.iter().all(|&byte| byte == 0)
    }

    fn source(&self, name: &str) -> Result<Source> {
        let stored = &self.stored[name];
        if let (Some(grouped), &[rows, cols]) = (self.grouped.get(name), &stored.shape[..]) {
            let (data, kind) = (Bytes::new(), Kind::Grouped(grouped.clone()));
            return Ok(Source { data, kind, rows: rows as usize, cols: cols as usize });
        }
        let scales = SCALES.iter().find_map(|end| self.stored.get(&format!("{name}{end}")));
        Source::new(name, stored, scales, self.model.quantization.fp8_block)
    }

    fn insert(&mut self, name: &str, shape: Vec<u64>, recipe: Recipe) {
        self.tensors.insert(name.to_owned(), Tensor { shape, recipe });
    }

    /// A tensor that is one of the folder.
    fn plain(&mut self, name: &str, to: &str) -> Result<()> {
        if self.tensors.contains_key(to) {
            return Err(Error::Folder(format!("two tensors are the model's {to}; the second is `{name}`")));
        }
        let source = self.source(name)?;
        let mut shape = self.stored[name].shape.clone();
        // A router's gate is a matrix of one row, a convolution has one input for each output.
        if to.ends_with("ffn_gate_inp_shexp.weight") && shape.first() == Some(&1) {
            shape.remove(0);
        }
        if to.ends_with("ssm_conv1d.weight") && shape.get(1) == Some(&1) {
            shape.remove(1);
        }
        let is_precise = shape.len() < 2 || PRECISE.iter().any(|end| to.ends_with(end));
        let format = if is_precise { MatrixFormat::F32 } else { source.kind.format() };
        let mut recipe = Recipe::plain(source, format);
        self.change(name, to, &mut recipe)?;
        if recipe.is_transposed {
            shape.reverse();
        }
        if recipe.is_transposed || recipe.cols.is_some() || recipe.change != Change::None {
            recipe.to = if is_precise { MatrixFormat::F32 } else { recipe.sources[0].kind.float_format() };
        }
        self.insert(to, shape, recipe);
        Ok(())
    }

    /// What llama.cpp's converter does to the values of a tensor.
    fn change(&self, name: &str, to: &str, recipe: &mut Recipe) -> Result<()> {
        let Model { architecture, num_heads, num_kv_heads, .. } = self.model;
        let rows = recipe.sources[0].rows;
        let part = to.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(to, |(_, part)| part);
        match part {
            "attn_q.weight" | "attn_q.bias" if architecture.has_halves => {
                recipe.rows = Some(neighbours(name, rows, *num_heads)?)
            }
            "attn_k.weight" | "attn_k.bias" if architecture.has_halves => {
                recipe.rows = Some(neighbours(name, rows, *num_kv_heads)?)
            }
            "attn_qkv.weight" | "attn_output.weight" | "ffn_up.weight" | "ffn_down.weight"
                if architecture.is_gpt2() =>
            {
                recipe.is_transposed = self.stored[name].shape.len() == 2;
            }
            "ssm_a" => recipe.change = Change::MinusExp,
            "ssm_norm.weight" => {}
            part if architecture.is_hybrid && part.ends_with("norm.weight") => {
                recipe.change = Change::PlusOne
            }
            _ => {}
        }
        if let Some(linear) = self.model.linear.filter(|_| architecture.has_grouped_values) {
            tile_values(name, part, linear, recipe)?;
        }
        Ok(())
    }

    /// Gate and up of all experts, `[experts, 2 * size, hidden]`.
    fn gate_up(&mut self, name: &str, to: [&str; 2]) -> Result<()> {
        let stored = &self.stored[name];
        let &[experts, both, cols] = &stored.shape[..] else {
            return Err(fault(
                name,
                format!("it has the shape {:?}; expected [experts, 2 * size, hidden]", stored.shape),
            ));
        };
        if both % 2 != 0 {
            return Err(fault(
                name,
                format!("it has {both} rows an expert, of gate and up; expected an even number"),
            ));
        }
        let source = self.source(name)?;
        for (second, to) in to.into_iter().enumerate() {
            // Fits: as many rows as the file holds.
            let (both, half) = (both as usize, both as usize / 2);
            let rows = (0..experts as usize)
                .flat_map(|expert| (0..half).map(move |row| expert * both + second * half + row));
            let recipe =
                Recipe { rows: Some(rows.collect()), ..Recipe::plain(source.clone(), source.kind.format()) };
            self.insert(to, vec![experts, half as u64, cols], recipe);
        }
        Ok(())
    }

    /// Whether the experts of the tensor have their rows as columns: where they are published so, and down is not `[experts, hidden, size]`, as
    /// transformers saves it since version 5.
    fn has_rows_as_columns(&self, name: &str) -> bool {
        let layer = name.split_once(".mlp.experts.").map(|(layer, _)| layer);
        let down = layer.and_then(|layer| {
            [".weight", ""]
                .iter()
                .find_map(|end| self.stored.get(&format!("{layer}.mlp.experts.down_proj{end}")))
        });
        let hidden_size = self.model.hidden_size;
        self.model.architecture.has_transposed_experts
            && down.is_some_and(|down| matches!(down.shape[..], [_, _, hidden] if hidden == hidden_size))
    }

    /// A matrix of each expert, or one half of it, whose rows are the columns of what is stored: `[experts, columns, rows]`.
    fn experts_by_column(&mut self, name: &str, to: &str, half: Option<usize>) -> Result<()> {
        let stored = &self.stored[name];
        let found =
            || format!("it has the shape {:?}; expected [experts, columns, rows] of floats", stored.shape);
        let &[experts, rows, cols] = &stored.shape[..] else { return Err(fault(name, found())) };
        let source = self.source(name)?;
        let Kind::Float(format) = source.kind else { return Err(fault(name, found())) };
        // Fits: as many as the file holds.
        let [count, rows, cols] = [experts, rows, cols].map(|size| size as usize);
        if half.is_some() && cols % 2 != 0 {
            return Err(fault(
                name,
                format!("it has {cols} columns an expert, of gate and up; expected an even number"),
            ));
        }
        let cols = half.map(|half| (half * cols / 2..(half + 1) * cols / 2).collect::<Arc<[usize]>>());
        let width = cols.as_ref().map_or(stored.shape[2], |cols| cols.len() as u64);
        let bytes = source.data.len() / count.max(1);
        let of_expert = |expert: usize| Source {
            data: source.data.slice(expert * bytes..(expert + 1) * bytes),
            kind: source.kind.clone(),
            rows,
            cols: stored.shape[2] as usize,
        };
        let sources = (0..count).map(of_expert).collect();
        let recipe =
            Recipe { sources, rows: None, cols, is_transposed: true, change: Change::None, to: format };
        self.insert(to, vec![experts, width, rows as u64], recipe);
        Ok(())
    }

    /// Of each head of K its rows of Q, K, V and the gate, as Qwen3-Next stores them.
    fn grouped_qkvz(&mut self, name: &str, [qkv, z]: [&str; 2]) -> Result<()> {
        let source = self.source(name)?;
        let Some(Linear { key_heads, value_heads, key_dim, value_dim, .. }) = self.model.linear else {
            return Err(fault(
                name,
                "it belongs to layers of linear attention, which this architecture does not have",
            ));
        };
        let [heads, key, value] =
            [key_heads, key_dim, value_heads / key_heads * value_dim].map(|size| size as usize);
        let group = 2 * (key + value);
        if source.rows != heads * group {
            return Err(fault(
                name,
                format!("it has {} rows; expected {} for {heads} heads of K", source.rows, heads * group),
            ));
        }
        let rows = |first: usize, count: usize| {
            (0..heads).flat_map(move |head| (0..count).map(move |row| head * group + first + row))
        };
        let qkv_rows: Arc<[usize]> = rows(0, key).chain(rows(key, key)).chain(rows(2 * key, value)).collect();
        let z_rows: Arc<[usize]> = rows(2 * key + value, value).collect();
        for (to, rows) in [(qkv, qkv_rows), (z, z_rows)] {
            let shape = vec![rows.len() as u64, source.cols as u64];
            self.insert(
                to,
                shape,
                Recipe { rows: Some(rows), ..Recipe::plain(source.clone(), source.kind.format()) },
            );
        }
        Ok(())
    }

    /// Puts the matrices of experts one below the other.
    fn stack_experts(&mut self) -> Result<()> {
        for (to, experts) in std::mem::take(&mut self.experts) {
            let expected = self.model.num_experts.unwrap_or(experts.len() as u64);
            let numbers = 0..expected.max(experts.len() as u64);
            if let Some(missing) = numbers.clone().find(|number| !experts.contains_key(number)) {
                return Err(Error::Folder(format!(
                    "{to}: of {expected} experts number {missing} is missing; found {}",
                    experts.len()
                )));
            }
            if experts.len() as u64 != expected {
                return Err(Error::Folder(format!(
                    "{to}: expected {expected} experts (`num_experts`), found {}",
                    experts.len()
                )));
            }
            let first = &self.stored[experts[&0]].shape;
            if let Some(name) =
                experts.values().find(|name| self.stored[**name].shape != *first || first.len() != 2)
            {
                let found = &self.stored[*name].shape;
                return Err(fault(
                    name,
                    format!("it has the shape {found:?}; expected that of the first expert, {first:?}"),
                ));
            }
            let shape = [vec![expected], first.clone()].concat();
            let sources = experts.values().map(|name| self.source(name)).collect::<Result<Vec<_>>>()?;
            let recipe = Recipe::plain(sources[0].clone(), format_of_all(&to, &sources));
            self.insert(&to, shape, Recipe { sources, ..recipe });
        }
        Ok(())
    }

    /// A head that is missing is taken for a tied one: models that make vectors are published so, whatever config.json says.
    fn check_head(&self) {
        if !self.model.is_tied && !self.tensors.contains_key("output.weight") {
            tracing::warn!(
                "there is no lm_head.weight, and config.json does not say `tie_word_embeddings`: the embedding is the head"
            );
        }
    }

    /// The number of the format that most values of matrices have.
    fn file_type(&self) -> u32 {
        let values = |format: MatrixFormat| -> u64 {
            let tensors = self.tensors.values().filter(|tensor| tensor.recipe.to == format);
            tensors.map(|tensor| tensor.shape.iter().product::<u64>()).sum()
        };
        let formats = [
            (0, MatrixFormat::F32),
            (1, MatrixFormat::F16),
            (32, MatrixFormat::Bf16),
            (2, MatrixFormat::Q4_0),
            (8, MatrixFormat::Q5_0),
            (7, MatrixFormat::Q8_0),
        ];
        formats.into_iter().max_by_key(|&(_, format)| values(format)).map_or(0, |(number, _)| number)
    }
}

/// The format of the matrices of a layer's experts, which all have one: where the folder has several, Q5_0 for integers with and without
/// zero points, and of floats the one of the widest range, which if it is f32 holds them all as they are.
fn format_of_all(to: &str, sources: &[Source]) -> MatrixFormat {
    let all_are = |formats: &[MatrixFormat]| {
        let last = formats.last().copied();
        last.filter(|_| sources.iter().all(|source| formats.contains(&source.kind.format())))
    };
    let (q4_0, q5_0, q8_0) = (MatrixFormat::Q4_0, MatrixFormat::Q5_0, MatrixFormat::Q8_0);
    if let Some(format) = all_are(&[q4_0]).or(all_are(&[q4_0, q5_0])).or(all_are(&[q8_0])) {
        return format;
    }
    let counts = [MatrixFormat::F32, MatrixFormat::Bf16, MatrixFormat::F16]
        .map(|format| (format, sources.iter().filter(|source| source.kind.float_format() == format).count()));
    let found: Vec<_> = counts.into_iter().filter(|&(_, count)| count > 0).collect();
    let widest = found.first().map_or(MatrixFormat::Bf16, |&(format, _)| format);
    if found.len() > 1 {
        let found: Vec<_> = found.iter().map(|(format, count)| format!("{count} in {format}")).collect();
        tracing::warn!("{to}: its experts are {}; all become {widest}", found.join(", "));
    }
    widest
}

/// The rows of heads whose value `j` is rotated with `j + half`, so that both stand beside each other.
pub(super) fn neighbours(name: &str, rows: usize, heads: u64) -> Result<Arc<[usize]>> {
    // Heads are far below 2^24.
    let heads = heads as usize;
    if !rows.is_multiple_of(2 * heads) {
        return Err(fault(name, format!("its {rows} rows are no {heads} heads of an even size")));
    }
    let half = rows / heads / 2;
    Ok((0..heads)
        .flat_map(|head| (0..half).flat_map(move |j| [0, half].map(|side| 2 * head * half + side + j)))
        .collect())
}

/// Brings heads of V from the order "those of the first head of K, those of the second" to taking turns.
fn tile_values(name: &str, part: &str, linear: Linear, recipe: &mut Recipe) -> Result<()> {
    let Linear { key_heads, value_heads, key_dim, value_dim, .. } = linear;
    if key_heads == value_heads {
        return Ok(());
    }
    let [keys, values, key_dim, value_dim] =
        [key_heads, value_heads, key_dim, value_dim].map(|size| size as usize);
    let (rows, cols) = (recipe.sources[0].rows, recipe.sources[0].cols);
    let order = |first: usize, width: usize, found: usize| {
        if found != first + values * width {
            return Err(fault(
                name,
                format!("it has {found} values across; expected {}", first + values * width),
            ));
        }
        let per_key = values / keys;
        let heads = (0..per_key).flat_map(move |j| (0..keys).map(move |key| key * per_key + j));
        let tiled = heads.flat_map(move |head| (0..width).map(move |i| first + head * width + i));
        Ok::<Arc<[usize]>, Error>((0..first).chain(tiled).collect())
    };
    match part {
        "attn_qkv.weight" | "ssm_conv1d.weight" if name.contains("linear_attn") => {
            // A convolution's rows are channels, each with one row of taps.
            recipe.rows = Some(order(2 * keys * key_dim, value_dim, rows)?);
        }
        "attn_gate.weight" => recipe.rows = Some(order(0, value_dim, rows)?),
        "ssm_beta.weight" | "ssm_alpha.weight" | "ssm_a" | "ssm_dt.bias" => {
            recipe.rows = Some(order(0, 1, rows)?)
        }
        "ssm_out.weight" => recipe.cols = Some(order(0, value_dim, cols)?),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::MatrixFormat::{Bf16, F16, F32};

    #[test]
    fn experts_of_several_formats_get_the_one_of_the_widest_range() {
        let of = |formats: &[MatrixFormat]| {
            let source = |&format: &MatrixFormat| Source {
                data: Bytes::new(),
                kind: Kind::Float(format),
                rows: 0,
                cols: 0,
            };
            format_of_all("blk.0.ffn_up_exps.weight", &formats.iter().map(source).collect::<Vec<_>>())
        };
        for one in [F32, F16, Bf16] {
            assert_eq!(of(&[one, one]), one);
        }
        assert_eq!((of(&[F16, Bf16, F16]), of(&[F16, F32]), of(&[Bf16, F32, F16])), (Bf16, F32, F32));
    }
}
