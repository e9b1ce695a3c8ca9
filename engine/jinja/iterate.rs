//! Walking through values.

use crate::error::{Error, Result};
use crate::heap::Heap;
use crate::value::{Dict, Generator, List, Range, Text, Value, View, ViewKind};
use std::rc::Rc;

/// The items of a value, one after the other.
pub enum Items {
    Nothing,
    List(Rc<List>, usize),
    /// Characters from this byte on.
    Text(Rc<Text>, usize),
    Keys(Rc<Dict>, usize),
    View(Rc<View>, usize),
    Range(Range, usize),
    Generator(Rc<Generator>),
}

impl Items {
    /// # Errors
    /// Where the value has no items.
    pub fn of(value: &Value) -> Result<Self> {
        Ok(match value {
            Value::Undefined(_) => Self::Nothing,
            Value::List(list) | Value::Tuple(list) => Self::List(Rc::clone(list), 0),
            Value::Str(text) => Self::Text(Rc::clone(text), 0),
            Value::Dict(dict) => Self::Keys(Rc::clone(dict), 0),
            Value::View(view) => Self::View(Rc::clone(view), 0),
            Value::Range(range) => Self::Range(*range, 0),
            Value::Generator(generator) => Self::Generator(Rc::clone(generator)),
            _ => return Err(Error::failed(format!("'{}' object is not iterable", value.type_name()))),
        })
    }

    /// How many there are still to come.
    pub fn remaining(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::List(list, next) => list.items.len() - next,
            Self::Text(text, next) => text[*next..].chars().count(),
            Self::Keys(dict, next) => dict.entries.len() - next,
            Self::View(view, next) => view.dict.entries.len() - next,
            Self::Range(range, next) => range.len - next,
            Self::Generator(generator) => generator.items.items.len() - generator.next.get(),
        }
    }

    /// The next one.
    ///
    /// # Errors
    /// Where it would be one too many for the heap.
    pub fn next(&mut self, heap: &Heap) -> Result<Option<Value>> {
        heap.work(8)?;
        Ok(match self {
            Self::Nothing => None,
            Self::List(list, next) => {
                *next += 1;
                let item = list.items.get(*next - 1).cloned();
                *next = (*next).min(list.items.len());
                item
            }
            Self::Text(text, next) => match text[*next..].chars().next() {
                Some(c) => {
                    *next += c.len_utf8();
                    Some(heap.text(c)?)
                }
                None => None,
            },
            Self::Keys(dict, next) => {
                let entry = dict.entries.get_index(*next);
                *next += usize::from(entry.is_some());
                entry.map(|(_, (key, _))| key.clone())
            }
            Self::View(view, next) => {
                let Some((_, (key, value))) = view.dict.entries.get_index(*next) else { return Ok(None) };
                *next += 1;
                Some(match view.kind {
                    ViewKind::Keys => key.clone(),
                    ViewKind::Values => value.clone(),
                    ViewKind::Items => heap.tuple(vec![key.clone(), value.clone()])?,
                })
            }
            Self::Range(range, next) => {
                let item = range.get(*next);
                *next += usize::from(item.is_some());
                item
            }
            Self::Generator(generator) => {
                let next = generator.next.get();
                let item = generator.items.items.get(next).cloned();
                generator.next.set(next + usize::from(item.is_some()));
                item
            }
        })
    }

    /// All that are still to come.
    ///
    /// # Errors
    /// As [`Items::next`].
    pub fn collect(mut self, heap: &Heap) -> Result<Vec<Value>> {
        let remaining = self.remaining();
        heap.room(remaining * size_of::<Value>())?;
        let mut items = Vec::with_capacity(remaining);
        while let Some(item) = self.next(heap)? {
            items.push(item);
        }
        Ok(items)
    }
}

impl Range {
    pub fn get(&self, index: usize) -> Option<Value> {
        (index < self.len).then(|| Value::Int(i128::from(self.start) + index as i128 * i128::from(self.step)))
    }
}

impl Value {
    /// All items.
    ///
    /// # Errors
    /// Where it has none, or they are too many for the heap.
    pub fn items(&self, heap: &Heap) -> Result<Vec<Self>> {
        Items::of(self)?.collect(heap)
    }

    /// The number of its items, as `len` has it.
    ///
    /// # Errors
    /// Where it has no length.
    pub fn len(&self, heap: &Heap) -> Result<usize> {
        match self {
            Self::Str(text) => {
                heap.work(text.len())?;
                Ok(text.chars().count())
            }
            Self::Undefined(_) => Ok(0),
            Self::List(_) | Self::Tuple(_) | Self::Dict(_) | Self::View(_) | Self::Range(_) => {
                Ok(Items::of(self)?.remaining())
            }
            _ => Err(Error::failed(format!("object of type '{}' has no len()", self.type_name()))),
        }
    }
}
