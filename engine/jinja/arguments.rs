//! What a call gives.

use crate::error::{Error, Result};
use crate::value::Value;
use std::sync::Arc;

/// Evaluated arguments.
#[derive(Default)]
pub struct Arguments {
    pub positional: Vec<Value>,
    pub named: Vec<(Arc<str>, Value)>,
}

impl Arguments {
    pub fn take_named(&mut self, name: &str) -> Option<Value> {
        let i = self.named.iter().position(|(found, _)| **found == *name)?;
        Some(self.named.remove(i).1)
    }

    /// The arguments in the order of `names`, of which the first `required` must be there.
    ///
    /// # Errors
    /// Where one is missing, is there twice or has no place; `called` is named.
    pub fn bind<const N: usize>(
        mut self,
        called: &str,
        names: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        if self.positional.len() > N {
            let message =
                format!("{called}: expected at most {N} arguments, found {}", self.positional.len());
            return Err(Error::failed(message));
        }
        let mut bound = [const { None }; N];
        for (place, value) in bound.iter_mut().zip(std::mem::take(&mut self.positional)) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            let place = names.iter().position(|found| **found == *name);
            let place = place.and_then(|i| bound.get_mut(i)).filter(|place| place.is_none());
            let Some(place) = place else {
                return Err(Error::failed(format!(
                    "{called}: the argument `{name}` has no place, or is there twice"
                )));
            };
            *place = Some(value);
        }
        match names.iter().zip(&bound).take(required).find(|(_, value)| value.is_none()) {
            Some((name, _)) => Err(Error::failed(format!("{called}: the argument `{name}` is missing"))),
            None => Ok(bound),
        }
    }

    /// No arguments.
    ///
    /// # Errors
    /// Where there are some.
    pub fn none(self, called: &str) -> Result<()> {
        self.bind(called, [], 0).map(|[]| ())
    }
}

/// A string argument.
///
/// # Errors
/// Where it is something else.
pub fn text<'a>(called: &str, value: &'a Value) -> Result<&'a str> {
    let fault = || Error::failed(format!("{called}: expected a string, found {}", value.type_name()));
    match value {
        Value::Undefined(why) => Err(Error::failed(&**why)),
        _ => value.as_str().ok_or_else(fault),
    }
}

/// A whole number, or `default` where there is no argument or it is none.
///
/// # Errors
/// Where it is something else.
pub fn int(called: &str, value: Option<&Value>, default: i128) -> Result<i128> {
    match value {
        None | Some(Value::None) => Ok(default),
        Some(Value::Undefined(why)) => Err(Error::failed(&**why)),
        Some(value) => value
            .as_int()
            .ok_or_else(|| Error::failed(format!("{called}: expected an int, found {}", value.type_name()))),
    }
}

/// A length: a whole number, 0 where it is negative.
///
/// # Errors
/// Where it is something else, or beyond what could be held.
pub fn length(called: &str, value: Option<&Value>, default: usize) -> Result<usize> {
    let int = int(called, value, default as i128)?.max(0);
    usize::try_from(int).map_err(|_| Error::limit(format!("{called}: {int} is too large")))
}
