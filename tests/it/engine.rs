//! The engine's life on the CPU, where neither a batch nor a page given up changes a bit: what `tests/gpu_engine.rs` and
//! `tests/emulated/` ask of other devices is sound.

use crate::life::{
    CANCELLED_AFTER, CROWDED, ROOMY, ROUNDS, VERSE, assert_crowded, choir, crowd, crowd_requests, engine,
};
use qernel::cpu::CpuOps;
use qernel::dtype::Dtype;
use qernel::engine::{Engine, Event};
use qernel::testing::TinyModel;

fn on_cpu(capacity: crate::life::Capacity) -> Engine {
    of("qwen2", capacity)
}

fn of(architecture: &'static str, capacity: crate::life::Capacity) -> Engine {
    let model = TinyModel { architecture, ..TinyModel::default() };
    engine(&model, Dtype::F32, capacity, |config| CpuOps::new(config).unwrap())
}

#[test]
fn a_crowd_gets_what_each_gets_alone() {
    a_crowd_of_a_model("qwen2");
}

/// Joining, leaving, being cancelled and crowded out, with states in slots.
#[test]
fn a_crowd_of_a_hybrid_gets_what_each_gets_alone() {
    a_crowd_of_a_model("qwen3next");
}

fn a_crowd_of_a_model(architecture: &'static str) {
    let life = crowd(&mut of(architecture, CROWDED));
    assert_crowded(&life);
    for (i, (request, answer)) in crowd_requests().into_iter().zip(life.answers.values()).enumerate() {
        let mut engine = of(architecture, ROOMY);
        engine.submit(request).unwrap();
        let mut tokens = Vec::new();
        let mut logprobs = Vec::new();
        while engine.has_work() {
            for event in engine.step().unwrap() {
                if let Event::Token { token, logprobs: of_token, .. } = event {
                    tokens.push(token);
                    logprobs.push(of_token);
                }
            }
        }
        if i == 2 {
            tokens.truncate(CANCELLED_AFTER);
            logprobs.truncate(CANCELLED_AFTER);
        }
        assert_eq!((&answer.tokens, &answer.logprobs), (&tokens, &logprobs), "sequence {i}");
    }
}

#[test]
fn a_choir_repeats_itself() {
    let twice = [(); 2].map(|()| choir(&mut on_cpu(ROOMY), 12));
    assert_eq!(twice[0].answers, twice[1].answers);
    assert_eq!(twice[0].steps, (ROUNDS * VERSE) as u64, "a step of prompts in each round, the others decode");
    let distinct: std::collections::HashSet<_> =
        twice[0].answers.values().map(|answer| &answer.tokens).collect();
    assert_eq!(distinct.len(), ROUNDS * 12);
}
