//! Lists in messages.

use std::fmt;

/// A list of any length of which a message shows the first entries.
#[derive(Default)]
pub(super) struct Listing {
    shown: Vec<String>,
    pub total: usize,
}

impl Listing {
    const MAX_SHOWN: usize = 12;

    pub fn push(&mut self, entry: impl FnOnce() -> String) {
        if self.total < Self::MAX_SHOWN {
            self.shown.push(entry());
        }
        self.total += 1;
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.total, self.shown.join(", "))?;
        if self.total > self.shown.len() {
            write!(f, ", and {} more", self.total - self.shown.len())?;
        }
        f.write_str(")")
    }
}
