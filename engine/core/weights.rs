//! The tensors of a file that a model needs, found by name and checked.

mod adapters;
mod columns;
mod experts;
mod finite;
mod listing;
mod ranks;
mod stages;

pub use adapters::{Adapter, Half, LowRank};
pub use finite::{NotFinite, TensorCheck};

use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::gguf::{GgmlType, Gguf, Tensor};
use crate::host_memory;
use bytes::Bytes;
use listing::Listing;
use std::collections::{HashMap, HashSet};

/// A matrix of the file, row-major `[rows, cols]`: `rows` outputs, `cols` inputs. Its bytes stay where they are (a
/// memory map or the program itself); cloning it copies no weights.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The tensor's name in the file, for messages.
    pub name: String,
    pub format: MatrixFormat,
    pub rows: usize,
    pub cols: usize,
    /// What all its values are multiplied by: the second scale of NVFP4, 1 in other formats.
    pub scale: f32,
    /// `rows` rows of [`MatrixFormat::row_bytes`], little-endian. Not necessarily aligned.
    pub data: Bytes,
}

impl Matrix {
    /// Bytes of a row.
    ///
    /// # Errors
    /// [`Error::Model`] if the rows are not whole blocks, or are not all that [`Matrix::data`] holds.
    pub fn row_bytes(&self) -> Result<usize> {
        let Self { name, format, rows, cols, data, .. } = self;
        let row_bytes = format.row_bytes(*cols);
        row_bytes.filter(|bytes| bytes.checked_mul(*rows) == Some(data.len())).ok_or_else(|| {
            Error::Model(format!(
                "{name}: [{rows}, {cols}] of {format} does not take the {} bytes it has",
                data.len()
            ))
        })
    }

    /// `count` of its rows, from `first`.
    ///
    /// # Errors
    /// As [`Matrix::row_bytes`]; [`Error::Model`] if it has not so many rows.
    pub fn row_range(&self, first: usize, count: usize) -> Result<Self> {
        let row_bytes = self.row_bytes()?;
        if first.checked_add(count).is_none_or(|end| end > self.rows) {
            return Err(Error::Model(format!("{}: {count} rows from {first} of {}", self.name, self.rows)));
        }
        let data = self.data.slice(first * row_bytes..(first + count) * row_bytes);
        Ok(Self { rows: count, data, ..self.clone() })
    }

    /// Of every head of `size` rows those in `head`, in that order: row `i` of a head is what was its row `head[i]`. Copies the weights.
    ///
    /// # Errors
    /// As [`Matrix::row_bytes`]; [`Error::Model`] if the rows are no such heads; [`Error::Memory`] if there is no room.
    ///
    /// # Panics
    /// If `head` names a row beyond it.
    pub fn of_heads(&self, size: usize, head: &[usize]) -> Result<Self> {
        let row_bytes = self.row_bytes()?;
        if size == 0 || !self.rows.is_multiple_of(size) {
            return Err(Error::Model(format!("{}: {} rows are no heads of {size}", self.name, self.rows)));
        }
        let rows = self.rows / size * head.len();
        let mut data = Vec::new();
        host_memory::reserve(&self.name, &mut data, rows * row_bytes)?;
        for of_head in self.data.chunks_exact(row_bytes * size) {
            head.iter().for_each(|row| data.extend_from_slice(&of_head[row * row_bytes..][..row_bytes]));
        }
        Ok(Self { rows, data: data.into(), ..self.clone() })
    }
}

/// A tensor that a model needs.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// As the file calls it.
    pub name: String,
    pub shape: TensorShape,
    /// Whether a file may lack it.
    pub group: Group,
    /// Where a rank's share of what it is split along, rows or columns, is not one range: the sizes of its ranges, each of which is the rank's
    /// share of a range of the whole tensor. Empty: it is one range.
    pub parts: Vec<usize>,
}

/// The shape of a tensor, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorShape {
    /// Stays in the file's format.
    Matrix { rows: usize, cols: usize },
    /// Of `count` experts, of which a token goes to `used`, a matrix each, one below the other; stays in the file's format.
    Experts { count: usize, used: usize, rows: usize, cols: usize },
    /// Becomes f32.
    Vector { len: usize },
    /// Becomes f32, row-major.
    Table { rows: usize, cols: usize },
}

/// Whether a file may lack a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Group {
    /// It must be there.
    Always,
    /// It must be there if one of these is.
    With(Vec<String>),
}

impl TensorShape {
    /// As a file states it.
    fn dimensions(self) -> Vec<u64> {
        match self {
            Self::Matrix { rows, cols } | Self::Table { rows, cols } => vec![rows as u64, cols as u64],
            Self::Experts { count, rows, cols, .. } => vec![count as u64, rows as u64, cols as u64],
            Self::Vector { len } => vec![len as u64],
        }
    }
}

/// All tensors that a model needs, in its order: matrices in the format of the file, vectors in f32.
#[derive(Clone, Debug)]
pub struct Weights {
    matrices: Vec<Matrix>,
    vectors: Vec<(String, Vec<f32>)>,
    /// Where each name is in those.
    places: HashMap<String, usize>,
    /// Which matrices are of experts.
    experts: Vec<usize>,
    /// Bytes of all experts, and the share of them that a token does not go to.
    expert_bytes: u64,
    idle_share: f64,
    /// What is multiplied with last, the head or the embedding, is here.
    has_head: bool,
    adapters: Vec<Adapter>,
    /// Names of the file's tensors that the model has no place for and that leave its answers alone: worth a warning.
    pub unused: Vec<String>,
}

/// Tensors of one format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeOfFormat {
    pub format: MatrixFormat,
    pub num_tensors: usize,
    pub num_bytes: u64,
}

/// Weights that a decode step reads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DecodeBytes {
    /// Of every step: all but experts, and an embedding that is not the head as well, of which one row is read.
    pub always: u64,
    /// Of all experts.
    pub experts: u64,
    /// The share of the experts that a token does not go to.
    pub idle_share: f64,
}

impl DecodeBytes {
    /// Of a step of `num_sequences` sequences, whose tokens go to experts as if these were drawn.
    pub fn of(&self, num_sequences: usize) -> u64 {
        let idle = self.idle_share.powf(num_sequences as f64);
        self.always + (self.experts as f64 * (1.0 - idle)).round() as u64
    }
}

/// The embedding, of which a step reads a row a token, and the head.
pub const EMBEDDING: &str = "token_embd.weight";
/// See [`EMBEDDING`].
pub const HEAD: &str = "output.weight";

/// Of rerankers: what scores the last token, which is no part of a decoder.
pub const CLASSIFIER: [&str; 2] = ["cls.output.weight", "cls.output.bias"];

/// Whether a tensor of this name is used elsewhere, or some writers add it for what is computed from metadata here.
fn is_computed(name: &str) -> bool {
    CLASSIFIER.contains(&name)
        || name == "rope_freqs.weight"
        || (name.starts_with("blk.") && name.ends_with(".attn_rot_embd.weight"))
}

/// The layer that a tensor of this name is in.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Whether a tensor that the model has no place for belongs to what it computes: to one of its layers, to its embedding or its head, or
/// as a bias or a scale of its own. Others (layers behind the last one, which draft further tokens) leave its answers alone.
fn changes_answers(name: &str, specs: &[TensorSpec]) -> bool {
    match layer(name) {
        Some(i) => specs.iter().any(|spec| layer(&spec.name) == Some(i)),
        None => {
            let is_around_layers =
                ["token_", "position_", "output"].iter().any(|start| name.starts_with(start));
            is_around_layers || name.ends_with(".bias") || name.ends_with(".scale")
        }
    }
}

impl Weights {
    /// Finds every tensor of `specs` and checks its format and shape. Matrices stay in the file; norms and biases are
    /// converted.
    ///
    /// # Errors
    /// [`Error::Model`], listing the tensors that are missing, that have a format which is not computed with, that have another
    /// shape than asked for, or that change the answers and that the model has no place for.
    pub fn find(gguf: &Gguf, specs: &[TensorSpec]) -> Result<Self> {
        expect_all_parts(gguf)?;
        if gguf.tensors().len() == 0 {
            return Err(Error::Model(
                "the file holds a vocabulary and no weights; it can tokenize only".to_owned(),
            ));
        }
        refuse_single_experts(gguf, specs)?;
        let mut finder = Finder { gguf, used: HashSet::new(), problems: Problems::default() };
        let mut weights = Self {
            matrices: Vec::new(),
            vectors: Vec::new(),
            places: HashMap::new(),
            experts: Vec::new(),
            expert_bytes: 0,
            idle_share: 0.0,
            has_head: true,
            adapters: Vec::new(),
            unused: Vec::new(),
        };
        for TensorSpec { name, shape, group, .. } in specs {
            let needed = match group {
                Group::Always => true,
                Group::With(names) => names.iter().any(|name| gguf.tensor(name).is_some()),
            };
            let Some((tensor, format)) = needed.then(|| finder.find(name, *shape)).flatten() else {
                continue;
            };
            let data = tensor.data()?;
            let mut matrix = |rows, cols, data| {
                let scale = finder.scale(name, format)?;
                weights.places.insert(name.clone(), weights.matrices.len());
                weights.matrices.push(Matrix { name: name.clone(), format, rows, cols, scale, data });
                Ok::<_, Error>(weights.matrices.len() - 1)
            };
            match *shape {
                TensorShape::Matrix { rows, cols } => _ = matrix(rows, cols, data)?,
                TensorShape::Experts { count, used, rows, cols } => {
                    weights.expert_bytes += data.len() as u64;
                    // That of all layers.
                    weights.idle_share = count.saturating_sub(used) as f64 / (count as f64).max(1.0);
                    weights.experts.push(matrix(count * rows, cols, data)?);
                }
                TensorShape::Vector { .. } | TensorShape::Table { .. } => {
                    // As many as the tensor has, whose shape was found to be that.
                    let mut values = vec![0.0; tensor.shape().iter().product::<u64>() as usize];
                    format.decode(&data, &mut values);
                    weights.places.insert(name.clone(), weights.vectors.len());
                    weights.vectors.push((name.clone(), values));
                }
            }
        }
        let Finder { used, mut problems, .. } = finder;
        for name in gguf.tensors().map(|tensor| tensor.name()) {
            if used.contains(name) || is_computed(name) {
                continue;
            }
            if changes_answers(name, specs) {
                problems.uncomputed.push(|| name.to_owned());
            } else {
                weights.unused.push(name.to_owned());
            }
        }
        problems.check()?;
        Ok(weights)
    }

    /// The matrix of that name.
    ///
    /// # Errors
    /// [`Error::Model`] if the model has none.
    pub fn matrix(&self, name: &str) -> Result<&Matrix> {
        let matrix = self.places.get(name).and_then(|&i| self.matrices.get(i));
        matrix.filter(|matrix| matrix.name == name).ok_or_else(|| Error::Model(format!("no matrix {name}")))
    }

    /// Puts a matrix in the place of the one of its name.
    ///
    /// # Errors
    /// [`Error::Model`] if the model has none.
    pub fn replace(&mut self, matrix: Matrix) -> Result<()> {
        self.matrix(&matrix.name)?;
        let place = self.places[&matrix.name];
        self.matrices[place] = matrix;
        Ok(())
    }

    /// The vector of that name, `None` if the file has none.
    pub fn vector(&self, name: &str) -> Option<&[f32]> {
        let (found, values) = self.places.get(name).and_then(|&i| self.vectors.get(i))?;
        (found == name).then_some(values)
    }

    /// All matrices, each in the format of the file.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.matrices.iter()
    }

    /// All norms, biases and tables.
    pub fn vectors(&self) -> impl Iterator<Item = &[f32]> {
        self.vectors.iter().map(|(_, values)| values.as_slice())
    }

    /// Number of tensors.
    pub fn num_tensors(&self) -> usize {
        self.matrices.len() + self.vectors.len()
    }

    /// Bytes of all weights: matrices in the format of the file, all else in f32.
    pub fn num_bytes(&self) -> u64 {
        self.sizes().iter().map(|size| size.num_bytes).sum()
    }

    /// Bytes of weights that a decode step reads.
    pub fn decode_bytes(&self) -> DecodeBytes {
        self.decode_bytes_of(|matrix| matrix.data.len())
    }

    /// The same where a matrix takes `bytes` bytes; experts as in the file.
    pub fn decode_bytes_of(&self, bytes: impl Fn(&Matrix) -> usize) -> DecodeBytes {
        let unread = match (self.matrix(EMBEDDING), self.matrix(HEAD)) {
            (Ok(embedding), head) if head.is_ok() || !self.has_head => bytes(embedding) as u64,
            _ => 0,
        };
        let in_file: usize = self.matrices.iter().map(|matrix| matrix.data.len()).sum();
        let here: usize = self.matrices.iter().map(bytes).sum();
        let &Self { expert_bytes: experts, idle_share, .. } = self;
        let all = self.num_bytes() - in_file as u64 + here as u64;
        DecodeBytes { always: all.saturating_sub(unread + experts), experts, idle_share }
    }

    /// What [`Weights::num_bytes`] is made of, for each format in use.
    pub fn sizes(&self) -> Vec<SizeOfFormat> {
        let matrices = self.matrices.iter().map(|matrix| (matrix.format, matrix.data.len() as u64));
        let vectors = self.vectors().map(|vector| (MatrixFormat::F32, size_of_val(vector) as u64));
        let all: Vec<_> = matrices.chain(vectors).collect();
        let size = |&format| {
            let bytes = all.iter().filter(|tensor| tensor.0 == format).map(|tensor| tensor.1);
            SizeOfFormat { format, num_tensors: bytes.clone().count(), num_bytes: bytes.sum() }
        };
        MatrixFormat::ALL.iter().map(size).filter(|size| size.num_tensors > 0).collect()
    }
}

/// A part that was not opened by its path came without the others.
fn expect_all_parts(gguf: &Gguf) -> Result<()> {
    match gguf.get::<u64>("split.count")? {
        Some(count) if count > gguf.num_parts() as u64 => Err(Error::Model(format!(
            "the file is one of {count} parts of a model, of which {} are here: open it by its path",
            gguf.num_parts()
        ))),
        _ => Ok(()),
    }
}

/// Converters of before April 2024 wrote a tensor for each expert, which may even differ in format.
fn refuse_single_experts(gguf: &Gguf, specs: &[TensorSpec]) -> Result<()> {
    const FIRST: &str = "blk.0.ffn_gate.0.weight";
    let wants_experts = specs.iter().any(|spec| matches!(spec.shape, TensorShape::Experts { .. }));
    if wants_experts && gguf.tensor(FIRST).is_some() {
        return Err(Error::Model(format!(
            "the file has a tensor for each expert ({FIRST}), as old converters wrote it; expected one for all experts of a \
             layer (blk.0.ffn_gate_exps.weight): convert the model again"
        )));
    }
    Ok(())
}

/// Takes tensors out of the file and collects what is wrong with them, so that one message tells all.
struct Finder<'a> {
    gguf: &'a Gguf,
    used: HashSet<&'a str>,
    problems: Problems,
}

impl<'a> Finder<'a> {
    /// A tensor of the right format and shape; otherwise the problem is noted.
    fn find(&mut self, name: &str, shape: TensorShape) -> Option<(Tensor<'a>, MatrixFormat)> {
        let Some(tensor) = self.gguf.tensor(name) else {
            self.problems.missing.push(|| name.to_owned());
            return None;
        };
        self.used.insert(tensor.name());
        let format = MatrixFormat::from_ggml(tensor.ggml_type());
        // Vectors and tables are never stored in blocks.
        let format = format.filter(|format| {
            matches!(shape, TensorShape::Matrix { .. } | TensorShape::Experts { .. })
                || format.float().is_some()
        });
        if format.is_none() {
            self.problems.formats.push(|| format!("{name} {}", tensor.ggml_type()));
        }
        let (found, expected) = (tensor.shape(), shape.dimensions());
        if found != expected {
            self.problems.shapes.push(|| format!("{name} {found:?} instead of {expected:?}"));
            return None;
        }
        format.map(|format| (tensor, format))
    }

    /// The scale of a whole matrix, which NVFP4 has in a tensor beside it.
    fn scale(&mut self, name: &str, format: MatrixFormat) -> Result<f32> {
        let (MatrixFormat::NVFP4, Some(stem)) = (format, name.strip_suffix(".weight")) else {
            return Ok(1.0);
        };
        // For activations in four bits, which there are none here.
        self.used.extend(self.gguf.tensor(&format!("{stem}.input_scale")).map(|tensor| tensor.name()));
        let Some(tensor) = self.gguf.tensor(&format!("{stem}.scale")) else { return Ok(1.0) };
        self.used.insert(tensor.name());
        let data = tensor.data()?;
        match data[..].try_into().map(f32::from_le_bytes) {
            Ok(scale) if tensor.ggml_type() == GgmlType::F32 => Ok(scale),
            _ => Err(Error::Model(format!(
                "{}: expected one F32 value, found {:?} {}",
                tensor.name(),
                tensor.shape(),
                tensor.ggml_type()
            ))),
        }
    }
}

/// What is wrong with the tensors of a file.
#[derive(Default)]
struct Problems {
    missing: Listing,
    formats: Listing,
    shapes: Listing,
    uncomputed: Listing,
}

impl Problems {
    fn check(&self) -> Result<()> {
        let mut messages = Vec::new();
        if self.formats.total > 0 {
            messages.push(format!(
                "tensors in a format that is not computed with ({} are): {}; use a conversion of the model to one of those",
                computed_with(),
                self.formats
            ));
        }
        if self.missing.total > 0 {
            messages.push(format!("missing tensors: {}; the file may be incomplete", self.missing));
        }
        if self.shapes.total > 0 {
            messages.push(format!("tensors whose shape is not what the metadata says: {}", self.shapes));
        }
        if self.uncomputed.total > 0 {
            messages.push(format!(
                "tensors that change the model's answers and are not computed with: {}; this version cannot run the file",
                self.uncomputed
            ));
        }
        if messages.is_empty() { Ok(()) } else { Err(Error::Model(messages.join("; "))) }
    }
}

/// The formats, for people.
fn computed_with() -> String {
    let names: Vec<_> = MatrixFormat::ALL.iter().map(|format| format.ggml_type().to_string()).collect();
    names.join(", ")
}
