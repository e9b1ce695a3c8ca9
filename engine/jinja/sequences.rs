//! Items by their place, and slices.

use crate::error::{Error, Result};
use crate::heap::Heap;
use crate::value::{Range, Value};

/// The place that an index means in `len` items: from the end where it is negative.
pub fn place(index: i128, len: usize) -> Option<usize> {
    let index = if index < 0 { index.checked_add(len as i128)? } else { index };
    usize::try_from(index).ok().filter(|index| *index < len)
}

/// The item of a list, string or range at an index; `None` outside it, and for other values.
///
/// # Errors
/// As [`Heap::room`].
pub fn index(value: &Value, index: i128, heap: &Heap) -> Result<Option<Value>> {
    Ok(match value {
        Value::List(list) | Value::Tuple(list) => {
            place(index, list.items.len()).map(|i| list.items[i].clone())
        }
        Value::Range(range) => place(index, range.len).and_then(|i| range.get(i)),
        Value::Str(text) => {
            let len = value.len(heap)?;
            match place(index, len).and_then(|i| text.chars().nth(i)) {
                Some(c) => Some(heap.text(c)?),
                None => None,
            }
        }
        _ => None,
    })
}

/// Where a slice begins, how far its items are apart, and how many there are.
fn bounds(parts: &[Value; 3], len: usize) -> Result<(i128, i128, usize)> {
    let part = |value: &Value| match value {
        Value::None => Ok(None),
        Value::Undefined(why) => Err(Error::failed(&**why)),
        _ => match value.as_int() {
            // Far beyond any length, and far from overflowing.
            Some(int) => Ok(Some(int.clamp(-(1 << 62), 1 << 62))),
            None => Err(Error::failed("slice indices must be integers or None or have an __index__ method")),
        },
    };
    let [start, stop, step] = parts;
    let (start, stop, step) = (part(start)?, part(stop)?, part(step)?.unwrap_or(1));
    if step == 0 {
        return Err(Error::failed("slice step cannot be zero"));
    }
    let len = len as i128;
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: i128| (if bound < 0 { bound + len } else { bound }).clamp(low, high.max(low));
    let start = start.map_or(if step > 0 { low } else { high }, clamp);
    let stop = stop.map_or(if step > 0 { high } else { low }, clamp);
    let span = if step > 0 { stop - start } else { start - stop };
    let count = if span <= 0 { 0 } else { (span - 1) / step.abs() + 1 };
    Ok((start, step, count as usize))
}

/// `value[start:stop:step]`; a part that is left out is none.
///
/// # Errors
/// Where the value has no slices, or a part is no whole number.
pub fn slice(value: &Value, parts: &[Value; 3], heap: &Heap) -> Result<Value> {
    match value {
        Value::List(list) | Value::Tuple(list) => {
            let (start, step, count) = bounds(parts, list.items.len())?;
            heap.room(count * size_of::<Value>())?;
            let places = (0..count).map(|i| (start + i as i128 * step) as usize);
            let items = places.map(|i| list.items[i].clone()).collect();
            if matches!(value, Value::Tuple(_)) { heap.tuple(items) } else { heap.list(items) }
        }
        Value::Str(text) => {
            let (start, step, count) = bounds(parts, value.len(heap)?)?;
            if step == 1 {
                let mut ends = text.char_indices().map(|(i, _)| i).chain([text.len()]).skip(start as usize);
                let begin = ends.next().unwrap_or(text.len());
                let end = if count == 0 { begin } else { ends.nth(count - 1).unwrap_or(text.len()) };
                return heap.text(&text[begin..end]);
            }
            heap.room(text.len().saturating_mul(5))?;
            let chars: Vec<char> = text.chars().collect();
            let places = (0..count).map(|i| (start + i as i128 * step) as usize);
            heap.text(places.map(|i| chars[i]).collect::<String>())
        }
        Value::Range(range) => {
            let (start, step, len) = bounds(parts, range.len)?;
            let start = i128::from(range.start) + start * i128::from(range.step);
            let step = step.clamp(-(1 << 31), 1 << 31) * i128::from(range.step);
            let stop = start + len as i128 * step;
            Ok(Value::Range(Range { start: start as i64, step: step as i64, len, stop: stop as i64 }))
        }
        Value::Undefined(why) => Err(Error::failed(&**why)),
        _ => Err(Error::failed(format!("'{}' object has no slices", value.type_name()))),
    }
}
