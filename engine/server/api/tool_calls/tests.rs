//! Answers of both dialects, cut anywhere.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn functions() -> Arc<Functions> {
    let sail = json!({"type": "object", "properties": {
        "to": {"type": "string"}, "days": {"type": "integer"}, "with": {"type": "array"}, "now": {"type": ["boolean", "null"]},
    }});
    Arc::new(HashMap::from([("sail".into(), sail.as_object().cloned()), ("fish".into(), None)]))
}

/// The pieces of an answer that comes in these parts.
fn parse_in<'a>(dialect: Dialect, parts: impl IntoIterator<Item = &'a str>) -> Vec<Piece> {
    let mut parser = CallParser::new(functions(), dialect);
    let mut pieces = Vec::new();
    for part in parts {
        parser.push(part).into_iter().for_each(|piece| append(&mut pieces, piece));
    }
    parser.finish().into_iter().for_each(|piece| append(&mut pieces, piece));
    pieces
}

fn parse<'a>(parts: impl IntoIterator<Item = &'a str>) -> Vec<Piece> {
    parse_in(Dialect::Json, parts)
}

fn text(text: &str) -> Piece {
    Piece::Text(text.into())
}

fn blank(text: &str) -> Piece {
    Piece::Blank(text.into())
}

fn call(name: &str, arguments: &str) -> Vec<Piece> {
    vec![Piece::Call(name.into()), Piece::Arguments(arguments.into()), Piece::End]
}

fn cut(name: &str, arguments: &str) -> Vec<Piece> {
    let mut pieces = call(name, arguments);
    pieces.pop();
    pieces.retain(|piece| *piece != Piece::Arguments(String::new()));
    pieces
}

#[test]
fn calls_with_and_without_text() {
    let sea = "<tool_call>\n{\"name\": \"sea\", \"arguments\": {\"at\": [1, 2.50]}}\n</tool_call>";
    let sun = r#"<tool_call>{"arguments":{},"name":"s\u0075n"}</tool_call>"#;
    let (of_sea, of_sun) = (call("sea", r#"{"at": [1, 2.50]}"#), call("sun", "{}"));
    for (answer, expected) in [
        (sea.to_owned(), vec![of_sea.clone()]),
        (format!("{sea}\n{sun}"), vec![of_sea.clone(), vec![blank("\n")], of_sun.clone()]),
        (
            format!(" \n{sea}{sun}\n"),
            vec![vec![blank(" \n")], of_sea.clone(), of_sun.clone(), vec![blank("\n")]],
        ),
        (
            format!("I look. \n{sea} So: {sun}\n"),
            vec![
                vec![text("I look. \n")],
                of_sea.clone(),
                vec![text(" So: ")],
                of_sun.clone(),
                vec![blank("\n")],
            ],
        ),
        (" \n ".to_owned(), vec![vec![text(" \n ")]]),
        (String::new(), vec![]),
        // A block that is none hides no other.
        (format!("<tool_call>{sea}"), vec![vec![text(OPEN)], of_sea.clone()]),
        (format!("<tool_call>\n{{\"name\": \"{sun}"), vec![vec![text("<tool_call>\n{\"name\": \"")], of_sun]),
    ] {
        assert_eq!(parse([answer.as_str()]), expected.concat(), "{answer}");
    }
}

#[test]
fn the_end_of_a_block_may_stand_in_a_string() {
    let arguments = r#"{"a": "\\\"</tool_call>", "b": 123456789012345678901234567890}"#;
    let block = format!(r#"<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>"#);
    assert_eq!(parse([block.as_str()]), call("f", arguments));
}

#[test]
fn what_is_not_well_formed_is_text() {
    for block in [
        "<tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>sea()</tool_call>",
        "<tool_call>{}</tool_call>",
        r#"<tool_call>{"name": "f", "arguments": [1]}</tool_call>"#,
        r#"<tool_call>{"name": "f", "arguments": "x"}</tool_call>"#,
        r#"<tool_call>{"name": 1, "arguments": {}}</tool_call>"#,
        r#"<tool_call>{"arguments": {}, "name": "f", "id": 1}</tool_call>"#,
        r#"<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>"#,
        r#"<tool_call>{"name": "f"}} x</tool_call>"#,
        r#"<TOOL_CALL>{"name": "f", "arguments": {}}</TOOL_CALL>"#,
        "<tool_call><function=></tool_call>",
        "<tool_call><function name=\"f\"></tool_call>",
        "<function=f>\n</function>",
    ] {
        assert_eq!(parse([block]), [text(block)]);
    }
}

#[test]
fn what_is_nearly_a_call_is_one() {
    for (block, arguments) in [
        (r#"<tool_call>{"name": "f"}</tool_call>"#, "{}"),
        (r#"<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>"#, r#"{"a": 1}"#),
        (r#"<tool_call>{"name": "f", "arguments": {}</tool_call>"#, "{}"),
        (r#"<tool_call>{"name": "f", "arguments": {}}}</tool_call>"#, "{}"),
        (r#"<tool_call>{"name": "f", "arguments": {}}"#, "{}"),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"x\ny\u{1}\"}}</tool_call>",
            r#"{"a": "x\ny\u0001"}"#,
        ),
    ] {
        assert_eq!(parse([block]), call("f", arguments), "{block}");
    }
    assert_eq!(
        parse([r#"<tool_call>{"name": "f", "arguments": {}} So"#]),
        [call("f", "{}"), vec![text("So")]].concat()
    );
}

#[test]
fn parameters_become_json_as_their_schema_says() {
    let block = "<tool_call>\n<function=sail>\n<parameter=to>\n\"Oslo\"\n  7\n\n</parameter>\n<parameter=days>\n3\n</parameter>\n\
                 <parameter=with>\n[\"a\",\n 2]\n</parameter>\n<parameter=now>\nTrue\n</parameter>\n</function>\n</tool_call>";
    let arguments =
        r#"{"to": "\"Oslo\"\n  7\n", "days": 3, "with": ["a",\n 2], "now": true}"#.replace(",\\n 2", ",\n 2");
    let two = format!("So:\n{block}\n<tool_call>\n<function=fish>\n</function>\n</tool_call>");
    let sail = call("sail", &arguments);
    for dialect in [Dialect::Json, Dialect::Xml] {
        assert_eq!(parse_in(dialect, [block]), sail);
        let expected = [vec![text("So:\n")], sail.clone(), vec![blank("\n")], call("fish", "{}")].concat();
        assert_eq!(parse_in(dialect, [two.as_str()]), expected);
    }
    let value: Value = serde_json::from_str(&arguments).unwrap();
    assert_eq!(value["to"], "\"Oslo\"\n  7\n");
}

#[test]
fn xml_that_is_nearly_right_is_read() {
    for (block, arguments) in [
        // Without the block around it.
        ("<function=sail>\n<parameter=to>\nx\n</parameter>\n</function>", r#"{"to": "x"}"#),
        ("<function=sail>\n<parameter=to>x</parameter></function></tool_call>", r#"{"to": "x"}"#),
        // Tags within a value, as of a program that writes such.
        (
            "<tool_call><function=sail><parameter=to>\na</parameter> b\n</parameter>\n</function></tool_call>",
            r#"{"to": "a</parameter> b"}"#,
        ),
        (
            "<tool_call><function=sail><parameter=to>\n\n</parameter>\n</function></tool_call>",
            r#"{"to": ""}"#,
        ),
        ("<tool_call><function=sail>\n<parameter=to>\nx\n</parameter>\n</tool_call>", r#"{"to": "x"}"#),
        // White space around the name.
        ("<function= sail ><parameter= to >\nx\n</parameter>\n</function>", r#"{"to": "x"}"#),
        (
            "<tool_call><function=sail> well <parameter=days>3</parameter> </function></tool_call>",
            r#"{"days": 3}"#,
        ),
    ] {
        assert_eq!(parse_in(Dialect::Xml, [block]), call("sail", arguments), "{block}");
        let characters = block.split_inclusive(|_| true);
        assert_eq!(parse_in(Dialect::Xml, characters), call("sail", arguments), "{block}, cut everywhere");
    }
    let unknown = "<function=walk>\n</function>";
    assert_eq!(parse_in(Dialect::Xml, [unknown]), [text(unknown)]);
    // Where a grammar holds what stands in blocks.
    let mut parser = CallParser::new(functions(), Dialect::Xml).in_blocks_alone();
    let bare = "<function=fish>\n</function>";
    assert_eq!([parser.push(bare), parser.finish()].concat(), [text(bare)]);
}

#[test]
fn a_call_that_is_cut_off_never_ends() {
    for (block, name, arguments) in [
        (r#"<tool_call>{"name": "f", "arguments": {"a": "#, "f", r#"{"a": "#),
        ("<tool_call><function=sail>\n", "sail", ""),
        ("<tool_call><function=sail><parameter=to>x\n</parameter>", "sail", r#"{"to": "x""#),
        ("<tool_call><function=sail><parameter=to>x\n</param", "sail", r#"{"to": "x\n</param"#),
        ("<tool_call><function=sail><parameter=days>3", "sail", r#"{"days": "#),
    ] {
        assert_eq!(parse_in(Dialect::Xml, [block]), cut(name, arguments), "{block}");
    }
    let json = r#"<tool_call>{"name": "sail", "arguments": {"days": 3}}</tool_call>"#;
    let xml = "<tool_call>\n<function=sail>\n<parameter=days>\n3\n</parameter>\n<parameter=to>\nx\n</parameter>\n</function>\n</tool_call>";
    for (block, whole) in [(json, "{\"days\": 3}"), (xml, "</function>")] {
        let end = block.find(whole).unwrap() + whole.len();
        for at in 0..block.len() {
            let pieces = parse_in(Dialect::Xml, [&block[..at]]);
            assert_eq!(pieces.contains(&Piece::End), at >= end, "{}", &block[..at]);
            let arguments: String = pieces
                .iter()
                .map(|piece| match piece {
                    Piece::Arguments(text) => text.as_str(),
                    _ => "",
                })
                .collect();
            assert_eq!(serde_json::from_str::<Value>(&arguments).is_ok(), at >= end, "{arguments}");
        }
    }
}

#[test]
fn nothing_certain_is_held_back() {
    let arguments = |text: &str| vec![Piece::Arguments(text.into())];
    let mut parser = CallParser::new(functions(), Dialect::Json);
    for (part, expected) in [
        ("Hi ", vec![text("Hi ")]),
        ("a <", vec![text("a ")]),
        ("b <tool_", vec![text("<b ")]),
        ("calls <tool_call", vec![text("<tool_calls ")]),
        (">\n", vec![]),
        ("{\"name\": \"se", vec![]),
        ("a\", \"arguments\": ", vec![]),
        ("{\"a", [vec![Piece::Call("sea".into())], arguments("{\"a")].concat()),
        ("\": {}", arguments("\": {}")),
        ("}", arguments("}")),
        ("}\n</tool", vec![]),
        ("_call>", vec![Piece::End]),
        ("\nSo", vec![text("\nSo")]),
    ] {
        assert_eq!(parser.push(part), expected, "{part}");
    }
    assert_eq!(parser.finish(), []);
    let mut parser = CallParser::new(functions(), Dialect::Xml);
    for (part, expected) in [
        ("<tool_call>\n<function=sa", vec![]),
        ("il>\n<para", vec![Piece::Call("sail".into())]),
        ("meter=to>\n", arguments("{\"to\": \"")),
        ("a \"b", arguments("a \\\"b")),
        ("\n", vec![]),
        ("c\n</", arguments("\\nc")),
        ("parameter>\n<", vec![]),
        ("parameter=days>\n1", arguments("\", \"days\": ")),
        ("2\n</parameter>\n</function>", arguments("12}")),
        ("\n</tool_call>", vec![Piece::End]),
    ] {
        assert_eq!(parser.push(part), expected, "{part}");
    }
}

/// Blocks that begin in one another, as a model may write that repeats itself.
#[test]
fn long_answers_take_linear_time() {
    for unit in [
        "<tool_call>",
        "<tool_call>{\"",
        "<tool_call>{\"\\\"",
        "<tool_call>{}</tool_call>",
        "</tool_call>",
        "<tool_call><function=sail><parameter=to>",
        "</parameter> \n",
        "{\"name\": \"a\", \"arguments\": {",
    ] {
        for begin in ["<tool_call>{\"", "<tool_call><function=sail><parameter=days>", ""] {
            let answer = format!("{begin}{}", unit.repeat(50_000));
            let mut parser = CallParser::new(functions(), Dialect::Xml);
            for part in answer.as_bytes().chunks(7) {
                parser.push(std::str::from_utf8(part).expect("it is ASCII"));
            }
            parser.finish();
            assert!(parser.held.is_empty());
        }
    }
}

/// Beginnings, ends and middles of blocks.
fn fragment() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        OPEN,
        CLOSE,
        OPEN,
        CLOSE,
        "<",
        "<tool_",
        "call>",
        "</",
        "{",
        "}",
        "\"",
        "\\",
        "\n",
        " ",
        "é",
        "Hi",
        "😀",
        r#"{"name": "f", "arguments": {}}"#,
        "{\"name\": \"f\", \"arguments\": {",
        "\n{\"name\": \"é\", \"arguments\": {\"a\": \"</tool_call>\"}}\n",
        r#"<tool_call>{"name": "g", "arguments": {"b": [1, {"c": "}"}]}}</tool_call>"#,
        "<function=sail>",
        "<function=",
        "<parameter=to>",
        "<parameter=days>",
        "</parameter>",
        "</function>",
        "sail>",
        "7",
    ])
}

proptest! {
    #[test]
    fn cuts_make_no_difference(
        fragments in prop::collection::vec(fragment(), 0..16),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        is_xml: bool,
    ) {
        let dialect = if is_xml { Dialect::Xml } else { Dialect::Json };
        let parse = |parts: Vec<&str>| parse_in(dialect, parts);
        let answer = fragments.concat();
        let whole = parse(vec![answer.as_str()]);
        // Without a call no byte is lost.
        if !whole.iter().any(|piece| matches!(piece, Piece::Call(_))) {
            let text: String = whole.iter().map(|piece| match piece {
                Piece::Text(text) | Piece::Blank(text) => text.as_str(),
                _ => "",
            }).collect();
            prop_assert_eq!(&text, &answer);
        }
        let places: Vec<usize> = answer.char_indices().map(|(at, _)| at).chain([answer.len()]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&places)).chain([0, answer.len()]).collect();
        cuts.sort_unstable();
        prop_assert_eq!(&parse(cuts.windows(2).map(|cut| &answer[cut[0]..cut[1]]).collect()), &whole);
        let characters = places.windows(2).map(|place| &answer[place[0]..place[1]]);
        prop_assert_eq!(parse(characters.collect()), whole);
    }
}
