//! GGUF metadata -> [`Config`]. The only file, with `weights.rs`, that knows GGUF's spellings.

/// The shape of a Qwen2 decoder, in Hugging Face's names.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Config {
    /// `general.architecture`; always `qwen2` today.
    pub architecture: String,
    /// `general.name`, or the architecture where the file has none.
    pub name: String,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// Divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Values of one head of Q, K and V; even.
    pub head_dim: usize,
    pub rope_theta: f32,
    pub rms_norm_eps: f32,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// The head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Q, K and V have a bias.
    pub attention_bias: bool,
}

impl Config {
    /// Values of one row of Q: `num_attention_heads * head_dim`.
    pub fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Values of one row of K, or of V: `num_key_value_heads * head_dim`.
    pub fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}
