//! Tokens -> text while they are made.

use super::Tokenizer;
use std::sync::Arc;

/// Turns tokens into text one by one. A token may end in the middle of a character; its bytes wait here until the
/// character is complete, so every returned piece is whole, and all pieces together equal [`Tokenizer::decode`] of all ids.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    /// The beginning of a character, at most three bytes between calls.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// `skip_special` leaves control tokens out of the text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, pending: Vec::new() }
    }

    /// Takes the next token and returns the text that is complete with it; often one piece, sometimes nothing. Bytes that
    /// can be no character become U+FFFD. An id outside the vocabulary (a padded row of the head) has no text.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        self.pending.extend_from_slice(self.tokenizer.token_bytes(id).unwrap_or_default());
        let complete = self.pending.len() - incomplete_tail(&self.pending);
        let text = String::from_utf8_lossy(&self.pending[..complete]).into_owned();
        self.pending.drain(..complete);
        text
    }

    /// Whether the last token ended in the middle of a character.
    pub fn is_within_character(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Ends the text: a character that never became complete is returned as U+FFFD. The decoder is empty afterwards.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// The number of bytes at the end that may yet become a character.
fn incomplete_tail(bytes: &[u8]) -> usize {
    // Only the last three bytes can begin an incomplete character, and only from its first byte on.
    (1..=3.min(bytes.len()))
        .find(|&length| {
            let tail = &bytes[bytes.len() - length..];
            !is_continuation(tail[0])
                && std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none())
        })
        .unwrap_or(0)
}

fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_tails() {
        for (bytes, length) in [
            (&b""[..], 0),
            (b"a", 0),
            ("é".as_bytes(), 0),
            (b"a\xC3", 1),
            (b"\xE4\xB8", 2),
            (b"\xE4\xB8\xAD", 0),
            (b"\xF0\x9F\x98", 3),
            (b"\xF0\x9F\x98\x80", 0),
            (b"\x80", 0),         // no character begins with it
            (b"\xFF", 0),         // nor with this
            (b"\xF0\xE4\xB8", 2), // the first is wrong, the others may become one
            (b"\xE0\x80", 0),     // overlong: wrong already
        ] {
            assert_eq!(incomplete_tail(bytes), length, "{bytes:x?}");
        }
    }
}
