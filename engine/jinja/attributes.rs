//! `value.name` and `value[key]`.

use crate::error::{Error, Result};
use crate::heap::Heap;
use crate::methods;
use crate::sequences;
use crate::value::{Key, Loop, Method, Value};
use std::rc::Rc;

/// `value.name`: a method or attribute, else the item with that key, else undefined.
///
/// # Errors
/// Where the value is undefined itself.
pub fn attribute(value: &Value, name: &str, heap: &Heap) -> Result<Value> {
    if let Some(found) = own(value, name, heap)? {
        return Ok(found);
    }
    if let Value::Dict(dict) = value
        && let Some((_, value)) = dict.entries.get(name)
    {
        return Ok(value.clone());
    }
    Ok(missing(value, name))
}

/// `value[key]`: the item, else the attribute of that name, else undefined.
///
/// # Errors
/// Where the value is undefined itself.
pub fn item(value: &Value, key: &Value, heap: &Heap) -> Result<Value> {
    if let Value::Undefined(why) = value {
        return Err(Error::failed(&**why));
    }
    if let Value::Dict(dict) = value {
        // What cannot be a key is none.
        let entry = match key {
            Value::Str(key) => dict.entries.get(&**key as &str),
            _ => Key::of(key, heap).ok().and_then(|key| dict.entries.get(&key)),
        };
        if let Some((_, value)) = entry {
            return Ok(value.clone());
        }
    }
    if let Some(index) = key.as_int()
        && let Some(item) = sequences::index(value, index, heap)?
    {
        return Ok(item);
    }
    match key {
        Value::Str(name) => Ok(own(value, name, heap)?.unwrap_or_else(|| missing(value, name))),
        _ => Ok(missing(value, &key.to_repr(heap)?)),
    }
}

fn missing(value: &Value, name: &str) -> Value {
    Value::undefined(format!("'{} object' has no attribute '{name:.100}'", value.type_name()))
}

/// What Python's `getattr` finds.
///
/// # Errors
/// Where the value is undefined itself.
pub fn own(value: &Value, name: &str, heap: &Heap) -> Result<Option<Value>> {
    Ok(match value {
        Value::Undefined(why) => return Err(Error::failed(&**why)),
        Value::Namespace(namespace) => namespace.values.borrow().get(name).cloned(),
        Value::Loop(lap) => of_loop(lap, name).or_else(|| method(value, name)),
        Value::Tuple(list) if list.is_group => match name {
            "grouper" => Some(list.items[0].clone()),
            "list" => Some(list.items[1].clone()),
            _ => method(value, name),
        },
        Value::Macro(called) => match name {
            "name" => Some(heap.text(&*called.definition.name)?),
            _ => None,
        },
        _ => method(value, name),
    })
}

fn method(value: &Value, name: &str) -> Option<Value> {
    if methods::MUTATING.contains(&name) && matches!(value, Value::List(_) | Value::Dict(_)) {
        let message = format!("access to attribute '{name}' of '{}' object is unsafe.", value.type_name());
        return Some(Value::undefined(message));
    }
    let name = methods::of(value).iter().find(|method| **method == name)?;
    Some(Value::Method(Rc::new(Method { receiver: value.clone(), name })))
}

fn of_loop(lap: &Loop, name: &str) -> Option<Value> {
    let neighbour = |value: &Option<Value>, which: &str| {
        value.clone().unwrap_or_else(|| Value::undefined(format!("there is no {which} item")))
    };
    Some(match name {
        "index" => (lap.index0 + 1).into(),
        "index0" => lap.index0.into(),
        "revindex" => (lap.len - lap.index0.min(lap.len)).into(),
        "revindex0" => (lap.len - (lap.index0 + 1).min(lap.len)).into(),
        "first" => (lap.index0 == 0).into(),
        "last" => lap.next.is_none().into(),
        "length" => lap.len.into(),
        "depth" => (lap.depth0 + 1).into(),
        "depth0" => lap.depth0.into(),
        "previtem" => neighbour(&lap.previous, "previous"),
        "nextitem" => neighbour(&lap.next, "next"),
        _ => return None,
    })
}
