//! Names of tokens in the source of a template.

use crate::error::Result;
use crate::tokenizer::{TokenKind, Tokenizer};

/// Names such as `<|im_start|>`, each once.
pub fn of_tokens(source: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for (start, _) in source.match_indices("<|") {
        let inside = &source[start + 2..];
        let length =
            inside.find(|c: char| !(c.is_alphanumeric() || "_-.:/".contains(c))).unwrap_or(inside.len());
        let name = &source[start..start + 2 + length];
        if length > 0 && inside[length..].starts_with("|>") {
            let name = &source[start..start + name.len() + 2];
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

/// Of a name that is a normal token, which no text is cut into: how many tokens it becomes instead.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn tokens_of_text(tokenizer: &Tokenizer, name: &str) -> Result<Option<usize>> {
    match tokenizer.token(name).and_then(|id| tokenizer.kind(id)) {
        Some(TokenKind::Normal) => Ok(Some(tokenizer.encode(name, true)?.len())),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::of_tokens;

    #[test]
    fn names_stand_between_bars() {
        let source = "{{ '<|im_start|>' + role }}<|im_end|><|im_start|> <| a|> <|> <||> <|é_1|> <|open";
        assert_eq!(of_tokens(source), ["<|im_start|>", "<|im_end|>", "<|é_1|>"]);
    }
}
