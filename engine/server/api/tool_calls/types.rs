//! Which JSON a parameter that was written as text is, by the schema of its function.

use serde_json::{Map, Value};

/// Types that a value may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types(u8);

const TEXT: u8 = 1;
const NUMBER: u8 = 2;
const INTEGER: u8 = 4;
const BOOLEAN: u8 = 8;
const NULL: u8 = 16;
const OBJECT: u8 = 32;
const ARRAY: u8 = 64;
const ANY: u8 = 127;

/// How deep schemas are looked into.
const MAX_DEPTH: usize = 8;

/// The types of a property of an object; all of them where nothing is said.
pub fn of_property(schema: Option<&Map<String, Value>>, name: &str) -> Types {
    let Some(root) = schema else { return Types(ANY) };
    let types = in_schema(root, root, name, MAX_DEPTH).unwrap_or(ANY);
    Types(if types == 0 { ANY } else { types })
}

/// The types that a schema, and what it names or joins, has for a property; `None` where it says nothing of it.
fn in_schema(root: &Map<String, Value>, schema: &Map<String, Value>, name: &str, depth: usize) -> Option<u8> {
    let depth = depth.checked_sub(1)?;
    let properties = schema.get("properties").and_then(Value::as_object);
    if let Some(property) = properties.and_then(|properties| properties.get(name)) {
        return Some(of_schema(root, property, depth));
    }
    let named = schema.get("$ref").and_then(Value::as_str).and_then(|path| target(root, path));
    let joined =
        ["allOf", "anyOf", "oneOf"].into_iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
    let others = named.into_iter().chain(joined).filter_map(Value::as_object);
    let found = others.filter_map(|other| in_schema(root, other, name, depth)).reduce(|all, one| all | one);
    found.or_else(|| schema.get("additionalProperties").map(|other| of_schema(root, other, depth)))
}

/// The types that a schema allows.
fn of_schema(root: &Map<String, Value>, schema: &Value, depth: usize) -> u8 {
    let Some(schema) = schema.as_object().filter(|_| depth > 0) else { return ANY };
    let mut types = ANY;
    match schema.get("type") {
        Some(Value::String(name)) => types &= of_name(name),
        Some(Value::Array(names)) => {
            types &= names.iter().filter_map(Value::as_str).map(of_name).fold(0, |all, one| all | one)
        }
        _ => (),
    }
    if let Some(value) = schema.get("const") {
        types &= of_value(value);
    }
    if let Some(Value::Array(values)) = schema.get("enum") {
        types &= values.iter().map(of_value).fold(0, |all, one| all | one);
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(Value::Array(schemas)) = schema.get(key) {
            types &=
                schemas.iter().map(|schema| of_schema(root, schema, depth - 1)).fold(0, |all, one| all | one);
        }
    }
    if let Some(Value::Array(schemas)) = schema.get("allOf") {
        types &=
            schemas.iter().map(|schema| of_schema(root, schema, depth - 1)).fold(ANY, |all, one| all & one);
    }
    if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|path| target(root, path)) {
        types &= of_schema(root, target, depth - 1);
    }
    // What contradicts itself says nothing.
    if types == 0 { ANY } else { types }
}

/// A schema, or what it names.
pub fn resolved<'a>(root: &'a Map<String, Value>, schema: &'a Value) -> &'a Value {
    let mut schema = schema;
    for _ in 0..MAX_DEPTH {
        let reference = schema.get("$ref").and_then(Value::as_str);
        let Some(named) = reference.and_then(|path| target(root, path)) else { break };
        schema = named;
    }
    schema
}

/// What a local reference names.
pub fn target<'a>(root: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let mut steps = path.strip_prefix("#/")?.split('/');
    let first = root.get(steps.next()?)?;
    steps.try_fold(first, |found, step| match found {
        Value::Array(items) => items.get(step.parse::<usize>().ok()?),
        other => other.get(step),
    })
}

fn of_name(name: &str) -> u8 {
    match name {
        "string" => TEXT,
        "number" => NUMBER | INTEGER,
        "integer" => INTEGER,
        "boolean" => BOOLEAN,
        "null" => NULL,
        "object" => OBJECT,
        "array" => ARRAY,
        _ => ANY,
    }
}

fn of_value(value: &Value) -> u8 {
    match value {
        Value::String(_) => TEXT,
        Value::Number(number) if number.as_f64().is_some_and(|number| number.fract() == 0.0) => INTEGER,
        Value::Number(_) => NUMBER,
        Value::Bool(_) => BOOLEAN,
        Value::Null => NULL,
        Value::Object(_) => OBJECT,
        Value::Array(_) => ARRAY,
    }
}

impl Types {
    /// Whether the value is text whatever it says.
    pub fn is_text(self) -> bool {
        self.0 == TEXT
    }

    /// Whether it may be text.
    pub fn may_be_text(self) -> bool {
        self.0 & TEXT != 0
    }

    /// The value that a text stands for, as JSON: the value that it is written like, if that has a type that fits, else the text.
    /// Python's words for true, false and null are those that templates show to models.
    pub fn value(self, text: &str) -> String {
        let trimmed = text.trim();
        let written = match trimmed {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        let types = self.0 & !TEXT;
        match serde_json::from_str::<Value>(written) {
            Ok(value) if of_value(&value) & types != 0 => written.to_owned(),
            // A word in Python's spelling that is no such value here.
            Ok(value) if !self.may_be_text() && !value.is_string() => written.to_owned(),
            Ok(Value::String(inside)) if !self.may_be_text() => Value::from(inside).to_string(),
            _ => Value::from(text).to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(schema: Value, text: &str) -> String {
        let root = json!({"properties": {"a": schema}, "$defs": {"n": {"type": "integer"}}});
        of_property(root.as_object(), "a").value(text)
    }

    #[test]
    fn values_are_what_their_schemas_say() {
        for (schema, text, expected) in [
            (json!({"type": "string"}), "7", r#""7""#),
            (json!({"type": "integer"}), " 7\n", "7"),
            (json!({"type": "integer"}), "7.0", "7.0"),
            (json!({"type": "number"}), "1e5", "1e5"),
            (json!({"type": "integer"}), "seven", r#""seven""#),
            (json!({"type": "boolean"}), "True", "true"),
            (json!({"type": "boolean"}), "false", "false"),
            (json!({"type": "string"}), "True", r#""True""#),
            (json!({"type": ["string", "null"]}), "null", "null"),
            (json!({"type": ["string", "null"]}), "None", "null"),
            (json!({"type": ["string", "null"]}), "nil", r#""nil""#),
            (json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}), "42", "42"),
            (json!({"$ref": "#/$defs/n"}), "42", "42"),
            (json!({"enum": ["7", "8"]}), "7", r#""7""#),
            (json!({"enum": [7, 8]}), "7", "7"),
            (json!({"type": "array"}), "[1, {\"a\": 2}]", "[1, {\"a\": 2}]"),
            (json!({"type": "object"}), "{\"a\": [1.50]}", "{\"a\": [1.50]}"),
            (json!({}), "42", "42"),
            (json!({}), "\"42\"", r#""\"42\"""#),
            (json!({}), "forty-two", r#""forty-two""#),
            (json!({"allOf": [{"type": "string"}, {"minLength": 1}]}), "7", r#""7""#),
        ] {
            assert_eq!(value(schema.clone(), text), expected, "{schema} {text:?}");
        }
        assert_eq!(of_property(None, "a").value("[1]"), "[1]");
        let more = json!({"additionalProperties": {"type": "string"}});
        assert!(of_property(more.as_object(), "x").is_text());
        let named = json!({"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"x": {"type": "string"}}}}});
        assert!(of_property(named.as_object(), "x").is_text());
        let alternatives =
            json!([{"properties": {"x": {"type": "string"}}}, {"properties": {"x": {"type": "null"}}}]);
        let either = json!({"anyOf": alternatives});
        assert_eq!(of_property(either.as_object(), "x"), Types(TEXT | NULL));
        let circle = json!({"properties": {"a": {"$ref": "#/properties/a"}}});
        assert_eq!(of_property(circle.as_object(), "a"), Types(ANY));
    }
}
