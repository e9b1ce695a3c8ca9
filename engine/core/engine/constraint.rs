//! What an answer may consist of, decided token by token.

use crate::error::Result;
use crate::sampler::TokenMask;

/// A grammar, or anything else that knows after each token which may come next.
pub trait TokenConstraint {
    /// The same at the same place of an answer, to go on by itself.
    fn fork(&self) -> Box<dyn TokenConstraint>;

    /// The tokens that may be drawn now. An answer that is complete allows the tokens that end it.
    ///
    /// # Errors
    /// What keeps that from being known; the answer ends then.
    fn allowed(&mut self) -> Result<TokenMask>;

    /// Takes the token that was drawn, one of those allowed.
    ///
    /// # Errors
    /// As [`TokenConstraint::allowed`].
    fn accept(&mut self, token: u32) -> Result<()>;

    /// Whether everything may follow from here on, so that nobody needs to ask any more.
    fn is_over(&self) -> bool {
        false
    }
}

impl Clone for Box<dyn TokenConstraint> {
    fn clone(&self) -> Self {
        self.fork()
    }
}
