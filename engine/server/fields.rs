//! What becomes of each field of a request. One table for each of the API's objects (`api::fields`) says it; bodies are parsed
//! and the OpenAPI document is made as the tables say.

use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, IntoDeserializer, MapAccess, Visitor,
    value::StringDeserializer,
};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::Value;
use std::fmt;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};

/// What becomes of a field. One that is in no table is refused.
#[derive(Clone, Copy, Debug)]
pub enum Treatment {
    /// It is parsed.
    Used,
    /// It changes no answer of this server: any value is taken.
    Ignored,
    /// It would change the answer and is not supported. `null` and these values, which ask for nothing, are taken; they are
    /// written as JSON.
    Refused(&'static [&'static str]),
}

/// The fields of an object, by what becomes of them.
pub type Table = &'static [(Treatment, &'static [&'static str])];

/// What becomes of the field of this name.
pub fn treatment(table: Table, name: &str) -> Option<Treatment> {
    let (treatment, _) = table.iter().find(|(_, names)| names.contains(&name))?;
    Some(*treatment)
}

/// Parses an object as its table says. The type derives `Deserialize` with `remote = "Self"` for the fields that are used.
macro_rules! described {
    ($($type:ty: $table:expr),+ $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Self::deserialize(crate::fields::Described { deserializer, table: $table })
            }
        }
    )+};
}
pub(crate) use described;

/// An object whose fields meet their table before they are parsed.
pub struct Described<D> {
    pub deserializer: D,
    pub table: Table,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Described<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserializer.deserialize_map(Object { visitor, table: self.table })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Object<V> {
    visitor: V,
    table: Table,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Object<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(UsedFields { map, table: self.table })
    }
}

/// The fields that are used; the others are dealt with on the way.
struct UsedFields<A> {
    map: A,
    table: Table,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for UsedFields<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let mut seed = Some(seed);
        while let Some(key) = self.map.next_key_seed(KeySeed { seed: &mut seed, table: self.table })? {
            match key {
                Key::Used(key) => return Ok(Some(key)),
                Key::Ignored => drop(self.map.next_value::<IgnoredAny>()?),
                Key::Refused(neutral) => self.map.next_value_seed(AsksForNothing(neutral))?,
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

enum Key<T> {
    Used(T),
    Ignored,
    Refused(&'static [&'static str]),
}

/// Reads a field's name; the parser sees it where it is used, or unknown and to be refused.
struct KeySeed<'a, K> {
    seed: &'a mut Option<K>,
    table: Table,
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for KeySeed<'_, K> {
    type Value = Key<K::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let name = String::deserialize(deserializer)?;
        match treatment(self.table, &name) {
            Some(Treatment::Ignored) => Ok(Key::Ignored),
            Some(Treatment::Refused(neutral)) => Ok(Key::Refused(neutral)),
            Some(Treatment::Used) | None => {
                let seed = self.seed.take().ok_or_else(|| D::Error::custom("a name was read twice"))?;
                let name: StringDeserializer<D::Error> = name.into_deserializer();
                seed.deserialize(name).map(Key::Used)
            }
        }
    }
}

/// A value that must ask for nothing.
struct AsksForNothing(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for AsksForNothing {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let found = Value::deserialize(deserializer)?;
        if neutral_values(self.0).any(|neutral| is_same(&neutral, &found)) {
            return Ok(());
        }
        let expected: Vec<&str> = std::iter::once("null").chain(self.0.iter().copied()).collect();
        Err(D::Error::custom(format!(
            "this server does not support it: expected {}, found {}; leave it out",
            expected.join(" or "),
            excerpt(&found)
        )))
    }
}

fn neutral_values(texts: &'static [&'static str]) -> impl Iterator<Item = Value> {
    let values = texts.iter().map(|text| serde_json::from_str(text).expect("a table's values are JSON"));
    std::iter::once(Value::Null).chain(values)
}

/// Whether two values are the same, however their numbers are written.
fn is_same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
        (left, right) => left == right,
    }
}

/// The beginning of a value as JSON.
pub fn excerpt(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 40 { text.chars().take(40).chain(['…']).collect() } else { text }
}

/// The schema of a field that no type has, for the OpenAPI document.
pub fn schema(treatment: Treatment) -> Option<RefOr<Schema>> {
    let object = match treatment {
        Treatment::Used => return None,
        Treatment::Ignored => ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::SchemaType::AnyValue)
            .description(Some("Taken, and changes nothing here.")),
        Treatment::Refused(neutral) => ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::SchemaType::AnyValue)
            .description(Some("Not supported: only what asks for nothing is taken."))
            .enum_values(Some(neutral_values(neutral))),
    };
    Some(object.into())
}
