//! What the host does with logits: draws of rows with a [`SamplerChain`](super::SamplerChain), the samplers one after the other in the
//! row's order; and the steps that the CPU's sampler takes too.

use super::{
    HostRow, Mirostat, NO_TOKEN, SamplerKind, SamplingParams, SamplingRow, TokenMask, philox4x32_10,
};

/// Tokens that may yet be drawn, and their logits.
type Candidates = Vec<(u32, f32)>;

/// Words of the generator's counter that say what a number is for.
const FOR_TOKEN: u32 = 0;
const FOR_XTC: u32 = 1;

/// Draws one token from the logits of a row, which it overwrites. Biases and masks come first, then the samplers; a temperature of 0 or
/// less leaves the likeliest token that is left. [`NO_TOKEN`] if a logit of what may be drawn is NaN or infinite, or all are -inf.
pub fn sample(logits: &mut [f32], row: &SamplingRow, host: &HostRow) -> u32 {
    for &(token, bias) in &host.chain.logit_bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    if let Some(allowed) = &row.allowed {
        keep_allowed(logits, allowed);
    }
    if !logits.iter().all(|&logit| logit < f32::INFINITY) {
        return NO_TOKEN;
    }
    if let Some(mirostat) = host.chain.mirostat {
        let mut candidates = all(logits);
        temperature(&mut candidates, row.params.temperature);
        return if candidates.is_empty() { NO_TOKEN } else { draw_mirostat(candidates, row, host, mirostat) };
    }
    // Both change logits of tokens that other samplers may have left out.
    let mut candidates = None;
    for &kind in &host.chain.order {
        match kind {
            SamplerKind::Penalties => {
                on_logits(&mut candidates, logits, |logits| {
                    apply_penalties(logits, &row.params, &row.counts)
                });
            }
            SamplerKind::Dry => on_logits(&mut candidates, logits, |logits| {
                for &(token, penalty) in &host.repetitions {
                    if let Some(logit) = logits.get_mut(token as usize) {
                        *logit -= penalty;
                    }
                }
            }),
            _ => truncate(candidates.get_or_insert_with(|| all(logits)), kind, row, host),
        }
    }
    let candidates = candidates.unwrap_or_else(|| all(logits));
    if candidates.is_empty() { NO_TOKEN } else { draw(candidates, number(row, FOR_TOKEN)).0 }
}

/// Replaces the logits of tokens outside `allowed` by -inf.
pub fn keep_allowed(logits: &mut [f32], allowed: &TokenMask) {
    for (id, logit) in logits.iter_mut().enumerate() {
        if !allowed.contains(id as u32) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// The smallest id among the largest logits.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best.0 as u32
}

/// `logit = logit / repeat` where positive, `logit * repeat` where not, then minus `count * frequency + presence`, for
/// every `(token, count)`.
pub fn apply_penalties(logits: &mut [f32], params: &SamplingParams, counts: &[(u32, u32)]) {
    for &(token, count) in counts {
        let Some(logit) = logits.get_mut(token as usize) else { continue };
        let scaled =
            if *logit > 0.0 { *logit / params.repeat_penalty } else { *logit * params.repeat_penalty };
        *logit = scaled - count as f32 * params.frequency_penalty - params.presence_penalty;
    }
}

/// All tokens that may be drawn.
fn all(logits: &[f32]) -> Candidates {
    (0..).zip(logits.iter().copied()).filter(|&(_, logit)| logit > f32::NEG_INFINITY).collect()
}

/// Changes logits, those of `candidates` where there are some already.
fn on_logits(candidates: &mut Option<Candidates>, logits: &mut [f32], change: impl FnOnce(&mut [f32])) {
    if let Some(candidates) = candidates.as_deref_mut() {
        candidates.iter().for_each(|&(token, logit)| logits[token as usize] = logit);
    }
    change(logits);
    if let Some(candidates) = candidates.as_deref_mut() {
        candidates.iter_mut().for_each(|(token, logit)| *logit = logits[*token as usize]);
    }
}

fn truncate(candidates: &mut Candidates, kind: SamplerKind, row: &SamplingRow, host: &HostRow) {
    let (params, chain) = (&row.params, &host.chain);
    match kind {
        SamplerKind::TopNSigma if chain.top_n_sigma > 0.0 => top_n_sigma(candidates, chain.top_n_sigma),
        SamplerKind::TopK => top_k(candidates, params.top_k),
        SamplerKind::TypP if chain.typical_p < 1.0 => typical(candidates, f64::from(chain.typical_p)),
        SamplerKind::TopP if params.top_p < 1.0 => top_p(candidates, f64::from(params.top_p)),
        SamplerKind::MinP if params.min_p > 0.0 => min_p(candidates, params.min_p),
        SamplerKind::Xtc if number(row, FOR_XTC) < f64::from(chain.xtc_probability) => {
            exclude_top_choices(candidates, f64::from(chain.xtc_threshold));
        }
        SamplerKind::Temperature if chain.dynatemp_range > 0.0 => {
            let (range, exponent) = (chain.dynatemp_range, f64::from(chain.dynatemp_exponent));
            let [least, most] = [(params.temperature - range).max(0.0), params.temperature + range];
            let share = relative_entropy(candidates).powf(exponent) as f32;
            temperature(candidates, least + (most - least) * share);
        }
        SamplerKind::Temperature => temperature(candidates, params.temperature),
        _ => {}
    }
}

/// The likeliest first, of equals the smaller id.
fn sort(candidates: &mut Candidates) {
    candidates.sort_unstable_by(descending);
}

/// The order of candidates: the larger logit first, of equals the smaller id.
pub(crate) fn descending(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn max(candidates: &Candidates) -> f32 {
    candidates.iter().map(|c| c.1).fold(f32::NEG_INFINITY, f32::max)
}

/// Softmax, in the candidates' order.
fn probabilities(candidates: &Candidates) -> Vec<f64> {
    let max = max(candidates);
    let mut weights: Vec<f64> = candidates.iter().map(|c| f64::from(c.1 - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    weights
}

/// Keeps the `k` largest logits, in no order; 0 or less keeps all.
pub(crate) fn top_k(candidates: &mut Vec<(u32, f32)>, k: i32) {
    let k = usize::try_from(k).unwrap_or(0);
    if 0 < k && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, descending);
        candidates.truncate(k);
    }
}

/// Keeps the likeliest up to the first sum that is at least `p`.
fn top_p(candidates: &mut Candidates, p: f64) {
    sort(candidates);
    let mut sum = 0.0;
    let reached = probabilities(candidates).iter().position(|share| {
        sum += share;
        sum >= p
    });
    candidates.truncate(reached.map_or(candidates.len(), |last| last + 1));
}

fn min_p(candidates: &mut Candidates, p: f32) {
    let threshold = max(candidates) + p.ln();
    keep(candidates, |logit| logit >= threshold);
}

/// The likeliest always stays.
fn keep(candidates: &mut Candidates, is_kept: impl Fn(f32) -> bool) {
    let max = max(candidates);
    candidates.retain(|&(_, logit)| logit == max || is_kept(logit));
}

fn top_n_sigma(candidates: &mut Candidates, n: f32) {
    let count = candidates.len() as f64;
    let mean = candidates.iter().map(|c| f64::from(c.1)).sum::<f64>() / count;
    let variance = candidates.iter().map(|c| (f64::from(c.1) - mean).powi(2)).sum::<f64>() / count;
    let threshold = f64::from(max(candidates)) - f64::from(n) * variance.sqrt();
    keep(candidates, |logit| f64::from(logit) >= threshold);
}

/// Keeps the tokens whose surprise is nearest to the entropy, up to the first sum above `p` (Meister et al., *Locally Typical Sampling*).
fn typical(candidates: &mut Candidates, p: f64) {
    sort(candidates);
    let shares = probabilities(candidates);
    let entropy = entropy(&shares);
    let distance = |share: f64| (-share.ln() - entropy).abs();
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|&a, &b| distance(shares[a]).total_cmp(&distance(shares[b])));
    let mut sum = 0.0;
    let reached = order.iter().position(|&index| {
        sum += shares[index];
        sum > p
    });
    order.truncate(reached.map_or(order.len(), |last| last + 1));
    *candidates = order.into_iter().map(|index| candidates[index]).collect();
}

/// In nats.
fn entropy(shares: &[f64]) -> f64 {
    shares.iter().filter(|&&share| share > 0.0).map(|share| -share * share.ln()).sum()
}

/// Of the entropy that as many equally likely tokens have; 0 where there is only one.
fn relative_entropy(candidates: &Candidates) -> f64 {
    if candidates.len() < 2 {
        return 0.0;
    }
    entropy(&probabilities(candidates)) / (candidates.len() as f64).ln()
}

/// Of the tokens with at least the probability `threshold`, only the least likely stays.
fn exclude_top_choices(candidates: &mut Candidates, threshold: f64) {
    if threshold > 0.5 {
        return;
    }
    sort(candidates);
    let above = probabilities(candidates).iter().take_while(|&&share| share >= threshold).count();
    candidates.drain(..above.saturating_sub(1));
}

/// Divides the logits; 0 or less leaves the likeliest alone.
fn temperature(candidates: &mut Candidates, temperature: f32) {
    if temperature <= 0.0 {
        sort(candidates);
        candidates.truncate(1);
    } else {
        candidates.iter_mut().for_each(|(_, logit)| *logit /= temperature);
    }
}

/// The token that a number in `[0, 1)` falls to, and its share: the candidates share it in the order of their ids.
fn draw(mut candidates: Candidates, number: f64) -> (u32, f64) {
    candidates.sort_unstable_by_key(|c| c.0);
    let shares = probabilities(&candidates);
    let mut sum = 0.0;
    let index = shares.iter().position(|share| {
        sum += share;
        sum > number
    });
    // Only a rounding of the sum can leave none.
    let logits: Vec<f32> = candidates.iter().map(|c| c.1).collect();
    let index = index.unwrap_or_else(|| argmax(&logits) as usize);
    (candidates[index].0, shares[index])
}

fn draw_mirostat(mut candidates: Candidates, row: &SamplingRow, host: &HostRow, mirostat: Mirostat) -> u32 {
    sort(&mut candidates);
    let bound = f64::from(host.surprise.bound());
    let kept = probabilities(&candidates).iter().take_while(|share| -share.log2() <= bound).count();
    candidates.truncate(kept.max(1));
    let (token, share) = draw(candidates, number(row, FOR_TOKEN));
    host.surprise.follow(mirostat, -share.log2() as f32);
    token
}

/// The row's number in `[0, 1)`: 24 bits of the generator's first word, keyed by the seed and counted by position and
/// index, so that it depends on nothing else in the batch.
pub fn uniform(row: &SamplingRow) -> f64 {
    number(row, 0)
}

/// One of the row's numbers in `[0, 1)`, by what it is for.
fn number(row: &SamplingRow, purpose: u32) -> f64 {
    let seed = row.params.seed;
    let words = philox4x32_10([row.position, row.index, purpose, 0], [seed as u32, (seed >> 32) as u32]);
    f64::from(words[0] >> 8) / f64::from(1 << 24)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::SamplerChain;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    const DRAWS: u32 = 20_000;
    /// Probabilities whose entropy is 1.333 nats.
    const SHARES: [f64; 5] = [0.5, 0.2, 0.15, 0.1, 0.05];

    fn logits(shares: &[f64]) -> Vec<f32> {
        shares.iter().map(|share| share.ln() as f32).collect()
    }

    fn plain() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 3,
            ..SamplingParams::default()
        }
    }

    /// How often each token is drawn.
    fn drawn(logits: &[f32], params: &SamplingParams) -> BTreeMap<u32, u32> {
        let mut counts = BTreeMap::new();
        for position in 0..DRAWS {
            let row = SamplingRow::new(params.clone(), position);
            let host = row.host.clone().expect("a chain");
            *counts.entry(sample(&mut logits.to_vec(), &row, &host)).or_default() += 1;
        }
        counts
    }

    /// Draws are distributed as `expected` tokens with their shares, which need not add up to 1.
    fn assert_drawn(logits: &[f32], params: &SamplingParams, expected: &[(u32, f64)]) {
        let counts = drawn(logits, params);
        assert!(
            counts.keys().copied().eq(expected.iter().map(|e| e.0)),
            "{counts:?} instead of {expected:?}"
        );
        let sum: f64 = expected.iter().map(|e| e.1).sum();
        for &(token, share) in expected {
            let share = share / sum;
            let (found, mean) = (f64::from(counts[&token]), share * f64::from(DRAWS));
            let deviation = (mean * (1.0 - share)).sqrt();
            assert!((found - mean).abs() <= 4.0 * deviation, "token {token}: {found} instead of {mean}");
        }
    }

    fn with(chain: SamplerChain) -> SamplingParams {
        SamplingParams { chain: Some(Arc::new(chain)), ..plain() }
    }

    #[test]
    fn a_chain_that_changes_nothing_draws_what_is_there() {
        let all: Vec<_> = (0..).zip(SHARES).collect();
        assert_drawn(&logits(&SHARES), &with(SamplerChain::default()), &all);
    }

    #[test]
    fn locally_typical_tokens_are_nearest_to_the_entropy() {
        // Distances of 0.276, 0.564 and 0.640 nats.
        let typical = |typical_p| with(SamplerChain { typical_p, ..SamplerChain::default() });
        assert_drawn(&logits(&SHARES), &typical(0.3), &[(1, 0.2), (2, 0.15)]);
        assert_drawn(&logits(&SHARES), &typical(0.36), &[(0, 0.5), (1, 0.2), (2, 0.15)]);
    }

    #[test]
    fn deviations_below_the_largest_are_counted_from_it() {
        // Mean 2, deviation 1.414.
        let sigma = |top_n_sigma| with(SamplerChain { top_n_sigma, ..SamplerChain::default() });
        let logits = [0.0, 1.0, 2.0, 3.0, 4.0f32];
        let shares =
            |tokens: std::ops::Range<u32>| tokens.map(|t| (t, f64::from(t).exp())).collect::<Vec<_>>();
        assert_drawn(&logits, &sigma(1.0), &shares(3..5));
        assert_drawn(&logits, &sigma(1.5), &shares(2..5));
    }

    #[test]
    fn top_choices_are_excluded_as_often_as_asked_for() {
        let xtc = |xtc_probability, xtc_threshold| {
            with(SamplerChain { xtc_probability, xtc_threshold, ..SamplerChain::default() })
        };
        let without = [(2, 0.15), (3, 0.1), (4, 0.05)];
        assert_drawn(&logits(&SHARES), &xtc(1.0, 0.12), &without);
        // Half of the draws are as if nothing was left out.
        let mixed: Vec<_> = (0..)
            .zip(SHARES)
            .map(|(token, share)| {
                let left = without.iter().find(|w| w.0 == token).map_or(0.0, |w| w.1 / 0.3);
                (token, 0.5 * share + 0.5 * left)
            })
            .collect();
        assert_drawn(&logits(&SHARES), &xtc(0.5, 0.12), &mixed);
        // One token above the threshold is no choice.
        let all: Vec<_> = (0..).zip(SHARES).collect();
        assert_drawn(&logits(&SHARES), &xtc(1.0, 0.4), &all);
    }

    #[test]
    fn the_temperature_moves_with_the_entropy() {
        let dynamic = with(SamplerChain { dynatemp_range: 0.5, ..SamplerChain::default() });
        // Of the largest entropy of five tokens: 0.828; 0.5 + 0.828.
        let relative = 1.333_074 / 5f64.ln();
        let temperature = 0.5 + relative;
        let expected: Vec<_> = (0..).zip(SHARES.map(|share| share.powf(1.0 / temperature))).collect();
        assert_drawn(&logits(&SHARES), &dynamic, &expected);
    }

    #[test]
    fn samplers_work_in_their_order() {
        let order = |order: &[SamplerKind]| {
            let chain = SamplerChain { order: order.to_vec(), ..SamplerChain::default() };
            SamplingParams { temperature: 2.0, top_p: 0.6, ..with(chain) }
        };
        let flat =
            |tokens: std::ops::Range<usize>| tokens.map(|t| (t as u32, SHARES[t].sqrt())).collect::<Vec<_>>();
        // 0.5 + 0.2; flattened first, 0.339 + 0.214 + 0.186.
        assert_drawn(&logits(&SHARES), &order(&[SamplerKind::TopP, SamplerKind::Temperature]), &flat(0..2));
        assert_drawn(&logits(&SHARES), &order(&[SamplerKind::Temperature, SamplerKind::TopP]), &flat(0..3));
        // What is not in the chain is off.
        assert_drawn(&logits(&SHARES), &order(&[SamplerKind::Temperature]), &flat(0..5));
    }

    #[test]
    fn biases_ban_and_force() {
        let bias =
            |bias| with(SamplerChain { logit_bias: vec![(0, bias), (99, 1.0)], ..SamplerChain::default() });
        let others: Vec<_> = (0..).zip(SHARES).skip(1).collect();
        assert_drawn(&logits(&SHARES), &bias(f32::NEG_INFINITY), &others);
        assert_drawn(&logits(&SHARES), &bias(100.0), &[(0, 1.0)]);
        let greedy = SamplingParams { temperature: 0.0, ..bias(f32::NEG_INFINITY) };
        assert_drawn(&logits(&SHARES), &greedy, &[(1, 1.0)]);
    }

    #[test]
    fn mirostat_s_surprise_is_what_was_aimed_at() {
        // Zipf's law: 7.5 bits on the mean where nothing bounds them.
        let logits: Vec<f32> = (1..=1000).map(|rank| -(rank as f32).ln()).collect();
        let shares = probabilities(&all(&logits));
        for tau in [2.0, 4.0] {
            let mirostat = Mirostat { tau, eta: 0.1 };
            let chain = SamplerChain { mirostat: Some(mirostat), ..SamplerChain::default() };
            let mut row = SamplingRow::new(with(chain), 0);
            let host = row.host.clone().unwrap();
            let mut last = 0.0;
            for position in 0..4000 {
                row.position = position;
                let token = sample(&mut logits.clone(), &row, &host);
                if position >= 2000 {
                    let kept: f64 =
                        shares.iter().filter(|share| -share.log2() <= f64::from(host.surprise.bound())).sum();
                    last += -(shares[token as usize] / kept.max(shares[0])).log2() / 2000.0;
                }
            }
            assert!((last - f64::from(tau)).abs() < 0.4, "{last} bits instead of {tau}");
        }
    }

    #[test]
    fn nothing_is_drawn_from_what_is_no_number() {
        let params = with(SamplerChain { typical_p: 0.5, ..SamplerChain::default() });
        let row = SamplingRow::new(params, 0);
        let host = row.host.clone().unwrap();
        for logits in [[f32::NAN, 1.0], [f32::INFINITY, 1.0], [f32::NEG_INFINITY; 2]] {
            assert_eq!(sample(&mut logits.to_vec(), &row, &host), NO_TOKEN);
        }
    }
}
