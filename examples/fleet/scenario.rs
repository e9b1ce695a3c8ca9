//! What is simulated: GPUs by what they take, what is asked of them, and who gets it.

/// What a GPU takes for a step, and what it has room for. Times are in seconds.
#[derive(Clone, Debug)]
pub struct Gpu {
    /// A decode step of so many sequences with short contexts; linear between them.
    pub decode: &'static [(f64, f64)],
    /// Of each sequence more than the last of them.
    pub sequence: f64,
    /// Of each token of their contexts: reading its K and V.
    pub context_token: f64,
    /// Of each token of a prompt.
    pub prompt_token: f64,
    /// Prompt tokens of a step at most.
    pub chunk: u32,
    /// Sequences that it runs together.
    pub max_sequences: usize,
    /// Tokens whose K and V it has room for.
    pub kv_tokens: u64,
}

impl Gpu {
    /// Seconds of a step: a token for each of `sequences` with `context` tokens in all, and `prompt` tokens. Nothing of the two overlaps.
    pub fn step(&self, sequences: usize, context: u64, prompt: u32) -> f64 {
        let prompt = f64::from(prompt) * self.prompt_token;
        if sequences == 0 {
            // The weights are read once at least.
            return prompt.max(self.decode[0].1);
        }
        let n = sequences as f64;
        let (last, seconds) = self.decode[self.decode.len() - 1];
        let above = self.decode.iter().position(|&(sequences, _)| sequences >= n);
        let decode = match above {
            None => seconds + (n - last) * self.sequence,
            Some(0) => self.decode[0].1,
            Some(i) => {
                let ((n0, t0), (n1, t1)) = (self.decode[i - 1], self.decode[i]);
                t0 + (n - n0) / (n1 - n0) * (t1 - t0)
            }
        };
        decode + context as f64 * self.context_token + prompt
    }
}

/// What is asked for. Times are exponential, numbers of tokens and turns geometric, with these means.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Turns a second of the whole fleet.
    pub turns_per_second: f64,
    /// Turns of a conversation.
    pub turns: f64,
    /// Seconds between an answer and the next turn.
    pub think: f64,
    /// Different system messages, equally usual, and the tokens of each.
    pub systems: u32,
    pub system_tokens: u32,
    /// Tokens of a user's message, of an answer.
    pub user_tokens: f64,
    pub answer_tokens: f64,
}

/// How a turn's GPU is chosen. One that has as many sequences as it runs is passed over; where all have, turns wait in front.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Routing {
    /// Any.
    Random,
    /// Of two, the one with fewer sequences.
    TwoChoices,
    /// The conversation's own by its hash, or the next one, where it has more than so many times the mean of all.
    Prefix(f64),
}

/// A fleet under a workload.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub gpu: Gpu,
    pub gpus: usize,
    /// So many of them compute prompts alone, and the others answers alone; 0: all do both.
    pub prefill_gpus: usize,
    pub routing: Routing,
    /// Seconds of the network for the K and V of a token. With it prefixes come from wherever they were computed.
    pub network_token: Option<f64>,
    pub workload: Workload,
    /// At the beginning no GPU knows the conversations that are under way.
    pub cold: bool,
    /// What ends before `warm_up` does not count; nothing is simulated behind `end`.
    pub warm_up: f64,
    pub end: f64,
    pub seed: u64,
}
