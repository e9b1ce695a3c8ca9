//! Follows a [`Network`] byte by byte, wherever it may be: what is left of an answer is a stack of places to return to, and all stacks that
//! are possible are followed at once.
//!
//! Stacks share what they have in common: a frame is what a call of a rule returns to, all places with their own frames together, so that a rule that
//! is called from several places at once is followed once (as in Earley's and generalised LR parsers). A call at the end of a rule returns to where
//! that rule does. Equal frames and equal states are one: where an answer goes round in circles, so does the automaton, and what
//! it has found out (where a byte leads, which tokens are allowed) need not be found out again.

use super::network::{Network, Place, RETURN, Step};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use toktrie::{Recognizer, TokTrie};

/// What a frame or a state consists of: places, each with what its rule returns to.
type Pairs = Arc<[(Place, u32)]>;

/// The frame of the root, which returns nowhere.
const BOTTOM: u32 = 0;
/// The state in which nothing may follow, and one that is not known yet.
const NOWHERE: u32 = 0;
const UNKNOWN: u32 = u32::MAX;

/// Most pairs of all frames and states, behind which those are forgotten that are not needed any more; and most that a single state may
/// take to be found.
const MAX_PAIRS: usize = 1 << 20;
const MAX_STATE_PAIRS: usize = 1 << 16;
/// Most sets of allowed tokens that are kept.
const MAX_MASKS: usize = 64;

/// Where an answer may be.
#[derive(Debug)]
struct State {
    /// Places with bytes.
    items: Pairs,
    /// The answer may end here.
    accepts: bool,
    /// By class of bytes where they lead.
    next: Box<[u32]>,
}

/// See the [module](self).
#[derive(Debug)]
pub struct Automaton {
    network: Arc<Network>,
    frames: Vec<Pairs>,
    frame_numbers: HashMap<Pairs, u32>,
    states: Vec<State>,
    state_numbers: HashMap<(Pairs, bool), u32>,
    masks: HashMap<u32, Arc<Vec<u32>>>,
    /// Pairs of all frames and states.
    num_pairs: usize,
    state: u32,
}

/// Why an answer cannot be followed.
const TOO_MUCH: &str = "there are too many ways to read the answer so far; make the grammar less ambiguous";

impl Clone for Automaton {
    /// With what is needed from where it is on.
    fn clone(&self) -> Self {
        let mut clone = Self::empty(&self.network);
        let State { items, accepts, .. } = &self.states[self.state as usize];
        // A frame has only earlier ones.
        let mut is_needed = vec![false; self.frames.len()];
        items.iter().for_each(|&(_, frame)| is_needed[frame as usize] = true);
        for frame in (1..self.frames.len()).rev() {
            if is_needed[frame] {
                self.frames[frame].iter().for_each(|&(_, parent)| is_needed[parent as usize] = true);
            }
        }
        let mut numbers = vec![BOTTOM; self.frames.len()];
        for frame in (1..self.frames.len()).filter(|&frame| is_needed[frame]) {
            let mut pairs: Vec<_> = self.frames[frame].to_vec();
            pairs.iter_mut().for_each(|(_, parent)| *parent = numbers[*parent as usize]);
            pairs.sort_unstable();
            numbers[frame] = clone.frame(pairs.into());
        }
        let mut items = items.to_vec();
        items.iter_mut().for_each(|(_, frame)| *frame = numbers[*frame as usize]);
        items.sort_unstable();
        clone.state = clone.state_of(items, *accepts);
        if let Some(mask) = self.masks.get(&self.state) {
            clone.masks.insert(clone.state, Arc::clone(mask));
        }
        clone
    }
}

impl Automaton {
    /// At the beginning of an answer.
    pub(super) fn new(network: Network) -> Result<Self, String> {
        let network = Arc::new(network);
        let mut automaton = Self::empty(&network);
        let start = network.start(network.root);
        automaton.state = automaton.close(vec![(start, BOTTOM)], network.is_empty(network.root))?;
        Ok(automaton)
    }

    fn empty(network: &Arc<Network>) -> Self {
        let nowhere = State { items: Pairs::default(), accepts: false, next: Box::new([]) };
        Self {
            network: Arc::clone(network),
            frames: vec![Pairs::default()],
            frame_numbers: HashMap::new(),
            states: vec![nowhere],
            state_numbers: HashMap::from([((Pairs::default(), false), NOWHERE)]),
            masks: HashMap::new(),
            num_pairs: 0,
            state: NOWHERE,
        }
    }

    /// Whether the answer may end here.
    pub fn accepts(&self) -> bool {
        self.states[self.state as usize].accepts
    }

    /// Frames and states that are kept.
    #[cfg(test)]
    pub(super) fn num_known(&self) -> usize {
        self.frames.len() + self.states.len()
    }

    /// Goes on by these bytes.
    ///
    /// # Errors
    /// Where they may not follow, or there is too much to follow.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        for &byte in bytes {
            self.state = self.next(self.state, byte)?;
        }
        if self.state == NOWHERE {
            return Err("a token came that is not allowed".to_owned());
        }
        if self.num_pairs > MAX_PAIRS {
            *self = self.clone();
            if self.num_pairs > MAX_PAIRS / 2 {
                return Err(TOO_MUCH.to_owned());
            }
        }
        Ok(())
    }

    /// The tokens that may follow, as bits; none of those that end an answer.
    ///
    /// # Errors
    /// Where there is too much to follow.
    pub fn allowed(&mut self, trie: &TokTrie) -> Result<Arc<Vec<u32>>, String> {
        if let Some(mask) = self.masks.get(&self.state) {
            return Ok(Arc::clone(mask));
        }
        let mut tokens = trie.alloc_token_set();
        let (states, most) = (vec![self.state], self.num_pairs + MAX_PAIRS);
        let mut walk = Walk { automaton: self, states, most, fault: None };
        trie.add_bias(&mut walk, &mut tokens, &[]);
        if let Some(fault) = walk.fault {
            return Err(fault);
        }
        let mask = Arc::new(Vec::from(tokens));
        if self.masks.len() == MAX_MASKS {
            self.masks.clear();
        }
        self.masks.insert(self.state, Arc::clone(&mask));
        Ok(mask)
    }

    /// Where a byte leads.
    fn next(&mut self, state: u32, byte: u8) -> Result<u32, String> {
        if state == NOWHERE {
            return Ok(NOWHERE);
        }
        let class = usize::from(self.network.class(byte));
        let State { items, next, .. } = &self.states[state as usize];
        if next[class] != UNKNOWN {
            return Ok(next[class]);
        }
        let follow = |&(place, frame): &(Place, u32)| match self.network.step(place) {
            Step::Byte { first, last, next } if (*first..=*last).contains(&byte) => Some((*next, frame)),
            _ => None,
        };
        let open: Vec<_> = items.iter().filter_map(follow).collect();
        let found = if open.is_empty() { NOWHERE } else { self.close(open, false)? };
        self.states[state as usize].next[class] = found;
        Ok(found)
    }

    /// The state of an answer that may be at any of these places.
    fn close(&mut self, open: Vec<(Place, u32)>, mut accepts: bool) -> Result<u32, String> {
        let network = Arc::clone(&self.network);
        let mut found = Found {
            network: &network,
            open,
            seen: HashSet::new(),
            items: Vec::new(),
            calls: BTreeMap::new(),
        };
        // First to the ends of rules and behind them, then into rules that are called, those that are called by others behind those.
        while let Some((place, frame)) = found.take()? {
            if place == RETURN {
                accepts |= frame == BOTTOM;
                found.open.extend(self.frames[frame as usize].iter());
            } else {
                found.step(place, frame, &self.frames);
            }
        }
        while let Some(((_, rule), pairs)) = found.calls.pop_first() {
            let pairs: Pairs = pairs.into_iter().collect();
            let frame = self.frame(pairs);
            found.open.push((network.start(rule), frame));
            while let Some((place, frame)) = found.take()? {
                // A rule that ends where it begins was skipped where it is called.
                if place != RETURN {
                    found.step(place, frame, &self.frames);
                }
            }
        }
        let mut items = found.items;
        items.sort_unstable();
        Ok(self.state_of(items, accepts))
    }

    fn frame(&mut self, pairs: Pairs) -> u32 {
        if let Some(&frame) = self.frame_numbers.get(&pairs) {
            return frame;
        }
        let frame = self.frames.len() as u32;
        self.num_pairs += pairs.len() + 4;
        self.frames.push(pairs.clone());
        self.frame_numbers.insert(pairs, frame);
        frame
    }

    fn state_of(&mut self, items: Vec<(Place, u32)>, accepts: bool) -> u32 {
        let key = (Pairs::from(items), accepts);
        if let Some(&state) = self.state_numbers.get(&key) {
            return state;
        }
        let state = self.states.len() as u32;
        let next = vec![UNKNOWN; self.network.num_classes()].into_boxed_slice();
        self.num_pairs += 2 * key.0.len() + next.len() / 2 + 8;
        self.states.push(State { items: key.0.clone(), accepts, next });
        self.state_numbers.insert(key, state);
        state
    }
}

/// What is found on the way to a state.
struct Found<'a> {
    network: &'a Network,
    /// Still to be looked at.
    open: Vec<(Place, u32)>,
    seen: HashSet<(Place, u32)>,
    items: Vec<(Place, u32)>,
    /// Rules that are called, by their ranks, and what they return to.
    calls: BTreeMap<(u32, u32), BTreeSet<(Place, u32)>>,
}

impl Found<'_> {
    /// The next place that was not looked at yet.
    fn take(&mut self) -> Result<Option<(Place, u32)>, String> {
        while let Some(next) = self.open.pop() {
            if self.seen.insert(next) {
                let is_too_much = self.seen.len() > MAX_STATE_PAIRS;
                return if is_too_much { Err(TOO_MUCH.to_owned()) } else { Ok(Some(next)) };
            }
        }
        Ok(None)
    }

    /// Goes on from a place that is no end.
    fn step(&mut self, place: Place, frame: u32, frames: &[Pairs]) {
        match self.network.step(place) {
            Step::Return => (),
            Step::Byte { .. } => self.items.push((place, frame)),
            Step::Either(places) => self.open.extend(places.iter().map(|&place| (place, frame))),
            &Step::Call { rule, next, skips } => {
                let returns = self.calls.entry((self.network.rank(rule), rule)).or_default();
                if next == RETURN && frame != BOTTOM {
                    returns.extend(frames[frame as usize].iter());
                } else {
                    returns.insert((next, frame));
                }
                if skips && self.network.is_empty(rule) {
                    self.open.push((next, frame));
                }
            }
        }
    }
}

/// The states that a walk over tokens has come to, byte by byte.
struct Walk<'a> {
    automaton: &'a mut Automaton,
    states: Vec<u32>,
    /// Pairs that the automaton may have.
    most: usize,
    fault: Option<String>,
}

impl Recognizer for Walk<'_> {
    fn pop_bytes(&mut self, num: usize) {
        self.states.truncate(self.states.len() - num);
    }

    fn collapse(&mut self) {
        self.states.drain(..self.states.len() - 1);
    }

    fn trie_finished(&mut self) {
        self.states.truncate(1);
    }

    fn try_push_byte(&mut self, byte: u8) -> bool {
        if self.fault.is_some() {
            return false;
        }
        let state = self.states[self.states.len() - 1];
        match self.automaton.next(state, byte) {
            Ok(NOWHERE) => false,
            Ok(next) => {
                self.states.push(next);
                if self.automaton.num_pairs > self.most {
                    self.fault = Some(TOO_MUCH.to_owned());
                }
                true
            }
            Err(fault) => {
                self.fault = Some(fault);
                false
            }
        }
    }
}
