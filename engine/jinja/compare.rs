//! `==`, `<` and `in`.

use crate::ast::Comparison;
use crate::error::{Error, Result};
use crate::heap::Heap;
use crate::iterate::Items;
use crate::value::{Key, List, Value};
use std::cmp::Ordering;
use std::rc::Rc;

/// Whether two values are equal, which any two may be asked for.
///
/// # Errors
/// Where the time is over.
pub fn equal(a: &Value, b: &Value, heap: &Heap) -> Result<bool> {
    heap.work(a.size().min(b.size()))?;
    Ok(match (a, b) {
        (Value::Str(a), Value::Str(b)) => a[..] == b[..],
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            if a.items.len() != b.items.len() {
                return Ok(false);
            }
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(a, b, heap)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(a), Value::Dict(b)) => {
            if a.entries.len() != b.entries.len() {
                return Ok(false);
            }
            for (key, (_, value)) in &a.entries {
                match b.entries.get(key) {
                    Some((_, other)) if equal(value, other, heap)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::None, Value::None) | (Value::Undefined(_), Value::Undefined(_)) => true,
        (Value::Range(a), Value::Range(b)) => {
            a.len == b.len && (a.len == 0 || a.start == b.start && (a.len == 1 || a.step == b.step))
        }
        (Value::View(a), Value::View(b)) => a.kind == b.kind && Rc::ptr_eq(&a.dict, &b.dict),
        (Value::Generator(a), Value::Generator(b)) => Rc::ptr_eq(a, b),
        (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
        (Value::Loop(a), Value::Loop(b)) => Rc::ptr_eq(a, b),
        (Value::Macro(a), Value::Macro(b)) => Rc::ptr_eq(a, b),
        (Value::Function(a), Value::Function(b)) => a == b,
        _ => numbers(a, b) == Some(Some(Ordering::Equal)),
    })
}

/// The order of two numbers; none inside where one is not a number, none outside where one is no number at all.
fn numbers(a: &Value, b: &Value) -> Option<Option<Ordering>> {
    match (a.as_int(), b.as_int()) {
        (Some(a), Some(b)) => Some(Some(a.cmp(&b))),
        _ => Some(a.as_float()?.partial_cmp(&b.as_float()?)),
    }
}

/// The order of two values; `None` for a float that is not a number.
///
/// # Errors
/// Where they have no order; `operator` is named.
pub fn order(a: &Value, b: &Value, operator: &str, heap: &Heap) -> Result<Option<Ordering>> {
    heap.work(a.size().min(b.size()))?;
    match (a, b) {
        (Value::Str(a), Value::Str(b)) => Ok(Some(a[..].cmp(&b[..]))),
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            order_items(a, b, operator, heap)
        }
        (Value::Undefined(why), _) | (_, Value::Undefined(why)) => Err(Error::failed(&**why)),
        _ => numbers(a, b).ok_or_else(|| {
            let (a, b) = (a.type_name(), b.type_name());
            Error::failed(format!("'{operator}' not supported between instances of '{a}' and '{b}'"))
        }),
    }
}

fn order_items(a: &List, b: &List, operator: &str, heap: &Heap) -> Result<Option<Ordering>> {
    for (a, b) in a.items.iter().zip(&b.items) {
        if !equal(a, b, heap)? {
            return order(a, b, operator, heap);
        }
    }
    Ok(Some(a.items.len().cmp(&b.items.len())))
}

/// Whether a value is in another one.
///
/// # Errors
/// Where nothing is in that one, or only other types can be.
pub fn contains(container: &Value, item: &Value, heap: &Heap) -> Result<bool> {
    match container {
        Value::Str(text) => {
            heap.work(text.len() + item.size())?;
            match item {
                Value::Str(item) => Ok(text.contains(&item[..])),
                _ => Err(Error::failed(format!(
                    "'in <string>' requires string as left operand, not {}",
                    item.type_name()
                ))),
            }
        }
        Value::Dict(dict) => Ok(dict.entries.contains_key(&Key::of(item, heap)?)),
        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Namespace(_) => {
            Err(Error::failed(format!("argument of type '{}' is not iterable", container.type_name())))
        }
        _ => {
            let mut items = Items::of(container)?;
            while let Some(found) = items.next(heap)? {
                if equal(&found, item, heap)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

/// Compares with an operator.
///
/// # Errors
/// Where Python refuses it too.
pub fn compare(a: &Value, comparison: Comparison, b: &Value, heap: &Heap) -> Result<bool> {
    Ok(match comparison {
        Comparison::Equal => equal(a, b, heap)?,
        Comparison::NotEqual => !equal(a, b, heap)?,
        Comparison::Less => order(a, b, "<", heap)? == Some(Ordering::Less),
        Comparison::LessOrEqual => order(a, b, "<=", heap)?.is_some_and(Ordering::is_le),
        Comparison::Greater => order(a, b, ">", heap)? == Some(Ordering::Greater),
        Comparison::GreaterOrEqual => order(a, b, ">=", heap)?.is_some_and(Ordering::is_ge),
        Comparison::In => contains(b, a, heap)?,
        Comparison::NotIn => !contains(b, a, heap)?,
    })
}
