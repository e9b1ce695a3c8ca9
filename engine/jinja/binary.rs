//! Arithmetic, as Python has it.

use crate::ast::Operator;
use crate::error::{Error, Result};
use crate::heap::Heap;
use crate::printf;
use crate::value::{List, Value};

/// `a` and `b` with an operator between them.
///
/// # Errors
/// Where Python refuses it too, and where a whole number leaves 128 bits.
pub fn apply(a: &Value, operator: Operator, b: &Value, heap: &Heap) -> Result<Value> {
    if let (Value::Str(format), Operator::Remainder) = (a, operator) {
        return printf::remainder(format, b, heap);
    }
    if let Value::Undefined(why) = a {
        return Err(Error::failed(&**why));
    }
    if let Value::Undefined(why) = b {
        return Err(Error::failed(&**why));
    }
    let done = match (a, operator, b) {
        (Value::Str(a), Operator::Add, Value::Str(b)) => {
            heap.room(a.len() + b.len())?;
            return heap.text([&a[..], &b[..]].concat());
        }
        (Value::List(a), Operator::Add, Value::List(b)) => return heap.list(joined(a, b, heap)?),
        (Value::Tuple(a), Operator::Add, Value::Tuple(b)) => return heap.tuple(joined(a, b, heap)?),
        (a, Operator::Multiply, b) if a.as_int().is_none() || b.as_int().is_none() => {
            match (a.as_int(), b.as_int()) {
                (None, Some(count)) => repeat(a, count, heap)?,
                (Some(count), None) => repeat(b, count, heap)?,
                _ => None,
            }
        }
        _ => None,
    };
    let done = match done {
        Some(value) => Some(value),
        None => numbers(a, operator, b)?,
    };
    done.ok_or_else(|| {
        let (a, b, operator) = (a.type_name(), b.type_name(), symbol(operator));
        Error::failed(format!("unsupported operand type(s) for {operator}: '{a}' and '{b}'"))
    })
}

fn symbol(operator: Operator) -> &'static str {
    match operator {
        Operator::Add => "+",
        Operator::Subtract => "-",
        Operator::Multiply => "*",
        Operator::Divide => "/",
        Operator::FloorDivide => "//",
        Operator::Remainder => "%",
        Operator::Power => "**",
    }
}

fn joined(a: &List, b: &List, heap: &Heap) -> Result<Vec<Value>> {
    heap.room((a.items.len() + b.items.len()) * size_of::<Value>())?;
    Ok(a.items.iter().chain(&b.items).cloned().collect())
}

/// A string or list, so many times; `None` of anything else.
fn repeat(value: &Value, count: i128, heap: &Heap) -> Result<Option<Value>> {
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    if let Value::Str(text) = value {
        heap.room(text.len().saturating_mul(count))?;
        return heap.text(text.repeat(count)).map(Some);
    }
    let Some(list) = value.as_sequence() else { return Ok(None) };
    heap.room(list.items.len().saturating_mul(count).saturating_mul(size_of::<Value>()))?;
    let items = list.items.iter().cycle().take(list.items.len() * count).cloned().collect();
    let sequence = if matches!(value, Value::Tuple(_)) { heap.tuple(items) } else { heap.list(items) };
    sequence.map(Some)
}

/// Of two numbers; `None` where one is none.
fn numbers(a: &Value, operator: Operator, b: &Value) -> Result<Option<Value>> {
    if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
        return whole(a, operator, b).map(Some);
    }
    match (a.as_float(), b.as_float()) {
        (Some(a), Some(b)) => real(a, operator, b).map(Value::Float).map(Some),
        _ => Ok(None),
    }
}

fn whole(a: i128, operator: Operator, b: i128) -> Result<Value> {
    let by_zero = || Error::failed("integer division or modulo by zero");
    let result = match operator {
        Operator::Add => a.checked_add(b),
        Operator::Subtract => a.checked_sub(b),
        Operator::Multiply => a.checked_mul(b),
        Operator::Divide if b == 0 => return Err(Error::failed("division by zero")),
        Operator::Divide => return Ok(Value::Float(a as f64 / b as f64)),
        Operator::FloorDivide | Operator::Remainder if b == 0 => return Err(by_zero()),
        Operator::FloorDivide => {
            let quotient = a.checked_div(b);
            quotient.map(|quotient| quotient - i128::from(a % b != 0 && (a < 0) != (b < 0)))
        }
        Operator::Remainder => {
            let rest = a.checked_rem(b);
            rest.map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }
        Operator::Power if b < 0 => return real(a as f64, operator, b as f64).map(Value::Float),
        Operator::Power => match (a, u32::try_from(b)) {
            (0 | 1, _) if b > 0 => Some(a),
            (-1, _) => Some(if b % 2 == 0 { 1 } else { -1 }),
            (_, Ok(b)) => a.checked_pow(b),
            _ => None,
        },
    };
    let fault = || Error::limit(format!("{a} {} {b}: the result has more than 128 bits", symbol(operator)));
    result.map(Value::Int).ok_or_else(fault)
}

fn real(a: f64, operator: Operator, b: f64) -> Result<f64> {
    let is_division = matches!(operator, Operator::Divide | Operator::FloorDivide | Operator::Remainder);
    if is_division && b == 0.0 {
        return Err(Error::failed("float division by zero"));
    }
    // The sign of a remainder is the divisor's.
    let remainder = || {
        let rest = a % b;
        if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
    };
    Ok(match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide => a / b,
        Operator::FloorDivide => ((a - remainder()) / b).round_ties_even(),
        Operator::Remainder => remainder(),
        Operator::Power if a == 0.0 && b < 0.0 => {
            return Err(Error::failed("0.0 cannot be raised to a negative power"));
        }
        Operator::Power => a.powf(b),
    })
}

/// `-a`
///
/// # Errors
/// Of what is no number.
pub fn negative(value: &Value) -> Result<Value> {
    match value {
        Value::Float(float) => Ok(Value::Float(-float)),
        _ => Ok(Value::Int(-signed(value, "-")?)),
    }
}

/// `+a`
///
/// # Errors
/// Of what is no number.
pub fn positive(value: &Value) -> Result<Value> {
    match value {
        Value::Float(float) => Ok(Value::Float(*float)),
        _ => signed(value, "+").map(Value::Int),
    }
}

fn signed(value: &Value, sign: &str) -> Result<i128> {
    match value {
        Value::Undefined(why) => Err(Error::failed(&**why)),
        // The least one has no opposite.
        _ => value.as_int().filter(|int| *int != i128::MIN).ok_or_else(|| {
            Error::failed(format!("bad operand type for unary {sign}: '{}'", value.type_name()))
        }),
    }
}
