//! Runs a test on an engine, as any caller of the engine would.
//!
//! What comes before the timed part is a request of its own, before every repetition, which leaves it in the
//! [prefix cache](crate::prefix_cache); there it also finds what the one before has left of it, so a depth is prefilled once
//! and not once a repetition. A model with recurrent states goes on from their copy behind the last full page of it; the rest is computed before the
//! first token. A test of decoding begins when all its sequences have drawn their first token in one step, and from then on each step takes one
//! row of each of them.
//!
//! Timed is everything between two steps of the engine that a user pays for: scheduling, the batch's upload, the forward
//! pass, sampling, detokenisation, stop strings, events. Writing text to a terminal or a socket is not.

use super::plan::Test;
use crate::engine::{Engine, Event, Request, Speculative};
use crate::error::{Error, Result};
use crate::kv_layout::PAGE_SIZE;
use crate::sampler::{SamplingParams, philox4x32_10};
use crate::scheduler::SequenceId;
use std::time::Instant;

/// What one repetition took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// The whole timed part, in seconds.
    pub seconds: f64,
    /// Every step of the timed part, in seconds.
    pub steps: Vec<f64>,
    /// What of `seconds` the engine took and not the model: scheduling, detokenisation, events.
    pub engine_seconds: f64,
    /// Tokens that were drafted, and those of them that stayed.
    pub drafts: [usize; 2],
}

/// The timed part of a test on sequences of random tokens.
pub struct Bench<'a> {
    engine: &'a mut Engine,
    sampling: SamplingParams,
    /// Counts repetitions, so that no two prompts after a depth begin alike: the cache would serve the second.
    round: u32,
    /// Whether tokens are drafted, where the engine does.
    drafts: bool,
}

/// Tokens of each sequence that are in the cache before a repetition. Of a test of decoding's prompt the last is computed, for
/// its logits. Of states there are copies behind full pages alone.
fn cached_tokens(test: &Test, has_states: bool) -> usize {
    let cached = if test.is_decode() { test.start() - 1 } else { test.n_depth };
    if has_states { cached / PAGE_SIZE * PAGE_SIZE } else { cached }
}

/// Copies of states that serve tests of so many sequences: of what each was filled with, of its prompt and of its answer.
pub fn checkpoints_for(num_sequences: usize) -> usize {
    4 * num_sequences + 2
}

/// Sets the generator's counters for prompts apart from those of draws.
const PROMPTS: u32 = 0x6265_6e63;

impl<'a> Bench<'a> {
    /// A bench on an engine that serves nobody else meanwhile. `sampling.seed` also gives the prompts.
    pub fn new(engine: &'a mut Engine, sampling: SamplingParams) -> Self {
        Self { engine, sampling, round: 0, drafts: true }
    }

    /// Drafts tokens from now on, where the engine does, or not.
    pub fn set_drafts(&mut self, drafts: bool) {
        self.drafts = drafts;
    }

    /// Why the engine cannot run a test; `None` if it can.
    pub fn obstacle(&self, test: &Test) -> Option<String> {
        let (context, longest) = (test.context(), self.engine.max_model_len());
        let (pages, num_pages) = (test.pages(), self.engine.pool().num_pages());
        if context > longest {
            Some(format!(
                "it takes {context} tokens of context, and {longest} are what the model and the memory allow; lower {}",
                test.options()
            ))
        } else if pages > num_pages {
            Some(format!(
                "its {} sequences of {context} tokens take {pages} KV pages, and {num_pages} fit into the memory; lower {}",
                test.n_parallel,
                test.options()
            ))
        } else {
            self.obstacle_of_states(test)
        }
    }

    /// The same of states, of which there are copies behind full pages alone: all sequences take in the rest of their depths in one step.
    fn obstacle_of_states(&self, test: &Test) -> Option<String> {
        let rest = test.start().saturating_sub(cached_tokens(test, true)) * test.n_parallel;
        let most = self.engine.runner().limits().max_num_tokens;
        (self.has_states() && test.is_decode() && test.n_depth > 0 && rest > most).then(|| {
            format!(
                "its {} sequences take in {rest} tokens behind copies of their states at once, and {most} are the most rows of a step; \
                 lower -d or -b, or take a larger --ubatch-size",
                test.n_parallel
            )
        })
    }

    /// Runs a test, `warm_up` times untimed and then `repetitions` times.
    ///
    /// # Errors
    /// Whatever the engine says.
    pub fn run(&mut self, test: &Test, warm_up: usize, repetitions: usize) -> Result<Vec<Sample>> {
        let mut samples = Vec::with_capacity(repetitions);
        while samples.len() < warm_up + repetitions {
            self.fill_to(test)?;
            let sample = self.repetition(test)?.ok_or_else(|| {
                Error::Memory(format!("{test}: the KV cache does not keep what it was filled with"))
            })?;
            samples.push(sample);
        }
        Ok(samples.split_off(warm_up))
    }

    /// Brings what a test does not compute into the cache, for all its sequences.
    fn fill_to(&mut self, test: &Test) -> Result<()> {
        if cached_tokens(test, self.has_states()) == 0 {
            return Ok(());
        }
        for sequence in 0..test.n_parallel {
            let prompt = self.tokens(sequence, cached_tokens(test, false));
            self.engine.submit(Request { max_tokens: Some(1), ..self.request(prompt) })?;
        }
        while self.engine.has_work() {
            self.engine.step()?;
        }
        Ok(())
    }

    /// One repetition; `None` if the cache had lost what it was filled with.
    fn repetition(&mut self, test: &Test) -> Result<Option<Sample>> {
        let has_states = self.has_states();
        self.round += 1;
        let requests: Vec<Request> = (0..test.n_parallel)
            .map(|sequence| Request {
                max_tokens: Some(test.n_gen + 1),
                ..self.request(self.prompt(test, sequence))
            })
            .collect();

        let mut texts = vec![String::new(); test.n_parallel];
        let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); test.n_parallel];
        let mut start = Instant::now();
        let mut ids = Vec::with_capacity(test.n_parallel);
        for request in requests {
            ids.push(self.engine.submit(request)?);
        }
        let first = ids[0].0;
        if test.is_decode() {
            let events = self.engine.step()?;
            events.iter().find_map(Event::error).map_or(Ok(()), Err)?;
            if events.len() != test.n_parallel {
                self.abandon(&ids)?;
                return Ok(None);
            }
            start = Instant::now();
        }
        let (mut steps, mut left) = (Vec::with_capacity(test.n_gen + 1), test.n_parallel);
        let mut last = start;
        let (mut reused, mut model_seconds, mut drafts) = (true, 0.0, [0; 2]);
        while left > 0 {
            for event in self.engine.step()? {
                event.error().map_or(Ok(()), Err)?;
                let place = (event.id().0 - first) as usize;
                texts[place] += event.text();
                match event {
                    Event::Prompt { .. } => {}
                    Event::Token { token, .. } => tokens[place].push(token),
                    Event::Finished { usage, timings, .. } => {
                        left -= 1;
                        reused &= usage.cached_tokens == cached_tokens(test, has_states);
                        // All sequences take the same steps; the first prefill step of a decode test is not timed.
                        let prefill = if test.is_decode() { 0.0 } else { timings.prefill_seconds };
                        model_seconds = timings.decode_seconds + prefill;
                        drafts[0] += timings.draft_tokens;
                        drafts[1] += timings.accepted_draft_tokens;
                    }
                }
            }
            let now = Instant::now();
            steps.push(now.duration_since(last).as_secs_f64());
            last = now;
        }
        let seconds = last.duration_since(start).as_secs_f64();
        let engine_seconds = (seconds - model_seconds).max(0.0);
        Ok(reused.then_some(Sample { seconds, steps, engine_seconds, drafts }))
    }

    /// Ends sequences that did not start together.
    fn abandon(&mut self, ids: &[SequenceId]) -> Result<()> {
        for &id in ids {
            self.engine.cancel(id);
        }
        while self.engine.has_work() {
            self.engine.step()?;
        }
        Ok(())
    }

    fn has_states(&self) -> bool {
        self.engine.runner().has_slots()
    }

    fn request(&self, prompt: Vec<u32>) -> Request {
        let speculative = Speculative { n_max: (!self.drafts).then_some(0), ..Speculative::default() };
        Request { sampling: self.sampling.clone(), ignore_eos: true, speculative, ..Request::new(prompt) }
    }

    /// The tokens before the timed part, then the timed prompt.
    fn prompt(&self, test: &Test, sequence: usize) -> Vec<u32> {
        let mut prompt = self.tokens(sequence, test.start());
        let vocab_size = self.engine.runner().vocab_size();
        // Consecutive rounds begin with consecutive tokens, which differ.
        let place = self.tokens(sequence, 1)[0] as usize + self.round as usize;
        let new = (0..test.n_prompt).map(|i| match i {
            0 => (place % vocab_size) as u32,
            _ => self.token(sequence, i, self.round),
        });
        prompt.extend(new);
        prompt
    }

    /// The first `count` random tokens of a sequence.
    fn tokens(&self, sequence: usize, count: usize) -> Vec<u32> {
        (0..count).map(|i| self.token(sequence, i, 0)).collect()
    }

    fn token(&self, sequence: usize, i: usize, round: u32) -> u32 {
        let seed = self.sampling.seed;
        let words =
            philox4x32_10([i as u32, sequence as u32, round, PROMPTS], [seed as u32, (seed >> 32) as u32]);
        (u64::from(words[0]) % self.engine.runner().vocab_size() as u64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::engine::EngineConfig;
    use crate::load::{DeviceChoice, RunnerOptions, open_runner};
    use crate::testing::TinyModel;
    use crate::weights::Weights;

    fn engine(max_model_len: usize, max_num_sequences: usize) -> Engine {
        engine_of(&TinyModel::default(), max_model_len, max_num_sequences, 16)
    }

    fn engine_of(
        model: &TinyModel,
        max_model_len: usize,
        max_num_sequences: usize,
        max_num_tokens: usize,
    ) -> Engine {
        let gguf = model.gguf();
        let config = Config::from_gguf(&gguf).unwrap();
        let weights = Weights::from_gguf(&gguf, &config).unwrap();
        let options = RunnerOptions {
            device: DeviceChoice::Cpu,
            max_model_len: Some(max_model_len),
            max_num_tokens: Some(max_num_tokens),
            max_num_sequences,
            max_num_logits: max_num_sequences,
            checkpoints: checkpoints_for(max_num_sequences),
            ..RunnerOptions::default()
        };
        let runner = open_runner(&weights, &config, &options, &mut |_, _| ()).unwrap();
        let tokenizer = crate::tokenizer::Tokenizer::from_gguf(&gguf).unwrap();
        let config = EngineConfig { checkpoint_every: 0, ..EngineConfig::default() };
        Engine::new(runner, Some(tokenizer.into()), config).unwrap()
    }

    fn greedy() -> SamplingParams {
        SamplingParams { temperature: 0.0, ..SamplingParams::default() }
    }

    #[test]
    fn each_step_takes_all_sequences_and_nothing_else_is_timed() {
        let mut engine = engine(128, 4);
        let mut bench = Bench::new(&mut engine, greedy());
        for (n_prompt, n_gen, n_depth, n_parallel, steps) in [
            (40, 0, 0, 1, 3), // 16 rows a step
            (0, 5, 0, 1, 5),
            (0, 5, 0, 4, 5),
            (33, 0, 50, 1, 3),
            (0, 6, 50, 1, 6),
            (0, 6, 50, 3, 6),
            (20, 4, 50, 1, 6),
            (0, 2, 7, 2, 2),
        ] {
            let test = Test { n_prompt, n_gen, n_depth, n_parallel };
            assert_eq!(bench.obstacle(&test), None);
            let samples = bench.run(&test, 1, 3).unwrap();
            assert_eq!(samples.len(), 3);
            for sample in samples {
                assert_eq!(sample.steps.len(), steps, "{test}");
                assert!((sample.steps.iter().sum::<f64>() - sample.seconds).abs() < 1e-6);
                assert!(sample.engine_seconds < sample.seconds);
            }
        }
        assert_eq!(engine.pool().num_free(), engine.pool().num_pages(), "no page is left behind");
    }

    #[test]
    fn a_depth_of_a_hybrid_goes_on_from_copies_of_states() {
        let model = TinyModel {
            architecture: "qwen35",
            hidden_size: 64,
            head_dim: 32,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            ..TinyModel::default()
        };
        let mut engine = engine_of(&model, 160, 3, 48);
        let mut bench = Bench::new(&mut engine, greedy());
        for (n_gen, n_depth, n_parallel) in [(5, 50, 1), (5, 64, 1), (6, 33, 3), (40, 0, 3), (3, 100, 2)] {
            let test = Test { n_prompt: 0, n_gen, n_depth, n_parallel };
            assert_eq!(bench.obstacle(&test), None);
            for sample in bench.run(&test, 1, 3).unwrap() {
                assert_eq!(sample.steps.len(), n_gen, "{test}");
            }
        }
        let prompt = Test { n_prompt: 20, n_gen: 0, n_depth: 70, n_parallel: 1 };
        assert_eq!(bench.run(&prompt, 0, 3).unwrap().len(), 3);
        let many = bench.obstacle(&Test { n_prompt: 0, n_gen: 2, n_depth: 50, n_parallel: 3 }).unwrap();
        assert!(many.contains("take in 54 tokens"), "{many}");
    }

    /// The pool holds one sequence of full length, and the earlier test leaves more in the cache than this one needs.
    #[test]
    fn pages_that_an_earlier_test_left_are_made_free() {
        let mut engine = engine(256, 2);
        let num_pages = engine.pool().num_pages();
        let mut bench = Bench::new(&mut engine, greedy());
        let long = Test { n_prompt: 190, n_gen: 0, n_depth: 64, n_parallel: 1 };
        let wide = Test { n_prompt: 0, n_gen: 185, n_depth: 64, n_parallel: 2 };
        assert_eq!(wide.pages(), num_pages);
        assert_eq!(bench.run(&long, 0, 2).unwrap().len(), 2);
        assert_eq!(bench.run(&wide, 0, 2).unwrap()[1].steps.len(), 185);
    }

    #[test]
    fn what_does_not_fit_names_its_options() {
        let mut engine = engine(64, 2);
        let bench = Bench::new(&mut engine, greedy());
        let fits = Test { n_prompt: 0, n_gen: 31, n_depth: 32, n_parallel: 2 };
        assert_eq!(bench.obstacle(&fits), None);
        let long = bench.obstacle(&Test { n_gen: 32, ..fits }).unwrap();
        assert!(long.contains("65 tokens") && long.contains("-n, -d or -b"), "{long}");
        let wide = bench.obstacle(&Test { n_parallel: 3, ..fits }).unwrap();
        assert!(wide.contains("6 KV pages, and 4 fit"), "{wide}");
    }

    #[test]
    fn prompts_come_from_the_seed_and_no_two_rounds_begin_alike() {
        let mut engine = engine(64, 1);
        let mut bench = Bench::new(&mut engine, greedy());
        let test = Test { n_prompt: 5, n_gen: 0, n_depth: 3, n_parallel: 1 };
        let first = bench.prompt(&test, 0);
        assert_eq!(first.len(), 8);
        assert_eq!(first, bench.prompt(&test, 0));
        assert_ne!(first, bench.prompt(&test, 1));
        bench.round += 1;
        let second = bench.prompt(&test, 0);
        assert_eq!(first[..3], second[..3]);
        assert_ne!(first[3], second[3]);
    }
}
