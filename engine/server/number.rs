//! Whole numbers of a request. JSON has one kind of number: `4.0` is as whole as `4`.

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};
use std::fmt;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema, openapi};

/// An integer that a field may have.
pub trait Integer: TryFrom<i128> {
    /// The smallest and the largest.
    const RANGE: (i128, i128);
}

macro_rules! integers {
    ($($type:ty),+) => {$(
        impl Integer for $type {
            const RANGE: (i128, i128) = (<$type>::MIN as i128, <$type>::MAX as i128);
        }
    )+};
}
integers!(i32, i64, u32, usize);

/// A whole number.
pub struct Whole<T>(pub T);

impl<'de, T: Integer> Deserialize<'de> for Whole<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (min, max) = T::RANGE;
        let found = integer(deserializer)?;
        let expected =
            || D::Error::custom(format!("expected a whole number from {min} to {max}, found {found}"));
        T::try_from(found).map(Self).map_err(|_| expected())
    }
}

fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i128, D::Error> {
    struct Any;

    impl Visitor<'_> for Any {
        type Value = i128;

        fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
            formatter.write_str("a whole number")
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<i128, E> {
            Ok(value.into())
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<i128, E> {
            Ok(value.into())
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<i128, E> {
            // Beyond that no field has values, and `as` would not be exact.
            let is_whole = value.fract() == 0.0 && value.abs() < 1e30;
            is_whole.then_some(value as i128).ok_or_else(|| E::invalid_value(Unexpected::Float(value), &self))
        }
    }
    deserializer.deserialize_any(Any)
}

/// For a field's `deserialize_with`: a whole number, or nothing.
pub fn whole<'de, T: Integer, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(Option::<Whole<T>>::deserialize(deserializer)?.map(|number| number.0))
}

/// For a field's `deserialize_with`: a list of whole numbers, or nothing.
pub fn whole_list_if_any<'de, T: Integer, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    let list = Option::<Vec<Whole<T>>>::deserialize(deserializer)?;
    Ok(list.map(|list| list.into_iter().map(|number| number.0).collect()))
}

/// For a field's `deserialize_with`: the key of the random draws. -1 asks for a random one, as in llama.cpp; other negative numbers are
/// keys like any other.
pub fn seed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    struct Seed(Option<u64>);

    impl<'de> Deserialize<'de> for Seed {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            match integer(deserializer)? {
                -1 => Ok(Self(None)),
                found if (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&found) => {
                    Ok(Self(Some(found as u64)))
                }
                found => {
                    let (min, max) = (i64::MIN, u64::MAX);
                    Err(D::Error::custom(format!(
                        "expected a whole number from {min} to {max}, found {found}"
                    )))
                }
            }
        }
    }
    Ok(Option::<Seed>::deserialize(deserializer)?.and_then(|seed| seed.0))
}

/// Most tokens of something, at least `MIN`; `None` for any number, which is written -1, as in llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit<const MIN: i128>(pub Option<usize>);

/// Of an answer.
pub type TokenLimit = Limit<1>;
/// Of thoughts.
pub type ThinkingLimit = Limit<0>;

impl<'de, const MIN: i128> Deserialize<'de> for Limit<MIN> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match integer(deserializer)? {
            -1 => Ok(Self(None)),
            found if found >= MIN => Ok(Self(Some(usize::try_from(found).unwrap_or(usize::MAX)))),
            found => Err(D::Error::custom(format!(
                "expected a count from {MIN}, or -1 for no bound, found {found}"
            ))),
        }
    }
}

impl<const MIN: i128> fmt::Display for Limit<MIN> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            Some(count) => write!(formatter, "{count}"),
            None => formatter.write_str("-1"),
        }
    }
}

impl<const MIN: i128> PartialSchema for Limit<MIN> {
    fn schema() -> openapi::RefOr<openapi::Schema> {
        ObjectBuilder::new().schema_type(SchemaType::new(Type::Integer)).minimum(Some(-1)).into()
    }
}

impl<const MIN: i128> ToSchema for Limit<MIN> {
    fn name() -> std::borrow::Cow<'static, str> {
        if MIN == 0 { "ThinkingLimit".into() } else { "TokenLimit".into() }
    }
}
