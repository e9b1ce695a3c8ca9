//! The newest tokens of a sequence, counted for the sampler's penalties.

use crate::sampler::SamplingParams;
use std::collections::BTreeMap;

/// Counts of the tokens in the penalty window: the newest `repeat_last_n` of prompt and answer together. llama.cpp's
/// programs have its sampler accept the prompt too, for these penalties.
#[derive(Clone, Debug)]
pub(super) struct PenaltyWindow {
    length: usize,
    counts: BTreeMap<u32, u32>,
}

impl PenaltyWindow {
    /// The window at the end of `tokens`; `None` where no penalty is on.
    pub fn new(params: &SamplingParams, tokens: &[u32]) -> Option<Self> {
        // -1 is the whole context.
        let length = usize::try_from(params.repeat_last_n).unwrap_or(usize::MAX);
        let mut window = Self { length, counts: BTreeMap::new() };
        for &token in &tokens[tokens.len().saturating_sub(length)..] {
            *window.counts.entry(token).or_default() += 1;
        }
        params.has_penalties().then_some(window)
    }

    /// Moves the window on by one token, the last of `tokens`.
    pub fn advance(&mut self, tokens: &[u32]) {
        let [before @ .., newest] = tokens else { return };
        *self.counts.entry(*newest).or_default() += 1;
        let Some(oldest) = before.len().checked_sub(self.length) else { return };
        let oldest = tokens[oldest];
        if let Some(count) = self.counts.get_mut(&oldest) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
    }

    /// As in [`SamplingRow::counts`](crate::sampler::SamplingRow::counts).
    pub fn counts(&self) -> Vec<(u32, u32)> {
        self.counts.iter().map(|(&token, &count)| (token, count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_on_equals_counting_anew() {
        let tokens: Vec<u32> = (0..40u32).map(|i| i * i % 7).collect();
        for repeat_last_n in [-1, 1, 2, 5, 39, 40, 64] {
            let params = SamplingParams { repeat_last_n, presence_penalty: 0.5, ..Default::default() };
            let mut window = PenaltyWindow::new(&params, &tokens[..3]).unwrap();
            for len in 4..=tokens.len() {
                window.advance(&tokens[..len]);
                let anew = PenaltyWindow::new(&params, &tokens[..len]).unwrap();
                assert_eq!(window.counts(), anew.counts(), "the last {repeat_last_n} of {len}");
                let counted: u32 = window.counts().iter().map(|&(_, count)| count).sum();
                let expected = usize::try_from(repeat_last_n).map_or(len, |n| n.min(len));
                assert_eq!(counted as usize, expected);
            }
        }
        let off = SamplingParams { repeat_last_n: 0, presence_penalty: 0.5, ..Default::default() };
        assert!(PenaltyWindow::new(&off, &tokens).is_none());
        assert!(PenaltyWindow::new(&SamplingParams::default(), &tokens).is_none());
    }
}
