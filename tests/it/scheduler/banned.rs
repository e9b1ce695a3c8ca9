//! Texts that answers go around.

use super::alone::expected;
use super::mock::*;
use qernel::engine::{EngineConfig, FinishReason, Request};
use qernel::kv_layout::PAGE_SIZE;
use qernel::sampler::SamplingParams;
use std::rc::Rc;

/// Goes on with the letters of `text` in turn, whatever came before, and where one may not be drawn, with `_`.
fn letters(text: &'static str, prompt_len: usize) -> impl Fn(&[u32], &qernel::sampler::SamplingRow) -> u32 {
    move |visible, row| {
        let letter = text.as_bytes()[(visible.len() - prompt_len) % text.len()];
        let token = ids(std::str::from_utf8(&[letter]).unwrap())[0];
        let may_draw = row.allowed.as_ref().is_none_or(|allowed| allowed.contains(token));
        if may_draw { token } else { ids("_")[0] }
    }
}

fn banning(banned: &[&str], max_tokens: usize) -> Request {
    let banned_strings = banned.iter().map(|&text| text.to_owned()).collect();
    Request { banned_strings, ..greedy(vec![1; 3], max_tokens) }
}

/// The token in which a text begins is taken back, and what comes then may lead to another one that begins before it: here `bc` makes `ac` from
/// what was left certain by it.
#[test]
fn an_answer_goes_back_to_where_a_text_began() {
    for (banned, expected) in [
        (&["cd"][..], "ab_defab"),
        (&["CDE", "x"], "ab_defab"),
        (&["cd", "b_"], "a__defab"),
        (&["abcdefab", "b"], "a_cdefa_"),
        (&["f"], "abcde_ab"),
        (&["fabc"], "abcdefab"),
        (&["a"], "_bcdef_b"),
    ] {
        let mut engine = engine(Mock::new(ROOMY, letters("abcdef", 3)));
        let id = engine.submit(banning(banned, 8)).unwrap();
        let answer = &run(&mut engine)[&id];
        assert_eq!(answer.text, expected, "{banned:?}");
        assert_eq!(answer.end.unwrap().0, FinishReason::Length);
    }
}

/// Events of tokens that may be taken back are held, and no longer than that.
#[test]
fn nothing_of_a_banned_text_goes_out() {
    let mut engine = engine(Mock::new(ROOMY, letters("abcdef", 3)));
    engine.submit(banning(&["bcdx"], 7)).unwrap();
    let mut sizes = Vec::new();
    while engine.has_work() {
        let events = engine.step().unwrap();
        sizes.push(events.iter().map(|event| event.text().to_owned()).collect::<String>());
    }
    assert_eq!(sizes, ["a", "", "", "", "bcde", "f", "a"]);
}

/// What is left of a sequence is taken from the cache: a row or so is computed, of a recurrent model those behind the last copy of its state.
#[test]
fn going_back_computes_little() {
    let len = 2 * PAGE_SIZE + 5;
    for (recurrent, prefix_cache, most) in
        [(None, true, 1), (Some(8), true, PAGE_SIZE), (None, false, len + 1)]
    {
        let mut mock = Mock::new(ROOMY, letters("abcdef", len));
        if let Some(count) = recurrent {
            mock = mock.recurrent(count);
        }
        let steps = Rc::clone(&mock.steps);
        let mut engine = engine_of(mock, EngineConfig { prefix_cache, ..EngineConfig::default() });
        let id = engine.submit(Request { prompt: vec![1; len], ..banning(&["bc"], 6) }).unwrap();
        let answer = &run(&mut engine)[&id];
        assert_eq!(answer.text, "a_cdef");
        let rows: Vec<usize> = steps.borrow().iter().map(|rows| rows.iter().sum()).collect();
        let computed: usize = rows.iter().sum();
        // The prompt, its answer but the last token, the one that was taken back, and what was computed anew.
        assert!((len + 6..=len + 6 + most).contains(&computed), "{recurrent:?} {prefix_cache}: {rows:?}");
    }
}

/// Where all that can be drawn leads to a banned text, the answer ends, and says so.
#[test]
fn an_answer_without_a_way_ends() {
    let mut engine = engine(Mock::new(ROOMY, |_, row| {
        let letters = [ids("a")[0], ids("b")[0]];
        let may_draw = |token: &u32| row.allowed.as_ref().is_none_or(|allowed| allowed.contains(*token));
        letters.into_iter().find(may_draw).unwrap_or(qernel::sampler::NO_TOKEN)
    }));
    let id = engine.submit(banning(&["a", "b"], 6)).unwrap();
    let answer = &run(&mut engine)[&id];
    assert_eq!((answer.text.as_str(), answer.end.unwrap().0), ("", FinishReason::Constraint));
}

/// Two that begin alike are banned apart, whoever else runs: the seed alone says how each goes on.
#[test]
fn answers_go_back_apart() {
    let mut engine = engine(Mock::new(ROOMY, hash_model));
    let request = |index| {
        let sampling = SamplingParams { seed: 9, ..SamplingParams::default() };
        let banned_strings = vec!["aa".into(), "bc".into(), "the".into()];
        Request {
            sampling,
            banned_strings,
            index,
            ignore_eos: true,
            max_tokens: Some(60),
            ..Request::new(vec![1; 40])
        }
    };
    let ids = [0, 1, 2].map(|index| engine.submit(request(index)).unwrap());
    let answers = run(&mut engine);
    for (index, id) in (0..).zip(ids) {
        let (tokens, text, _) = expected(&request(index), ROOMY.max_model_len);
        assert_eq!((&answers[&id].tokens, &answers[&id].text), (&tokens, &text));
    }
    assert_ne!(answers[&ids[0]].text, answers[&ids[1]].text);
}
