//! Jinja's tests: `value is name`.

use crate::arguments::Arguments;
use crate::ast::{Comparison, Operator};
use crate::binary;
use crate::compare;
use crate::error::{Error, Result};
use crate::filters;
use crate::heap::Heap;
use crate::interpreter::Interpreter;
use crate::iterate::Items;
use crate::strings;
use crate::value::Value;
use std::rc::Rc;

/// The tests there are, for the test `test`.
const NAMES: [&str; 39] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

/// Whether a test holds.
///
/// # Errors
/// Where there is no such test, or Jinja's refuses the value or arguments too.
pub fn apply(interpreter: &Interpreter, name: &str, value: &Value, arguments: Arguments) -> Result<bool> {
    let heap = &interpreter.heap;
    if matches!(name, "lower" | "upper") {
        heap.work(value.size())?;
    }
    let comparison = match name {
        "==" | "eq" | "equalto" => Some(Comparison::Equal),
        "!=" | "ne" => Some(Comparison::NotEqual),
        "<" | "lt" | "lessthan" => Some(Comparison::Less),
        "<=" | "le" => Some(Comparison::LessOrEqual),
        ">" | "gt" | "greaterthan" => Some(Comparison::Greater),
        ">=" | "ge" => Some(Comparison::GreaterOrEqual),
        "in" => Some(Comparison::In),
        _ => None,
    };
    if let Some(comparison) = comparison {
        let [other] = arguments.bind(name, ["other"], 1)?;
        return compare::compare(value, comparison, &other.unwrap_or(Value::None), heap);
    }
    if name == "divisibleby" || name == "sameas" {
        let [other] = arguments.bind(name, ["other"], 1)?;
        let other = other.unwrap_or(Value::None);
        return if name == "sameas" { same(value, &other, heap) } else { leaves(value, &other, 0, heap) };
    }
    arguments.none(name)?;
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "iterable" => Items::of(value).is_ok() || matches!(value, Value::Loop(_)),
        "sequence" => matches!(
            value,
            Value::Str(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(_)
                | Value::Undefined(_)
        ),
        "callable" => matches!(
            value,
            Value::Macro(_) | Value::Method(_) | Value::Function(_) | Value::Undefined(_) | Value::Loop(_)
        ),
        "odd" => leaves(value, &Value::Int(2), 1, heap)?,
        "even" => leaves(value, &Value::Int(2), 0, heap)?,
        "lower" => strings::has_case(&value.to_text(heap)?, char::is_lowercase, char::is_uppercase),
        "upper" => strings::has_case(&value.to_text(heap)?, char::is_uppercase, char::is_lowercase),
        "escaped" => false,
        "filter" => value.as_str().is_some_and(|name| filters::NAMES.contains(&name)),
        "test" => value.as_str().is_some_and(|name| NAMES.contains(&name)),
        _ => return Err(Error::failed(format!("No test named '{name:.100}'."))),
    })
}

/// Whether a remainder is a number.
fn leaves(value: &Value, divisor: &Value, rest: i128, heap: &Heap) -> Result<bool> {
    let found = binary::apply(value, Operator::Remainder, divisor, heap)?;
    compare::equal(&found, &Value::Int(rest), heap)
}

/// Python's `is`, as far as values here have an identity.
fn same(a: &Value, b: &Value, heap: &Heap) -> Result<bool> {
    Ok(match (a, b) {
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        _ => a.type_name() == b.type_name() && compare::equal(a, b, heap)?,
    })
}
