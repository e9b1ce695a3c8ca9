//! What rules begin with, and whether anything can come of it.

use super::network::{Place, RETURN, Step};

/// The rules that may be empty.
pub(super) fn empty_rules(steps: &[Step], starts: &[Place]) -> Vec<bool> {
    let mut is_empty = vec![false; starts.len()];
    let mut is_seen = vec![false; steps.len()];
    // By rule what comes behind calls of it, if it is empty.
    let mut waiting: Vec<Vec<(usize, Place)>> = vec![Vec::new(); starts.len()];
    let mut open: Vec<(usize, Place)> = starts.iter().copied().enumerate().collect();
    while let Some((rule, place)) = open.pop() {
        if place == RETURN {
            if !std::mem::replace(&mut is_empty[rule], true) {
                open.append(&mut waiting[rule]);
            }
            continue;
        }
        if std::mem::replace(&mut is_seen[place as usize], true) {
            continue;
        }
        match &steps[place as usize] {
            Step::Call { rule: called, next, .. } if is_empty[*called as usize] => open.push((rule, *next)),
            Step::Call { rule: called, next, .. } => waiting[*called as usize].push((rule, *next)),
            Step::Either(places) => open.extend(places.iter().map(|&place| (rule, place))),
            Step::Return | Step::Byte { .. } => (),
        }
    }
    is_empty
}

/// The places with bytes or calls that can come first from `place` on, behind nothing.
fn first_places(steps: &[Step], is_empty: &[bool], place: Place, is_seen: &mut [bool]) -> Vec<Place> {
    let (mut open, mut found) = (vec![place], Vec::new());
    while let Some(place) = open.pop() {
        if place == RETURN || std::mem::replace(&mut is_seen[place as usize], true) {
            continue;
        }
        match &steps[place as usize] {
            Step::Return => (),
            Step::Byte { .. } => found.push(place),
            Step::Either(places) => open.extend(places),
            Step::Call { rule, next, .. } => {
                found.push(place);
                open.extend(is_empty[*rule as usize].then_some(*next));
            }
        }
    }
    found
}

/// Of each rule the places that it can begin with.
pub(super) fn begins(steps: &[Step], starts: &[Place], is_empty: &[bool]) -> Vec<Vec<Place>> {
    // A place is of one rule.
    let mut is_seen = vec![false; steps.len()];
    starts.iter().map(|&start| first_places(steps, is_empty, start, &mut is_seen)).collect()
}

/// Of each rule the rules that begin with it and that it begins with: the number of that group, if there are such rules; and its rank.
pub(super) fn groups(plain: &[Step], begins: &[Vec<Place>]) -> (Vec<Option<u32>>, Vec<u32>) {
    let called = |rule: usize| {
        begins[rule].iter().filter_map(|&place| match plain[place as usize] {
            Step::Call { rule, .. } => Some(rule as usize),
            _ => None,
        })
    };
    let count = begins.len();
    let edges: Vec<Vec<usize>> = (0..count).map(|rule| called(rule).collect()).collect();
    let mut reversed = vec![Vec::new(); count];
    for (rule, called) in edges.iter().enumerate() {
        called.iter().for_each(|&called| reversed[called].push(rule));
    }
    // Kosaraju: the rules in the order in which a walk leaves them, the last first; from there backwards.
    let mut left = Vec::with_capacity(count);
    let mut is_seen = vec![false; count];
    for rule in 0..count {
        let mut open = vec![(rule, 0)];
        while let Some((rule, next)) = open.pop() {
            if next == 0 && std::mem::replace(&mut is_seen[rule], true) {
                continue;
            }
            match edges[rule].get(next) {
                Some(&called) => open.extend([(rule, next + 1), (called, 0)]),
                None => left.push(rule),
            }
        }
    }
    let (mut group, mut ranks) = (vec![None; count], vec![u32::MAX; count]);
    for (rank, &rule) in left.iter().rev().enumerate() {
        let mut open = vec![rule];
        let mut members = Vec::new();
        while let Some(rule) = open.pop() {
            if ranks[rule] == u32::MAX {
                ranks[rule] = rank as u32;
                members.push(rule);
                open.extend(&reversed[rule]);
            }
        }
        let is_circle = members.len() > 1 || members.first().is_some_and(|&rule| edges[rule].contains(&rule));
        members.iter().filter(|_| is_circle).for_each(|&rule| group[rule] = Some(rank as u32));
    }
    (group, ranks)
}

/// Places of which something can come.
pub(super) fn alive(steps: &[Step], starts: &[Place], is_empty: &[bool]) -> Vec<bool> {
    let mut is_alive = vec![true; steps.len()];
    // By place those that need it, and how many of those that they need are alive.
    let mut needed_by: Vec<Vec<u32>> = vec![Vec::new(); steps.len()];
    let mut choices = vec![1usize; steps.len()];
    let mut dead = Vec::new();
    for (place, step) in steps.iter().enumerate() {
        let needs: &mut dyn Iterator<Item = Place> = match step {
            Step::Return => &mut std::iter::empty(),
            Step::Byte { next, .. } => &mut std::iter::once(*next),
            Step::Call { rule, next, skips } => {
                let start = starts[*rule as usize];
                &mut [*next, if *skips && is_empty[*rule as usize] { *next } else { start }].into_iter()
            }
            Step::Either(places) => {
                choices[place] = places.len();
                if places.is_empty() {
                    dead.push(place);
                }
                &mut places.iter().copied()
            }
        };
        needs.for_each(|needed| needed_by[needed as usize].push(place as u32));
    }
    while let Some(place) = dead.pop() {
        if !std::mem::replace(&mut is_alive[place], false) {
            continue;
        }
        for &needs in &needed_by[place] {
            let needs = needs as usize;
            choices[needs] = choices[needs].saturating_sub(1);
            if choices[needs] == 0 {
                dead.push(needs);
            }
        }
    }
    is_alive
}
