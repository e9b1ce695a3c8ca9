//! The part of a model that each of several ranks computes: tensor parallel.

use super::Config;
use crate::config::{ExpertSizes, LinearSizes};
use crate::error::{Error, Result};

/// The most ranks that a model is shared out over.
pub const MAX_RANKS: usize = 8;

impl Config {
    /// The model of each of `ranks` ranks: as many heads of attention fewer, of linear attention too, and values between the projections of
    /// MLPs and of experts. What the projections behind those give is to be added up over the ranks.
    ///
    /// # Errors
    /// [`Error::Request`] that says which size is not a multiple of `ranks`.
    pub fn of_rank(&self, ranks: usize) -> Result<Self> {
        if !(1..=MAX_RANKS).contains(&ranks) {
            return Err(Error::Request(format!("--tensor-parallel {ranks}: expected 1 to {MAX_RANKS} GPUs")));
        }
        if ranks == 1 {
            return Ok(self.clone());
        }
        let share = |what: &str, size: usize| match size.is_multiple_of(ranks) {
            true => Ok(size / ranks),
            false => Err(Error::Request(format!(
                "--tensor-parallel {ranks}: the model's {size} {what} are not a multiple of it"
            ))),
        };
        let experts = |sizes: ExpertSizes| -> Result<ExpertSizes> {
            Ok(ExpertSizes {
                moe_intermediate_size: share(
                    "values between the projections of an expert",
                    sizes.moe_intermediate_size,
                )?,
                shared_expert_intermediate_size: share(
                    "values between the projections of the shared expert",
                    sizes.shared_expert_intermediate_size,
                )?,
                ..sizes
            })
        };
        let linear = |sizes: LinearSizes| -> Result<LinearSizes> {
            Ok(LinearSizes {
                linear_num_key_heads: share("K heads of linear attention", sizes.linear_num_key_heads)?,
                // As many for each of those of K.
                linear_num_value_heads: sizes.linear_num_value_heads / ranks,
                ..sizes
            })
        };
        Ok(Self {
            num_attention_heads: share("attention heads", self.num_attention_heads)?,
            num_key_value_heads: share("KV heads", self.num_key_value_heads)?,
            intermediate_size: match self.experts {
                // Nothing of the model has this size.
                Some(_) => self.intermediate_size,
                None => share("values between the projections of the MLP", self.intermediate_size)?,
            },
            experts: self.experts.map(experts).transpose()?,
            linear: self.linear.map(linear).transpose()?,
            tensor_parallel_size: ranks,
            ..self.clone()
        })
    }

    /// Rows of the head that each rank multiplies with: all where the head is the embedding matrix, or there are not as many for each.
    pub fn head_rows(&self) -> usize {
        let &Self { vocab_size, tie_word_embeddings, tensor_parallel_size: ranks, .. } = self;
        let shared = !tie_word_embeddings && vocab_size.is_multiple_of(ranks.max(1));
        if shared { vocab_size / ranks.max(1) } else { vocab_size }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::published_config;

    #[test]
    fn heads_and_mlps_are_shared_out() {
        let config = published_config("qwen2.5-7b").unwrap();
        let rank = config.of_rank(4).unwrap();
        assert_eq!((rank.num_attention_heads, rank.num_key_value_heads), (7, 1));
        assert_eq!((rank.intermediate_size, rank.hidden_size), (4736, 3584));
        assert_eq!((rank.vocab_size, rank.head_rows()), (config.vocab_size, config.vocab_size / 4));
        assert_eq!(config.of_rank(1).unwrap(), config);
    }

    #[test]
    fn heads_of_linear_attention_are_shared_out() {
        let config = published_config("qwen3.5-27b").unwrap();
        let (whole, rank) = (config.linear.unwrap(), config.of_rank(4).unwrap().linear.unwrap());
        assert_eq!((rank.linear_num_key_heads, rank.linear_num_value_heads), (4, 12));
        assert_eq!(4 * rank.slot_values(), whole.slot_values());
    }

    #[test]
    fn what_cannot_be_shared_out_is_said() {
        for (model, ranks, expected) in [
            ("qwen2.5-7b", 3, "28 attention heads"),
            ("qwen2.5-7b", 7, "4 KV heads"),
            ("qwen2.5-7b", 9, "1 to 8"),
            ("qwen2.5-7b", 0, "1 to 8"),
        ] {
            let error = published_config(model).unwrap().of_rank(ranks).unwrap_err().to_string();
            assert!(error.contains(expected), "{model}, {ranks}: {error}");
        }
    }
}
