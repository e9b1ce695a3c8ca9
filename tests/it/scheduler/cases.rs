//! One thing at a time; the last with the real forward pass on the CPU.

use super::alone::expected;
use super::mock::*;
use qernel::Error;
use qernel::config::Config;
use qernel::cpu::CpuOps;
use qernel::dtype::Dtype;
use qernel::engine::{Completion, Engine, EngineConfig, Event, FinishReason, Request, Usage};
use qernel::formats::MatrixFormat;
use qernel::kv_format::{KvFormat, KvFormats};
use qernel::kv_layout::PAGE_SIZE;
use qernel::load::kv_layout;
use qernel::model::ModelRunner;
use qernel::ops::OpsConfig;
use qernel::sampler::{NO_TOKEN, SamplingParams, SamplingRow};
use qernel::scheduler::SequenceId;
use qernel::testing::TinyModel;
use qernel::weights::Weights;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A model that answers every prompt of `prompt` tokens with `answer`, and then with the end.
fn script(prompt: usize, answer: Vec<u32>) -> impl Fn(&[u32], &SamplingRow) -> u32 {
    move |visible, _| answer.get(visible.len() - prompt).copied().unwrap_or(TinyModel::IM_END)
}

#[test]
fn generating_sequences_come_first_and_prompts_fill_the_rest() {
    let mock = Mock::new(Shape { max_num_tokens: 8, ..ROOMY }, hash_model);
    let steps = Rc::clone(&mock.steps);
    let mut engine = engine(mock);
    let request = |len| Request { ignore_eos: true, ..greedy(vec![1; len], 4) };
    engine.submit(request(3)).unwrap();
    assert_eq!(engine.step().unwrap().len(), 1);
    for len in [20, 5] {
        engine.submit(request(len)).unwrap();
    }
    while engine.has_work() {
        engine.step().unwrap();
    }
    let expected: [&[usize]; 8] = [&[3], &[1, 7], &[1, 7], &[1, 6, 1], &[1, 4], &[1, 1], &[1, 1], &[1]];
    assert_eq!(*steps.borrow(), expected);
}

/// A sequence for which nothing can be drawn ends with an error; the others go on, and nobody begins with its pages.
#[test]
fn a_sequence_without_a_token_to_draw_ends_and_the_others_go_on() {
    for ahead in [false, true] {
        let answer = |visible: &[u32], _: &SamplingRow| match visible {
            [1, ..] if visible.len() >= 42 => NO_TOKEN,
            [2, ..] => NO_TOKEN,
            _ => 5,
        };
        let mut engine = engine(Mock::new(ROOMY, answer).ahead(ahead));
        // The first two prompts are computed at once.
        for (first, len) in [(1, 40), (2, 20), (3, 40)] {
            engine.submit(greedy(vec![first; len], 8)).unwrap();
        }
        let mut answers = HashMap::new();
        while engine.has_work() {
            collect(engine.step().unwrap(), &mut answers);
        }
        let ends = [0, 1, 2].map(|id| &answers[&SequenceId(id)]);
        assert_eq!(ends.map(|answer| answer.tokens.len()), [2, 0, 8]);
        let reasons = ends.map(|answer| answer.end.expect("it ended").0);
        assert_eq!(reasons, [FinishReason::Failed, FinishReason::Failed, FinishReason::Length]);
        assert_eq!(reasons.map(|reason| reason.error().is_some()), [true, true, false]);

        // The prompt of the second was never one to begin with; that of the third is.
        for (first, len, reused) in [(2, 20, 0), (3, 40, 39)] {
            let id = engine.submit(greedy(vec![first; len], 1)).unwrap();
            collect(engine.step().unwrap(), &mut answers);
            assert_eq!(answers[&id].end.expect("it ended").1.cached_tokens, reused, "the prompt of {first}s");
        }
    }
}

/// Of one sequence that ends by itself, one that is cut off, and one that joins: how many rows each step has, and how many of
/// the steps were queued before the tokens before were known.
#[test]
fn decode_steps_are_queued_ahead_until_something_else_comes() {
    let rows_of_steps = |ahead| {
        let answer = |visible: &[u32], _: &SamplingRow| {
            // The prompt of ones ends by itself after three tokens.
            if visible[0] == 1 && visible.len() == 5 { TinyModel::IM_END } else { 5 }
        };
        let mock = Mock::new(ROOMY, answer).ahead(ahead);
        let (steps, num_ahead) = (Rc::clone(&mock.steps), Rc::clone(&mock.num_ahead));
        let mut engine = engine(mock);
        engine.submit(greedy(vec![1; 3], 50)).unwrap();
        engine.submit(greedy(vec![2; 3], 8)).unwrap();
        let mut answers = HashMap::new();
        for _ in 0..3 {
            collect(engine.step().unwrap(), &mut answers);
        }
        engine.submit(greedy(vec![3; 4], 2)).unwrap();
        while engine.has_work() {
            collect(engine.step().unwrap(), &mut answers);
        }
        assert_eq!(engine.step().unwrap(), []);
        let lengths = [0, 1, 2].map(|id| answers[&SequenceId(id)].tokens.len());
        assert_eq!(lengths, [3, 8, 2]);
        (steps.take(), num_ahead.get())
    };
    let waiting: [&[usize]; 8] = [&[3, 3], &[1, 1], &[1, 1], &[1, 4], &[1, 1], &[1], &[1], &[1]];
    let (steps, num_ahead) = rows_of_steps(false);
    assert_eq!((steps, num_ahead), (waiting.map(<[_]>::to_vec).to_vec(), 0));
    // The first ends while a row of it is in flight, which is thrown away; the third joins behind that step.
    let queued: [&[usize]; 8] = [&[3, 3], &[1, 1], &[1, 1], &[1, 1], &[1, 4], &[1, 1], &[1], &[1]];
    let (steps, num_ahead) = rows_of_steps(true);
    assert_eq!(steps, queued.map(<[_]>::to_vec));
    assert_eq!(num_ahead, 4);
}

#[test]
fn penalties_need_the_tokens_before() {
    let mock = Mock::new(ROOMY, hash_model).ahead(true);
    let num_ahead = Rc::clone(&mock.num_ahead);
    let mut engine = engine(mock);
    let mut request = Request { ignore_eos: true, ..greedy(vec![4; 9], 20) };
    engine.submit(request.clone()).unwrap();
    run(&mut engine);
    assert_eq!(num_ahead.get(), 18, "all but the prompt and the step behind it, which follows a prefill");
    request.sampling.repeat_penalty = 1.5;
    let id = engine.submit(request.clone()).unwrap();
    assert_eq!(run(&mut engine)[&id].tokens, expected(&request, 512).0);
    assert_eq!(num_ahead.get(), 18);
}

#[test]
fn nobody_overtakes() {
    // The second needs three of four pages and waits for the first; the third would fit but came later.
    let mut engine = engine(Mock::new(Shape { num_pages: 4, ..ROOMY }, hash_model));
    let ids = [(2, 40, 20), (3, 90, 1), (4, 10, 1)].map(|(token, len, max_tokens)| {
        engine.submit(Request { ignore_eos: true, ..greedy(vec![token; len], max_tokens) }).unwrap()
    });
    let mut ended = Vec::new();
    while engine.has_work() {
        ended.extend(engine.step().unwrap().iter().filter_map(|event| match event {
            Event::Finished { id, .. } => Some(*id),
            Event::Prompt { .. } | Event::Token { .. } => None,
        }));
    }
    assert_eq!(ended, ids);
}

#[test]
fn the_youngest_gives_its_pages_up_and_nothing_else_changes() {
    // Three prompts of one page each and a pool of four pages: all start, then all need a second page.
    let shape = Shape { num_pages: 4, max_model_len: 128, ..ROOMY };
    // The second gives two pages up for one that the first needs: the end of what it had is lost, the other page is still there.
    assert_eq!(run_crowded(shape, false) - run_crowded(shape, true), PAGE_SIZE);
}

/// Tokens of the second sequence that were computed before it drew one, the first time and anew.
fn run_crowded(shape: Shape, prefix_cache: bool) -> usize {
    let mut engine = engine_with(Mock::new(shape, hash_model), prefix_cache);
    let requests = [3, 4, 5].map(|token| Request { ignore_eos: true, ..greedy(vec![token; 30], 60) });
    let ids = requests.each_ref().map(|request| engine.submit(request.clone()).unwrap());
    let mut prefill_tokens = HashMap::new();
    let mut answers = HashMap::new();
    while engine.has_work() {
        let events = engine.step().unwrap();
        for event in &events {
            if let Event::Finished { id, timings, .. } = event {
                prefill_tokens.insert(*id, timings.prefill_tokens);
            }
        }
        collect(events, &mut answers);
    }
    for (id, request) in ids.iter().zip(&requests) {
        let (tokens, text, reason) = expected(request, 128);
        let answer = &answers[id];
        assert_eq!((&answer.tokens, &answer.text, answer.end.unwrap().0), (&tokens, &text, reason));
        assert_eq!(answer.end.unwrap().1.completion_tokens, 60);
    }
    assert_eq!(prefill_tokens[&ids[0]], 30, "the oldest is never interrupted");
    assert!(prefill_tokens[&ids[2]] > 30, "the youngest was computed anew");
    assert_eq!(engine.pool().num_free(), 4);
    prefill_tokens[&ids[1]]
}

#[test]
fn a_stop_string_ends_the_answer_across_tokens() {
    let answer = ids("one\n\nU").into_iter().chain(ids("ser")).chain(ids(": two")).collect::<Vec<_>>();
    let until = ids("one\n\nU").len() + ids("ser").len() + 1;
    let mut engine = engine(Mock::new(ROOMY, script(2, answer.clone())));
    let request = Request { stop: vec!["\n\nUser:".into(), "never".into()], ..greedy(vec![1, 2], 100) };
    engine.submit(request).unwrap();
    let mut texts = Vec::new();
    let mut tokens = Vec::new();
    let mut end = None;
    while engine.has_work() {
        for event in engine.step().unwrap() {
            texts.push(event.text().to_owned());
            match event {
                Event::Prompt { .. } => {}
                Event::Token { token, .. } => tokens.push(token),
                Event::Finished { reason, usage, .. } => end = Some((reason, usage)),
            }
        }
    }
    assert_eq!(texts.concat(), "one");
    assert_eq!(tokens, answer[..until]);
    let usage = Usage { prompt_tokens: 2, completion_tokens: until, cached_tokens: 0 };
    assert_eq!(end, Some((FinishReason::Stop, usage)));
}

#[test]
fn text_comes_in_whole_characters_and_nothing_withheld_is_lost() {
    let answer = ids("naïve 中😀 \n\nUs");
    let mut engine = engine(Mock::new(ROOMY, script(1, answer.clone())));
    let request = Request { stop: vec!["\n\nUser:".into()], ..greedy(vec![7], 100) };
    engine.submit(request).unwrap();
    let mut answers = HashMap::new();
    while engine.has_work() {
        let events = engine.step().unwrap();
        assert!(events.iter().all(|event| !event.text().contains('\u{fffd}')), "{events:?}");
        collect(events, &mut answers);
    }
    let found = answers.into_values().next().unwrap();
    assert_eq!(found.text, "naïve 中😀 \n\nUs");
    assert_eq!(found.tokens, [answer, vec![TinyModel::IM_END]].concat());
    assert_eq!(found.end.unwrap().0, FinishReason::Stop);
}

#[test]
fn every_limit_has_its_reason() {
    let reason = |request: Request| {
        let mut engine = engine(Mock::new(Shape { max_model_len: 40, ..ROOMY }, script(10, ids("abc"))));
        engine.submit(request).unwrap();
        let answer = run(&mut engine).into_values().next().unwrap();
        let (reason, usage) = answer.end.unwrap();
        (reason, usage.completion_tokens, answer.text)
    };
    let base = greedy(vec![1; 10], 100);
    assert_eq!(reason(base.clone()), (FinishReason::Stop, 4, "abc".into()));
    assert_eq!(
        reason(Request { max_tokens: Some(2), ..base.clone() }),
        (FinishReason::Length, 2, "ab".into())
    );
    // The answer that is exactly as long as allowed ended by itself.
    assert_eq!(
        reason(Request { max_tokens: Some(4), ..base.clone() }),
        (FinishReason::Stop, 4, "abc".into())
    );
    let endless = Request { ignore_eos: true, ..base };
    assert_eq!(reason(endless.clone()), (FinishReason::Context, 30, "abc".into()));
    assert_eq!(
        reason(Request { max_tokens: None, ..endless.clone() }),
        (FinishReason::Context, 30, "abc".into())
    );
    assert_eq!(reason(Request { text: false, ..endless }), (FinishReason::Context, 30, String::new()));
}

/// Serves one request, checks its answer, and returns it.
fn serve(engine: &mut Engine, prompt: &[u32], max_tokens: usize) -> Completion {
    let request = Request { ignore_eos: true, ..greedy(prompt.to_vec(), max_tokens) };
    let alone = expected(&request, engine.max_model_len());
    let completion =
        engine.run_to_end(request, &AtomicBool::new(false), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((&completion.tokens, &completion.text), (&alone.0, &alone.1));
    assert_eq!(completion.timings.prefill_tokens + completion.usage.cached_tokens, prompt.len());
    assert_eq!(engine.pool().num_used(), 0);
    completion
}

#[test]
fn a_conversation_computes_only_what_is_new() {
    let mut engine = engine(Mock::new(ROOMY, hash_model));
    let first = serve(&mut engine, &[5; 50], 20);
    assert_eq!(first.usage.cached_tokens, 0);
    assert_eq!(engine.pool().num_cached(), 3, "69 tokens are in the cache: the last one was never computed");

    let history = [&[5; 50], &first.tokens[..], &[9; 7]].concat();
    assert_eq!(serve(&mut engine, &history, 20).usage.cached_tokens, 69);

    // An edited history is computed from the page on where it differs.
    let edited = [&history[..60], &[8; 40]].concat();
    assert_eq!(serve(&mut engine, &edited, 20).usage.cached_tokens, 32);
    // The same once more has its full pages, and of the unfinished one all but the last token, which is always computed.
    assert_eq!(serve(&mut engine, &edited, 20).usage.cached_tokens, 99);
    // The first conversation is where it was left.
    assert_eq!(serve(&mut engine, &history, 20).usage.cached_tokens, 64);

    let mut without = engine_with(Mock::new(ROOMY, hash_model), false);
    for _ in 0..2 {
        assert_eq!(serve(&mut without, &history, 20).usage.cached_tokens, 0);
        assert_eq!(without.pool().num_cached(), 0);
    }
}

#[test]
fn sequences_that_begin_alike_share_pages_while_they_run() {
    let mut engine = engine(Mock::new(Shape { max_num_tokens: 128, ..ROOMY }, hash_model));
    let request = |last| {
        let prompt = [&[5; 70][..], &[last]].concat();
        Request { ignore_eos: true, ..greedy(prompt, 20) }
    };
    let mut answers = HashMap::new();
    let first = engine.submit(request(0)).unwrap();
    collect(engine.step().unwrap(), &mut answers);
    assert_eq!(engine.pool().num_used(), 3);
    let ids: Vec<_> = (1..6).map(|last| engine.submit(request(last)).unwrap()).collect();
    collect(engine.step().unwrap(), &mut answers);
    assert_eq!(engine.pool().num_used(), 3 + 5, "two full pages of all, and each one's last");
    while engine.has_work() {
        collect(engine.step().unwrap(), &mut answers);
    }
    for (last, id) in (1..).zip(&ids) {
        assert_eq!(answers[id].tokens, expected(&request(last), 512).0);
        assert_eq!(answers[id].end.unwrap().1.cached_tokens, 64);
    }
    assert_eq!(answers[&first].end.unwrap().1.cached_tokens, 0);
    assert_eq!(engine.pool().num_used(), 0);
}

#[test]
fn what_nobody_used_for_longest_is_given_up_for_others() {
    let mut engine = engine(Mock::new(Shape { num_pages: 8, max_model_len: 256, ..ROOMY }, hash_model));
    for token in [1, 2] {
        serve(&mut engine, &[token; 100], 10); // 4 pages each
    }
    assert_eq!((engine.pool().num_free(), engine.pool().num_cached()), (8, 8));
    assert_eq!(serve(&mut engine, &[1; 97], 1).usage.cached_tokens, 96);
    // Three pages, and the oldest three are now the end of the second.
    serve(&mut engine, &[3; 60], 10);
    assert_eq!(engine.pool().num_cached(), 8);
    assert_eq!(serve(&mut engine, &[2; 97], 1).usage.cached_tokens, 32);
    // Those of the first were used before the third's.
    assert_eq!(serve(&mut engine, &[1; 97], 1).usage.cached_tokens, 32);
}

#[test]
fn what_cannot_be_served_is_refused_with_its_numbers() {
    let mut engine = engine(Mock::new(Shape { num_pages: 3, max_model_len: 400, ..ROOMY }, hash_model));
    let mut refusal = |request| match engine.submit(request) {
        Err(Error::Request(text)) => text,
        other => panic!("{other:?}"),
    };
    let good = greedy(vec![1], 5);
    assert!(refusal(greedy(vec![], 5)).contains("empty"));
    assert!(refusal(greedy(vec![1, 1000], 5)).contains("token 1 of the prompt is 1000"));
    assert!(refusal(greedy(vec![1], 0)).contains("max_tokens"));
    assert!(refusal(Request { stop: vec![String::new()], ..good.clone() }).contains("stop string"));
    let sampling = SamplingParams { top_p: 2.0, ..Default::default() };
    assert!(refusal(Request { sampling, ..good }).contains("top_p"));
    let too_long = refusal(greedy(vec![1; 96], 1));
    for part in ["96 tokens", "the model allows 400", "3 pages of 32"] {
        assert!(too_long.contains(part), "{too_long}");
    }
    let too_much = refusal(greedy(vec![1; 50], 60));
    for part in ["110 tokens", "4 pages", "96 tokens", "at most 46"] {
        assert!(too_much.contains(part), "{too_much}");
    }
    assert!(!engine.has_work());
    engine.submit(greedy(vec![1; 50], 46)).unwrap();
    engine.submit(Request { max_tokens: None, ..greedy(vec![1; 95], 1) }).unwrap();
    run(&mut engine);
    assert_eq!(engine.pool().num_free(), 3);
}

#[test]
fn ids_need_no_vocabulary() {
    let mock = Mock::new(ROOMY, script(1, vec![3, TinyModel::IM_END, 4]));
    let mut engine = Engine::new(Box::new(mock), None, EngineConfig::default()).unwrap();
    assert!(engine.submit(greedy(vec![1], 5)).is_err(), "text needs a vocabulary");
    engine.submit(Request { text: false, ..greedy(vec![1], 4) }).unwrap();
    let answer = run(&mut engine).into_values().next().unwrap();
    assert_eq!(answer.tokens, [3, TinyModel::IM_END, 4, TinyModel::IM_END]);
}

#[test]
fn one_request_can_be_stopped_from_outside() {
    let mut engine = engine(Mock::new(ROOMY, hash_model));
    let request = || Request { ignore_eos: true, ..greedy(vec![1; 5], 300) };
    let other = engine.submit(greedy(vec![2; 5], 3)).unwrap();

    let flag = AtomicBool::new(false);
    let mut seen = 0;
    let completion = engine.run_to_end(request(), &flag, |event| {
        seen += 1;
        flag.store(matches!(event, Event::Token { .. }) && seen >= 7, Ordering::Relaxed);
        ControlFlow::Continue(())
    });
    let completion = completion.unwrap();
    assert_eq!((completion.reason, completion.tokens.len(), seen), (FinishReason::Cancelled, 7, 8));

    let mut seen = 0;
    let broken = engine.run_to_end(request(), &AtomicBool::new(false), |_| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((broken.unwrap().reason, seen), (FinishReason::Cancelled, 3));
    let before = engine.run_to_end(request(), &AtomicBool::new(true), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((before.reason, before.tokens.len()), (FinishReason::Cancelled, 0));

    // The events of the sequence that ran beside them are still there.
    assert_eq!(run(&mut engine)[&other].tokens, expected(&greedy(vec![2; 5], 3), 512).0);
    assert_eq!(engine.pool().num_free(), ROOMY.num_pages);
}

#[test]
fn a_failed_step_is_taken_again_or_ends_the_request() {
    let mock = Mock::new(ROOMY, hash_model);
    let failures = Rc::clone(&mock.failures);
    let mut engine = engine(mock);
    let request = greedy(vec![4; 100], 30);
    let id = engine.submit(request.clone()).unwrap();
    failures.set(1);
    assert!(matches!(engine.step(), Err(Error::Device(_))));
    assert_eq!(run(&mut engine)[&id].tokens, expected(&request, 512).0);

    failures.set(1);
    let error =
        engine.run_to_end(request, &AtomicBool::new(false), |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, Error::Device(_)));
    assert!(!engine.has_work());
    assert_eq!(engine.pool().num_free(), ROOMY.num_pages);
}

// With the real forward pass on the CPU.

fn cpu_engine(architecture: &'static str, formats: KvFormats, shape: Shape, prefix_cache: bool) -> Engine {
    let gguf = TinyModel { architecture, format: MatrixFormat::Bf16, ..TinyModel::default() }.gguf();
    let config = Config::from_gguf(&gguf).unwrap();
    let weights = Weights::from_gguf(&gguf, &config).unwrap();
    let mock = Mock::new(shape, hash_model); // for its limits
    let ops_config = OpsConfig::new(&config, shape.max_model_len, mock.limits);
    let layout = kv_layout(&config, formats, mock.layout.num_pages).unwrap();
    let ops = CpuOps::new(&ops_config).unwrap();
    let runner = ModelRunner::new(ops, &weights, &config, &ops_config, layout, &mut |_, _| ()).unwrap();
    let runner = runner.with_checkpoints(8).unwrap();
    let config = EngineConfig { prefix_cache, ..EngineConfig::default() };
    Engine::new(Box::new(runner), Some(tokenizer()), config).unwrap()
}

#[test]
fn on_the_cpu_neither_a_batch_nor_the_prefix_cache_changes_a_token() {
    neither_a_batch_nor_the_prefix_cache_changes_a_token("qwen2", Dtype::F32.into());
}

/// States in slots go with their sequences, and those that begin as another did begin with a copy of its state.
#[test]
fn on_the_cpu_neither_a_batch_nor_checkpoints_change_a_token_of_a_hybrid() {
    neither_a_batch_nor_the_prefix_cache_changes_a_token("qwen35", Dtype::F32.into());
}

/// Pages that are shared stay in their format.
#[test]
fn on_the_cpu_neither_a_batch_nor_the_prefix_cache_changes_a_token_with_a_cache_of_eight_bits() {
    let floats = KvFormat::Float(Dtype::F16);
    neither_a_batch_nor_the_prefix_cache_changes_a_token("qwen2", KvFormats { k: floats, v: KvFormat::Q8_0 });
    neither_a_batch_nor_the_prefix_cache_changes_a_token("qwen35", KvFormats::both(KvFormat::Q8_0));
}

fn neither_a_batch_nor_the_prefix_cache_changes_a_token(architecture: &'static str, formats: KvFormats) {
    let shape = Shape { num_pages: 8, max_num_tokens: 256, max_num_sequences: 1, max_model_len: 256 };
    let requests: Vec<Request> = (0..12u32)
        .map(|i| {
            let sampling = SamplingParams {
                temperature: (i % 3) as f32 * 0.5,
                repeat_penalty: 1.0 + (i % 2) as f32 * 0.2,
                seed: i.into(),
                ..Default::default()
            };
            // Odd ones begin as the one before does.
            let prompt = (0..5 + 13 * i).map(|j| (j * j + 31 * (i / 2)) % 256).collect();
            Request { sampling, max_tokens: Some(24), ignore_eos: true, ..Request::new(prompt) }
        })
        .collect();
    let mut engine = cpu_engine(architecture, formats, shape, false);
    let never = AtomicBool::new(false);
    let alone: Vec<_> = (requests.iter().cloned())
        .map(|request| engine.run_to_end(request, &never, |_| ControlFlow::Continue(())).unwrap())
        .collect();
    // Little memory and short chunks: prompts are cut, sequences give their pages up. Twice, so that the second time much of
    // it is in the cache.
    for prefix_cache in [false, true] {
        let shape = Shape { max_num_tokens: 19, max_num_sequences: 6, ..shape };
        let mut engine = cpu_engine(architecture, formats, shape, prefix_cache);
        let mut cached_tokens = 0;
        for _ in 0..2 {
            let ids: Vec<_> =
                requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
            let answers = run(&mut engine);
            assert_eq!(engine.pool().num_free(), shape.num_pages);
            for (id, alone) in ids.iter().zip(&alone) {
                assert_eq!(answers[id].tokens, alone.tokens, "{id}");
                assert_eq!(answers[id].text, alone.text, "{id}");
                cached_tokens += answers[id].end.unwrap().1.cached_tokens;
            }
        }
        assert_eq!(cached_tokens > 0, prefix_cache, "{cached_tokens}");
    }
}
