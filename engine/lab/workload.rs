//! The shapes of models, for timings.

use crate::config::Config;
use crate::error::{Error, Result};

/// The models that `--like` knows.
pub const LIKE: [&str; 3] = ["qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b"];

/// The shape of a published model, from its `config.json` on Hugging Face (`Qwen/Qwen2.5-…-Instruct`).
///
/// # Errors
/// [`Error::Request`] that lists what is known.
pub fn like(name: &str) -> Result<Config> {
    // hidden, intermediate, layers, heads, key-value heads, head_dim, vocabulary, tied
    let (hidden, intermediate, layers, heads, kv_heads, head_dim, vocab_size, tied) = match name {
        "qwen2.5-0.5b" => (896, 4864, 24, 14, 2, 64, 151_936, true),
        "qwen2.5-1.5b" => (1536, 8960, 28, 12, 2, 128, 151_936, true),
        "qwen2.5-7b" => (3584, 18_944, 28, 28, 4, 128, 152_064, false),
        _ => {
            return Err(Error::Request(format!(
                "--like {name}: the models are {}; --model FILE takes the shape of any other",
                LIKE.join(", ")
            )));
        }
    };
    Ok(Config {
        architecture: "qwen2".into(),
        name: name.into(),
        vocab_size,
        hidden_size: hidden,
        intermediate_size: intermediate,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim,
        rope_theta: 1e6,
        rms_norm_eps: 1e-6,
        max_position_embeddings: 32_768,
        tie_word_embeddings: tied,
        attention_bias: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heads_of_known_models_make_up_their_width() {
        for name in LIKE {
            let config = like(name).unwrap();
            assert_eq!(config.num_attention_heads * config.head_dim, config.hidden_size, "{name}");
        }
        assert!(like("qwen3").unwrap_err().to_string().contains("qwen2.5-7b"));
    }
}
