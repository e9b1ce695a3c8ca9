//! llama.cpp's grammars (GBNF): a text is parsed here, made to a [`network`], and followed by an [`automaton`] that knows of every way to read
//! an answer: any context-free grammar means what it says.
//!
//! A grammar is rules `name ::= …`, of which `root` is the whole answer. Its parts are `"texts"`, classes of characters (`[a-z]`, `[^"]`), `.`
//! for any, names of rules, groups in parentheses, alternatives with `|`, and repetitions (`?`, `*`, `+`, `{2}`, `{2,}`, `{2,5}`). A line break
//! ends a rule, but not within parentheses or next to `|`; `#` begins a comment (llama.cpp, grammars/README.md).

mod automaton;
mod beginnings;
mod network;

pub use automaton::Automaton;

use std::collections::HashMap;

/// Bytes and rules of the largest grammar, and how deep its groups may stand in each other.
const MAX_BYTES: usize = 64 << 10;
const MAX_RULES: usize = 2000;
const MAX_DEPTH: usize = 64;
/// The largest count of a repetition.
const MAX_COUNT: u32 = 1000;

/// What a rule consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Text(String),
    /// One character of these ranges, or of all others.
    Class {
        is_negated: bool,
        ranges: Vec<(char, char)>,
    },
    /// One character.
    Any,
    /// A rule by its number.
    Rule(usize),
    Sequence(Vec<Node>),
    Alternatives(Vec<Node>),
    Repeat {
        node: Box<Node>,
        min: u32,
        max: Option<u32>,
    },
}

/// Rules, each with the numbers of those that it names.
#[derive(Debug)]
struct Grammar {
    rules: Vec<Node>,
    root: usize,
}

/// What follows a grammar, at the beginning of an answer.
///
/// # Errors
/// What is wrong with it, and where: line and column from 1; that it is too large, or allows no answer.
pub fn automaton(source: &str) -> Result<Automaton, String> {
    Automaton::new(network::Network::new(&parse(source)?)?)
}

fn parse(source: &str) -> Result<Grammar, String> {
    if source.len() > MAX_BYTES {
        return Err(format!("expected at most {MAX_BYTES} bytes, found {}", source.len()));
    }
    let mut parser = Parser { source, at: 0, rules: Vec::new(), numbers: HashMap::new(), depth: 0 };
    parser.skip(true);
    while parser.peek().is_some() {
        parser.rule()?;
        parser.skip(true);
    }
    parser.finish()
}

/// A rule while the grammar is read.
struct Reading<'a> {
    name: &'a str,
    /// Where it is named first.
    at: usize,
    body: Option<Node>,
}

struct Parser<'a> {
    source: &'a str,
    /// Bytes that were read.
    at: usize,
    rules: Vec<Reading<'a>>,
    numbers: HashMap<&'a str, usize>,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<char> {
        self.source[self.at..].chars().next()
    }

    fn take(&mut self, text: &str) -> bool {
        let is_there = self.source[self.at..].starts_with(text);
        self.at += if is_there { text.len() } else { 0 };
        is_there
    }

    /// Skips blanks and comments, and line breaks where they mean nothing.
    fn skip(&mut self, line_breaks: bool) {
        while let Some(next) = self.peek() {
            match next {
                '#' => self.at += self.source[self.at..].find('\n').unwrap_or(self.source.len() - self.at),
                ' ' | '\t' => self.at += 1,
                '\r' | '\n' if line_breaks => self.at += 1,
                _ => return,
            }
        }
    }

    /// An error at a place.
    fn fault<T>(&self, at: usize, what: &str) -> Result<T, String> {
        let before = &self.source[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Err(format!("line {line}, column {column}: {what}"))
    }

    /// An error at what comes next.
    fn expected<T>(&self, what: &str) -> Result<T, String> {
        let found = match self.peek() {
            None => "the end".to_owned(),
            Some('\n' | '\r') => "a line break".to_owned(),
            Some(next) => format!("`{next}`"),
        };
        self.fault(self.at, &format!("expected {what}, found {found}"))
    }

    fn name(&mut self) -> Option<&'a str> {
        let rest = &self.source[self.at..];
        let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_';
        let length = rest.bytes().take_while(is_of_name).count();
        self.at += length;
        (length > 0).then(|| &rest[..length])
    }

    /// The number of a rule, which may stand further down.
    fn number(&mut self, name: &'a str, at: usize) -> Result<usize, String> {
        if let Some(&number) = self.numbers.get(name) {
            return Ok(number);
        }
        if self.rules.len() == MAX_RULES {
            return self.fault(at, &format!("expected at most {MAX_RULES} rules, found more"));
        }
        self.numbers.insert(name, self.rules.len());
        self.rules.push(Reading { name, at, body: None });
        Ok(self.rules.len() - 1)
    }

    fn rule(&mut self) -> Result<(), String> {
        let at = self.at;
        let Some(name) = self.name() else { return self.expected("the name of a rule") };
        let number = self.number(name, at)?;
        self.skip(false);
        if !self.take("::=") {
            return self.expected("`::=`");
        }
        if self.rules[number].body.is_some() {
            return self.fault(at, &format!("the rule `{name}` is there twice"));
        }
        self.skip(true);
        let body = self.alternatives(false)?;
        match self.peek() {
            None | Some('\n' | '\r') => {
                self.rules[number].body = Some(body);
                Ok(())
            }
            _ => self.expected("a part of a rule, `|` or a line break"),
        }
    }

    fn alternatives(&mut self, is_nested: bool) -> Result<Node, String> {
        let mut all = vec![self.sequence(is_nested)?];
        loop {
            let end = self.at;
            self.skip(true);
            if !self.take("|") {
                // The line break ends the rule.
                self.at = if is_nested { self.at } else { end };
                break;
            }
            self.skip(true);
            all.push(self.sequence(is_nested)?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Node::Alternatives(all) })
    }

    fn sequence(&mut self, is_nested: bool) -> Result<Node, String> {
        let mut nodes = Vec::new();
        while let Some(node) = self.part()? {
            self.skip(is_nested);
            let node = self.repeated(node)?;
            nodes.push(node);
            self.skip(is_nested);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Sequence(nodes) })
    }

    /// What stands next in a sequence, if something does.
    fn part(&mut self) -> Result<Option<Node>, String> {
        let at = self.at;
        Ok(Some(match self.peek() {
            Some('"') => self.text()?,
            Some('[') => self.class()?,
            Some('(') => self.group()?,
            Some('.') => {
                self.at += 1;
                Node::Any
            }
            Some('<' | '!') => {
                return self.fault(at, "tokens by name or number are not supported; write their text");
            }
            _ => {
                let Some(name) = self.name() else { return Ok(None) };
                // The next rule begins.
                let end = self.at;
                self.skip(false);
                if self.take("::=") {
                    return self.fault(at, &format!("the rule `{name}` must begin on a line of its own"));
                }
                self.at = end;
                Node::Rule(self.number(name, at)?)
            }
        }))
    }

    fn group(&mut self) -> Result<Node, String> {
        if self.depth == MAX_DEPTH {
            return self
                .fault(self.at, &format!("expected groups at most {MAX_DEPTH} deep, found a deeper one"));
        }
        self.depth += 1;
        self.at += 1;
        self.skip(true);
        let node = self.alternatives(true)?;
        self.skip(true);
        self.depth -= 1;
        if self.take(")") { Ok(node) } else { self.expected("`)`") }
    }

    fn text(&mut self) -> Result<Node, String> {
        self.at += 1;
        let mut text = String::new();
        while !self.take("\"") {
            text.push(self.character("`\"` at the end of the text")?);
        }
        Ok(Node::Text(text))
    }

    fn class(&mut self) -> Result<Node, String> {
        let begin = self.at;
        self.at += 1;
        let is_negated = self.take("^");
        let mut ranges = Vec::new();
        while !self.take("]") {
            let at = self.at;
            let first = self.character("`]` at the end of the class")?;
            let rest = &self.source[self.at..];
            let is_range = rest.starts_with('-') && !rest.starts_with("-]");
            self.at += usize::from(is_range);
            let last = if is_range { self.character("the end of a range")? } else { first };
            if last < first {
                return self
                    .fault(at, &format!("expected a range that goes up, found {first:?} to {last:?}"));
            }
            ranges.push((first, last));
        }
        if ranges.is_empty() {
            return self.fault(begin, "expected a character in the class, found none");
        }
        Ok(Node::Class { is_negated, ranges })
    }

    /// One character of a text or a class, perhaps written in another way.
    fn character(&mut self, end: &str) -> Result<char, String> {
        let at = self.at;
        let Some(next) = self.peek().filter(|next| *next != '\n') else { return self.expected(end) };
        self.at += next.len_utf8();
        if next != '\\' {
            return Ok(next);
        }
        let Some(escaped) = self.peek() else { return self.expected("a character behind `\\`") };
        self.at += escaped.len_utf8();
        let digits = match escaped {
            't' => return Ok('\t'),
            'r' => return Ok('\r'),
            'n' => return Ok('\n'),
            '\\' | '"' | '[' | ']' | '-' | '^' | '/' => return Ok(escaped),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return self.fault(
                at,
                &format!(
                    "`\\{escaped}` means nothing; expected one of \\n \\t \\r \\\\ \\\" \\[ \\] \\x \\u \\U"
                ),
            ),
        };
        let digits = self.source.get(self.at..self.at + digits).unwrap_or_default();
        self.at += digits.len();
        let code =
            digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok());
        match code.flatten().and_then(char::from_u32) {
            Some(character) => Ok(character),
            None => self.fault(at, "expected the number of a character in hexadecimal digits: 2 behind \\x, 4 behind \\u, 8 behind \\U"),
        }
    }

    /// What stands before it, as often as is said here.
    fn repeated(&mut self, node: Node) -> Result<Node, String> {
        let at = self.at;
        let (min, max) = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => return self.counted(node),
            _ => return Ok(node),
        };
        self.at += 1;
        if let Some('*' | '+' | '?' | '{') = self.peek() {
            return self
                .fault(at, "expected one repetition of a part, found two; put the first into parentheses");
        }
        Ok(Node::Repeat { node: Box::new(node), min, max })
    }

    fn counted(&mut self, node: Node) -> Result<Node, String> {
        let at = self.at;
        self.at += 1;
        let min = self.count()?;
        let max = if self.take(",") { self.count()? } else { min };
        if !self.take("}") {
            return self.expected("`}`");
        }
        match (min.unwrap_or(0), max) {
            (min, Some(max)) if max < min => {
                self.fault(at, &format!("expected counts that go up, found {min} and {max}"))
            }
            (0, None) if min.is_none() => self.fault(at, "expected a count, found none"),
            (min, max) => Ok(Node::Repeat { node: Box::new(node), min, max }),
        }
    }

    /// A count with the blanks around it, if there is one.
    fn count(&mut self) -> Result<Option<u32>, String> {
        self.skip(false);
        let at = self.at;
        let digits = self.source[at..].bytes().take_while(u8::is_ascii_digit).count();
        self.at += digits;
        let text = &self.source[at..self.at];
        self.skip(false);
        match text.parse() {
            _ if text.is_empty() => Ok(None),
            Ok(count) if count <= MAX_COUNT => Ok(Some(count)),
            _ => self.fault(at, &format!("expected a count of at most {MAX_COUNT}, found {text}")),
        }
    }

    fn finish(self) -> Result<Grammar, String> {
        let Some(&root) = self.numbers.get("root") else {
            return Err("expected a rule `root`, which is the whole answer, found none".to_owned());
        };
        if let Some(rule) = self.rules.iter().find(|rule| rule.body.is_none()) {
            return self.fault(rule.at, &format!("there is no rule `{}`", rule.name));
        }
        let rules = self.rules.into_iter().filter_map(|rule| rule.body).collect();
        Ok(Grammar { rules, root })
    }
}

#[cfg(test)]
mod tests;
