//! The chat page's files. What the page does is tried in a browser (`tests/clients/page`).

use crate::client::*;
use std::collections::BTreeSet;

/// Names that stand behind `before` in a text, up to a quotation mark.
fn names(text: &str, before: &str) -> Vec<String> {
    text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
}

#[test]
fn the_page_has_all_its_files_and_asks_nobody_else() {
    let server = start(config());
    let index = server.get("/");
    assert_eq!(index.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = index.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");

    let mut found = BTreeSet::new();
    let mut open: Vec<String> = names(&index.text(), "\"page/");
    let mut bytes = index.body.len();
    while let Some(name) = open.pop() {
        if !found.insert(name.clone()) {
            continue;
        }
        let file = server.get(&format!("/page/{name}"));
        let text = file.text();
        assert_eq!(file.status, 200, "{name}: {text}");
        let expected = if name.ends_with(".css") { "text/css" } else { "text/javascript" };
        assert!(file.header("content-type").unwrap().starts_with(expected), "{name}");
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
        for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
            assert!(!text.contains(forbidden), "{name}: what a model says must not become HTML: {forbidden}");
        }
        assert!(!text.contains("url(") && !text.contains("@import"), "{name}: the page asks nobody else");
        open.extend(names(&text, "from \"./"));
        bytes += file.body.len();
    }
    for name in ["chat.css", "chat.js", "markdown.js", "settings.js", "store.js", "stream.js", "view.js"] {
        assert!(found.contains(name), "{name} is not asked for");
    }
    assert_eq!(found.len(), 7, "{found:?}");
    assert!(bytes < 64 << 10, "the page has {bytes} bytes, and should stay small");
}
