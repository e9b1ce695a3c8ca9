//! Tensor names -> typed layers. The only file, with `config.rs`, that knows GGUF's spellings.

use crate::dtype::Dtype;
use bytes::Bytes;

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
}
