//! A grammar as llguidance's Lark.
//!
//! llguidance cuts an answer into terminals, each as long as it can be, and parses those. A rule that does not lead back to itself is one terminal,
//! so that it means exactly what it says; of the others each run of parts that do not is one.

use super::{Grammar, Node};
use std::collections::HashMap;
use std::fmt::Write;

/// The grammar's text. Its rules are `r0`, `r1`, …, and its terminals `T0`, `T1`, … for rules and `X0`, `X1`, … for runs.
pub(super) fn write(grammar: &Grammar) -> String {
    let is_regular = regular(grammar);
    let mut writer = Writer { is_regular, runs: HashMap::new(), terminals: String::new() };
    let mut text = String::new();
    let kind = if writer.is_regular[grammar.root] { 'T' } else { 'r' };
    let _ = writeln!(text, "start: {kind}{}", grammar.root);
    for number in reachable(grammar) {
        let rule = &grammar.rules[number];
        if writer.is_regular[number] {
            let _ = writeln!(text, "T{number}: {}", terminal(rule));
        } else {
            let body = writer.rule(rule);
            let _ = writeln!(text, "r{number}: {body}");
        }
    }
    text + &writer.terminals
}

impl Node {
    /// Calls `see` with each rule that is named.
    fn each_rule(&self, see: &mut impl FnMut(usize)) {
        match self {
            Self::Rule(number) => see(*number),
            Self::Sequence(nodes) | Self::Alternatives(nodes) => {
                nodes.iter().for_each(|node| node.each_rule(see));
            }
            Self::Repeat { node, .. } => node.each_rule(see),
            Self::Text(_) | Self::Class { .. } | Self::Any => (),
        }
    }
}

/// Of each rule whether it leads to no rule that leads back to itself.
fn regular(grammar: &Grammar) -> Vec<bool> {
    let mut named_by = vec![Vec::new(); grammar.rules.len()];
    let mut open = vec![0; grammar.rules.len()];
    for (number, rule) in grammar.rules.iter().enumerate() {
        rule.each_rule(&mut |named| {
            named_by[named].push(number);
            open[number] += 1;
        });
    }
    // From those that name none upwards.
    let mut done: Vec<usize> = (0..open.len()).filter(|&number| open[number] == 0).collect();
    let mut is_regular = vec![false; open.len()];
    while let Some(number) = done.pop() {
        is_regular[number] = true;
        for &by in &named_by[number] {
            open[by] -= 1;
            if open[by] == 0 {
                done.push(by);
            }
        }
    }
    is_regular
}

/// The rules that the answer may come to, ascending.
fn reachable(grammar: &Grammar) -> Vec<usize> {
    let mut is_reached = vec![false; grammar.rules.len()];
    let mut open = vec![grammar.root];
    is_reached[grammar.root] = true;
    while let Some(number) = open.pop() {
        grammar.rules[number].each_rule(&mut |named| {
            if !std::mem::replace(&mut is_reached[named], true) {
                open.push(named);
            }
        });
    }
    (0..is_reached.len()).filter(|&number| is_reached[number]).collect()
}

/// What a terminal consists of.
fn terminal(node: &Node) -> String {
    joined(node, &mut |number| format!("T{number}"))
}

/// A node whose parts are all terminals, or all written out.
fn joined(node: &Node, rule: &mut impl FnMut(usize) -> String) -> String {
    match node {
        Node::Text(text) => quoted(text),
        Node::Class { is_negated, ranges } => class(*is_negated, ranges),
        Node::Any => "/(?s:.)/".to_owned(),
        Node::Rule(number) => rule(*number),
        Node::Sequence(nodes) if nodes.is_empty() => "\"\"".to_owned(),
        Node::Sequence(nodes) => {
            let parts: Vec<String> = nodes.iter().map(|node| joined(node, rule)).collect();
            parts.join(" ")
        }
        Node::Alternatives(nodes) => {
            let parts: Vec<String> = nodes.iter().map(|node| joined(node, rule)).collect();
            format!("({})", parts.join(" | "))
        }
        Node::Repeat { node, min, max } => repeated(&joined(node, rule), *min, *max),
    }
}

fn repeated(part: &str, min: u32, max: Option<u32>) -> String {
    match (min, max) {
        (0, None) => format!("({part})*"),
        (1, None) => format!("({part})+"),
        (0, Some(1)) => format!("({part})?"),
        (min, None) => format!("({part}){{{min},}}"),
        (min, Some(max)) => format!("({part}){{{min},{max}}}"),
    }
}

/// A text as Lark has it: JSON's form.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        let _ = match character {
            '"' | '\\' => write!(quoted, "\\{character}"),
            control if control.is_control() => write!(quoted, "\\u{:04x}", u32::from(control)),
            other => write!(quoted, "{other}"),
        };
    }
    quoted + "\""
}

fn class(is_negated: bool, ranges: &[(char, char)]) -> String {
    let mut class = String::from(if is_negated { "/[^" } else { "/[" });
    for &(first, last) in ranges {
        let _ = write!(class, "\\u{{{:x}}}-\\u{{{:x}}}", u32::from(first), u32::from(last));
    }
    class + "]/"
}

struct Writer {
    is_regular: Vec<bool>,
    /// Terminals of runs by what they consist of.
    runs: HashMap<String, usize>,
    terminals: String,
}

impl Writer {
    fn is_regular(&self, node: &Node) -> bool {
        let mut is_regular = true;
        node.each_rule(&mut |number| is_regular &= self.is_regular[number]);
        is_regular
    }

    /// What a rule that leads back to itself consists of.
    fn rule(&mut self, node: &Node) -> String {
        if self.is_regular(node) {
            return self.run(std::slice::from_ref(node));
        }
        match node {
            Node::Rule(number) => format!("r{number}"),
            Node::Sequence(nodes) => {
                let mut parts = Vec::new();
                let mut rest = &nodes[..];
                while !rest.is_empty() {
                    let run = rest.iter().take_while(|node| self.is_regular(node)).count();
                    if run > 0 {
                        parts.push(self.run(&rest[..run]));
                    } else {
                        parts.push(self.rule(&rest[0]));
                    }
                    rest = &rest[run.max(1)..];
                }
                parts.join(" ")
            }
            Node::Alternatives(nodes) => {
                let parts: Vec<String> = nodes.iter().map(|node| self.rule(node)).collect();
                format!("({})", parts.join(" | "))
            }
            Node::Repeat { node, min, max } => repeated(&self.rule(node), *min, *max),
            Node::Text(_) | Node::Class { .. } | Node::Any => self.run(std::slice::from_ref(node)),
        }
    }

    /// The terminal of a run of parts.
    fn run(&mut self, nodes: &[Node]) -> String {
        let text = match nodes {
            [] => return "\"\"".to_owned(),
            [Node::Rule(number)] => return format!("T{number}"),
            [Node::Sequence(nodes)] if nodes.is_empty() => return "\"\"".to_owned(),
            nodes => {
                let parts: Vec<String> = nodes.iter().map(terminal).collect();
                parts.join(" ")
            }
        };
        let next = self.runs.len();
        let number = *self.runs.entry(text.clone()).or_insert(next);
        if number == next {
            let _ = writeln!(self.terminals, "X{number}: {text}");
        }
        format!("X{number}")
    }
}
