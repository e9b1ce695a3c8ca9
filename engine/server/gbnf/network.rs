//! A grammar as a network: for each rule a graph of steps, which consume bytes, call rules and return from them.
//!
//! Rules that begin with themselves, directly or through others, are written anew, so that whoever follows the network calls no rule without
//! end before a byte: of rules that begin with each other, each becomes one graph that starts with what does not, and climbs from the end
//! of a rule to what goes on behind it in those that begin with it (the left-corner transform: Rosenkrantz and Lewis, 1970).

use super::beginnings::{alive, begins, empty_rules, groups};
use super::{Grammar, Node};
use regex_syntax::hir::{ClassUnicode, ClassUnicodeRange};
use regex_syntax::utf8::{Utf8Range, Utf8Sequences};
use std::collections::HashMap;

/// Steps of the largest network.
const MAX_STEPS: usize = 200_000;

/// A place in the network, an index into its steps.
pub(super) type Place = u32;

/// The end of every rule.
pub(super) const RETURN: Place = 0;

/// What stands at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The rule is at its end.
    Return,
    /// One of these bytes comes next.
    Byte { first: u8, last: u8, next: Place },
    /// A rule comes next; where it `skips` and the rule may be empty, that is as if it were not there.
    Call { rule: u32, next: Place, skips: bool },
    /// It goes on at any of these.
    Either(Vec<Place>),
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Network {
    /// What stands at a place: nothing may come next where nothing can come of it, neither a byte and again something nor the end of the rule.
    steps: Vec<Step>,
    /// Where rules begin; those that are never called begin nowhere.
    starts: Vec<Place>,
    /// Rules that may be empty.
    is_empty: Vec<bool>,
    /// Rules that another begins with come behind it.
    ranks: Vec<u32>,
    /// Bytes that no step tells from each other are of one class.
    classes: [u8; 256],
    pub(super) root: u32,
}

impl Network {
    /// # Errors
    /// Where it is too large, or allows nothing.
    pub(super) fn new(grammar: &Grammar) -> Result<Self, String> {
        let mut plain = Builder { steps: vec![Step::Return] };
        let starts = grammar.rules.iter().map(|rule| plain.node(rule, RETURN));
        let starts = starts.collect::<Result<Vec<_>, _>>()?;
        let is_empty = empty_rules(&plain.steps, &starts);
        let begins = begins(&plain.steps, &starts, &is_empty);
        let (group, ranks) = groups(&plain.steps, &begins);
        let mut network = Anew {
            plain: &plain.steps,
            starts: &starts,
            begins: &begins,
            group: &group,
            steps: Builder { steps: vec![Step::Return] },
            new_starts: vec![None; starts.len()],
            wanted: vec![grammar.root],
        };
        network.write()?;
        let nowhere = network.steps.push(Step::Either(Vec::new()))?;
        let starts: Vec<Place> = network.new_starts.iter().map(|start| start.unwrap_or(nowhere)).collect();
        let mut steps = network.steps.steps;
        let is_alive = alive(&steps, &starts, &is_empty);
        if !is_alive[starts[grammar.root] as usize] && !is_empty[grammar.root] {
            return Err("it allows no answer: `root` comes neither to a character nor to its end".to_owned());
        }
        let classes = classes(&steps);
        for (step, _) in steps.iter_mut().zip(&is_alive).filter(|(_, is_alive)| !**is_alive) {
            *step = Step::Either(Vec::new());
        }
        Ok(Self { steps, starts, is_empty, ranks, classes, root: grammar.root as u32 })
    }

    /// What stands at a place.
    pub(super) fn step(&self, place: Place) -> &Step {
        &self.steps[place as usize]
    }

    /// Where a rule begins.
    pub(super) fn start(&self, rule: u32) -> Place {
        self.starts[rule as usize]
    }

    /// Whether a rule may be empty.
    pub(super) fn is_empty(&self, rule: u32) -> bool {
        self.is_empty[rule as usize]
    }

    /// A rule's place in an order in which those that it begins with come behind it.
    pub(super) fn rank(&self, rule: u32) -> u32 {
        self.ranks[rule as usize]
    }

    /// The class of a byte.
    pub(super) fn class(&self, byte: u8) -> u8 {
        self.classes[byte as usize]
    }

    /// How many classes of bytes there are.
    pub(super) fn num_classes(&self) -> usize {
        usize::from(self.classes[255]) + 1
    }
}

struct Builder {
    steps: Vec<Step>,
}

impl Builder {
    fn push(&mut self, step: Step) -> Result<Place, String> {
        if self.steps.len() == MAX_STEPS {
            return Err(format!(
                "it is too large: written out it has more than {MAX_STEPS} steps; make repetitions or rules fewer"
            ));
        }
        self.steps.push(step);
        Ok(self.steps.len() as Place - 1)
    }

    fn either(&mut self, places: Vec<Place>) -> Result<Place, String> {
        if let [place] = places[..] { Ok(place) } else { self.push(Step::Either(places)) }
    }

    /// Where a node begins behind which comes `next`.
    fn node(&mut self, node: &Node, next: Place) -> Result<Place, String> {
        match node {
            Node::Text(text) => text
                .bytes()
                .rev()
                .try_fold(next, |next, byte| self.push(Step::Byte { first: byte, last: byte, next })),
            Node::Class { is_negated, ranges } => self.class(&class(*is_negated, ranges), next),
            Node::Any => self.class(&[('\0', char::MAX)], next),
            Node::Rule(rule) => self.push(Step::Call { rule: *rule as u32, next, skips: true }),
            Node::Sequence(nodes) => nodes.iter().rev().try_fold(next, |next, node| self.node(node, next)),
            Node::Alternatives(nodes) => {
                let places = nodes.iter().map(|node| self.node(node, next)).collect::<Result<_, _>>()?;
                self.either(places)
            }
            Node::Repeat { node, min, max } => {
                let mut place = match max {
                    None => {
                        let again = self.push(Step::Either(Vec::new()))?;
                        let body = self.node(node, again)?;
                        self.steps[again as usize] = Step::Either(vec![body, next]);
                        again
                    }
                    Some(max) => (*min..*max).try_fold(next, |rest, _| {
                        let body = self.node(node, rest)?;
                        self.either(vec![body, next])
                    })?,
                };
                for _ in 0..*min {
                    place = self.node(node, place)?;
                }
                Ok(place)
            }
        }
    }

    /// One character of these ranges, as its bytes.
    fn class(&mut self, ranges: &[(char, char)], next: Place) -> Result<Place, String> {
        let mut places = Vec::new();
        // Characters share what they end with.
        let mut ends: HashMap<(u8, u8, Place), Place> = HashMap::new();
        for &(first, last) in ranges {
            for sequence in Utf8Sequences::new(first, last) {
                let mut place = next;
                for &Utf8Range { start, end } in sequence.as_slice().iter().rev() {
                    place = match ends.get(&(start, end, place)) {
                        Some(&known) => known,
                        None => {
                            let new = self.push(Step::Byte { first: start, last: end, next: place })?;
                            ends.insert((start, end, place), new);
                            new
                        }
                    };
                }
                places.push(place);
            }
        }
        self.either(places)
    }
}

/// The characters of a class, as ranges that do not touch.
fn class(is_negated: bool, ranges: &[(char, char)]) -> Vec<(char, char)> {
    let of = |ranges: &[(char, char)]| {
        ClassUnicode::new(ranges.iter().map(|&(first, last)| ClassUnicodeRange::new(first, last)))
    };
    let mut class = of(ranges);
    if is_negated {
        let mut rest = of(&[('\0', char::MAX)]);
        rest.difference(&class);
        class = rest;
    }
    class.iter().map(|range| (range.start(), range.end())).collect()
}

/// Writes the rules that are called anew.
struct Anew<'a> {
    plain: &'a [Step],
    starts: &'a [Place],
    begins: &'a [Vec<Place>],
    group: &'a [Option<u32>],
    steps: Builder,
    new_starts: Vec<Option<Place>>,
    /// Rules that are called and not written yet.
    wanted: Vec<usize>,
}

/// One rule while it is written.
struct Rule {
    target: usize,
    /// The rules that begin with each other, of which it is one; nothing but itself where it does not begin with itself.
    members: Vec<usize>,
    /// By place, and for the ends of rules by rule, where it is written.
    written: HashMap<(Place, usize), Place>,
    /// Places whose steps are still to be written, with the rules that they are of.
    open: Vec<(Place, Place, usize)>,
}

impl Anew<'_> {
    fn write(&mut self) -> Result<(), String> {
        while let Some(rule) = self.wanted.pop() {
            if self.new_starts[rule].is_none() {
                self.new_starts[rule] = Some(self.rule(rule)?);
            }
        }
        Ok(())
    }

    fn rule(&mut self, target: usize) -> Result<Place, String> {
        let group = self.group[target];
        let members = match group {
            None => vec![target],
            Some(_) => (0..self.group.len()).filter(|&rule| self.group[rule] == group).collect(),
        };
        let mut rule = Rule { target, members, written: HashMap::new(), open: Vec::new() };
        let start = match group {
            None => self.place(&mut rule, self.starts[target], target)?,
            Some(_) => {
                let mut first = Vec::new();
                for member in rule.members.clone() {
                    for &place in &self.begins[member] {
                        if self.member(&rule, place).is_none() {
                            first.push(self.first(&mut rule, place, member)?);
                        }
                    }
                }
                self.steps.push(Step::Either(first))?
            }
        };
        while let Some((new, place, member)) = rule.open.pop() {
            let step = match &self.plain[place as usize] {
                Step::Return => Step::Either(self.behind(&mut rule, member)?),
                Step::Byte { first, last, next } => {
                    Step::Byte { first: *first, last: *last, next: self.place(&mut rule, *next, member)? }
                }
                Step::Call { rule: called, next, skips } => {
                    self.wanted.push(*called as usize);
                    Step::Call { rule: *called, next: self.place(&mut rule, *next, member)?, skips: *skips }
                }
                Step::Either(places) => {
                    let places = places.iter().map(|&place| self.place(&mut rule, place, member));
                    Step::Either(places.collect::<Result<_, _>>()?)
                }
            };
            self.steps.steps[new as usize] = step;
        }
        Ok(start)
    }

    /// The member of the rule's circle that is called at a place, if one is.
    fn member(&self, rule: &Rule, place: Place) -> Option<(usize, Place)> {
        match self.plain[place as usize] {
            Step::Call { rule: called, next, .. } if self.group[rule.target].is_some() => {
                let called = called as usize;
                (self.group[called] == self.group[rule.target]).then_some((called, next))
            }
            _ => None,
        }
    }

    /// A byte or a call that a member begins with. What comes behind a call of what may be empty is one of its beginnings too, so that
    /// the call is not skipped.
    fn first(&mut self, rule: &mut Rule, place: Place, member: usize) -> Result<Place, String> {
        match self.plain[place as usize] {
            Step::Call { rule: called, next, .. } => {
                self.wanted.push(called as usize);
                let next = self.place(rule, next, member)?;
                self.steps.push(Step::Call { rule: called, next, skips: false })
            }
            _ => self.place(rule, place, member),
        }
    }

    /// Where a place of a member is written for this rule.
    fn place(&mut self, rule: &mut Rule, place: Place, member: usize) -> Result<Place, String> {
        if place == RETURN && self.group[rule.target].is_none() {
            return Ok(RETURN);
        }
        let key = (place, if place == RETURN { member } else { 0 });
        if let Some(&new) = rule.written.get(&key) {
            return Ok(new);
        }
        let new = self.steps.push(Step::Either(Vec::new()))?;
        rule.written.insert(key, new);
        rule.open.push((new, place, member));
        Ok(new)
    }

    /// What comes behind a member: the end, if it is the rule itself, and what goes on with it in the members that begin with it.
    fn behind(&mut self, rule: &mut Rule, member: usize) -> Result<Vec<Place>, String> {
        let mut places = Vec::new();
        if member == rule.target {
            places.push(RETURN);
        }
        for other in rule.members.clone() {
            for &place in &self.begins[other] {
                if let Some((called, next)) = self.member(rule, place)
                    && called == member
                {
                    places.push(self.place(rule, next, other)?);
                }
            }
        }
        Ok(places)
    }
}

/// Classes of bytes, ascending.
fn classes(steps: &[Step]) -> [u8; 256] {
    let mut begins = [false; 257];
    for step in steps {
        if let Step::Byte { first, last, .. } = step {
            begins[usize::from(*first)] = true;
            begins[usize::from(*last) + 1] = true;
        }
    }
    let mut classes = [0; 256];
    for byte in 1..256 {
        classes[byte] = classes[byte - 1] + u8::from(begins[byte]);
    }
    classes
}
