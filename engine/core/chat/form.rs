//! The form of an assistant's calls that a template wants, found out by trial renderings, as llama.cpp does.

use qernel_jinja::{Template, dumps};
use serde_json::{Value, json};

/// What a template gets of turns with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// `content` is an empty text where nothing was said, and not null.
    empty_content: bool,
    /// Arguments are JSON as text, and no object.
    text_arguments: bool,
}

/// How a model that was trained with a template writes the calls of tools, between `<tool_call>` and `</tool_call>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `{"name": …, "arguments": {…}}`, as Qwen2.5, Qwen3 and Hermes models do.
    Json,
    /// `<function=…><parameter=…>…</parameter></function>`, as Qwen3-Coder, Qwen3.5 and later ones do.
    Xml,
}

/// Whether the forms of a conversation differ.
pub fn is_needed(messages: &Value) -> bool {
    let mut messages = messages.as_array().into_iter().flatten();
    messages
        .any(|message| message["tool_calls"].is_array() || message.get("content").is_some_and(Value::is_null))
}

/// The function of the trial renderings.
const NAME: &str = "needle_of_names";

impl Form {
    /// The form that shows most of a call, and the dialect that it is shown in. Of forms that show as much, the first: what transformers
    /// hands over. Of a template that shows no call, `source` may still tell the model how to write one.
    pub fn of(template: &Template, source: &str) -> (Self, Dialect) {
        let mut best = (0, Self { empty_content: false, text_arguments: false }, String::new());
        for (empty_content, text_arguments) in [(false, false), (true, false), (false, true), (true, true)] {
            let form = Self { empty_content, text_arguments };
            let (shown, text) = form.shown_by(template);
            if shown > best.0 {
                best = (shown, form, text);
            }
        }
        let is_xml = match best.2.contains(NAME) {
            true => best.2.contains(&format!("<function={NAME}>")),
            false => source.contains("<function="),
        };
        (best.1, if is_xml { Dialect::Xml } else { Dialect::Json })
    }

    /// How much a template shows of a call in this form, and what it makes of it.
    fn shown_by(self, template: &Template) -> (u32, String) {
        let arguments = json!({"needle_of_arguments": "needle_of_values"});
        let call = json!({"id": "call00001", "type": "function", "function": {"name": NAME, "arguments": arguments}});
        let messages = self.apply(json!([
            {"role": "user", "content": "needle_of_users"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "content": "needle_of_tools", "name": NAME, "tool_call_id": "call00001"},
        ]));
        let variables = json!({
            "messages": messages, "tools": null, "add_generation_prompt": false, "bos_token": "", "eos_token": "",
        });
        let Ok(text) = template.render(&variables.to_string()) else { return (0, String::new()) };
        let is_json = text.contains(r#""needle_of_arguments": "needle_of_values""#)
            || text.contains(r#""needle_of_arguments":"needle_of_values""#);
        // Python's word for null is no text of a conversation.
        let says_none = text.contains("None");
        let shown = 1
            + u32::from(!says_none)
            + 2 * u32::from(text.contains("needle_of_values"))
            + 4 * u32::from(is_json)
            + 8 * u32::from(text.contains(NAME));
        (shown, text)
    }

    /// A conversation in this form.
    pub fn apply(self, mut messages: Value) -> Value {
        for message in messages.as_array_mut().into_iter().flatten() {
            if self.empty_content && message.get("content").is_some_and(Value::is_null) {
                message["content"] = "".into();
            }
            let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
            for call in calls.into_iter().flatten().filter(|_| self.text_arguments) {
                let arguments = call.pointer_mut("/function/arguments");
                if let Some(arguments) = arguments.filter(|arguments| !arguments.is_string())
                    && let Ok(text) = dumps(&arguments.to_string())
                {
                    *arguments = text.into();
                }
            }
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qernel_jinja::Limits;

    fn of(source: &str) -> (bool, bool) {
        let (form, _) = Form::of(&Template::compile(source, Limits::default()).unwrap(), source);
        (form.empty_content, form.text_arguments)
    }

    #[test]
    fn the_dialect_is_what_is_shown_or_told() {
        for (source, expected) in [
            (&calls("", "<function={{ c.function.name }}>")[..], Dialect::Xml),
            (&calls("", "{{ c.function.name }} not <function=x>"), Dialect::Json),
            ("{{ 'Write <function=name>' }}", Dialect::Xml),
            ("{{ 'Write <tool_call>' }}", Dialect::Json),
        ] {
            let (_, dialect) = Form::of(&Template::compile(source, Limits::default()).unwrap(), source);
            assert_eq!(dialect, expected, "{source}");
        }
    }

    /// A template over the calls of each message, after what `content` prints of it.
    fn calls(content: &str, call: &str) -> String {
        format!(
            "{{% for m in messages %}}{content}{{% for c in m.tool_calls %}}{call}{{% endfor %}}{{% endfor %}}"
        )
    }

    #[test]
    fn each_template_gets_the_form_that_it_can_show() {
        let name = "{{ c.function.name }}";
        for (content, call, expected) in [
            ("", "{{ c.function.name }}{{ c.function.arguments | tojson }}", (false, false)),
            ("", "{{ c.function.name + c.function.arguments }}", (false, true)),
            ("", "{{ c.function.name ~ c.function.arguments }}", (false, true)),
            ("", "{% for k, v in c.function.arguments | items %}{{ k }}{{ v }}{% endfor %}", (false, false)),
            (
                "",
                "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}",
                (false, false),
            ),
            ("{{ m.role + m.content }}", name, (true, false)),
            ("{{ m.role ~ m.content }}", name, (true, false)),
            ("{{ m.role + m.content }}", "{{ '' + c.function.arguments }}", (true, true)),
            ("{% if m.content %}{{ m.content }}{% endif %}", name, (false, false)),
            ("{{ m.content or '' }}", name, (false, false)),
            ("{{ m.role + m.content }}", "", (true, false)),
            ("{{ raise_exception('never') }}", "", (false, false)),
        ] {
            assert_eq!(of(&calls(content, call)), expected, "{content} {call}");
        }
        let asks = "{% for m in messages %}{% if m.content is none %}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}\
                    {% else %}{{ m.content }}{% endif %}{% endfor %}";
        assert_eq!(of(asks), (false, false));
    }

    #[test]
    fn text_arguments_are_pythons_json() {
        let form = Form { empty_content: true, text_arguments: true };
        let call = |arguments: Value| json!([{"content": null, "tool_calls": [{"function": {"arguments": arguments}}]}]);
        let formed = form.apply(call(json!({"a": [1, 1e-5], "é": {}})));
        assert_eq!(formed[0]["tool_calls"][0]["function"]["arguments"], r#"{"a": [1, 1e-05], "é": {}}"#);
        assert_eq!(formed[0]["content"], "");
        assert_eq!(form.apply(call(json!("{}")))[0]["tool_calls"][0]["function"]["arguments"], "{}");
    }
}
