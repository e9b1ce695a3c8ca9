//! Source -> text and tags, with `trim_blocks` and `lstrip_blocks` as transformers sets them.

use crate::error::{Error, Result};
use crate::lexer_tokens::{self, Token};
use crate::strings::is_space;

/// A token and the line it begins in.
pub type Spanned = (Token, u32);

/// Cuts a source into tokens. [`Token::Text`] is outside tags, all else inside.
///
/// # Errors
/// Where a tag, a comment or a string does not end, or a character means nothing.
pub fn lex(source: &str) -> Result<Vec<Spanned>> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { source, position: 0, line: 1, at_line_start: true, tokens: Vec::new() };
    while lexer.next_tag()? {}
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    position: usize,
    line: u32,
    /// Whether what came last ended with a line break.
    at_line_start: bool,
    tokens: Vec<Spanned>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    Block,
    Variable,
    Comment,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.position..]
    }

    /// Steps over bytes, counting lines.
    fn skip(&mut self, bytes: usize) {
        let skipped = &self.source[self.position..self.position + bytes];
        self.line += skipped.matches('\n').count() as u32;
        self.at_line_start = skipped.ends_with('\n');
        self.position += bytes;
    }

    /// Text up to a tag, and the tag. False at the end.
    fn next_tag(&mut self) -> Result<bool> {
        let rest = self.rest();
        let mut braces = rest.match_indices('{');
        let found = braces.find_map(|(i, _)| {
            let kind = match rest.as_bytes().get(i + 1)? {
                b'%' => Tag::Block,
                b'{' => Tag::Variable,
                b'#' => Tag::Comment,
                _ => return None,
            };
            Some((i, kind))
        });
        let Some((start, kind)) = found else {
            self.push_text(rest);
            return Ok(false);
        };
        let sign = rest.as_bytes().get(start + 2).copied().filter(|sign| b"-+".contains(sign));
        let text = self.stripped(&rest[..start], kind, sign);
        self.push_text(text);
        self.skip(start);
        let line = self.line;
        self.skip(2 + usize::from(sign.is_some()));
        match kind {
            Tag::Comment => {
                let rest = self.rest();
                let end = rest.find("#}").ok_or_else(|| Error::syntax(line, "a comment has no end, `#}`"))?;
                let sign = end.checked_sub(1).map(|before| rest.as_bytes()[before]);
                self.skip(end + 2);
                self.trim_after(sign, true);
            }
            Tag::Block if self.raw()? => {}
            Tag::Block => self.tag(line, Token::BlockBegin, "%}", true)?,
            Tag::Variable => self.tag(line, Token::VariableBegin, "}}", false)?,
        }
        Ok(true)
    }

    /// The text before a tag without what the tag takes away.
    fn stripped(&self, text: &'a str, kind: Tag, sign: Option<u8>) -> &'a str {
        match sign {
            Some(b'-') => text.trim_end_matches(is_space),
            None if kind != Tag::Variable => {
                let line = text.rfind('\n').map_or(0, |i| i + 1);
                let begins_line = line > 0 || self.at_line_start;
                if begins_line && text[line..].chars().all(is_space) { &text[..line] } else { text }
            }
            _ => text,
        }
    }

    /// What follows a tag's end and belongs to it, after the sign before that end.
    fn trim_after(&mut self, sign: Option<u8>, is_block: bool) {
        let rest = self.rest();
        let trimmed = match sign {
            Some(b'-') => rest.len() - rest.trim_start_matches(is_space).len(),
            Some(b'+') => 0,
            _ => usize::from(is_block && rest.starts_with('\n')),
        };
        if trimmed > 0 {
            self.skip(trimmed);
        }
    }

    fn push_text(&mut self, text: &str) {
        if !text.is_empty() {
            self.tokens.push((Token::Text(text.to_owned()), self.line));
        }
    }

    /// After `{%`: a whole `raw` block, if it is one.
    fn raw(&mut self) -> Result<bool> {
        let Some((length, sign)) = tag_of("raw", self.rest()) else { return Ok(false) };
        let line = self.line;
        self.skip(length);
        self.trim_after(sign, false);
        let rest = self.rest();
        let end = rest.match_indices("{%").find_map(|(i, _)| {
            let sign = rest.as_bytes().get(i + 2).copied().filter(|sign| b"-+".contains(sign));
            let begin = i + 2 + usize::from(sign.is_some());
            tag_of("endraw", &rest[begin..]).map(|(length, end_sign)| (i, sign, begin + length, end_sign))
        });
        let Some((text, sign, end, end_sign)) = end else {
            return Err(Error::syntax(line, "`raw` has no `endraw`"));
        };
        let text = self.stripped(&rest[..text], Tag::Block, sign);
        self.push_text(text);
        self.skip(end);
        self.trim_after(end_sign, true);
        Ok(true)
    }

    /// The inside of a tag and its end.
    fn tag(&mut self, line: u32, begin: Token, end: &str, is_block: bool) -> Result<()> {
        self.tokens.push((begin, line));
        let mut open = 0_usize;
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start_matches(is_space).len();
            self.skip(blank);
            let rest = self.rest();
            let signed = rest.strip_prefix('-').or_else(|| rest.strip_prefix('+').filter(|_| is_block));
            if open == 0 {
                let sign = signed.filter(|rest| rest.starts_with(end)).map(|_| rest.as_bytes()[0]);
                if sign.is_some() || rest.starts_with(end) {
                    self.tokens.push((Token::TagEnd, self.line));
                    self.skip(end.len() + usize::from(sign.is_some()));
                    self.trim_after(sign, is_block);
                    return Ok(());
                }
            }
            if rest.is_empty() {
                return Err(Error::syntax(line, format!("a tag has no end, `{end}`")));
            }
            let (token, length) =
                lexer_tokens::next(rest).map_err(|message| Error::syntax(self.line, message))?;
            match token {
                Token::Operator("(" | "[" | "{") => open += 1,
                Token::Operator(closing @ (")" | "]" | "}")) => {
                    open = open
                        .checked_sub(1)
                        .ok_or_else(|| Error::syntax(self.line, format!("`{closing}` closes nothing")))?;
                }
                _ => {}
            }
            self.tokens.push((token, self.line));
            self.skip(length);
        }
    }
}

/// The length of `name %}` at the beginning of `text`, and the sign before its end.
fn tag_of(name: &str, text: &str) -> Option<(usize, Option<u8>)> {
    let rest = text.trim_start_matches(is_space).strip_prefix(name)?.trim_start_matches(is_space);
    let sign = rest.as_bytes().first().copied().filter(|sign| b"-+".contains(sign));
    let rest = rest[usize::from(sign.is_some())..].strip_prefix("%}")?;
    Some((text.len() - rest.len(), sign))
}
