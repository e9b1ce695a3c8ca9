//! What a request asks of the sampler, in llama.cpp's names and with its meaning.

/// How the next token is chosen from the logits, in this order: penalties, top-k, top-p, min-p, temperature, draw.
/// That is llama.cpp's default chain (`--samplers penalties;top_k;top_p;min_p;temperature`).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SamplingParams {
    /// Divides the logits before the draw; 0 or less takes the arg-max.
    pub temperature: f32,
    /// Keep the `k` largest logits; 0 or less keeps all.
    pub top_k: i32,
    /// Keep the smallest set of largest probabilities whose sum reaches it; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this share of the largest probability; 0 keeps all.
    pub min_p: f32,
    /// Logits of repeated tokens are divided by it where positive and multiplied where negative; 1 is off.
    pub repeat_penalty: f32,
    /// How many of the newest tokens the penalties look at: 0 none, -1 the whole context.
    pub repeat_last_n: i32,
    /// Subtracted once from the logit of every token that has occurred; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted once per occurrence; 0 is off.
    pub frequency_penalty: f32,
    /// Key of the counter-based generator.
    pub seed: u64,
}

impl Default for SamplingParams {
    /// llama.cpp's defaults, with seed 0.
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

/// One row of a sampling step. The draw depends on the parameters, the logits, `position` and `index` alone, so it is
/// the same alone and in a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingRow {
    pub params: SamplingParams,
    /// Position of the token to be drawn: the length of the sequence so far.
    pub position: u32,
    /// Which of several answers to one prompt this is (OpenAI's `n`); 0 otherwise.
    pub index: u32,
    /// Distinct tokens of the penalty window with their counts, ascending by token; empty where no penalty is on.
    pub counts: Vec<(u32, u32)>,
}
