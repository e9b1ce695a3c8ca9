//! The library's interface: what it answers by its several ways is one answer, and what goes wrong says so by its type.

use qernel::{Device, Error, Event, FinishReason, Message, Model, Request, SamplingParams};

const PROMPT: &str = "Write a haiku about the sea with the word forty-two";

fn model() -> Model {
    Model::options().device(Device::Cpu).context(256).open_haiku().unwrap()
}

#[test]
fn events_pieces_tokens_and_the_completion_are_one_answer() {
    let mut model = model();
    let whole = model.chat(PROMPT).seed(7).complete().unwrap();
    assert_eq!(whole.text.lines().count(), 3, "{:?}", whole.text);
    let pieces: Vec<String> = model.chat(PROMPT).seed(7).pieces().map(Result::unwrap).collect();
    assert!(pieces.len() > 3 && pieces.iter().all(|piece| !piece.is_empty()), "{pieces:?}");
    assert_eq!(pieces.concat(), whole.text);
    let tokens: Vec<u32> = model.chat(PROMPT).seed(7).tokens().map(Result::unwrap).collect();
    assert_eq!(tokens, whole.tokens);
    assert_eq!(model.decode(&tokens).unwrap(), whole.text);
    let mut events: Vec<Event> = model.chat(PROMPT).seed(7).into_iter().map(Result::unwrap).collect();
    let end = events.pop().unwrap();
    assert!(matches!(end, Event::Finished { reason: FinishReason::Stop, .. }), "{end:?}");
    assert!(events.iter().all(|event| matches!(event, Event::Token { .. })));
    assert_eq!(events.len(), whole.tokens.len());
    let another = model.chat(PROMPT).seed(8).complete().unwrap();
    assert_ne!(another.text, whole.text);
}

#[test]
fn an_answer_may_be_left_in_the_middle_and_the_model_asked_again() {
    let mut model = model();
    let first: Vec<u32> = model.chat(PROMPT).temperature(0.0).tokens().take(4).map(Result::unwrap).collect();
    let logits = model.logits(PROMPT).unwrap();
    let whole = model.chat(PROMPT).temperature(0.0).complete().unwrap();
    assert_eq!(whole.tokens[..4], first);
    assert_eq!(model.logits(PROMPT).unwrap(), logits);
    let engine = model.into_engine();
    assert_eq!((engine.num_sequences(), engine.pool().num_used()), ((0, 0), 0));
}

#[test]
fn logits_are_those_of_every_prefix() {
    let mut model = model();
    // More than are handed out at a time.
    let tokens: Vec<u32> = (10..50).collect();
    let logits = model.logits(tokens.clone()).unwrap();
    assert_eq!((logits.rows().len(), logits.vocab_size), (40, model.vocab_size()));
    for len in [1, 16, 17, 40] {
        let row = logits.rows().nth(len - 1).unwrap();
        let prefix = model.logits(&tokens[..len]).unwrap();
        let last = prefix.rows().next_back().unwrap();
        for (a, b) in row.iter().zip(last) {
            // Other numbers of rows in a step, so other orders of sums.
            assert!((a - b).abs() <= 1e-3 * b.abs().max(1.0), "after {len}: {a} and {b}");
        }
    }
}

#[test]
fn options_of_an_answer_reach_the_engine() {
    let mut model = model();
    let answer = model.generate("the sea").max_tokens(6).ignore_eos().logprobs(2).into_iter();
    let events: Vec<Event> = answer.map(Result::unwrap).collect();
    assert_eq!(events.len(), 7);
    for event in &events[..6] {
        let Event::Token { logprobs: Some(logprobs), .. } = event else { panic!("{event:?}") };
        assert_eq!(logprobs.top.len(), 2);
    }
    let text = model.chat(PROMPT).seed(7).complete().unwrap().text;
    let word = text.split_whitespace().nth(2).unwrap().to_owned();
    let cut = model.chat(PROMPT).seed(7).stop(&word).complete().unwrap();
    assert_eq!(cut.text, text[..text.find(&word).unwrap()]);
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let answers = [greedy.clone(), SamplingParams { seed: 99, ..greedy }]
        .map(|params| model.chat(PROMPT).sampling(params).complete().unwrap().text);
    assert_eq!(answers[0], answers[1], "without a draw the seed changes nothing");
}

#[test]
fn faults_have_types_and_say_what_to_do() {
    let missing = Model::open("no-such-file.gguf").err().unwrap();
    assert!(matches!(&missing, Error::Io { path, .. } if path.ends_with("no-such-file.gguf")), "{missing}");
    let options = Model::options().device(Device::Cpu);
    for bad in [
        options.clone().context(0),
        options.clone().max_num_sequences(0),
        options.clone().memory_fraction(1.5),
    ] {
        assert!(matches!(bad.open_haiku(), Err(Error::Request(_))), "{bad:?}");
    }
    let too_much = options.memory_fraction(1e-9).context(256).open_haiku().err().unwrap();
    assert!(matches!(too_much, Error::Memory(_)), "{too_much}");

    let mut model = model();
    let mut events = model.generate(Vec::new()).into_iter();
    assert!(matches!(events.next(), Some(Err(Error::Request(_)))));
    assert!(events.next().is_none());
    drop(events);
    assert!(matches!(model.generate(vec![1 << 30]).complete(), Err(Error::Request(_))));
    assert!(matches!(model.chat(PROMPT).temperature(f32::NAN).complete(), Err(Error::Request(_))));
    for tokens in [Vec::new(), vec![1 << 30], vec![5; 257]] {
        assert!(matches!(model.logits(tokens), Err(Error::Request(_))));
    }
    assert!(matches!(model.decode(&[1 << 30]), Err(Error::Request(_))));
    // Nothing of that has hurt it.
    assert_eq!(model.logits(vec![5; 256]).unwrap().rows().len(), 256);
    assert!(model.chat(PROMPT).complete().is_ok());
}

#[test]
fn logits_wait_for_requests_to_end() {
    let model = model();
    let tokens = model.encode_chat(vec![Message::new("user", PROMPT)]).unwrap();
    let mut engine = model.into_engine();
    let id = engine.submit(Request::new(tokens.clone())).unwrap();
    engine.step().unwrap();
    assert!(matches!(engine.logits(&tokens), Err(Error::Request(_))));
    engine.cancel(id);
    assert!(engine.logits(&tokens).is_ok());
}
