//! Hybrids and adapters that are shared out over several emulated devices: the logits and tokens of one, with states, copies of them and drafts.

use crate::lora::{self, adapted};
use crate::ranks::{assert_agree, open, options};
use crate::stages::{answer, answer_behind_a_beginning, crowded};
use crate::{compare::nmse, drafts::answers, life, parts};
use qernel::config::{ExpertSizes, LinearSizes};
use qernel::engine::{Engine, EngineConfig, Event, Fingerprint, Request};
use qernel::formats::MatrixFormat;
use qernel::load::{DraftChoice, RunnerOptions, open_runner};
use qernel::testing::{Random, TinyDraft, TinyModel};

/// Heads for two ranks, three of V for each of K.
fn hybrid() -> TinyModel {
    of_heads(2, 6)
}

fn of_heads(key_heads: usize, value_heads: usize) -> TinyModel {
    let linear = LinearSizes {
        linear_num_key_heads: key_heads,
        linear_num_value_heads: value_heads,
        linear_key_head_dim: 32,
        linear_value_head_dim: 32,
        linear_conv_kernel_dim: 4,
    };
    TinyModel {
        architecture: "qwen35",
        hidden_size: 64,
        intermediate_size: 64,
        num_attention_heads: key_heads,
        num_key_value_heads: key_heads,
        head_dim: 32,
        linear,
        ..TinyModel::default()
    }
}

/// Heads of V are in two orders in files: those of a rank are not one range of them, or are.
#[test]
fn the_forward_pass_of_hybrids_agrees_with_that_of_one_device() {
    assert_agree(&hybrid(), 2);
    assert_agree(&of_heads(4, 8), 4);
}

#[test]
fn the_forward_pass_of_mixtures_of_hybrids_agrees_with_that_of_one_device() {
    let experts = ExpertSizes {
        num_experts: 4,
        moe_intermediate_size: 64,
        shared_expert_intermediate_size: 64,
        ..TinyModel::default().experts
    };
    for architecture in ["qwen35moe", "qwen3next"] {
        assert_agree(&TinyModel { architecture, experts, tie_word_embeddings: false, ..hybrid() }, 2);
    }
}

#[test]
fn quantised_hybrids_are_shared_out_by_whole_blocks() {
    assert_agree(&TinyModel { format: MatrixFormat::Q8_0, ..hybrid() }, 2);
    let linear = LinearSizes { linear_value_head_dim: 128, ..hybrid().linear };
    let model =
        TinyModel { format: MatrixFormat::Q4_K, hidden_size: 256, intermediate_size: 512, ..hybrid() };
    let error = open(&TinyModel { head_dim: 256, linear, ..model }, 2).err().unwrap().to_string();
    assert!(error.contains("ssm_out.weight: 128 columns") && error.contains("blocks of q4_k"), "{error}");
}

/// Q, K and V in one tensor, and biases.
#[test]
fn the_forward_pass_of_fused_matrices_agrees_with_that_of_one_device() {
    for architecture in ["gpt2", "qwen2"] {
        assert_agree(&TinyModel { architecture, fused_qkv: true, ..hybrid() }, 2);
    }
}

/// Of two sequences one is crowded out, and goes on from a copy of its states.
#[test]
fn a_sequence_without_pages_goes_on_from_its_states() {
    const PROMPT: usize = 94;
    let [alone, shared] = [1, 2].map(|ranks| {
        let mut engine = crowded(&hybrid(), options(ranks), None);
        let mut random = Random::new(3, "prompts");
        for _ in 0..2 {
            let token = |_| (random.next_u64() % TinyModel::VOCAB_SIZE as u64) as u32;
            let prompt = (0..PROMPT).map(token).collect();
            let [greedy, ..] = life::crowd_requests();
            engine.submit(Request { prompt, max_tokens: Some(5), ..greedy }).unwrap();
        }
        let (mut tokens, mut computed) = ([const { Vec::new() }; 2], [0; 2]);
        while engine.has_work() {
            for event in engine.step().unwrap() {
                match event {
                    Event::Token { id, token, .. } => tokens[id.0 as usize].push(token),
                    Event::Finished { id, timings, .. } => computed[id.0 as usize] = timings.prefill_tokens,
                    Event::Prompt { .. } => {}
                }
            }
        }
        (tokens, computed)
    });
    assert_eq!(shared, alone);
    assert!(shared.0.iter().all(|tokens| tokens.len() == 5));
    let [first, second] = shared.1;
    assert!(first == PROMPT && (PROMPT + 1..2 * PROMPT).contains(&second), "{first} and {second} rows");
}

/// A prompt that begins as an earlier one goes on from its states, in the next run too, for which each rank's part was kept.
#[test]
fn beginnings_are_shared_and_kept() {
    let open = |ranks| crowded(&hybrid(), options(ranks), None);
    let [alone, shared] = [1, 2].map(|ranks| {
        let mut engine = open(ranks);
        [false, true].map(|other| answer_behind_a_beginning(&mut engine, other))
    });
    assert_eq!(alone, shared);
    assert_eq!(shared[1].1, 32, "a page of the beginning was there");

    let of = Fingerprint::of(["model"]);
    let mut engine = open(2);
    answer_behind_a_beginning(&mut engine, false);
    let mut file = Vec::new();
    let kept = engine.keep_prompts(&of, u64::MAX, &mut file).unwrap();
    assert!(kept.tokens >= 32 && kept.states > 0, "{kept:?}");
    let mut next = open(2);
    assert_eq!(next.take_prompts(&of, &mut &file[..]).unwrap(), kept);
    assert_eq!(answer_behind_a_beginning(&mut next, true), shared[1]);
    // What one device kept is something else.
    let error = open(1).take_prompts(&of, &mut &file[..]).unwrap_err().to_string();
    assert!(error.contains("of other options"), "{error}");
}

/// There is one place for a copy: that of the first prompt goes to host memory, each rank's part of it, and comes back.
#[test]
fn states_that_make_room_are_kept_on_the_host() {
    let (config, weights) = parts(&hybrid());
    let [alone, kept] = [0, 1 << 20].map(|host| {
        let options = RunnerOptions { checkpoints: 1, ..options(2) };
        let runner = open_runner(&weights, &config, &options, &mut |_, _| ()).unwrap();
        let engine = Engine::new(runner, None, EngineConfig::default()).unwrap();
        let mut engine = engine.with_host_checkpoints(host).unwrap();
        [0, 50, 0].map(|first| answer(&mut engine, (first..first + 40).collect()))
    });
    assert_eq!(alone.each_ref().map(|(_, cached)| *cached), [0; 3], "the second prompt took the place");
    assert_eq!(kept.each_ref().map(|(_, cached)| *cached), [0, 0, 32]);
    assert_eq!(kept.map(|(tokens, _)| tokens), alone.map(|(tokens, _)| tokens));
}

/// The block is shared out as the layers are, its head as the model's.
#[test]
fn drafts_of_a_block_are_computed_by_all_ranks() {
    // No two tokens of its answers are as good as each other but for what is rounded differently.
    let draft = Some(TinyDraft::default());
    let model = TinyModel { tie_word_embeddings: false, seed: 1, draft, ..hybrid() };
    let [alone, shared] =
        [1, 2].map(|ranks| answers(&mut crowded(&model, options(ranks), Some(&DraftChoice::Mtp)), 6));
    assert_eq!(shared, alone, "other drafts");
    assert!(shared.1[0] > 0, "nothing was drafted");
}

/// Rows of one batch have different adapters.
#[test]
fn adapters_are_shared_out_with_their_matrices() {
    for (architecture, num_hidden_layers) in [("gpt2", 1), ("qwen35", 2), ("qwen3moe", 1)] {
        let (config, weights) = parts(&TinyModel { architecture, num_hidden_layers, ..hybrid() });
        let weights = adapted(&config, weights);
        let [alone, shared] = [1, 2].map(|ranks| {
            let mut runner = open_runner(&weights, &config, &options(ranks), &mut |_, _| ()).unwrap();
            assert_eq!(runner.adapters().len(), 2);
            lora::logits(&mut *runner)
        });
        let error = nmse(&shared, &alone);
        assert!(error <= 1e-5, "{architecture}: {error:e}");
    }
}
