//! The dialects of Qwen's chat templates: what our own templates in their manner make of conversations is what Python's jinja2 makes of
//! them, and how models call and think is found from them.
//!
//! `QERNEL_TEMPLATES=FOLDER cargo test --release --test it -- --ignored dialects` repeats it with templates of published models and the
//! `golden.json` that `tests/data/dialects/make_golden.py FOLDER` made of them, in that folder too.

use qernel::chat::{ChatTemplate, Dialect, thinking};
use qernel::error::Error;
use serde_json::{Map, Value, json};
use std::path::Path;

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/dialects")
}

fn template(folder: &Path, name: &str) -> ChatTemplate {
    let source = std::fs::read_to_string(folder.join(name)).unwrap();
    ChatTemplate::new(&source, "<bos>", "<eos>").unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn render(template: &ChatTemplate, messages: &Value, variables: &Value) -> Result<String, Error> {
    let mut variables: Map<String, Value> = variables.as_object().unwrap().clone();
    let tools = variables.remove("tools").unwrap_or_default();
    let tools = tools.as_array().cloned().unwrap_or_default();
    template.render_with(messages.as_array().unwrap(), &tools, true, &variables)
}

/// How many renderings are as Python's.
fn check(folder: &Path) -> usize {
    let golden: Value = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    for case in cases {
        let text = |i: usize| case[i].as_str().unwrap();
        let (name, conversation, kind, expected) = (text(0), text(1), text(3), text(4));
        let variables = &golden["variables"][case[2].as_u64().unwrap() as usize];
        let found = render(&template(folder, name), &golden["conversations"][conversation], variables);
        let said = format!("{name}: {conversation} with {variables}");
        match (kind, found) {
            ("text", Ok(found)) => assert_eq!(found, expected, "{said}"),
            ("refused", Err(Error::Request(found))) => assert!(found.ends_with(expected), "{said}: {found}"),
            ("failed", Err(Error::Template(_))) => (),
            (kind, found) => panic!("{said}: {found:?}, but Python {kind}: {expected}"),
        }
    }
    cases.len()
}

#[test]
fn conversations_render_as_python_renders_them() {
    assert_eq!(check(&folder()), 3 * 13 * 6);
}

#[test]
#[ignore = "needs QERNEL_TEMPLATES, a folder of templates with their golden.json"]
fn published_templates_render_as_python_renders_them() {
    let folder = std::env::var("QERNEL_TEMPLATES").expect("QERNEL_TEMPLATES names a folder");
    assert!(check(Path::new(&folder)) > 0);
}

#[test]
fn how_a_model_calls_and_thinks_is_found_from_its_template() {
    for (name, dialect, thinks, is_open, is_open_without) in [
        ("json.jinja", Dialect::Json, true, false, false),
        ("xml.jinja", Dialect::Xml, true, true, false),
        ("r1.jinja", Dialect::Json, true, true, true),
        ("../tools.jinja", Dialect::Json, false, false, false),
    ] {
        let template = template(&folder(), name);
        assert_eq!((template.dialect(), template.thinks()), (dialect, thinks), "{name}");
        let messages = json!([{"role": "user", "content": "hi"}]);
        let text = |variables: Value| render(&template, &messages, &variables).unwrap();
        assert_eq!(thinking::is_open(&text(json!({}))), is_open, "{name}");
        assert_eq!(thinking::is_open(&text(json!({"enable_thinking": false}))), is_open_without, "{name}");
    }
}
