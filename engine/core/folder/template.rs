//! Chat templates of a folder: files of their own, or a field of `tokenizer_config.json` or `chat_template.json`.

use super::config::Metadata;
use super::fault;
use super::files::Files;
use super::json::Fields;
use crate::error::Result;
use serde_json::Value as Json;

pub(super) const TEMPLATE: &str = "chat_template.jinja";
/// Of a folder whose tokenizer has none: that of a processor, which tokens and pictures go through.
pub(super) const OF_PROCESSOR: &str = "chat_template.json";
/// Templates with names, `NAME.jinja` each.
pub(super) const ADDITIONAL: &str = "additional_chat_templates";

/// `tokenizer.chat_template`, and those with names. A file comes before a field, as in transformers.
pub(super) fn metadata(files: &Files, config: &Fields) -> Result<Metadata> {
    let mut templates = match files.text(TEMPLATE)? {
        Some(text) => vec![(key("default"), text.into())],
        None => field(config)?,
    };
    if templates.is_empty()
        && let Some(processor) = Fields::read(files, OF_PROCESSOR)?
    {
        templates = field(&processor)?;
    }
    for file in files.names(ADDITIONAL)? {
        let Some(name) = file.strip_suffix(".jinja") else { continue };
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if name.is_empty() || !name.chars().all(is_name) {
            let expected = "it is no name of a template: expected letters, digits, `_`, `-` and `.`";
            return Err(fault(ADDITIONAL, format!("{file:?}: {expected}")));
        }
        if let Some(text) = files.text(&format!("{ADDITIONAL}/{file}"))?
            && !templates.iter().any(|(known, _)| *known == key(name))
        {
            templates.push((key(name), text.into()));
        }
    }
    Ok(templates)
}

fn key(name: &str) -> String {
    match name {
        "default" => "tokenizer.chat_template".to_owned(),
        name => format!("tokenizer.chat_template.{name}"),
    }
}

/// The field `chat_template`: a template, or a list of those with names.
fn field(config: &Fields) -> Result<Metadata> {
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
