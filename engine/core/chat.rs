//! The model's chat template: messages -> the prompt that the model was trained on.
//!
//! Templates are Jinja written for Hugging Face transformers. What its environment offers beyond Jinja
//! (transformers' `utils/chat_template_utils.py`) is offered here: `raise_exception`, `strftime_now`, `tojson` that does
//! not escape HTML, loop controls, trimmed blocks, and the methods of Python's strings and dictionaries.

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};
use std::io;

/// ChatML, which Qwen2 was trained on; for files without a template.
const CHATML: &str = "\
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
";

/// Instructions that one rendering may take; a template from a hostile file may not run for ever. A message takes
/// about a hundred.
const FUEL: u64 = 50_000_000;

/// The name under which the environment holds the template; error messages show it.
const NAME: &str = "chat_template";

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// What `role` said.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A compiled template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
    is_fallback: bool,
}

impl ChatTemplate {
    /// Compiles the template of the file, or ChatML where it has none but has ChatML's tokens; that is said in the log
    /// and by [`ChatTemplate::is_fallback`].
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where the template does not compile, or there is neither a template nor ChatML's tokens.
    pub fn from_tokenizer(tokenizer: &Tokenizer) -> Result<Self> {
        let name = |id: Option<u32>| {
            let bytes = id.and_then(|id| tokenizer.token_bytes(id)).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        let (bos_token, eos_token) = (name(tokenizer.bos_token_id()), name(tokenizer.eos_token_id()));
        if let Some(source) = tokenizer.chat_template() {
            return Self::new(source, &bos_token, &eos_token);
        }
        for token in ["<|im_start|>", "<|im_end|>"] {
            if tokenizer.added_token(token).is_none() {
                return Err(Error::Tokenizer(format!(
                    "the file has no chat template, and ChatML cannot stand in for it: there is no token {token}; \
                     use plain text (--raw)"
                )));
            }
        }
        tracing::warn!("the file has no chat template; ChatML is used");
        Ok(Self { is_fallback: true, ..Self::new(CHATML, &bos_token, &eos_token)? })
    }

    /// Compiles a template. `bos_token` and `eos_token` are the names that it may print.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where it does not compile.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self> {
        let fault = |error: minijinja::Error| {
            Error::Tokenizer(format!("the chat template does not compile: {error}"))
        };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(fault)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source.to_owned()).map_err(fault)?;
        let (bos_token, eos_token) = (bos_token.to_owned(), eos_token.to_owned());
        Ok(Self { environment, bos_token, eos_token, is_fallback: false })
    }

    /// Whether the file had no template and ChatML stands in.
    pub fn is_fallback(&self) -> bool {
        self.is_fallback
    }

    /// Renders a conversation, to be encoded with special tokens parsed. As with every engine that renders text first,
    /// the name of a special token inside a message becomes that token.
    ///
    /// `messages` are [`Message`]s or anything that serialises to what the template expects, `tools` are JSON schemas
    /// of functions. `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// [`Error::Request`] where the template refuses the conversation, [`Error::Tokenizer`] where it fails.
    pub fn render<M: Serialize>(
        &self,
        messages: &[M],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(render_fault)?;
        let context = context! {
            messages => Value::from(Serde(messages)),
            tools => (!tools.is_empty()).then(|| Value::from(Serde(tools))),
            add_generation_prompt => add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
        };
        template.render(context).map_err(render_fault)
    }
}

/// What a template said through `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn render_fault(error: minijinja::Error) -> Error {
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        if let Some(refusal) = inner.downcast_ref::<Refusal>() {
            return Error::Request(format!("the model's chat template refuses this conversation: {refusal}"));
        }
        cause = inner.source();
    }
    Error::Tokenizer(format!("the chat template failed: {error}"))
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refusal(message)))
}

/// The local time in C's notation, as Python's `datetime.now().strftime(format)`.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// JSON as Python's `json.dumps` writes it, which the models were trained on: a space after `,` and `:`, keys in their
/// order, no HTML escapes.
fn tojson(Serde(mut json): Serde<serde_json::Value>, options: Kwargs) -> Result<String, minijinja::Error> {
    let fault = |error: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, format!("tojson: {error}"))
    };
    let indent: Option<usize> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;

    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    let mut text = Vec::new();
    if let Some(indent) = indent {
        // Python takes any width; more than this would only waste memory.
        let indent = " ".repeat(indent.min(64));
        let formatter = PrettyFormatter::with_indent(indent.as_bytes());
        json.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter)).map_err(fault)?;
    } else {
        let [item, key] = match separators.as_deref() {
            Some([item, key]) => [item.as_str(), key],
            Some(_) => {
                let message = "tojson: separators must be a pair of strings";
                return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
            }
            None => [", ", ": "],
        };
        let formatter = PythonFormatter { item, key };
        json.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter)).map_err(fault)?;
    }
    let text = String::from_utf8_lossy(&text);
    // Outside strings JSON is ASCII already, so escapes are right wherever another character stands.
    Ok(if ensure_ascii == Some(true) { escape_non_ascii(&text) } else { text.into_owned() })
}

fn escape_non_ascii(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            escaped.push(c);
        } else {
            escaped.extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    escaped
}

/// JSON on one line with these separators between items, and between key and value.
struct PythonFormatter<'a> {
    item: &'a str,
    key: &'a str,
}

impl Formatter for PythonFormatter<'_> {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A template of our own with the constructs that Qwen2.5's has: a default system prompt, tools, tool calls with and
    /// without `function`, neighbouring messages, `set` in a loop, indented blocks.
    const TEMPLATE: &str = r#"
{%- set given = messages[0]['role'] == 'system' %}
{{- '<|im_start|>system\n' + (messages[0]['content'] if given else 'Be kind.') }}
{%- if tools %}
    {{- "\nTools:" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- for turn in messages %}
    {%- if turn.role == "tool" %}
        {%- set before = messages[loop.index0 - 1] %}
        {%- if before.role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<result>' ~ turn.content ~ '</result>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- elif not turn.tool_calls and not (loop.first and given) %}
        {{- '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}
    {%- elif turn.tool_calls %}
        {{- '<|im_start|>' + turn.role }}
        {%- for call in turn.tool_calls %}
            {%- if call.function is defined %}
                {%- set call = call.function %}
            {%- endif %}
            {{- '\n<call>{"name": "' + call.name + '", "arguments": ' + call.arguments | tojson + '}</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"#;

    fn render(source: &str, messages: serde_json::Value) -> Result<String> {
        let template = ChatTemplate::new(source, "<bos>", "<eos>").unwrap();
        template.render(messages.as_array().unwrap(), &[], true)
    }

    #[test]
    fn default_and_given_system_prompt() {
        let template = ChatTemplate::new(TEMPLATE, "", "").unwrap();
        let mut messages = vec![Message::new("user", "Hi <b>&'you'")];
        assert_eq!(
            template.render(&messages, &[], true).unwrap(),
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi <b>&'you'<|im_end|>\n<|im_start|>assistant\n"
        );
        messages.insert(0, Message::new("system", "Be brief."));
        messages.push(Message::new("assistant", "Yo\n"));
        assert_eq!(
            template.render(&messages, &[], false).unwrap(),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <b>&'you'<|im_end|>\n\
             <|im_start|>assistant\nYo\n<|im_end|>\n"
        );
    }

    #[test]
    fn tools_keep_their_order_and_spacing() {
        let template = ChatTemplate::new(TEMPLATE, "", "").unwrap();
        let tools = [
            json!({"type": "function", "function": {"name": "weather", "a": [1, 2.5, null, true], "é<>": {}}}),
        ];
        let messages = [
            json!({"role": "user", "content": "?"}),
            json!({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"z": 1, "city": "Łódź"}}}]}),
            json!({"role": "tool", "content": "sun"}),
            json!({"role": "tool", "content": "rain"}),
        ];
        assert_eq!(
            template.render(&messages, &tools, true).unwrap(),
            "<|im_start|>system\nBe kind.\nTools:\n\
             {\"type\": \"function\", \"function\": {\"name\": \"weather\", \"a\": [1, 2.5, null, true], \"é<>\": {}}}<|im_end|>\n\
             <|im_start|>user\n?<|im_end|>\n\
             <|im_start|>assistant\n<call>{\"name\": \"weather\", \"arguments\": {\"z\": 1, \"city\": \"Łódź\"}}</call><|im_end|>\n\
             <|im_start|>user\n<result>sun</result>\n<result>rain</result><|im_end|>\n\
             <|im_start|>assistant\n"
        );
    }

    #[test]
    fn json_options() {
        let one = json!([{"role": "user", "b": 1, "a": ["é", "😀"]}]);
        for (filter, expected) in [
            ("tojson(separators=(',', ':'))", r#"{"role":"user","b":1,"a":["é","😀"]}"#),
            ("tojson(sort_keys=true)", r#"{"a": ["é", "😀"], "b": 1, "role": "user"}"#),
            ("tojson(ensure_ascii=true)", r#"{"role": "user", "b": 1, "a": ["\u00e9", "\ud83d\ude00"]}"#),
            (
                "tojson(indent=2)",
                "{\n  \"role\": \"user\",\n  \"b\": 1,\n  \"a\": [\n    \"é\",\n    \"😀\"\n  ]\n}",
            ),
        ] {
            let source = format!("{{{{ messages[0] | {filter} }}}}");
            assert_eq!(render(&source, one.clone()).unwrap(), expected, "{filter}");
        }
    }

    #[test]
    fn what_python_templates_use() {
        let messages = json!([{"role": "user", "content": "  <think>a</think> b "}]);
        for (source, expected) in [
            ("{{ messages[0].content.strip() }}", "<think>a</think> b"),
            ("{{ messages[0]['content'].split('</think>')[-1].lstrip() }}", "b "),
            ("{{ messages[0].content.strip().startswith('<think>') }}", "True"),
            ("{% for key, value in messages[0].items() %}{{ key }};{% endfor %}", "role;content;"),
            ("{{ bos_token }}{{ eos_token }}{{ missing }}", "<bos><eos>"),
            ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
            (
                "{% set n = namespace(x=0) %}{% for m in messages[::-1] %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}",
                "1",
            ),
            ("  {% if tools is none %}\n  no tools\n  {% endif %}\n", "  no tools\n"),
        ] {
            assert_eq!(render(source, messages.clone()).unwrap(), expected, "{source}");
        }
        let year: i16 = render("{{ strftime_now('%Y') }}", messages.clone()).unwrap().parse().unwrap();
        assert!((2024..3000).contains(&year));
        assert!(render("{{ strftime_now('%') }}", messages).is_err());
    }

    #[test]
    fn faults_are_told_apart() {
        let messages = json!([{"role": "robot"}]);
        let source =
            "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}";
        let error = render(source, messages.clone()).unwrap_err();
        assert!(matches!(&error, Error::Request(text) if text.ends_with("roles must alternate")), "{error}");
        for source in [
            "{{ messages[0].missing.more }}",
            "{{ nothing() }}",
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        ] {
            assert!(matches!(render(source, messages.clone()), Err(Error::Tokenizer(_))), "{source}");
        }
        assert!(matches!(ChatTemplate::new("{% if %}", "", ""), Err(Error::Tokenizer(_))));
    }

    #[test]
    fn chatml() {
        let template = ChatTemplate::new(CHATML, "", "").unwrap();
        let messages = [Message::new("system", "s"), Message::new("user", " u\n")];
        assert_eq!(
            template.render(&messages, &[], true).unwrap(),
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\n u\n<|im_end|>\n<|im_start|>assistant\n"
        );
    }
}
