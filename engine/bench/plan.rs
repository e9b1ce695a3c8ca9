//! Which tests are run, what they are called and what they need.

use crate::error::{Error, Result};
use crate::kv_layout::pages_for;
use std::fmt;
use std::str::FromStr;

/// One test. What it times begins with `n_depth` tokens of each sequence in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// Prompt tokens that are timed; 0 for a test of decoding alone.
    pub n_prompt: usize,
    /// Decode steps that are timed; 0 for a test of prefill alone.
    pub n_gen: usize,
    pub n_depth: usize,
    /// Sequences that take each step together.
    pub n_parallel: usize,
}

impl Test {
    /// Tokens of a sequence before the timed part: a context has one token at least, so decoding at depth 0 starts
    /// with one.
    pub fn start(&self) -> usize {
        if self.n_prompt > 0 { self.n_depth } else { self.n_depth.max(1) }
    }

    /// Tokens of a sequence at the end. The last is drawn and not computed any more.
    pub fn context(&self) -> usize {
        self.start() + self.n_prompt + self.n_gen + 1
    }

    /// KV pages of all sequences at the end.
    pub fn pages(&self) -> usize {
        self.n_parallel * pages_for(self.context())
    }

    /// Tokens that the timed part computes, of all sequences together.
    pub fn num_tokens(&self) -> usize {
        self.n_parallel * (self.n_prompt + self.n_gen)
    }

    /// Whether it consists of decode steps alone, so that memory is its floor.
    pub fn is_decode(&self) -> bool {
        self.n_prompt == 0
    }

    /// Positions whose K and V a decode step reads of one sequence, on average over the steps of the test.
    pub fn mean_kv_len(&self) -> f64 {
        (self.start() + self.n_prompt) as f64 + (self.n_gen + 1) as f64 / 2.0
    }

    /// The options that ask for it, for messages.
    pub fn options(&self) -> &'static str {
        match (self.n_prompt > 0, self.n_gen > 0) {
            (true, true) => "--pg or -d",
            (true, false) => "-p or -d",
            (false, _) if self.n_parallel > 1 => "-n, -d or -b",
            (false, _) => "-n or -d",
        }
    }
}

/// llama-bench's names (`pp512`, `tg128`, `pp512+tg128`, `tg128 @ d4096`), with the sequences where there are several
/// (`tg128 b64 @ d4096`).
impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name(self.n_prompt, self.n_gen, self.n_depth, self.n_parallel))
    }
}

/// See the `Display` of [`Test`].
pub fn name(n_prompt: usize, n_gen: usize, n_depth: usize, n_parallel: usize) -> String {
    let mut name = match (n_prompt, n_gen) {
        (p, 0) => format!("pp{p}"),
        (0, n) => format!("tg{n}"),
        (p, n) => format!("pp{p}+tg{n}"),
    };
    if n_parallel > 1 {
        name += &format!(" b{n_parallel}");
    }
    if n_depth > 0 {
        name += &format!(" @ d{n_depth}");
    }
    name
}

/// `P,N`: a prompt and the tokens that answer it, timed as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptAndAnswer {
    pub n_prompt: usize,
    pub n_gen: usize,
}

impl FromStr for PromptAndAnswer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<Option<usize>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
        match parts[..] {
            [Some(n_prompt), Some(n_gen)] if n_prompt > 0 && n_gen > 0 => Ok(Self { n_prompt, n_gen }),
            _ => Err(Error::Request(format!("expected two counts such as 512,128, found {text:?}"))),
        }
    }
}

/// Every combination of what was asked for: depth by depth and, within one, by rising numbers of sequences, so that what
/// is in the cache serves the next test too. Zeros and repetitions are left out; prefill has one sequence.
///
/// # Errors
/// [`Error::Request`] if nothing is left.
pub fn tests(
    prompts: &[usize],
    answers: &[usize],
    both: &[PromptAndAnswer],
    depths: &[usize],
    parallel: &[usize],
) -> Result<Vec<Test>> {
    let sorted = |values: &[usize]| {
        let mut values = values.to_vec();
        values.sort_unstable();
        values.dedup();
        values
    };
    let parallel = sorted(parallel);
    if parallel.first() == Some(&0) {
        return Err(Error::Request("-b: expected at least 1 sequence, found 0".into()));
    }
    let mut tests = Vec::new();
    for n_depth in sorted(depths) {
        let one = Test { n_prompt: 0, n_gen: 0, n_depth, n_parallel: 1 };
        let prompts = prompts.iter().filter(|&&n_prompt| n_prompt > 0);
        tests.extend(prompts.map(|&n_prompt| Test { n_prompt, ..one }));
        for &n_parallel in &parallel {
            let answers = answers.iter().filter(|&&n_gen| n_gen > 0);
            tests.extend(answers.map(|&n_gen| Test { n_gen, n_parallel, ..one }));
        }
        tests.extend(both.iter().map(|&PromptAndAnswer { n_prompt, n_gen }| Test { n_prompt, n_gen, ..one }));
    }
    let mut unique = Vec::with_capacity(tests.len());
    for test in tests {
        if !unique.contains(&test) {
            unique.push(test);
        }
    }
    if unique.is_empty() {
        return Err(Error::Request(
            "no test is left: -p, -n, -d and -b need a value each, and -p or -n one above 0".into(),
        ));
    }
    Ok(unique)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_have_the_names_of_llama_bench() {
        let both = [PromptAndAnswer { n_prompt: 7, n_gen: 3 }];
        let tests = tests(&[512, 0], &[128], &both, &[4096, 0], &[8, 1, 8]).unwrap();
        let names: Vec<String> = tests.iter().map(Test::to_string).collect();
        assert_eq!(
            names,
            [
                "pp512",
                "tg128",
                "tg128 b8",
                "pp7+tg3",
                "pp512 @ d4096",
                "tg128 @ d4096",
                "tg128 b8 @ d4096",
                "pp7+tg3 @ d4096"
            ]
        );
    }

    #[test]
    fn what_a_test_needs_is_counted_to_the_token() {
        let test = Test { n_prompt: 0, n_gen: 4, n_depth: 0, n_parallel: 3 };
        assert_eq!((test.start(), test.context(), test.pages(), test.num_tokens()), (1, 6, 3, 12));
        // Steps read 2, 3, 4 and 5 positions.
        assert_eq!(test.mean_kv_len(), 3.5);
        let test = Test { n_prompt: 32, n_gen: 0, n_depth: 31, n_parallel: 1 };
        assert_eq!((test.start(), test.context(), test.pages()), (31, 64, 2));
    }

    #[test]
    fn nothing_to_do_is_an_error() {
        for (p, n, d, b) in
            [(&[0][..], &[0][..], &[0][..], &[1][..]), (&[1], &[1], &[], &[1]), (&[1], &[1], &[0], &[0])]
        {
            assert!(matches!(tests(p, n, &[], d, b), Err(Error::Request(_))), "{p:?} {n:?} {d:?} {b:?}");
        }
        for bad in ["", "1", "1,", "0,1", "1,0", "1,2,3", "a,b"] {
            assert!(bad.parse::<PromptAndAnswer>().is_err(), "{bad}");
        }
    }
}
