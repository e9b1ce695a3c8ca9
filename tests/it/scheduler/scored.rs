//! Prompts whose tokens are scored, in the steps of all others.

use super::mock::*;
use qernel::engine::Request;
use std::collections::HashMap;
use std::rc::Rc;

/// Rows of a step have logits as far as there is room: others draw in the same steps meanwhile, and what is known of a prompt is the same as
/// if it were alone, also where its beginning is in the prefix cache.
#[test]
fn prompts_are_scored_beside_others() {
    let mock = Mock::new(Shape { max_num_sequences: 4, ..ROOMY }, hash_model);
    let steps = Rc::clone(&mock.steps);
    let mut engine = engine(mock);
    let prompt: Vec<u32> = (0..70).map(|i| i % 50).collect();
    engine.submit(Request { ignore_eos: true, ..greedy(prompt.clone(), 40) }).unwrap();
    let mut answers = HashMap::new();
    for _ in 0..4 {
        collect(engine.step().unwrap(), &mut answers);
    }
    let before = steps.borrow().len();
    let scored = Request { prompt_logprobs: Some(3), ..greedy(prompt.clone(), 2) };
    let id = engine.submit(scored).unwrap();
    while engine.has_work() {
        collect(engine.step().unwrap(), &mut answers);
    }
    assert_eq!(answers[&id].prompt_logprobs, Some(prompt_logprobs(&prompt, 3)));
    assert_eq!(answers[&id].end.unwrap().1.cached_tokens, 0);
    // Four rows of logits: the one who generates draws in each step, and three are left for the prompt.
    let of_prompt: Vec<usize> =
        steps.borrow()[before..].iter().filter_map(|rows| rows.get(1).copied()).collect();
    assert_eq!(of_prompt[..24], [[3; 23].as_slice(), &[1]].concat());
    assert!(steps.borrow()[before..].iter().take(24).all(|rows| rows[0] == 1));
}

#[test]
fn a_prompt_of_one_token_has_nothing_to_score() {
    let mut engine = engine(Mock::new(ROOMY, hash_model));
    let id = engine.submit(Request { prompt_logprobs: Some(3), ..greedy(vec![7], 3) }).unwrap();
    assert_eq!(run(&mut engine)[&id].prompt_logprobs, Some(Vec::new()));
}
