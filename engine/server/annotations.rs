//! Keywords of a schema that bind no answer. A `format` is an annotation in JSON Schema, and those that nothing is known of are as
//! good as absent; which items an array has already is beyond a grammar, so `uniqueItems` is not kept.

use serde_json::Value;

/// Formats that answers follow.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
/// Keywords whose values are names with schemas.
const NAMED: [&str; 5] = ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];
/// Keywords whose values are no schemas.
const VALUES: [&str; 5] = ["const", "enum", "default", "examples", "example"];

/// Takes away what binds no answer, wherever a schema may stand: a `$ref` can name a place under any keyword.
pub fn take_away(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(take_away),
        Value::Object(keywords) => {
            keywords.retain(|keyword, value| match keyword.as_str() {
                "format" => value.as_str().is_none_or(|format| FORMATS.contains(&format)),
                "uniqueItems" => !value.is_boolean(),
                _ => true,
            });
            for (keyword, value) in keywords {
                match value.as_object_mut().filter(|_| NAMED.contains(&keyword.as_str())) {
                    Some(named) => named.values_mut().for_each(take_away),
                    None if VALUES.contains(&keyword.as_str()) => (),
                    None => take_away(value),
                }
            }
        }
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn annotations_go_and_what_is_named_like_one_stays() {
        let mut schema = json!({
            "format": "path", "uniqueItems": true, "default": {"format": "path"},
            "properties": {"format": {"type": "string", "format": "uuid"}, "uniqueItems": {"format": "byte"}},
            "anyOf": [{"format": "int32", "type": "integer"}, {"enum": [{"format": "path", "uniqueItems": true}]}],
            "components": {"schemas": {"File": {"type": "string", "format": "binary"}}},
            "items": {"const": {"format": "x"}, "format": 7},
        });
        take_away(&mut schema);
        let expected = json!({
            "default": {"format": "path"},
            "properties": {"format": {"type": "string", "format": "uuid"}, "uniqueItems": {}},
            "anyOf": [{"type": "integer"}, {"enum": [{"format": "path", "uniqueItems": true}]}],
            "components": {"schemas": {"File": {"type": "string"}}},
            "items": {"const": {"format": "x"}, "format": 7},
        });
        assert_eq!(schema, expected);
    }
}
