use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use toktrie::{TokRxInfo, TokTrie};

/// Whether a text is an answer; `None` where it cannot even be the beginning of one.
fn read(automaton: &Automaton, text: &str) -> Option<bool> {
    let mut automaton = automaton.clone();
    automaton.push(text.as_bytes()).ok()?;
    Some(automaton.accepts())
}

fn assert_reads(grammar: &str, whole: &[&str], begun: &[&str], wrong: &[&str]) {
    let followed = automaton(grammar).unwrap_or_else(|error| panic!("{grammar}: {error}"));
    for (texts, expected) in [(whole, Some(true)), (begun, Some(false)), (wrong, None)] {
        for text in texts {
            assert_eq!(read(&followed, text), expected, "{text:?} by {grammar}");
        }
    }
}

#[test]
fn what_is_written_is_what_is_read() {
    assert_reads(
        "# yes or no\nroot ::= answer \" \"? [0-9]{2,3}\nanswer ::= \"yes\" |\n  \"no\" # or not\n  | \"\\u00e9\\n\"",
        &["yes 12", "no123", "é\n00"],
        &["y", "yes 1", "é"],
        &["yes 1234", "n0", "yes  12"],
    );
    assert_reads(
        "root ::= ( [^\"\\]-] . )* | \"x\"{2,}",
        &["", "ab", "a\"", "é\n🙂]", "xx", "xxx"],
        &["x", "xyz"],
        &["\"a", "-"],
    );
    assert_reads("root ::= [a-cx-z]", &["b", "y"], &[""], &["d", "aa", "é"]);
}

/// What cuts an answer into the longest pieces fails of these.
#[test]
fn rules_that_lead_back_are_followed_wherever_they_may_lead() {
    let words = "root ::= word root | \"\"\nword ::= [a-z]+ \"x\"";
    assert_reads(words, &["", "ax", "axbx", "xxx", "axxbbx"], &["a", "axb"], &["a1", "1"]);
    let palindrome = "root ::= \"a\" root \"a\" | \"b\" root \"b\" | [ab]?";
    assert_reads(palindrome, &["abba", "ababa", "b", ""], &["abb", "ab"], &["abc"]);
    let list = "root ::= \"[\" ws (root (\",\" ws root)*)? \"]\" ws | ws [0-9] ws\nws ::= [ ]*";
    assert_reads(list, &["[]", "[ 1 ,  [ ] ]", " 7  "], &["[", "[ 1 , ", "  "], &["]", "[,", "[1 1"]);
    let even = "root ::= odd \"a\" | \"\"\nodd ::= root \"a\"";
    assert_reads(even, &["", "aa", "aaaa"], &["a", "aaa"], &["b"]);
}

#[test]
fn rules_may_begin_with_themselves() {
    let sum =
        "root ::= root \"+\" term | term\nterm ::= term \"*\" atom | atom\natom ::= [0-9] | \"(\" root \")\"";
    assert_reads(sum, &["1", "1+2*3", "(1+2)*3+4"], &["1+", "(1", "(1+2)*"], &["+", "1++", "1)", "()"]);
    // Through others, and behind what may be empty.
    let through = "root ::= a \"x\" | \"r\"\na ::= blank b \"y\" | \"s\"\nb ::= root? \"z\"\nblank ::= [ ]*";
    assert_reads(
        through,
        &["r", "sx", "zyx", "rzyx", " zyx", " rzyx", "rzyxzyx", "  sxzyx"],
        &["s", "rz", "", " "],
        &["x", "rx", "y"],
    );
    let ambiguous = "root ::= root root | \"a\" | \"\"";
    assert_reads(ambiguous, &["", "a", "aaaaaaaaaa"], &[], &["b"]);
    assert_reads("root ::= a | \"x\"\na ::= a | \"\"", &["", "x"], &[], &["xx"]);
    assert_reads("root ::= ((\"a\"? root? \"b\"?)*)*", &["", "abba", "bbaa"], &[], &["c"]);
}

#[test]
fn what_allows_no_answer_is_refused() {
    for grammar in
        ["root ::= root", "root ::= a \"x\"\na ::= a \"y\" | b\nb ::= a", "root ::= \"x\" a\na ::= a \"x\""]
    {
        assert!(automaton(grammar).unwrap_err().contains("no answer"), "{grammar}");
    }
    // What leads nowhere is no way to go.
    assert_reads("root ::= \"x\" a | \"y\"\na ::= a \"z\"", &["y"], &[""], &["x"]);
    assert_reads("root ::= \"x\" root", &[], &["", "xxx"], &["y"]);
}

#[test]
fn what_goes_round_in_circles_takes_no_more_memory() {
    for grammar in [
        "root ::= \"a\" root | \"b\"",
        "root ::= root \"a\" | \"a\"",
        "root ::= x root | \"b\"\nx ::= [a-y]* \"z\" | \"a\"",
        "root ::= (\"a\" y)*\ny ::= \"a\" (\"a\" y)? | \"a\"",
    ] {
        let mut followed = automaton(grammar).unwrap();
        followed.push(&b"a".repeat(100)).unwrap();
        let known = followed.num_known();
        followed.push(&b"a".repeat(10_000)).unwrap();
        assert_eq!(followed.num_known(), known, "{grammar}");
    }
    // What is open must be kept, and nothing else is for ever.
    let mut nested = automaton("root ::= \"(\" root* \")\"").unwrap();
    for depth in [100, 40_000] {
        nested.push(&b"(".repeat(depth)).unwrap();
        nested.push(&b")".repeat(depth - 1)).unwrap();
        nested.push(&b"()".repeat(1000)).unwrap();
    }
    let copy = nested.clone();
    assert!(copy.num_known() < 60 && read(&copy, "))").is_some(), "{}", copy.num_known());
}

#[test]
fn tokens_are_allowed_that_go_on_with_an_answer() {
    let words = ["a", "b", "ab", "abc", "\u{e9}", "(", "((", "))", ""].map(|word| word.as_bytes().to_vec());
    let mut words: Vec<Vec<u8>> = words.into();
    words.extend([vec![0xc3], vec![0xa9], [&[TokTrie::SPECIAL_TOKEN_MARKER], &b"end"[..]].concat()]);
    let info = TokRxInfo {
        vocab_size: words.len() as u32,
        tok_eos: 11,
        tok_bos: None,
        tok_pad: None,
        tok_unk: None,
        tok_end_of_turn: None,
    };
    let trie = TokTrie::from(&info, &words);
    let allowed = |automaton: &mut Automaton| {
        let mask = automaton.allowed(&trie).unwrap();
        (0..words.len()).filter(|&id| mask[id / 32] >> (id % 32) & 1 == 1).collect::<Vec<_>>()
    };
    let mut followed = automaton("root ::= [abé]* | \"(\" root \")\"").unwrap();
    assert_eq!(allowed(&mut followed), [0, 1, 2, 4, 5, 6, 9]);
    followed.push(b"\xc3").unwrap();
    assert_eq!(allowed(&mut followed), [10]);
    let mut nested = automaton("root ::= [abé]* | \"(\" root \")\"").unwrap();
    nested.push(b"((a").unwrap();
    assert_eq!(allowed(&mut nested), [0, 1, 2, 4, 7, 9]);
    nested.push(b")").unwrap();
    assert_eq!((allowed(&mut nested), nested.accepts()), (vec![], false));
    assert!(nested.push(b"a").is_err());
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (source, says) in [
        ("", "expected a rule `root`"),
        ("a ::= \"x\"", "expected a rule `root`"),
        ("root ::= b\n", "line 1, column 10: there is no rule `b`"),
        ("root ::= \"a\"\nroot ::= \"b\"", "line 2, column 1: the rule `root` is there twice"),
        ("root := \"a\"", "line 1, column 6: expected `::=`, found `:`"),
        ("root ::= \"a", "line 1, column 12: expected `\"` at the end of the text, found the end"),
        ("root ::= [a\n]", "expected `]` at the end of the class, found a line break"),
        ("root ::= [z-a]", "line 1, column 11: expected a range that goes up, found 'z' to 'a'"),
        ("root ::= []", "expected a character in the class"),
        ("root ::= (\"a\"", "expected `)`, found the end"),
        ("root ::= \"a\")", "expected a part of a rule, `|` or a line break, found `)`"),
        ("root ::= \"\\q\"", "`\\q` means nothing"),
        ("root ::= \"\\u12\"", "hexadecimal digits"),
        ("root ::= \"\\ud800\"", "hexadecimal digits"),
        ("root ::= \"a\"{3,2}", "counts that go up"),
        ("root ::= \"a\"{1001}", "a count of at most 1000"),
        ("root ::= \"a\"{99999999999}", "a count of at most 1000"),
        ("root ::= \"a\"{,}", "expected a count"),
        ("root ::= \"a\"{2", "expected `}`, found the end"),
        ("root ::= \"a\"**", "expected one repetition"),
        ("root ::= <|im_end|>", "tokens by name or number are not supported"),
        ("root ::= a b ::= \"x\"", "must begin on a line of its own"),
        ("root ::= ~", "expected a part of a rule"),
        ("=", "line 1, column 1: expected the name of a rule, found `=`"),
    ] {
        let error = automaton(source).unwrap_err();
        assert!(error.contains(says), "{source}: {error}");
    }
}

#[test]
fn what_is_too_much_is_refused() {
    let deep = format!("root ::= {}\"x\"{}", "(".repeat(65), ")".repeat(65));
    assert!(automaton(&deep).unwrap_err().contains("64 deep"));
    let rules: String = (0..2001).map(|i| format!("r{i} ::= \"x\"\n")).collect();
    assert!(automaton(&rules).unwrap_err().contains("2000 rules"));
    assert!(automaton(&" ".repeat(65_537)).unwrap_err().contains("65536 bytes"));
    let repeated = "root ::= (((\"a\"{1000}){1000}){1000}){1000}";
    assert!(automaton(repeated).unwrap_err().contains("200000 steps"));
    // A chain is no recursion.
    let chain: String = (0..1999).map(|i| format!("r{i} ::= r{}\n", i + 1)).collect();
    assert_reads(&format!("{}r1999 ::= \"x\"", chain.replace("r0 ", "root ")), &["x"], &[""], &["y"]);
}

/// Where parts of a text end that begin at `start`, as far as it is known of rules.
fn ends(node: &Node, text: &[char], start: usize, rules: &[Vec<BTreeSet<usize>>]) -> BTreeSet<usize> {
    let each = |node: &Node, starts: &BTreeSet<usize>| -> BTreeSet<usize> {
        starts.iter().flat_map(|&start| ends(node, text, start, rules)).collect()
    };
    match node {
        Node::Text(part) => {
            let end = start + part.chars().count();
            let is_there = end <= text.len() && part.chars().eq(text[start..end].iter().copied());
            is_there.then_some(end).into_iter().collect()
        }
        Node::Class { is_negated, ranges } => {
            let is_in = |next: &char| ranges.iter().any(|(first, last)| (first..=last).contains(&next));
            text.get(start).filter(|next| is_in(next) != *is_negated).map(|_| start + 1).into_iter().collect()
        }
        Node::Any => text.get(start).map(|_| start + 1).into_iter().collect(),
        Node::Rule(rule) => rules[*rule][start].clone(),
        Node::Sequence(nodes) => nodes.iter().fold([start].into(), |starts, node| each(node, &starts)),
        Node::Alternatives(nodes) => nodes.iter().flat_map(|node| ends(node, text, start, rules)).collect(),
        Node::Repeat { node, min, max } => {
            let mut at: BTreeSet<usize> = [start].into();
            (0..*min).for_each(|_| at = each(node, &at));
            let mut all = at.clone();
            for _ in 0..max.map_or(text.len() + 1, |max| (max - min) as usize) {
                at = each(node, &at);
                all.extend(&at);
            }
            all
        }
    }
}

/// Whether a text is an answer: spans of rules are found until there are no more.
fn is_answer(grammar: &Grammar, text: &[char]) -> bool {
    let mut rules = vec![vec![BTreeSet::new(); text.len() + 1]; grammar.rules.len()];
    loop {
        let before = rules.clone();
        for (number, rule) in grammar.rules.iter().enumerate() {
            for (start, found) in rules[number].iter_mut().enumerate() {
                *found = ends(rule, text, start, &before);
            }
        }
        if rules == before {
            return rules[grammar.root][0].contains(&text.len());
        }
    }
}

fn node() -> impl Strategy<Value = Node> {
    let text = prop::sample::select(vec!["a", "b", "ab", ""]).prop_map(|text| Node::Text(text.to_owned()));
    let class = any::<bool>().prop_map(|is_negated| Node::Class { is_negated, ranges: vec![('a', 'a')] });
    let leaf = prop_oneof![3 => text, 1 => class, 4 => (0..3usize).prop_map(Node::Rule)];
    let counts = prop::sample::select(vec![(0, None), (1, None), (0, Some(1)), (2, Some(2)), (1, Some(3))]);
    leaf.prop_recursive(3, 12, 3, move |inner| {
        prop_oneof![
            3 => prop::collection::vec(inner.clone(), 0..4).prop_map(Node::Sequence),
            3 => prop::collection::vec(inner.clone(), 1..4).prop_map(Node::Alternatives),
            1 => (inner, counts.clone()).prop_map(|(node, (min, max))| Node::Repeat { node: Box::new(node), min, max }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever rules lead back to whatever, answers are those that can be derived, and nothing keeps one from being gone on with.
    #[test]
    fn any_grammar_is_followed(rules in prop::collection::vec(node(), 3)) {
        let grammar = Grammar { rules, root: 0 };
        let followed = network::Network::new(&grammar).and_then(Automaton::new);
        let mut texts = vec![String::new()];
        for i in 0..31 {
            texts.extend(["a", "b"].map(|next| texts[i].clone() + next));
        }
        let letters: Vec<Vec<char>> = texts.iter().map(|text| text.chars().collect()).collect();
        let answers: Vec<bool> = letters.iter().map(|text| is_answer(&grammar, text)).collect();
        let Ok(followed) = followed else {
            prop_assert!(!answers.contains(&true), "{grammar:?} is refused");
            return Ok(());
        };
        for (text, is_answer) in texts.iter().zip(&answers) {
            let found = read(&followed, text);
            prop_assert_eq!(found.unwrap_or(false), *is_answer, "{:?} by {:?}", text, grammar);
            let goes_on = texts.iter().zip(&answers).any(|(longer, is_answer)| *is_answer && longer.starts_with(text));
            prop_assert!(found.is_some() || !goes_on, "{:?} is no beginning by {:?}", text, grammar);
        }
    }
}

proptest::proptest! {
    /// Whatever a client sends is read or refused.
    #[test]
    fn no_text_is_too_much(source in "(root ::= )?[a-c\"\\\\\\[\\]\\^(){}|*+?.,:=#<! \n0-9xuUé-]{0,60}") {
        if let Err(error) = automaton(&source) {
            proptest::prop_assert!(!error.is_empty());
        }
    }
}
