//! Grammars of answers that call tools, in the form that [`tool_calls`](super::tool_calls) finds.

use super::tool_calls::{CLOSE, OPEN, of_property, resolved, target};
use crate::error::ApiError;
use crate::grammar::{Grammar, Grammars, with_options};
use crate::schema::Budget;
use qernel_core::chat::Dialect;
use serde_json::{Map, Value};
use std::fmt::Write;

/// What calls there may be.
pub struct Calls {
    /// Name, the request's field with the schema of the arguments, and that schema.
    pub functions: Vec<(String, String, Map<String, Value>)>,
    /// There is nothing but calls.
    pub is_forced: bool,
    /// One or more of them.
    pub parallel: bool,
    /// How they are written.
    pub dialect: Dialect,
}

/// A string of Lark, which is one of JSON.
fn literal(text: &str) -> Value {
    Value::from(text)
}

impl Calls {
    /// The grammar of an answer in which every call follows its function's schema. What is not a call is any text, or JSON
    /// that satisfies `format`.
    ///
    /// # Errors
    /// 400 where a schema is malformed, uses what is not supported, or is too large.
    pub fn grammar(
        self,
        grammars: &Grammars,
        format: Option<(&str, Map<String, Value>)>,
    ) -> Result<Grammar, ApiError> {
        let source = self.source(format.clone())?;
        grammars.lark(source).or_else(|error| {
            // llguidance does not say which schema it is.
            for (_, param, schema) in self.functions {
                grammars.schema(&param, schema)?;
            }
            if let Some((param, schema)) = format {
                grammars.schema(param, schema)?;
            }
            Err(ApiError::field("tools", format!("tools: {error}")))
        })
    }

    /// The grammar in llguidance's dialect of Lark.
    fn source(&self, format: Option<(&str, Map<String, Value>)>) -> Result<String, ApiError> {
        let mut budget = Budget::default();
        let calls = if self.parallel { r#"open call ("\n" open call)*"# } else { "open call" };
        let mut source = match format {
            _ if self.is_forced => format!("start: {calls}\n"),
            Some((param, schema)) => {
                format!(
                    "start: {calls} | answer\nanswer: %json {}\n",
                    with_options(param, schema, &mut budget)?
                )
            }
            // Text goes on to where a block begins, or to the answer's end.
            None if self.parallel => "start: (until_open call)* [TEXT]\n".to_owned(),
            None => "start: until_open call | [TEXT]\n".to_owned(),
        };
        source += &format!("open: {OPEN:?}\nuntil_open[lazy]: /(?s:.*){OPEN}/\n");
        source += &format!("TEXT: /(?s:.+)/ & ~/(?s:.*){OPEN}(?s:.*)/\n");
        let names: Vec<String> = (0..self.functions.len()).map(|i| format!("call_{i}")).collect();
        source += &format!("call: {}\n", names.join(" | "));
        if self.dialect == Dialect::Xml {
            source += VALUE_RULES;
        }
        for ((name, param, schema), rule) in self.functions.iter().zip(names) {
            // The call around the arguments.
            let work = budget.work(10 + name.len() as u64 / 8);
            work.map_err(|error| ApiError::field("tools", format!("tools: {error}")))?;
            source += &match self.dialect {
                Dialect::Json => json_rule(&rule, name, param, schema, &mut budget)?,
                Dialect::Xml => xml_rules(&rule, name, param, schema, &mut budget)?,
            };
        }
        Ok(source)
    }
}

/// The rule of a call in JSON.
fn json_rule(
    rule: &str,
    name: &str,
    param: &str,
    schema: &Map<String, Value>,
    budget: &mut Budget,
) -> Result<String, ApiError> {
    let before = literal(&format!("\n{{\"name\": {}, \"arguments\": ", Value::from(name)));
    let after = literal(&format!("}}\n{CLOSE}"));
    let schema = with_options(param, schema.clone(), budget)?;
    Ok(format!("{rule}: {before} %json {schema} {after}\n"))
}

/// What a value may be that is text, with what ends it; and parameters of any name.
const VALUE_RULES: &str = concat!(
    "text_end[lazy]: /(?s:.*)<\\/parameter>/\n",
    "free: \"<parameter=\" NAME \">\\n\" text_end \"\\n\"\n",
    "NAME: /[^<>\\n]{1,64}/\n",
);

/// The rules of a call with parameters, in the order in which the schema names them.
fn xml_rules(
    rule: &str,
    name: &str,
    param: &str,
    schema: &Map<String, Value>,
    budget: &mut Budget,
) -> Result<String, ApiError> {
    let before = literal(&format!("\n<function={name}>\n"));
    let after = literal(&format!("</function>\n{CLOSE}"));
    let object = parameters(schema);
    let properties =
        object.get("properties").and_then(Value::as_object).filter(|properties| !properties.is_empty());
    let Some(properties) = properties else {
        // What is refused in JSON is so here.
        with_options(param, schema.clone(), budget)?;
        let says = |key: &&str| object.get(*key).is_some_and(|value| value != &Value::Array(Vec::new()));
        if let Some(key) = COMBINING.into_iter().find(says) {
            let message = format!(
                "{param}: the model calls with one text for each of `properties`, which this schema does not name; instead of \
                 `{key}` name them, or leave calls unconstrained"
            );
            return Err(ApiError::field(param, message));
        }
        let free = if object.get("additionalProperties") == Some(&false.into()) { "" } else { "free*" };
        return Ok(format!("{rule}: {before} {free} {after}\n"));
    };
    let required: Vec<&str> = object
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let (mut body, mut rules) = (String::new(), String::new());
    for (i, (property, of)) in properties.iter().enumerate() {
        let optional = if required.contains(&property.as_str()) { "" } else { "?" };
        let _ = write!(body, " {rule}_{i}{optional}");
        let open = literal(&format!("<parameter={property}>\n"));
        let param = format!("{param}.properties.{property}");
        let value = xml_value(&format!("{rule}_{i}"), &param, schema, property, of, budget)?;
        let _ = writeln!(rules, "{rule}_{i}: {open} {value}");
    }
    Ok(format!("{rule}: {before}{body} {after}\n{rules}"))
}

/// What says of parameters what they must be without naming them one by one.
const COMBINING: [&str; 15] = [
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "enum",
    "const",
    "required",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "dependentRequired",
    "dependentSchemas",
];

/// The schema that names the parameters: the whole one, or the one that it refers to.
fn parameters(schema: &Map<String, Value>) -> &Map<String, Value> {
    let mut found = schema;
    for _ in 0..MAX_REFERENCES {
        let reference = found.get("$ref").filter(|_| !found.contains_key("properties"));
        let path = reference.and_then(Value::as_str);
        let Some(named) = path.and_then(|path| target(schema, path)).and_then(Value::as_object) else {
            break;
        };
        found = named;
    }
    found
}

/// References from one to the next that are followed.
const MAX_REFERENCES: usize = 8;

/// What a parameter's value may be, with what ends it; it may add lines with rules whose names begin with `rule`. Of text, `enum`,
/// `const` and lengths are kept; other values are JSON that follows the schema.
fn xml_value(
    rule: &str,
    param: &str,
    root: &Map<String, Value>,
    name: &str,
    schema: &Value,
    budget: &mut Budget,
) -> Result<String, ApiError> {
    const END: &str = "\n</parameter>\n";
    // References name places in the whole schema.
    let mut whole = schema.as_object().cloned().unwrap_or_default();
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = root.get(key) {
            whole.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    // What is refused in JSON is so here, text too.
    let json = with_options(param, whole, budget)?;
    if !of_property(Some(root), name).may_be_text() {
        return Ok(format!("%json {json} {}", literal(END)));
    }
    let schema = resolved(root, schema);
    let values = match (schema.get("enum").and_then(Value::as_array), schema.get("const")) {
        (Some(values), _) => values.iter().collect(),
        (None, Some(value)) => vec![value],
        (None, None) => Vec::new(),
    };
    if !values.is_empty() {
        let written = values.iter().map(|value| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            literal(&(text + END)).to_string()
        });
        return Ok(format!("({})", written.collect::<Vec<_>>().join(" | ")));
    }
    let bound = |key: &str| schema.get(key).and_then(Value::as_u64).filter(|&length| length <= MAX_LENGTH);
    match (bound("minLength"), bound("maxLength")) {
        (None, None) => Ok(format!("text_end {}", literal("\n"))),
        (min, max) => {
            let max = max.map(|max| max.to_string()).unwrap_or_default();
            let text = format!("/(?s:.{{{},{max}}})\\n<\\/parameter>\\n/", min.unwrap_or(0));
            Ok(format!("{rule}_end\n{rule}_end[lazy]: {text}"))
        }
    }
}

/// Characters of a text whose length is kept.
const MAX_LENGTH: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use qernel_core::engine::TokenConstraint;
    use qernel_core::gguf::Gguf;
    use qernel_core::testing::TinyModel;
    use qernel_core::tokenizer::Tokenizer;
    use serde_json::json;

    /// `gguf.TokenType`: a word that was added to the vocabulary, as `<tool_call>` was to Qwen's.
    const USER_DEFINED: i32 = 4;

    fn tokenizer(has_token: bool) -> Tokenizer {
        let mut writer = TinyModel::default().vocabulary_only();
        if has_token {
            let gguf = Gguf::from_bytes(writer.to_bytes().into()).unwrap();
            let tokens: Vec<&str> = gguf.require("tokenizer.ggml.tokens").unwrap();
            let mut tokens: Vec<String> = tokens.into_iter().map(str::to_owned).collect();
            let mut kinds: Vec<i32> = gguf.require("tokenizer.ggml.token_type").unwrap();
            tokens.push(OPEN.into());
            kinds.push(USER_DEFINED);
            writer.set_metadata("tokenizer.ggml.tokens", tokens.as_slice());
            writer.set_metadata("tokenizer.ggml.token_type", kinds);
        }
        Tokenizer::from_gguf(&Gguf::from_bytes(writer.to_bytes().into()).unwrap()).unwrap()
    }

    fn calls(is_forced: bool, parallel: bool) -> Calls {
        let of = |name: &str, properties: Value| {
            let schema = json!({"type": "object", "properties": properties, "required": ["at"],
                                "additionalProperties": false, "$defs": {"n": {"type": "integer"}}});
            (name.to_owned(), "tools".to_owned(), schema.as_object().unwrap().clone())
        };
        let functions = vec![
            of("sea", json!({"at": {"$ref": "#/$defs/n"}})),
            of("a \"\\x41\" é", json!({"at": {"enum": ["</tool_call>"]}})),
        ];
        Calls { functions, is_forced, parallel, dialect: Dialect::Json }
    }

    /// Whether the answer is one of the grammar's, token by token.
    fn follows(grammar: &Grammar, tokenizer: &Tokenizer, answer: &str) -> bool {
        let mut grammar = grammar.clone();
        let end = tokenizer.end_of_generation()[0];
        let ids = tokenizer.encode(answer, false).unwrap();
        let is_allowed = |grammar: &mut Grammar, id| grammar.allowed().unwrap().contains(id);
        let goes = |grammar: &mut Grammar, id| is_allowed(grammar, id) && grammar.accept(id).is_ok();
        ids.into_iter().all(|id| goes(&mut grammar, id)) && is_allowed(&mut grammar, end)
    }

    const SEA: &str = "<tool_call>\n{\"name\": \"sea\", \"arguments\": {\"at\": 7}}\n</tool_call>";

    #[test]
    fn what_may_be_said() {
        let other = r#"{"name": "a \"\\x41\" é", "arguments": {"at": "</tool_call>"}}"#;
        let other = format!("{OPEN}\n{other}\n{CLOSE}");
        let two = format!("{SEA}\n{other}");
        let with_text = format!("Hello <é>\n{SEA}");
        let wrong = SEA.replace('7', "\"x\"");
        let unknown = SEA.replace("sea", "sun");
        let all = ["", "Hello <tool é", SEA, &other, &two, &with_text, &wrong, &unknown, r#"{"n": 1}"#];
        let format = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
        let format = ("response_format", format.as_object().unwrap().clone());
        for has_token in [false, true] {
            let tokenizer = tokenizer(has_token);
            assert_eq!(tokenizer.added_token(OPEN).is_some(), has_token);
            let grammars = Grammars::new(&tokenizer).unwrap();
            for (is_forced, parallel, format, expected) in [
                (true, true, None, [false, false, true, true, true, false, false, false, false]),
                (true, false, None, [false, false, true, true, false, false, false, false, false]),
                (false, true, None, [true, true, true, true, true, true, false, false, true]),
                (false, false, None, [true, true, true, true, false, true, false, false, true]),
                (
                    false,
                    true,
                    Some(format.clone()),
                    [false, false, true, true, true, false, false, false, true],
                ),
            ] {
                let grammar = calls(is_forced, parallel).grammar(&grammars, format).unwrap();
                let found = all.map(|answer| follows(&grammar, &tokenizer, answer));
                assert_eq!(found, expected, "forced {is_forced}, parallel {parallel}: {all:#?}");
                // A token of the vocabulary is a way to begin a call, and so is its spelling.
                let mut grammar = grammar;
                let allowed = grammar.allowed().unwrap();
                assert!(tokenizer.added_token(OPEN).is_none_or(|id| allowed.contains(id)));
                assert!(allowed.contains(tokenizer.encode("<", false).unwrap()[0]));
            }
        }
    }

    #[test]
    fn what_may_be_said_in_xml() {
        let tokenizer = tokenizer(true);
        let grammars = Grammars::new(&tokenizer).unwrap();
        let schema = json!({"type": "object", "properties": {
            "to": {"type": "string"}, "by": {"$ref": "#/$defs/ship"}, "days": {"type": "integer"}, "as": {"type": "string", "maxLength": 3},
        }, "required": ["to"], "$defs": {"ship": {"enum": ["sloop", "brig"]}}});
        let functions = vec![
            ("sail".to_owned(), "tools[0]".to_owned(), schema.as_object().unwrap().clone()),
            ("any".to_owned(), "tools[1]".to_owned(), json!({"type": "object"}).as_object().unwrap().clone()),
        ];
        let calls = Calls { functions, is_forced: true, parallel: true, dialect: Dialect::Xml };
        let grammar = calls.grammar(&grammars, None).unwrap();
        let call = |name: &str, parameters: &[(&str, &str)]| {
            let parameters: String = parameters
                .iter()
                .map(|(name, value)| format!("<parameter={name}>\n{value}\n</parameter>\n"))
                .collect();
            format!("{OPEN}\n<function={name}>\n{parameters}</function>\n{CLOSE}")
        };
        let to = ("to", "a <b>\n\"c\"");
        for (answer, expected) in [
            (call("sail", &[to]), true),
            (call("sail", &[to, ("by", "brig"), ("days", "3"), ("as", "abc")]), true),
            (format!("{}\n{}", call("sail", &[to]), call("any", &[])), true),
            (call("any", &[("x", "1"), ("y", "<z>")]), true),
            (call("sail", &[]), false),
            (call("sail", &[("days", "3"), to]), false),
            (call("sail", &[to, ("by", "raft")]), false),
            (call("sail", &[to, ("days", "three")]), false),
            (call("sail", &[to, ("as", "abcd")]), false),
            (call("sail", &[to, ("at", "x")]), false),
            (call("walk", &[]), false),
            (String::new(), false),
        ] {
            assert_eq!(follows(&grammar, &tokenizer, &answer), expected, "{answer}");
        }
    }

    /// References are followed, and what the dialect cannot hold is refused.
    #[test]
    fn parameters_in_xml_are_found() {
        let tokenizer = tokenizer(true);
        let grammars = Grammars::new(&tokenizer).unwrap();
        let grammar = |schema: Value| {
            let functions =
                vec![("f".to_owned(), "tools[0]".to_owned(), schema.as_object().unwrap().clone())];
            Calls { functions, is_forced: true, parallel: false, dialect: Dialect::Xml }
                .grammar(&grammars, None)
        };
        let object = json!({"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]});
        let named =
            json!({"type": "object", "$ref": "#/$defs/a", "$defs": {"a": object, "n": {"type": "integer"}}});
        let grammar_of_named = grammar(named).unwrap();
        for (value, expected) in [("3", true), ("x", false)] {
            let call =
                format!("{OPEN}\n<function=f>\n<parameter=n>\n{value}\n</parameter>\n</function>\n{CLOSE}");
            assert_eq!(follows(&grammar_of_named, &tokenizer, &call), expected, "{value}");
        }
        let none = format!("{OPEN}\n<function=f>\n</function>\n{CLOSE}");
        assert!(!follows(&grammar_of_named, &tokenizer, &none));
        for schema in [
            json!({"type": "object", "anyOf": [object.clone()]}),
            json!({"type": "object", "allOf": [object]}),
            json!({"type": "object", "required": ["n"]}),
            json!({"type": "object", "$ref": "https://example.org/a"}),
        ] {
            let error = grammar(schema.clone()).err().unwrap_or_else(|| panic!("{schema}"));
            assert_eq!(error.body.param.as_deref(), Some("tools[0]"), "{schema}");
        }
        let free = grammar(json!({"type": "object", "properties": {}, "required": []})).unwrap();
        assert!(follows(&free, &tokenizer, &none));
    }

    #[test]
    fn the_schema_that_is_wrong_is_named() {
        let tokenizer = tokenizer(false);
        let grammars = Grammars::new(&tokenizer).unwrap();
        let mut calls = calls(true, true);
        let wrong = json!({"type": "object", "properties": {"a": {"type": "nonsense"}}, "required": ["a"]});
        calls.functions.push(("f".into(), "tools[2]".into(), wrong.as_object().unwrap().clone()));
        let error = calls.grammar(&grammars, None).err().unwrap();
        assert_eq!(error.body.param.as_deref(), Some("tools[2]"));
    }
}
