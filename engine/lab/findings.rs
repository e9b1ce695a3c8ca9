//! Comparing what a kernel wrote with what it should have written.

/// What was found out about the results of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// Values that were compared.
    pub compared: usize,
    /// The value that is farthest off in units of its tolerance.
    pub worst: Option<Difference>,
    /// The largest absolute error of all values.
    pub absolute: f64,
    /// What is wrong, in words; empty where the run passed.
    pub failures: Vec<String>,
}

/// A value and what it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Which of the operation's results.
    pub of: &'static str,
    /// Row-major, from the first value of that result.
    pub index: usize,
    pub found: f64,
    pub expected: f64,
    pub tolerance: f64,
    /// The error in units of the tolerance; infinite for a NaN, and where no error is allowed.
    pub ratio: f64,
}

impl Findings {
    /// Whether nothing is wrong.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// Compares the first `expected.len()` of `found` with a reference in f64; all behind must still be NaN.
    ///
    /// `tolerance` gets an index and the expected value; where it is stated, a comment gives its reason.
    pub fn close(
        &mut self,
        of: &'static str,
        found: &[f32],
        expected: &[f64],
        tolerance: impl Fn(usize, f64) -> f64,
    ) {
        if !self.long_enough(of, found, expected.len()) {
            return;
        }
        let (values, guard) = found.split_at(expected.len());
        self.places(of, values.iter().copied().enumerate(), |i| (expected[i], tolerance(i, expected[i])));
        self.guard_intact(of, guard);
    }

    /// Compares some values, given with their indices, each with its expected value and its tolerance.
    pub fn places(
        &mut self,
        of: &'static str,
        found: impl Iterator<Item = (usize, f32)>,
        expected: impl Fn(usize) -> (f64, f64),
    ) {
        let (mut worst, mut wrong): (Option<Difference>, usize) = (None, 0);
        for (index, value) in found {
            let (expected, tolerance) = expected(index);
            let found = f64::from(value);
            let error = (found - expected).abs();
            // A NaN is not close. Infinities of one sign are equal, and their difference is NaN.
            let exact = found == expected;
            let ratio = match error / tolerance {
                _ if exact => 0.0,
                ratio if ratio.is_nan() => f64::INFINITY,
                ratio => ratio,
            };
            self.compared += 1;
            if !exact {
                self.absolute = self.absolute.max(if error.is_nan() { f64::INFINITY } else { error });
            }
            let close = exact || error <= tolerance;
            wrong += usize::from(!close);
            if worst.as_ref().is_none_or(|worst| ratio > worst.ratio) {
                worst = Some(Difference { of, index, found, expected, tolerance, ratio });
            }
        }
        let Some(worst) = worst else { return };
        if wrong > 0 {
            let Difference { index, found, expected, tolerance, ratio, .. } = worst;
            self.failures.push(format!(
                "{of}: {wrong} values are off, worst at {index}: found {found}, expected {expected}, tolerance \
                 {tolerance:e} exceeded {ratio:.1} times"
            ));
        }
        if self.worst.as_ref().is_none_or(|before| worst.ratio > before.ratio) {
            self.worst = Some(worst);
        }
    }

    /// What a row gave when it was computed alone must have the bits that it had as row `row` of the batch `found`, of `cols` values a row.
    pub fn same_alone(&mut self, alone: &[f32], found: &[f32], row: usize, cols: usize) {
        self.same_bits("a row alone, against the batch", &alone[..cols], &found[row * cols..][..cols]);
    }

    /// The first values must have the bits expected, and all behind must still be NaN.
    pub fn same_bits(&mut self, of: &'static str, found: &[f32], expected: &[f32]) {
        if !self.long_enough(of, found, expected.len()) {
            return;
        }
        let (values, guard) = found.split_at(expected.len());
        self.compared += values.len();
        let differs = |&i: &usize| values[i].to_bits() != expected[i].to_bits();
        let mut places = (0..values.len()).filter(differs);
        if let Some(index) = places.next() {
            let (found, expected) = (values[index], expected[index]);
            let wrong = 1 + places.count();
            self.failures.push(format!(
                "{of}: {wrong} values have other bits, first at {index}: found {found} ({:#x}), expected {expected} \
                 ({:#x})",
                found.to_bits(),
                expected.to_bits()
            ));
            let (found, expected) = (f64::from(found), f64::from(expected));
            let difference = Difference { of, index, found, expected, tolerance: 0.0, ratio: f64::INFINITY };
            if self.worst.as_ref().is_none_or(|before| before.ratio < f64::INFINITY) {
                self.worst = Some(difference);
            }
            self.absolute = self.absolute.max(match (found - expected).abs() {
                error if error.is_nan() => f64::INFINITY,
                error => error,
            });
        } else if let (None, Some(&first)) = (&self.worst, values.first()) {
            let (found, expected) = (f64::from(first), f64::from(expected[0]));
            self.worst = Some(Difference { of, index: 0, found, expected, tolerance: 0.0, ratio: 0.0 });
        }
        self.guard_intact(of, guard);
    }

    /// What lies behind the last row must still be NaN.
    pub fn guard_intact(&mut self, of: &'static str, guard: &[f32]) {
        if let Some(i) = guard.iter().position(|value| !value.is_nan()) {
            let value = guard[i];
            self.failures.push(format!("{of}: wrote {value} at {i} values behind the last row"));
        }
    }

    /// Anything else that must hold.
    pub fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.failures.push(otherwise());
        }
    }

    fn long_enough(&mut self, of: &'static str, found: &[f32], expected: usize) -> bool {
        let enough = found.len() >= expected;
        self.expect(enough, || format!("{of}: has {} values instead of {expected}", found.len()));
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f32], expected: &[f64]) -> Findings {
        let mut findings = Findings::default();
        findings.close("out", found, expected, |_, expected| expected.abs() * 0.01);
        findings
    }

    #[test]
    fn the_worst_value_is_found_with_its_place() {
        let findings = close(&[1.0, 2.01, 3.0, f32::NAN], &[1.001, 2.0, 3.0]);
        assert!(findings.passed(), "{:?}", findings.failures);
        let worst = findings.worst.unwrap();
        assert_eq!((worst.of, worst.index, findings.compared), ("out", 1, 3));
        assert!((worst.ratio - 0.5).abs() < 1e-3 && (findings.absolute - 0.01).abs() < 1e-4);
    }

    #[test]
    fn nan_is_never_close_and_equal_infinities_are() {
        let findings = close(&[f32::NAN], &[1.0]);
        assert_eq!(findings.worst.as_ref().unwrap().ratio, f64::INFINITY);
        assert!(!findings.passed());
        assert!(!close(&[1.0], &[f64::NAN]).passed());
        assert!(close(&[f32::INFINITY], &[f64::INFINITY]).passed());
        assert!(!close(&[f32::INFINITY], &[1.0]).passed());
    }

    #[test]
    fn a_tolerance_of_nothing_takes_equal_values_alone() {
        let mut findings = Findings::default();
        findings.close("out", &[0.0, -0.0], &[0.0, 0.0], |_, _| 0.0);
        assert!(findings.passed());
        findings.same_bits("out", &[-0.0], &[0.0]);
        assert!(!findings.passed(), "the bits of zero and minus zero");
    }

    #[test]
    fn writing_behind_the_end_and_too_few_values_are_wrong() {
        assert!(close(&[1.0, 7.0], &[1.0]).failures[0].contains("wrote 7"));
        assert!(close(&[1.0], &[1.0, 1.0]).failures[0].contains("1 values instead of 2"));
    }
}
