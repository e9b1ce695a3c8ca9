//! What a request must give when it is alone.

use super::mock::*;
use qernel::engine::{FinishReason, Request, StopMatcher};
use qernel::sampler::{SamplingRow, TokenMask};
use qernel::testing::TinyModel;
use qernel::tokenizer::StreamDecoder;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a request must give: a loop over one sequence, without pages, batches or streams.
pub fn expected(request: &Request, max_model_len: usize) -> (Vec<u32>, String, FinishReason) {
    let tokenizer = tokenizer();
    let mut tokens = request.prompt.clone();
    // What may not be drawn in a place.
    let mut forbidden: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    loop {
        let counted = if request.penalize_prompt { &tokens[..] } else { &tokens[request.prompt.len()..] };
        let window = match request.sampling.repeat_last_n {
            -1 => counted,
            n => &counted[counted.len().saturating_sub(n as usize)..],
        };
        let mut counts = BTreeMap::new();
        if request.sampling.has_penalties() {
            window.iter().for_each(|&token| *counts.entry(token).or_default() += 1);
        }
        let tried = forbidden.get(&tokens.len()).cloned().unwrap_or_default();
        let mut words = vec![u32::MAX; TinyModel::VOCAB_SIZE.div_ceil(32)];
        tried.iter().for_each(|&token| words[token as usize / 32] &= !(1 << (token % 32)));
        let row = SamplingRow {
            index: request.index + ((tried.len() as u32) << 16),
            counts: counts.into_iter().collect(),
            allowed: (!tried.is_empty()).then(|| Arc::new(TokenMask::from_words(words))),
            ..SamplingRow::new(request.sampling.clone(), tokens.len() as u32)
        };
        tokens.push(hash_model(&tokens, &row));
        let answer = &tokens[request.prompt.len()..];
        let is_end = !request.ignore_eos && tokenizer.is_end_of_generation(answer[answer.len() - 1]);
        let mut text = tokenizer.decode(answer, true).unwrap();
        // Which of several stop strings: the one that is complete first, then the longest.
        let ends =
            request.stop.iter().filter_map(|stop| text.find(stop).map(|start| (start + stop.len(), start)));
        let stop = ends.min();
        let reason = if stop.is_some() || is_end {
            Some(FinishReason::Stop)
        } else if Some(answer.len()) == request.max_tokens {
            Some(FinishReason::Length)
        } else if tokens.len() == max_model_len {
            Some(FinishReason::Context)
        } else {
            None
        };
        text.truncate(stop.map_or(text.len(), |(_, start)| start));
        if let Some(place) = first_of_banned(request, answer, &text, reason.is_some()) {
            let place = request.prompt.len() + place;
            forbidden.split_off(&(place + 1));
            forbidden.entry(place).or_default().push(tokens[place]);
            tokens.truncate(place);
        } else if let Some(reason) = reason {
            return (answer.to_vec(), if request.text { text } else { String::new() }, reason);
        }
    }
}

/// The token of an answer in which a banned string begins that its text has.
fn first_of_banned(request: &Request, answer: &[u32], text: &str, is_last: bool) -> Option<usize> {
    // What may yet become a stop string is not looked at, nor is a character that is not complete.
    let mut decoder = StreamDecoder::new(tokenizer(), true);
    let whole: String = answer.iter().map(|&token| decoder.push(token)).collect();
    let certain = StopMatcher::new(request.stop.clone()).push(&whole).0;
    let text = if is_last { text } else { &certain }.to_ascii_lowercase();
    let found = request.banned_strings.iter().filter_map(|banned| {
        let start = text.find(&banned.to_ascii_lowercase())?;
        Some((start + banned.len(), start))
    });
    let (_, start) = found.min()?;
    // The first whose text goes beyond, or which begins the character there.
    let goes_beyond = |len: &usize| {
        let mut decoder = StreamDecoder::new(tokenizer(), true);
        let before: usize = answer[..*len].iter().map(|&token| decoder.push(token).len()).sum();
        before > start || (before == start && decoder.is_within_character())
    };
    Some((1..=answer.len()).find(goes_beyond).expect("the text is the answer's") - 1)
}
