//! The fields that say how tokens are drawn, with llama.cpp's names: those of every request that generates.

use crate::error::ApiError;
use crate::number::Whole;
use qernel_core::batch::AdapterSet;
use qernel_core::engine::{Request, Speculative};
use qernel_core::sampler::{SamplerChain, SamplerKind, SamplingParams};
use qernel_core::tokenizer::Tokenizer;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// Declares a request that has the sampling fields besides its own, and the defaults that [`Defaults`] names. (serde's `flatten` would lose
/// which field a fault is in.)
macro_rules! sampled_request {
    ($(#[$attribute:meta])* pub struct $name:ident: $table:path, Plain { $($specific:tt)* }) => {
        crate::api::samplers::sampled_request! {
            @of Plain [#[schema(minimum = 0)]] $(#[$attribute])* pub struct $name: $table { $($specific)* }
        }
    };
    ($(#[$attribute:meta])* pub struct $name:ident: $table:path, Llama { $($specific:tt)* }) => {
        crate::api::samplers::sampled_request! {
            @of Llama [] $(#[$attribute])* pub struct $name: $table { $($specific)* }
        }
    };
    (
        @of $defaults:ident [$($temperature:tt)*]
        $(#[$attribute:meta])* pub struct $name:ident: $table:path { $($specific:tt)* }
    ) => {
        crate::fields::described!($name: $table);

        $(#[$attribute])*
        #[derive(serde::Deserialize, utoipa::ToSchema)]
        #[serde(remote = "Self", deny_unknown_fields)]
        pub struct $name {
            $($specific)*
            /// 0 always takes the likeliest token. [default: 1; of llama.cpp's interfaces 0.8]
            $($temperature)*
            pub temperature: Option<f32>,
            /// Keeps the likeliest tokens; 0 or less keeps all. [default: 0; of llama.cpp's interfaces 40]
            #[serde(default, deserialize_with = "crate::number::whole")]
            pub top_k: Option<i32>,
            /// Keeps the likeliest tokens whose probabilities add up to it. [default: 1; of llama.cpp's interfaces 0.95]
            #[schema(minimum = 0, maximum = 1)]
            pub top_p: Option<f32>,
            /// Keeps tokens with at least this share of the likeliest one's probability. [default: 0; of llama.cpp's interfaces 0.05]
            #[schema(minimum = 0, maximum = 1)]
            pub min_p: Option<f32>,
            /// Divides the logits of repeated tokens. [default: 1]
            #[schema(minimum = 0.001, maximum = 1000)]
            pub repeat_penalty: Option<f32>,
            /// How many of the last tokens the penalties look at, those of the answer alone; in llama.cpp's interfaces those of the prompt
            /// too. 0 none, -1 all. [default: -1; of llama.cpp's interfaces 64]
            #[schema(minimum = -1)]
            #[serde(default, deserialize_with = "crate::number::whole")]
            pub repeat_last_n: Option<i32>,
            /// Subtracted from the logit of every token that has occurred. [default: 0]
            #[schema(minimum = -1e6, maximum = 1e6)]
            pub presence_penalty: Option<f32>,
            /// Subtracted from a token's logit once for each time it has occurred. [default: 0]
            #[schema(minimum = -1e6, maximum = 1e6)]
            pub frequency_penalty: Option<f32>,
            /// The same seed gives the same answer; -1 takes a random one. [default: random]
            #[schema(value_type = Option<i64>, format = "seed")]
            #[serde(default, deserialize_with = "crate::number::seed")]
            pub seed: Option<u64>,
            /// Goes on after an end-of-sequence token. [default: false]
            pub ignore_eos: Option<bool>,
            /// Added to the logits of tokens, by their ids or by texts, each of whose tokens it is of; `false`, in a list of
            /// pairs too, bans them. [default: nothing]
            pub logit_bias: Option<crate::api::samplers::LogitBias>,
            /// The samplers in their order; those that are left out are off.
            /// [default: penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc, temperature]
            pub samplers: Option<crate::api::samplers::Samplers>,
            /// Keeps the tokens whose surprise is nearest to what is expected, up to this sum of probabilities; 1 is off. [default: 1]
            #[schema(minimum = 0, maximum = 1)]
            pub typical_p: Option<f32>,
            /// Keeps logits at most so many standard deviations below the largest; 0 or less is off. [default: -1]
            pub top_n_sigma: Option<f32>,
            /// How often the likeliest tokens are left out; 0 is off. [default: 0]
            #[schema(minimum = 0, maximum = 1)]
            pub xtc_probability: Option<f32>,
            /// Which of them: all but the least likely with at least this probability; above 0.5 is off. [default: 0.1]
            #[schema(minimum = 0, maximum = 1)]
            pub xtc_threshold: Option<f32>,
            /// Moves the temperature by so much either way with the entropy; 0 is off. [default: 0]
            #[schema(minimum = 0, maximum = 1e6)]
            pub dynatemp_range: Option<f32>,
            /// How the temperature follows the entropy. [default: 1]
            #[schema(minimum = 0, maximum = 1e6)]
            pub dynatemp_exponent: Option<f32>,
            /// Makes tokens less likely that go on with a repetition, by `multiplier * base ^ (length - allowed length)`; 0 is off.
            /// [default: 0]
            #[schema(minimum = 0, maximum = 1e6)]
            pub dry_multiplier: Option<f32>,
            /// The base of that. [default: 1.75]
            #[schema(minimum = 1, maximum = 1e6)]
            pub dry_base: Option<f32>,
            /// Repetitions that are shorter cost nothing. [default: 2]
            #[schema(minimum = 0)]
            #[serde(default, deserialize_with = "crate::number::whole")]
            pub dry_allowed_length: Option<i32>,
            /// How many of the last tokens are looked at; 0 none, -1 the whole context. [default: -1]
            #[schema(minimum = -1)]
            #[serde(default, deserialize_with = "crate::number::whole")]
            pub dry_penalty_last_n: Option<i32>,
            /// Nothing is repeated across a token that has one of these texts. [default: line break, colon, quotation mark, asterisk]
            #[schema(max_items = 32)]
            pub dry_sequence_breakers: Option<Vec<String>>,
            /// 2 keeps the surprise of tokens near `mirostat_tau`, in the place of all samplers but the temperature; 0 is off. [default: 0]
            #[schema(minimum = 0, maximum = 2)]
            #[serde(default, deserialize_with = "crate::number::whole")]
            pub mirostat: Option<i32>,
            /// The surprise that is aimed at, in bits. [default: 5]
            #[schema(minimum = 0, maximum = 1e6)]
            pub mirostat_tau: Option<f32>,
            /// How fast its bound follows. [default: 0.1]
            #[schema(minimum = 0, maximum = 1)]
            pub mirostat_eta: Option<f32>,
            /// Tokens to draft at a time, at most, where the server drafts; 0: none. [default: the server's, which is the most]
            #[schema(value_type = Option<u32>, format = "uint32", minimum = 0, maximum = 4294967295.0)]
            #[serde(rename = "speculative.n_max", default, deserialize_with = "crate::number::whole")]
            pub speculative_n_max: Option<u32>,
            /// Fewer drafted tokens are left alone. [default: the server's]
            #[schema(value_type = Option<u32>, format = "uint32", minimum = 0, maximum = 4294967295.0)]
            #[serde(rename = "speculative.n_min", default, deserialize_with = "crate::number::whole")]
            pub speculative_n_min: Option<u32>,
            /// Nothing is drafted behind a token that is less probable, where a model drafts. [default: the server's]
            #[schema(minimum = 0, maximum = 1)]
            #[serde(rename = "speculative.p_min")]
            pub speculative_p_min: Option<f32>,
            /// What the answer must be, in llama.cpp's form of grammars (GBNF). [default: anything]
            pub grammar: Option<String>,
            /// The adapters that it is answered with, in the place of the one that `model` names. [default: none, or that one]
            pub lora: Option<Vec<crate::api::lora::LoraScale>>,
            /// Texts that the answer must not have; upper and lower case of ASCII's letters are the same. Where one is complete, the answer goes
            /// back to the token in which it began, and goes on with another one. KoboldCpp's and TabbyAPI's. [default: none]
            #[schema(max_items = 256)]
            pub banned_strings: Option<Vec<String>>,
        }

        impl $name {
            /// How the tokens of answers are drawn, and with which of the adapters of what is asked.
            ///
            /// # Errors
            /// 400, by name, where a value has no meaning.
            pub fn drawing(
                &self,
                asked: &crate::api::lora::AskedModel,
            ) -> Result<crate::api::samplers::Drawing, crate::error::ApiError> {
                use crate::api::samplers::{Defaults, Drawing};
                let default = Defaults::$defaults.sampling();
                let sampling = qernel_core::sampler::SamplingParams {
                    temperature: self.temperature.unwrap_or(default.temperature),
                    top_k: self.top_k.unwrap_or(default.top_k),
                    top_p: self.top_p.unwrap_or(default.top_p),
                    min_p: self.min_p.unwrap_or(default.min_p),
                    repeat_penalty: self.repeat_penalty.unwrap_or(default.repeat_penalty),
                    repeat_last_n: self.repeat_last_n.unwrap_or(default.repeat_last_n),
                    presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
                    frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
                    seed: self.seed.unwrap_or_else(crate::random_u64),
                    chain: self.chain(&asked.info.tokenizer)?,
                };
                let drawing = Drawing {
                    sampling,
                    defaults: Defaults::$defaults,
                    ignore_eos: self.ignore_eos.unwrap_or(false),
                    speculative: self.speculative()?,
                    banned_strings: self.banned_strings.clone().unwrap_or_default(),
                    adapters: asked.adapters.clone(),
                };
                drawing.checked()
            }

            /// How far tokens are drafted.
            ///
            /// # Errors
            /// 400, by name, for a probability that is none.
            fn speculative(&self) -> Result<qernel_core::engine::Speculative, crate::error::ApiError> {
                const P_MIN: &str = "speculative.p_min";
                if let Some(p_min) = self.speculative_p_min.filter(|p_min| !(0.0..=1.0).contains(p_min)) {
                    let message = format!("{P_MIN}: expected 0 to 1, found {p_min}");
                    return Err(crate::error::ApiError::field(P_MIN, message));
                }
                Ok(qernel_core::engine::Speculative {
                    n_max: self.speculative_n_max.map(|count| count as usize),
                    n_min: self.speculative_n_min.map(|count| count as usize),
                    p_min: self.speculative_p_min,
                })
            }

            /// The samplers that the request asks for beside the usual ones; `None` where a device may draw.
            ///
            /// # Errors
            /// 400, by name, where a value has no meaning.
            fn chain(
                &self,
                tokenizer: &qernel_core::tokenizer::Tokenizer,
            ) -> Result<Option<std::sync::Arc<qernel_core::sampler::SamplerChain>>, crate::error::ApiError> {
                use crate::api::samplers::{LogitBias, Samplers, finish};
                use qernel_core::sampler::{Dry, Mirostat, SamplerChain};
                let default = SamplerChain::default();
                let Mirostat { tau, eta } = Mirostat::default();
                let chain = SamplerChain {
                    order: self.samplers.as_ref().map_or(Ok(default.order), Samplers::order)?,
                    typical_p: self.typical_p.unwrap_or(default.typical_p),
                    top_n_sigma: self.top_n_sigma.unwrap_or(default.top_n_sigma),
                    xtc_probability: self.xtc_probability.unwrap_or(default.xtc_probability),
                    xtc_threshold: self.xtc_threshold.unwrap_or(default.xtc_threshold),
                    dynatemp_range: self.dynatemp_range.unwrap_or(default.dynatemp_range),
                    dynatemp_exponent: self.dynatemp_exponent.unwrap_or(default.dynatemp_exponent),
                    dry: Dry {
                        multiplier: self.dry_multiplier.unwrap_or(default.dry.multiplier),
                        base: self.dry_base.unwrap_or(default.dry.base),
                        allowed_length: self.dry_allowed_length.unwrap_or(default.dry.allowed_length),
                        last_n: self.dry_penalty_last_n.unwrap_or(default.dry.last_n),
                        sequence_breakers: (self.dry_sequence_breakers.clone())
                            .unwrap_or(default.dry.sequence_breakers),
                    },
                    mirostat: Some(Mirostat {
                        tau: self.mirostat_tau.unwrap_or(tau),
                        eta: self.mirostat_eta.unwrap_or(eta),
                    }),
                    logit_bias: (self.logit_bias.as_ref())
                        .map_or(Ok(Vec::new()), |bias| LogitBias::of_tokens(bias, tokenizer))?,
                };
                finish(chain, self.mirostat, tokenizer.vocab_size())
            }
        }
    };
}
pub(super) use sampled_request;

/// Whose defaults an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defaults {
    /// OpenAI's, and Anthropic's: the model's own distribution; penalties look at the answer alone.
    Plain,
    /// llama.cpp's; penalties look at the prompt too.
    Llama,
}

impl Defaults {
    /// The sampler's parameters where a request says nothing.
    pub fn sampling(self) -> SamplingParams {
        let llama = SamplingParams::default();
        match self {
            Self::Llama => llama,
            Self::Plain => SamplingParams {
                temperature: 1.0,
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                repeat_last_n: -1,
                ..llama
            },
        }
    }
}

/// How the tokens of answers are drawn, as a request asks for it.
#[derive(Clone, Debug)]
pub struct Drawing {
    pub sampling: SamplingParams,
    pub defaults: Defaults,
    /// Goes on after a token that ends the generation.
    pub ignore_eos: bool,
    pub speculative: Speculative,
    /// Texts that the answer must not have.
    pub banned_strings: Vec<String>,
    pub adapters: AdapterSet,
}

impl Drawing {
    /// It, if it has a meaning.
    ///
    /// # Errors
    /// 400, by name, where a value has none for the sampler or for the interface.
    pub fn checked(self) -> Result<Self, ApiError> {
        let temperature = self.sampling.temperature;
        if self.defaults == Defaults::Plain && temperature < 0.0 {
            return refuse("temperature", format!("expected 0 or more, found {temperature}"));
        }
        match self.sampling.fault() {
            Some((option, fault)) => refuse(option, fault),
            None => Ok(self),
        }
    }

    /// An answer to a prompt that is drawn so.
    pub fn request(&self, prompt: Vec<u32>) -> Request {
        Request {
            sampling: self.sampling.clone(),
            penalize_prompt: self.defaults == Defaults::Llama,
            ignore_eos: self.ignore_eos,
            speculative: self.speculative,
            banned_strings: self.banned_strings.clone(),
            adapters: Some(self.adapters.clone()),
            ..Request::new(prompt)
        }
    }
}

/// Most samplers of a request.
const MAX_SAMPLERS: usize = 32;
/// Most texts that nothing is repeated across, and their longest: the whole vocabulary is looked through for them.
const MAX_BREAKERS: usize = 32;
const MAX_BREAKER_BYTES: usize = 64;
/// Most bytes of all texts that stand for tokens.
const MAX_BIASED_BYTES: usize = 8192;

/// Samplers by their names, in a list or separated by semicolons.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a list of samplers' names")]
pub enum Samplers {
    Names(Vec<String>),
    Text(String),
}

impl Samplers {
    /// The samplers.
    ///
    /// # Errors
    /// 400 where one is not known, or they are too many.
    pub fn order(&self) -> Result<Vec<SamplerKind>, ApiError> {
        let names: Vec<&str> = match self {
            Self::Names(names) => names.iter().map(String::as_str).collect(),
            Self::Text(text) => text.split(';').filter(|name| !name.trim().is_empty()).collect(),
        };
        if names.len() > MAX_SAMPLERS {
            return refuse("samplers", format!("expected at most {MAX_SAMPLERS}, found {}", names.len()));
        }
        let parse = |name: &str| {
            let name = excerpt(name);
            name.parse().or_else(|error| refuse("samplers", error))
        };
        names.into_iter().map(parse).collect()
    }
}

/// What is added to logits: a map, as OpenAI has it, or pairs, as llama.cpp has them.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a map from tokens to numbers, or a list of pairs of a token and a number"
)]
pub enum LogitBias {
    Map(BTreeMap<String, Bias>),
    Pairs(Vec<(Biased, Bias)>),
}

/// A token by its id, or those of a text.
#[derive(Clone, Debug, ToSchema)]
#[serde(untagged)]
pub enum Biased {
    Id(u32),
    Text(String),
}

impl<'de> Deserialize<'de> for Biased {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a token's id or a text")]
        enum Any {
            Id(Whole<u32>),
            Text(String),
        }
        Ok(match Any::deserialize(deserializer)? {
            Any::Id(Whole(id)) => Self::Id(id),
            Any::Text(text) => Self::Text(text),
        })
    }
}

/// What is added to a logit; `false` bans the token, and so does `-inf`, which JSON cannot write.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a number, or false to ban the token")]
pub enum Bias {
    Number(f32),
    Ban(bool),
}

impl LogitBias {
    /// What is added to which tokens.
    ///
    /// # Errors
    /// 400 where a value is no bias, or they are too many.
    pub fn of_tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<(u32, f32)>, ApiError> {
        let pairs: Vec<(Biased, Bias)> = match self {
            Self::Pairs(pairs) => pairs.clone(),
            Self::Map(map) => {
                let token = |key: &String| key.parse().map_or_else(|_| Biased::Text(key.clone()), Biased::Id);
                map.iter().map(|(key, bias)| (token(key), *bias)).collect()
            }
        };
        let (most, mut bytes) = (tokenizer.vocab_size(), 0);
        let mut biases = Vec::new();
        for (token, bias) in pairs {
            let bias = match bias {
                Bias::Number(bias) => bias,
                Bias::Ban(false) => f32::NEG_INFINITY,
                Bias::Ban(true) => {
                    return refuse(
                        "logit_bias",
                        "expected a number, or false to ban the token, found true".into(),
                    );
                }
            };
            match token {
                Biased::Id(id) => biases.push((id, bias)),
                Biased::Text(text) => {
                    bytes += text.len();
                    if bytes > MAX_BIASED_BYTES {
                        return refuse(
                            "logit_bias",
                            format!(
                                "expected texts of at most {MAX_BIASED_BYTES} bytes together, found more"
                            ),
                        );
                    }
                    biases.extend(tokenizer.encode(&text, false)?.into_iter().map(|id| (id, bias)));
                }
            }
            if biases.len() > most {
                return refuse(
                    "logit_bias",
                    format!("expected at most {most} tokens, as many as there are, found more"),
                );
            }
        }
        Ok(biases)
    }
}

/// The chain, with `mirostat` in its place, if it is needed; for a model of so many tokens.
///
/// # Errors
/// 400, by name, where a value has no meaning.
pub fn finish(
    chain: SamplerChain,
    mirostat: Option<i32>,
    vocab_size: usize,
) -> Result<Option<Arc<SamplerChain>>, ApiError> {
    if let Some((option, fault)) = chain.fault().or_else(|| chain.bias_fault(vocab_size)) {
        return refuse(option, fault);
    }
    let breakers = &chain.dry.sequence_breakers;
    let longest = breakers.iter().map(String::len).max().unwrap_or(0);
    if breakers.len() > MAX_BREAKERS || longest > MAX_BREAKER_BYTES {
        let expected = format!("expected at most {MAX_BREAKERS} texts of at most {MAX_BREAKER_BYTES} bytes");
        return refuse(
            "dry_sequence_breakers",
            format!("{expected}, found {}, the longest of {longest} bytes", breakers.len()),
        );
    }
    let mirostat = match mirostat {
        None | Some(0) => None,
        Some(2) => chain.mirostat,
        Some(1) => {
            return refuse("mirostat", "expected 0 or 2: the first version of Mirostat is not there".into());
        }
        Some(other) => return refuse("mirostat", format!("expected 0 or 2, found {other}")),
    };
    Ok(SamplerChain { mirostat, ..chain }.if_needed())
}

fn refuse<T>(param: &str, what: String) -> Result<T, ApiError> {
    Err(ApiError::field(param, format!("{param}: {what}")))
}

/// The beginning of a name, for a message.
fn excerpt(name: &str) -> String {
    name.chars().take(40).collect()
}
