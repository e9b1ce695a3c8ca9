use super::*;

fn lark(source: &str) -> String {
    to_lark(source).unwrap_or_else(|error| panic!("{source}: {error}"))
}

#[test]
fn a_grammar_that_leads_nowhere_back_is_one_terminal() {
    assert_eq!(
        lark(
            "# yes or no\nroot ::= answer \" \"? [0-9]{2,3}\nanswer ::= \"yes\" |\n  \"no\" # or not\n  | \"\\u00e9\\n\""
        ),
        "start: T0\nT0: T1 (\" \")? (/[\\u{30}-\\u{39}]/){2,3}\nT1: (\"yes\" | \"no\" | \"é\\u000a\")\n"
    );
    assert_eq!(
        lark("root ::= ( [^\"\\]-] | . )* | "),
        "start: T0\nT0: (((/[^\\u{22}-\\u{22}\\u{5d}-\\u{5d}\\u{2d}-\\u{2d}]/ | /(?s:.)/))* | \"\")\n"
    );
}

#[test]
fn of_what_leads_back_each_run_is_a_terminal() {
    let list = "root ::= \"[\" ws (root (\",\" ws root)*)? \"]\" ws | ws\nws ::= [ \\t]*\nunused ::= \"x\"";
    let expected = "start: r0\n\
        r0: (X0 (r0 (X1 r0)*)? X2 | T1)\n\
        T1: (/[\\u{20}-\\u{20}\\u{9}-\\u{9}]/)*\n\
        X0: \"[\" T1\nX1: \",\" T1\nX2: \"]\" T1\n";
    assert_eq!(lark(list), expected);
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
        let error = to_lark(source).unwrap_err();
        assert!(error.contains(says), "{source}: {error}");
    }
}

#[test]
fn what_is_too_much_is_refused() {
    let deep = format!("root ::= {}\"x\"{}", "(".repeat(65), ")".repeat(65));
    assert!(to_lark(&deep).unwrap_err().contains("64 deep"));
    let rules: String = (0..2001).map(|i| format!("r{i} ::= \"x\"\n")).collect();
    assert!(to_lark(&rules).unwrap_err().contains("2000 rules"));
    assert!(to_lark(&" ".repeat(65_537)).unwrap_err().contains("65536 bytes"));
    // A chain is no recursion.
    let chain: String = (0..1999).map(|i| format!("r{i} ::= r{}\n", i + 1)).collect();
    let chain = lark(&format!("{}r1999 ::= \"x\"", chain.replace("r0 ", "root ")));
    assert!(chain.starts_with("start: T0\n") && chain.contains("T1999: \"x\"\n"));
}

proptest::proptest! {
    /// Whatever a client sends is read or refused.
    #[test]
    fn no_text_is_too_much(source in "(root ::= )?[a-c\"\\\\\\[\\]\\^(){}|*+?.,:=#<! \n0-9xuUé-]{0,60}") {
        if let Err(error) = to_lark(&source) {
            proptest::prop_assert!(!error.is_empty());
        }
    }
}
