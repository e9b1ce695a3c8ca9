//! Chat templates of a folder: a file of their own, or a field of `tokenizer_config.json`.

use super::config::Metadata;
use super::files::Files;
use super::json::Fields;
use crate::error::Result;
use serde_json::Value as Json;

const TEMPLATE: &str = "chat_template.jinja";

/// `tokenizer.chat_template`, and those with names.
pub(super) fn metadata(files: &Files, config: &Fields) -> Result<Metadata> {
    let key = |name: &str| match name {
        "default" => "tokenizer.chat_template".to_owned(),
        name => format!("tokenizer.chat_template.{name}"),
    };
    if let Some(text) = files.text(TEMPLATE)? {
        return Ok(vec![(key("default"), text.into())]);
    }
    match config.get("chat_template") {
        None => Ok(Vec::new()),
        Some(Json::String(text)) => Ok(vec![(key("default"), text.as_str().into())]),
        Some(Json::Array(templates)) => {
            let one = |template: &Json| match (template["name"].as_str(), template["template"].as_str()) {
                (Some(name), Some(text)) => Ok((key(name), text.into())),
                _ => Err(config.invalid("chat_template", "a list", "templates with `name` and `template`")),
            };
            templates.iter().map(one).collect()
        }
        Some(_) => Err(config.invalid("chat_template", "something else", "a template, or a list of them")),
    }
}
