//! Schemas that would take minutes, gigabytes or the process are refused by name; those of everyday life are not.

use crate::client::*;
use serde_json::{Map, Value, json};
use std::time::Instant;

const PARAM: &str = "response_format.json_schema.schema";

fn ask(server: &Running, schema: &Value) -> Response {
    let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
    let messages = json!([{"role": "user", "content": "hello"}]);
    server.post(
        "/v1/chat/completions",
        json!({"messages": messages, "response_format": format, "max_tokens": 2}),
    )
}

fn members(count: usize, value: impl Fn(usize) -> (String, Value)) -> Value {
    Value::Object((0..count).map(value).collect::<Map<_, _>>())
}

fn list(count: usize, value: impl Fn(usize) -> Value) -> Value {
    (0..count).map(value).collect()
}

/// A chain of definitions, each of which `link` makes of a reference to the next.
fn chain(count: usize, link: impl Fn(Value) -> Value) -> Value {
    let mut definitions =
        members(count, |i| (format!("a{i}"), link(json!({"$ref": format!("#/$defs/a{}", i + 1)}))));
    definitions[format!("a{count}")] = json!({"type": "object"});
    json!({"$defs": definitions, "$ref": "#/$defs/a0"})
}

#[test]
fn hostile_schemas_are_refused_at_once() {
    let server = start(config());
    let tree = |name: &str| {
        let child = json!({"$ref": format!("#/$defs/{name}")});
        json!({"type": "object", "properties": {"l": child, "r": child}})
    };
    let pattern = |i: usize| json!({"type": "string", "pattern": format!("x{i}")});
    let string = |i: usize| (format!("k{i}"), json!({"type": "string"}));
    let hostile = [
        // Deep: the stack.
        ("refs", chain(501, |next| json!({"allOf": [next]}))),
        ("properties", json!({"type": "object", "properties": members(7000, string)})),
        ("required", json!({"type": "object", "required": list(30_000, |i| json!(format!("k{i}")))})),
        // Products: time and memory.
        ("patterns", json!({"allOf": list(25, pattern)})),
        (
            "patterns by reference",
            chain(25, |next| json!({"allOf": [next, {"type": "string", "pattern": "x"}]})),
        ),
        (
            "pattern properties",
            json!({"type": "object", "patternProperties": members(300, |i| (format!("^k{i}$"), json!(true)))}),
        ),
        ("const", json!({"const": "ab".repeat(20_000)})),
        ("enum", json!({"allOf": [{"enum": list(300, |i| json!(i))}, {"enum": list(300, |i| json!(i))}]})),
        ("multiples", json!({"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]})),
        ("multiples of anything", json!({"allOf": [{"multipleOf": 5003}, {"multipleOf": 1009}]})),
        ("multiple", json!({"type": "integer", "multipleOf": 99_991})),
        (
            "unions",
            json!({"allOf": list(24, |i| json!({"anyOf": [
                {"properties": {format!("p{i}"): {"type": "integer"}}},
                {"properties": {format!("p{i}"): {"type": "string"}}},
            ]}))}),
        ),
        (
            "laughter",
            chain(20, |next| {
                let mut next = next;
                next["type"] = json!("object");
                json!({"type": "object", "allOf": [{"properties": {"l": next, "r": next}}, {"type": "object"}]})
            }),
        ),
        (
            "trees",
            json!({"$defs": {"A": tree("A"), "B": tree("B")},
                   "allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}),
        ),
        (
            "one of many",
            json!({"type": "object", "properties": members(200, string), "minProperties": 1,
                   "additionalProperties": false}),
        ),
        ("itself", json!({"$ref": "#"})),
        (
            "each other",
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        ),
        ("options", json!({"anyOf": [{"$ref": "#"}, {"type": "null"}]})),
        ("nowhere", json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}})),
        ("guidance", json!({"type": "object", "properties": {"a": {"type": "string", "x-guidance": {}}}})),
        ("no schema", json!({"type": "object", "properties": {"a": 7}})),
    ];
    for (what, schema) in hostile {
        let start = Instant::now();
        let refused = ask(&server, &schema);
        assert_eq!(refused.status, 400, "{what}: {}", refused.text());
        let error = &refused.json()["error"];
        assert_eq!(error["param"], PARAM, "{what}: {error}");
        assert!(error["message"].as_str().unwrap().len() < 500, "{what}: {error}");
        assert!(start.elapsed() < SOON, "{what}: {:?}", start.elapsed());
    }
    // The schemas of all tools count together.
    let properties = members(400, string);
    let tools = list(20, |i| {
        let parameters = json!({"type": "object", "properties": properties});
        json!({"type": "function", "function": {"name": format!("f{i}"), "strict": true, "parameters": parameters}})
    });
    let body = json!({"messages": [{"role": "user", "content": "x"}], "tools": tools, "max_tokens": 2});
    let refused = server.post("/v1/chat/completions", body);
    assert_eq!(refused.status, 400);
    let error = refused.json();
    assert!(error["error"]["param"].as_str().unwrap().starts_with("tools"), "{error}");
    server.wait_until_idle();
}

#[test]
fn everyday_schemas_are_followed() {
    let server = start(config());
    let node = json!({"type": "object", "title": "Node", "required": ["name"], "additionalProperties": false, "properties": {
        "name": {"type": "string", "maxLength": 20},
        "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}, "maxItems": 5},
        "parent": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}], "default": null},
    }});
    let everyday = [
        json!({"$defs": {"Node": node}, "$ref": "#/$defs/Node", "title": "Tree"}),
        json!({"$defs": {"Node": node}, "allOf": [{"$ref": "#/$defs/Node"}], "description": "a tree"}),
        json!({"$defs": {"Node": node}, "type": "object", "$ref": "#/$defs/Node"}),
        json!({"type": "object", "required": ["at"], "properties": {
            "at": {"type": "string", "format": "date-time"},
            "mail": {"type": "string", "format": "email", "maxLength": 100},
            "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
            "price": {"type": "number", "minimum": 0, "multipleOf": 0.01},
            "x-guidance": {"type": "string"},
        }}),
        json!({"type": "object", "properties": members(300, |i| (format!("k{i}"), json!({"type": "string"}))),
               "required": list(300, |i| json!(format!("k{i}"))), "additionalProperties": false}),
        json!({"enum": list(600, |i| json!(format!("Region/City_{i}")))}),
        json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
               "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
        json!({"allOf": [
            {"type": "object", "properties": {"id": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
             "required": ["id"]},
            {"type": "object", "properties": {"name": {"type": ["string", "null"]}, "id": {"minimum": 1}}, "required": ["name"]},
        ]}),
        chain(
            400,
            |next| json!({"type": "object", "properties": {"next": next}, "additionalProperties": false}),
        ),
    ];
    for schema in everyday {
        let answer = ask(&server, &schema);
        assert_eq!(answer.status, 200, "{schema}: {}", answer.text());
    }
}

/// Bounds of the grammar itself, which show when the answer has begun.
#[test]
fn an_answer_that_cannot_be_followed_is_the_requests_fault() {
    let server = start(config());
    let many = json!({"type": "object", "properties": members(600, |i| (format!("k{i}"), json!({"type": "string"})))});
    let pattern = json!({"type": "string", "pattern": format!("^{}$", "a?".repeat(1500))});
    for schema in [many, pattern] {
        let refused = ask(&server, &schema);
        assert_eq!(refused.status, 400, "{}", refused.text());
        assert_eq!(refused.json()["error"]["param"], "response_format", "{}", refused.text());
    }
    let schema = json!({"type": "object", "properties": members(600, |i| (format!("k{i}"), json!({"type": "string"})))});
    let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
    let messages = json!([{"role": "user", "content": "hello"}]);
    let body = json!({"messages": messages, "response_format": format, "stream": true});
    let last = server.stream("/v1/chat/completions", body).events().last().unwrap();
    assert_eq!((last.name.as_str(), &last.json()["error"]["param"]), ("error", &json!("response_format")));
    assert_eq!(last.json()["error"]["type"], "invalid_request_error");
    server.wait_until_idle();
}
