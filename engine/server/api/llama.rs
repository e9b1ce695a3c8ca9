//! What the interfaces with llama.cpp's names and defaults share.

/// Declares a request with the sampling fields that they take. (serde's `flatten` would lose which field a fault is in.)
macro_rules! llama_request {
    ($(#[$attribute:meta])* pub struct $name:ident: $table:path { $($specific:tt)* }) => {
        crate::api::samplers::sampled_request! {
            $(#[$attribute])*
            pub struct $name: $table {
                $($specific)*
                /// Texts that end the answer; they are no part of it.
                stop: Option<crate::api::Stop>,
                /// Goes on after an end-of-sequence token. [default: false]
                ignore_eos: Option<bool>,
                /// 0 always takes the likeliest token. [default: 0.8]
                temperature: Option<f32>,
                /// Keeps the likeliest tokens; 0 or less keeps all. [default: 40]
                #[serde(default, deserialize_with = "crate::number::whole")]
                top_k: Option<i32>,
                /// Keeps the likeliest tokens whose probabilities add up to it. [default: 0.95]
                #[schema(minimum = 0, maximum = 1)]
                top_p: Option<f32>,
                /// Keeps tokens with at least this share of the likeliest one's probability. [default: 0.05]
                #[schema(minimum = 0, maximum = 1)]
                min_p: Option<f32>,
                /// Divides the logits of repeated tokens. [default: 1]
                #[schema(minimum = 0.001, maximum = 1000)]
                repeat_penalty: Option<f32>,
                /// How many of the last tokens the penalties look at; 0 none, -1 the whole context. [default: 64]
                #[schema(minimum = -1)]
                #[serde(default, deserialize_with = "crate::number::whole")]
                repeat_last_n: Option<i32>,
                /// Subtracted from the logit of every token that has occurred. [default: 0]
                #[schema(minimum = -1e6, maximum = 1e6)]
                presence_penalty: Option<f32>,
                /// Subtracted from a token's logit once for each time it has occurred. [default: 0]
                #[schema(minimum = -1e6, maximum = 1e6)]
                frequency_penalty: Option<f32>,
                /// The same seed gives the same answer; -1 takes a random one. [default: random]
                #[schema(value_type = Option<i64>)]
                #[serde(default, deserialize_with = "crate::number::seed")]
                seed: Option<u64>,
            }
        }

        impl $name {
            /// The sampler's parameters, with llama.cpp's defaults.
            ///
            /// # Errors
            /// 400, by name, where a value has no meaning.
            fn sampling(
                &self,
                tokenizer: &qernel_core::tokenizer::Tokenizer,
            ) -> Result<qernel_core::sampler::SamplingParams, crate::error::ApiError> {
                let default = qernel_core::sampler::SamplingParams::default();
                let params = qernel_core::sampler::SamplingParams {
                    temperature: self.temperature.unwrap_or(default.temperature),
                    top_k: self.top_k.unwrap_or(default.top_k),
                    top_p: self.top_p.unwrap_or(default.top_p),
                    min_p: self.min_p.unwrap_or(default.min_p),
                    repeat_penalty: self.repeat_penalty.unwrap_or(default.repeat_penalty),
                    repeat_last_n: self.repeat_last_n.unwrap_or(default.repeat_last_n),
                    presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
                    frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
                    seed: self.seed.unwrap_or_else(crate::random_u64),
                    chain: self.chain(tokenizer)?,
                };
                crate::api::openai::check_sampling(&params)?;
                Ok(params)
            }
        }
    };
}
pub(super) use llama_request;
