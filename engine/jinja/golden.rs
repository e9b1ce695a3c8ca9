//! Templates against what Python's jinja2 makes of them: `tests/data/jinja/golden.json`, written by the script beside it.

use crate::{Limits, Template};
use serde::Deserialize;
use std::collections::BTreeMap;

const GOLDEN: &str = include_str!("../../tests/data/jinja/golden.json");
/// Templates that are rendered otherwise, each with the reason.
const DIFFERENCES: &str = include_str!("../../tests/data/jinja/differences.json");

#[derive(Deserialize)]
struct Golden {
    context: Box<serde_json::value::RawValue>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    /// `None` where Python refuses it.
    expected: Option<String>,
    error: Option<String>,
}

#[test]
fn renders_as_python_does_but_for_the_listed_differences() {
    let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
    let differences: BTreeMap<String, String> = serde_json::from_str(DIFFERENCES).unwrap();
    assert!(golden.cases.len() > 800, "{}", golden.cases.len());
    let (mut wrong, mut differing) = (Vec::new(), 0);
    for Case { template, expected, error } in &golden.cases {
        let rendered = Template::compile(template, Limits::default());
        let rendered = rendered.and_then(|template| template.render(golden.context.get()));
        let is_same = rendered.as_ref().ok() == expected.as_ref();
        let found = rendered.map_or_else(|error| format!("refused: {error}"), |text| format!("{text:?}"));
        match differences.get(template) {
            None if !is_same => {
                let wanted =
                    expected.as_ref().map_or_else(|| format!("{error:?}"), |text| format!("{text:?}"));
                wrong.push(format!("{template:?}\n    expected {wanted}\n    found {found}"));
            }
            Some(_) if is_same => wrong.push(format!("{template:?} is no longer different: {found}")),
            Some(_) => differing += 1,
            None => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), golden.cases.len(), wrong.join("\n"));
    assert_eq!(differing, differences.len(), "a listed difference is no case");
}
