//! Tensor names -> typed layers. The only file, with `config.rs`, that knows GGUF's spellings.

use crate::config::Config;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Tensor};
use bytes::Bytes;
use half::{bf16, f16};
use std::collections::HashSet;
use std::fmt;

/// A matrix of the file, row-major `[rows, cols]`: `rows` outputs, `cols` inputs. Its bytes stay where they are (a
/// memory map or the program itself); cloning it copies no weights.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The tensor's name in the file, for messages.
    pub name: String,
    pub dtype: Dtype,
    pub rows: usize,
    pub cols: usize,
    /// `rows * cols * dtype.size()` bytes, little-endian. Not necessarily aligned to the dtype.
    pub data: Bytes,
}

/// A projection: `y = x · weightᵀ (+ bias)`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out_features, in_features]`
    pub weight: Matrix,
    /// `[out_features]`, converted to f32.
    pub bias: Option<Vec<f32>>,
}

/// One decoder layer.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// `[hidden_size]`
    pub input_layernorm: Vec<f32>,
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub o_proj: Matrix,
    /// `[hidden_size]`
    pub post_attention_layernorm: Vec<f32>,
    /// `[intermediate_size, hidden_size]`
    pub gate_proj: Matrix,
    /// `[intermediate_size, hidden_size]`
    pub up_proj: Matrix,
    /// `[hidden_size, intermediate_size]`
    pub down_proj: Matrix,
}

/// All tensors of a Qwen2 model, each with the dtype it has in the file.
#[derive(Clone, Debug)]
pub struct Weights {
    /// `[vocab_size, hidden_size]`
    pub embed_tokens: Matrix,
    pub layers: Vec<LayerWeights>,
    /// `[hidden_size]`
    pub norm: Vec<f32>,
    /// `[vocab_size, hidden_size]`; `None` where the head is tied to `embed_tokens`.
    pub lm_head: Option<Matrix>,
    /// Names of the file's tensors that the model has no place for: worth a warning, as they may change its answers
    /// elsewhere.
    pub unused: Vec<String>,
}

/// Tensors of one format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeOfDtype {
    pub dtype: Dtype,
    pub num_tensors: usize,
    pub num_bytes: u64,
}

/// Tensors that some writers add and that no Qwen2 implementation reads.
const HARMLESS: [&str; 1] = ["rope_freqs.weight"];

impl Weights {
    /// Finds every tensor that `config` asks for and checks its format and shape. Matrices stay in the file; norms
    /// and biases are converted.
    ///
    /// # Errors
    /// [`Error::Model`], listing the tensors that are missing, that have a format other than F32, F16 and BF16, or
    /// that have another shape than the config says.
    pub fn from_gguf(gguf: &Gguf, config: &Config) -> Result<Self> {
        if gguf.tensors().len() == 0 {
            return Err(Error::Model(
                "the file holds a vocabulary and no weights; it can tokenize only".to_owned(),
            ));
        }
        refuse_split_file(gguf)?;
        let mut loader = Loader { gguf, used: HashSet::new(), problems: Problems::default() };
        let embed_tokens = loader.matrix("token_embd.weight", config.vocab_size, config.hidden_size)?;
        let mut layers = Vec::new();
        for i in 0..config.num_hidden_layers {
            layers.extend(loader.layer(i, config)?);
        }
        let norm = loader.vector("output_norm.weight", config.hidden_size)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => loader.matrix("output.weight", config.vocab_size, config.hidden_size)?,
        };

        let Loader { used, problems, .. } = loader;
        problems.check()?;
        let unused = gguf.tensors().map(|tensor| tensor.name());
        let unused = unused
            .filter(|name| !used.contains(name) && !HARMLESS.contains(name))
            .map(str::to_owned)
            .collect();
        match (embed_tokens, norm) {
            (Some(embed_tokens), Some(norm)) => Ok(Self { embed_tokens, layers, norm, lm_head, unused }),
            _ => Err(Error::Model("the embedding or the last norm is missing".to_owned())),
        }
    }

    /// All matrices, each in the format of the file.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let layers = self.layers.iter().flat_map(|layer| {
            let projections =
                [&layer.q_proj.weight, &layer.k_proj.weight, &layer.v_proj.weight, &layer.o_proj];
            projections.into_iter().chain([&layer.gate_proj, &layer.up_proj, &layer.down_proj])
        });
        std::iter::once(&self.embed_tokens).chain(layers).chain(&self.lm_head)
    }

    /// All norms and biases.
    pub fn vectors(&self) -> impl Iterator<Item = &[f32]> {
        let layers = self.layers.iter().flat_map(|layer| {
            let biases = [&layer.q_proj, &layer.k_proj, &layer.v_proj].map(|linear| linear.bias.as_deref());
            let norms =
                [Some(layer.input_layernorm.as_slice()), Some(layer.post_attention_layernorm.as_slice())];
            norms.into_iter().chain(biases).flatten()
        });
        layers.chain(std::iter::once(self.norm.as_slice()))
    }

    /// Number of tensors.
    pub fn num_tensors(&self) -> usize {
        self.matrices().count() + self.vectors().count()
    }

    /// Bytes of all weights on a device: matrices in the format of the file, norms and biases in f32.
    pub fn num_bytes(&self) -> u64 {
        self.sizes().iter().map(|size| size.num_bytes).sum()
    }

    /// What [`Weights::num_bytes`] is made of, for each format in use.
    pub fn sizes(&self) -> Vec<SizeOfDtype> {
        let matrices = self.matrices().map(|matrix| (matrix.dtype, matrix.data.len() as u64));
        let vectors = self.vectors().map(|vector| (Dtype::F32, size_of_val(vector) as u64));
        let all: Vec<_> = matrices.chain(vectors).collect();
        let size = |dtype| {
            let bytes = all.iter().filter(|tensor| tensor.0 == dtype).map(|tensor| tensor.1);
            SizeOfDtype { dtype, num_tensors: bytes.clone().count(), num_bytes: bytes.sum() }
        };
        Dtype::ALL.map(size).into_iter().filter(|size| size.num_tensors > 0).collect()
    }
}

/// A model in several files has its tensors all over them.
fn refuse_split_file(gguf: &Gguf) -> Result<()> {
    match gguf.get::<u32>("split.count")? {
        Some(count) if count > 1 => Err(Error::Model(format!(
            "the file is one of {count} parts of a model; join them with `llama-gguf-split --merge`"
        ))),
        _ => Ok(()),
    }
}

/// Takes tensors out of the file and collects what is wrong with them, so that one message tells all.
struct Loader<'a> {
    gguf: &'a Gguf,
    used: HashSet<&'a str>,
    problems: Problems,
}

impl<'a> Loader<'a> {
    /// A decoder layer, or `None` where a tensor of it is missing or wrong.
    fn layer(&mut self, i: usize, config: &Config) -> Result<Option<LayerWeights>> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let (q_size, kv_size) = (config.q_size(), config.kv_size());
        let name = |tensor: &str| format!("blk.{i}.{tensor}");
        // Either all three projections have a bias, or none.
        let bias = ["attn_q.bias", "attn_k.bias", "attn_v.bias"]
            .iter()
            .any(|b| self.gguf.tensor(&name(b)).is_some());

        let input_layernorm = self.vector(&name("attn_norm.weight"), hidden)?;
        let q_proj = self.linear(&name("attn_q"), q_size, hidden, bias)?;
        let k_proj = self.linear(&name("attn_k"), kv_size, hidden, bias)?;
        let v_proj = self.linear(&name("attn_v"), kv_size, hidden, bias)?;
        let o_proj = self.matrix(&name("attn_output.weight"), hidden, q_size)?;
        let post_attention_layernorm = self.vector(&name("ffn_norm.weight"), hidden)?;
        let gate_proj = self.matrix(&name("ffn_gate.weight"), intermediate, hidden)?;
        let up_proj = self.matrix(&name("ffn_up.weight"), intermediate, hidden)?;
        let down_proj = self.matrix(&name("ffn_down.weight"), hidden, intermediate)?;

        let layer = || {
            Some(LayerWeights {
                input_layernorm: input_layernorm?,
                q_proj: q_proj?,
                k_proj: k_proj?,
                v_proj: v_proj?,
                o_proj: o_proj?,
                post_attention_layernorm: post_attention_layernorm?,
                gate_proj: gate_proj?,
                up_proj: up_proj?,
                down_proj: down_proj?,
            })
        };
        Ok(layer())
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize, has_bias: bool) -> Result<Option<Linear>> {
        let weight = self.matrix(&format!("{name}.weight"), rows, cols)?;
        let bias = match has_bias {
            true => self.vector(&format!("{name}.bias"), rows)?,
            false => None,
        };
        Ok(weight.filter(|_| bias.is_some() == has_bias).map(|weight| Linear { weight, bias }))
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Option<Matrix>> {
        let Some((tensor, dtype)) = self.find(name, &[rows as u64, cols as u64]) else { return Ok(None) };
        Ok(Some(Matrix { name: name.to_owned(), dtype, rows, cols, data: tensor.data()? }))
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Option<Vec<f32>>> {
        let Some((tensor, dtype)) = self.find(name, &[length as u64]) else { return Ok(None) };
        let data = tensor.data()?;
        Ok(Some(match dtype {
            Dtype::F32 => data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            Dtype::F16 => {
                data.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect()
            }
            Dtype::Bf16 => {
                data.as_chunks().0.iter().map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect()
            }
        }))
    }

    /// A tensor of the right format and shape; otherwise the problem is noted.
    fn find(&mut self, name: &str, shape: &[u64]) -> Option<(Tensor<'a>, Dtype)> {
        let Some(tensor) = self.gguf.tensor(name) else {
            self.problems.missing.push(|| name.to_owned());
            return None;
        };
        self.used.insert(tensor.name());
        let dtype = tensor.ggml_type().dtype();
        if dtype.is_none() {
            self.problems.formats.push(|| format!("{name} {}", tensor.ggml_type()));
        }
        let found = tensor.shape();
        if found != shape {
            self.problems.shapes.push(|| format!("{name} {found:?} instead of {shape:?}"));
            return None;
        }
        dtype.map(|dtype| (tensor, dtype))
    }
}

/// What is wrong with the tensors of a file.
#[derive(Default)]
struct Problems {
    missing: Listing,
    formats: Listing,
    shapes: Listing,
}

impl Problems {
    fn check(&self) -> Result<()> {
        let mut messages = Vec::new();
        if self.formats.total > 0 {
            messages.push(format!(
                "tensors in a format that is not computed with (F32, F16 and BF16 are): {}; use a conversion of the \
                 model to F16 or BF16",
                self.formats
            ));
        }
        if self.missing.total > 0 {
            messages.push(format!("missing tensors: {}; the file may be incomplete", self.missing));
        }
        if self.shapes.total > 0 {
            messages.push(format!("tensors whose shape is not what the metadata says: {}", self.shapes));
        }
        if messages.is_empty() { Ok(()) } else { Err(Error::Model(messages.join("; "))) }
    }
}

/// A list of any length of which a message shows the first entries.
#[derive(Default)]
struct Listing {
    shown: Vec<String>,
    total: usize,
}

impl Listing {
    const MAX_SHOWN: usize = 12;

    fn push(&mut self, entry: impl FnOnce() -> String) {
        if self.total < Self::MAX_SHOWN {
            self.shown.push(entry());
        }
        self.total += 1;
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.total, self.shown.join(", "))?;
        if self.total > self.shown.len() {
            write!(f, ", and {} more", self.total - self.shown.len())?;
        }
        f.write_str(")")
    }
}
