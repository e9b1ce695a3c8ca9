//! JSON schemas are weighed before they are compiled: a schema of a kilobyte can be work for minutes.
//!
//! llguidance bounds what a grammar may come to, but not the way there: it recurses for each property and `$ref`, copies what
//! a `$ref` names wherever something else is said beside it, and builds the product of everything that `allOf` joins. The
//! estimate here follows those rules from above, and measurements (a unit of work is at most about 0.1 ms and 10 KB): a
//! schema that passes compiles in about a second and 100 MB at most. Ordinary ones weigh 1 to 2 units a property.

use super::fields::excerpt;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

/// Work of all schemas of a request together.
const MAX_WORK: u64 = 10_000;
/// Bytes of all schemas of a request together, as JSON without blanks.
const MAX_BYTES: usize = 128 << 10;
/// Each is a step of llguidance's recursion.
const MAX_REFS: usize = 500;
/// Bytes of a pattern or of a value: each token of an answer costs time that grows with them.
const MAX_STRING: usize = 4096;
/// Patterns and formats that one string has to match; intersecting them takes time exponential in their number.
const MAX_REGEXES: u64 = 3;

/// What is left for the schemas of a request.
pub struct Budget {
    work: u64,
    bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { work: MAX_WORK, bytes: MAX_BYTES }
    }
}

impl Budget {
    /// Takes off what a schema costs.
    ///
    /// # Errors
    /// What is wrong with the schema, or which bound it is beyond.
    pub fn take(&mut self, schema: &Value) -> Result<(), String> {
        let bytes = schema.to_string().len();
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(|| {
            format!("the schemas of a request may have {MAX_BYTES} bytes together; this one has {bytes} and is too large")
        })?;
        let mut walk = Walk::new(schema);
        let mut work = walk.weigh(schema, Follow::Nothing)?.work;
        while let Some(target) = walk.targets.pop() {
            // What refers to itself without end is found here.
            walk.weigh(target, Follow::Here)?;
            work = work.saturating_add(walk.weigh(target, Follow::Nothing)?.work);
        }
        self.work(work)
    }

    /// Takes off work.
    ///
    /// # Errors
    /// Where there is not so much left.
    pub fn work(&mut self, work: u64) -> Result<(), String> {
        self.work = self.work.checked_sub(work).ok_or_else(|| {
            format!(
                "too much work: estimated at {work} units, of which a request may take {MAX_WORK} (a property takes about \
                 two; what is joined by `allOf`, or beside `$ref` and `anyOf`, is multiplied); make it smaller or simpler"
            )
        })?;
        Ok(())
    }
}

/// How far references are followed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Follow {
    /// A reference stays one: where nothing is joined with it.
    Nothing,
    /// Those that stand for the schema itself: where it is joined with what says nothing of properties or items.
    Here,
    /// All beneath it: where it is joined with another schema that goes deeper.
    All,
}

/// An upper bound of what llguidance makes of a schema.
#[derive(Clone, Copy)]
struct Weight {
    work: u64,
    /// Alternatives that another schema meets on one path through this one: what joining multiplies the other by.
    alternatives: u64,
    /// Most patterns and formats of one string.
    regexes: u64,
    /// Largest product of the `multipleOf`s of one number.
    multiple: u64,
    /// Most `patternProperties` of one object.
    patterns: u64,
    /// Says nothing of properties or items.
    flat: bool,
    /// Leads back to itself.
    recursive: bool,
}

impl Weight {
    fn leaf(work: u64) -> Self {
        Self { work, alternatives: 1, regexes: 0, multiple: 1, patterns: 0, flat: true, recursive: false }
    }

    /// With the largest of what is said of one place.
    fn beside(self, other: Self) -> Self {
        Self {
            work: self.work.saturating_add(other.work),
            alternatives: self.alternatives.max(other.alternatives),
            regexes: self.regexes.max(other.regexes),
            multiple: self.multiple.max(other.multiple),
            patterns: self.patterns.max(other.patterns),
            flat: self.flat && other.flat,
            recursive: self.recursive || other.recursive,
        }
    }

    /// Either this or the other.
    fn or(self, other: Self) -> Self {
        let alternatives = self.alternatives.saturating_add(other.alternatives);
        Self { alternatives, ..self.beside(other) }
    }

    /// Both at once: each node of one meets as many of the other as that has alternatives there.
    fn and(self, other: Self) -> Self {
        let alternatives = self.alternatives.saturating_mul(other.alternatives);
        let patterns = self.patterns.saturating_add(other.patterns);
        let met = self.work.saturating_mul(other.alternatives);
        let met = met.saturating_add(other.work.saturating_mul(self.alternatives));
        let multiple = self.multiple.saturating_mul(other.multiple);
        let new_multiple = if self.multiple > 1 && other.multiple > 1 { multiple / 4 } else { 0 };
        let each = pairs(patterns).saturating_add(new_multiple);
        Self {
            // Everything is moved, and pairs of patterns are compared, each time that something is joined.
            work: met.saturating_add(met / 16).saturating_add(each.saturating_mul(alternatives)),
            alternatives,
            regexes: self.regexes.saturating_add(other.regexes),
            multiple,
            patterns,
            ..self.beside(other)
        }
    }
}

/// The work to find out whether patterns of properties exclude each other.
fn pairs(patterns: u64) -> u64 {
    patterns.saturating_mul(patterns).saturating_mul(10)
}

struct Walk<'a> {
    root: &'a Value,
    /// By address, which nothing changes during the walk; `None` while it is being weighed.
    weights: HashMap<(*const Value, Follow), Option<Weight>>,
    seen: HashSet<*const Value>,
    /// Schemas that references name and that are still to be weighed on their own.
    targets: Vec<&'a Value>,
    num_refs: usize,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Value) -> Self {
        Self { root, weights: HashMap::new(), seen: HashSet::new(), targets: Vec::new(), num_refs: 0 }
    }

    /// A schema, each once for each way to follow.
    fn weigh(&mut self, schema: &'a Value, follow: Follow) -> Result<Weight, String> {
        let key = (std::ptr::from_ref(schema), follow);
        match self.weights.get(&key) {
            Some(Some(weight)) => return Ok(*weight),
            Some(None) if follow == Follow::All => {
                return Ok(Weight { flat: false, recursive: true, ..Weight::leaf(1) });
            }
            Some(None) => return Err("a `$ref` leads back to itself, so that it says nothing".into()),
            None => (),
        }
        self.weights.insert(key, None);
        let weight = match schema {
            Value::Bool(_) => Weight::leaf(1),
            Value::Object(schema) => self.joined(schema, follow)?,
            other => {
                return Err(format!("expected a schema, an object or a boolean, found {}", excerpt(other)));
            }
        };
        if weight.regexes > MAX_REGEXES {
            return Err(format!(
                "a string has to match more than {MAX_REGEXES} patterns and formats at once"
            ));
        }
        self.weights.insert(key, Some(weight));
        Ok(weight)
    }

    /// What an object says: its parts, all of which must hold.
    fn joined(&mut self, schema: &'a Map<String, Value>, follow: Follow) -> Result<Weight, String> {
        if schema.contains_key("x-guidance") {
            return Err("`x-guidance` is not supported".into());
        }
        let parts = parts(schema)?;
        if let [part] = parts.as_slice() {
            return self.part(part, follow);
        }
        let mut weights = self.parts(&parts, if follow == Follow::All { follow } else { Follow::Here })?;
        if weights.iter().filter(|weight| !weight.flat).count() > 1 {
            weights = self.parts(&parts, Follow::All)?;
            if weights.iter().any(|weight| weight.recursive) {
                let message = "a recursive schema cannot be joined with another one that has properties or items (by \
                               `allOf`, or beside `$ref` or `anyOf`)";
                return Err(message.into());
            }
        }
        Ok(weights.into_iter().reduce(Weight::and).unwrap_or(Weight::leaf(1)))
    }

    fn parts(&mut self, parts: &[Part<'a>], follow: Follow) -> Result<Vec<Weight>, String> {
        parts.iter().map(|part| self.part(part, follow)).collect()
    }

    fn part(&mut self, part: &Part<'a>, follow: Follow) -> Result<Weight, String> {
        match part {
            Part::Itself(schema) => self.itself(schema, follow),
            Part::Schema(schema) => self.weigh(schema, follow),
            Part::Values(values) => {
                let weights = values.iter().map(value_weight).collect::<Result<Vec<_>, _>>()?;
                Ok(weights.into_iter().reduce(Weight::or).unwrap_or(Weight::leaf(1)))
            }
            Part::Union { schemas, exclusive } => {
                let mut union = Weight { alternatives: 0, ..Weight::leaf(1) };
                for schema in *schemas {
                    union = union.or(self.weigh(schema, follow)?);
                }
                union.alternatives = union.alternatives.max(1);
                if *exclusive {
                    // Each is compared with each.
                    union.work = union.work.saturating_add(union.work.saturating_mul(union.work) / 4000);
                }
                Ok(union)
            }
            Part::Ref(reference) => {
                let target = self.target(reference)?;
                if follow == Follow::Nothing {
                    self.num_refs += 1;
                    if self.num_refs > MAX_REFS {
                        return Err(format!("more than {MAX_REFS} `$ref`s"));
                    }
                    return Ok(Weight::leaf(4));
                }
                self.weigh(target, follow)
            }
        }
    }

    /// What a reference names, found as llguidance does.
    fn target(&mut self, reference: &str) -> Result<&'a Value, String> {
        let is_local = reference == "#" || reference.starts_with("#/");
        let not_local = || {
            format!("$ref: only those to places in the same schema (#/…) are supported, found {reference:?}")
        };
        let path = reference.strip_prefix('#').filter(|_| is_local).ok_or_else(not_local)?;
        let mut found = self.root;
        for step in path
            .strip_prefix('/')
            .into_iter()
            .filter(|path| !path.is_empty())
            .flat_map(|path| path.split('/'))
        {
            let next = match found {
                Value::Array(items) => step.parse().ok().and_then(|i: usize| items.get(i)),
                other => other.get(step),
            };
            found = next.ok_or_else(|| format!("$ref: there is nothing at {reference:?}"))?;
        }
        if self.seen.insert(std::ptr::from_ref(found)) {
            self.targets.push(found);
        }
        Ok(found)
    }

    /// What stands in the schema itself.
    fn itself(&mut self, schema: &'a Map<String, Value>, follow: Follow) -> Result<Weight, String> {
        let beneath = if follow == Follow::Here { Follow::Nothing } else { follow };
        let count = |key: &str| schema.get(key).map(|value| value.as_u64().unwrap_or(u64::MAX));
        let types = match schema.get("type") {
            None => 6,
            Some(Value::Array(types)) => types.len() as u64,
            Some(_) => 1,
        };
        let mut weight = Weight::leaf(types);
        for key in ["pattern", "format"] {
            if let Some(Value::String(regex)) = schema.get(key) {
                weight.work += 10 + string_work(key, regex)? * 8;
                weight.regexes += 1;
            }
        }
        if ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]
            .iter()
            .any(|key| schema.contains_key(*key))
        {
            weight.work += 6;
        }
        if let Some(multiple) = schema.get("multipleOf").and_then(Value::as_f64) {
            weight.multiple = digits(multiple);
            weight.work = weight.work.saturating_add(weight.multiple / 4);
        }
        for key in ["minItems", "maxItems"] {
            weight.work +=
                2 * count(key).map_or(0, |count| u64::from(count.checked_ilog2().unwrap_or(0)) + 1);
        }

        let members = |key: &str| schema.get(key).and_then(Value::as_object).into_iter().flatten();
        let items = |key: &str| schema.get(key).and_then(Value::as_array).into_iter().flatten();
        // Schemas beneath this one that hold for many properties or items: each of those gets a copy in a join.
        let mut spread = Weight::leaf(0);
        let mut single = Weight::leaf(0);
        for key in ["items", "additionalItems", "additionalProperties"] {
            match schema.get(key) {
                Some(Value::Array(_)) | None => (),
                Some(Value::Bool(_)) => weight.work += 1,
                Some(schema) => spread = spread.beside(self.weigh(schema, beneath)?),
            }
        }
        for schema in items("items").chain(items("prefixItems")) {
            single = single.beside(self.weigh(schema, beneath)?);
        }
        let num_properties = members("properties").count();
        let num_patterns = members("patternProperties").count();
        let mut named = Weight::leaf(0);
        for (name, schema) in members("properties") {
            named = named.beside(self.weigh(schema, beneath)?);
            named.work += 1 + string_work("properties", name)?;
        }
        if num_patterns > 0 {
            // A property whose name matches is joined with the pattern's schema.
            let follow = if num_properties == 0 { beneath } else { Follow::All };
            let mut matched =
                Weight { patterns: num_patterns as u64, ..Weight::leaf(pairs(num_patterns as u64)) };
            for (name, schema) in members("patternProperties") {
                matched = matched.beside(self.weigh(schema, follow)?);
                matched.work += 10 + string_work("patternProperties", name)? * 8;
            }
            if matched.recursive && num_properties > 0 {
                return Err(
                    "patternProperties: a recursive schema is not supported beside `properties`".into()
                );
            }
            named = Weight { patterns: matched.patterns, ..named.and(matched) };
            spread = spread.beside(Weight { work: 0, ..matched });
            spread.alternatives = spread.alternatives.max(matched.work);
        }
        for name in items("required") {
            named.work += 1 + string_work("required", name.as_str().unwrap_or_default())?;
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        let is_named = |name: &&Value| {
            properties
                .is_some_and(|properties| name.as_str().is_some_and(|name| properties.contains_key(name)))
        };
        let names = (num_properties + items("required").filter(|name| !is_named(name)).count()) as u64;
        // Each sequence of properties is found by all that follow.
        named.work += names * names / 1000;
        if count("minProperties").or(count("maxProperties")).is_some() {
            named.work += names * names / 2;
        }

        let has_any = ["items", "additionalItems", "prefixItems", "properties", "patternProperties"];
        let is_flat = !has_any.iter().any(|key| schema.contains_key(*key))
            && !schema.get("additionalProperties").is_some_and(Value::is_object);
        let alternatives =
            named.alternatives.max(single.alternatives).max(spread.alternatives).max(spread.work);
        let beneath = named.beside(single).beside(spread);
        Ok(Weight {
            alternatives: alternatives.saturating_add(types.saturating_sub(1)),
            flat: is_flat,
            ..weight.beside(beneath)
        })
    }
}

/// What must hold at once.
enum Part<'a> {
    /// The keywords beside the others.
    Itself(&'a Map<String, Value>),
    Schema(&'a Value),
    /// One of these values.
    Values(&'a [Value]),
    Union {
        schemas: &'a [Value],
        exclusive: bool,
    },
    Ref(&'a str),
}

/// Keywords that say something of a value, besides those that join or choose schemas.
const ASSERTIONS: [&str; 21] = [
    "type",
    "items",
    "additionalItems",
    "prefixItems",
    "minItems",
    "maxItems",
    "properties",
    "additionalProperties",
    "patternProperties",
    "required",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];

fn parts(schema: &Map<String, Value>) -> Result<Vec<Part<'_>>, String> {
    let list = |key: &str, value: &'_ Value| format!("{key}: expected a list, found {}", excerpt(value));
    let mut parts = Vec::new();
    if ASSERTIONS.iter().any(|key| schema.contains_key(*key)) {
        parts.push(Part::Itself(schema));
    }
    for (key, value) in schema {
        let schemas = || value.as_array().map(Vec::as_slice).ok_or_else(|| list(key, value));
        match key.as_str() {
            "const" => parts.push(Part::Values(std::slice::from_ref(value))),
            "enum" => parts.push(Part::Values(schemas()?)),
            "allOf" => parts.extend(schemas()?.iter().map(Part::Schema)),
            "anyOf" | "oneOf" => parts.push(Part::Union { schemas: schemas()?, exclusive: key == "oneOf" }),
            "$ref" => {
                let reference = value
                    .as_str()
                    .ok_or_else(|| format!("$ref: expected a string, found {}", excerpt(value)))?;
                parts.push(Part::Ref(reference));
            }
            _ => (),
        }
    }
    Ok(parts)
}

/// A value of `const` or `enum`.
fn value_weight(value: &Value) -> Result<Weight, String> {
    let mut weight = Weight::leaf(1);
    match value {
        Value::String(text) => weight.work += string_work("a value of `enum` or `const`", text)?,
        Value::Array(items) => {
            for item in items {
                weight = weight.beside(value_weight(item)?);
            }
            weight.flat = false;
        }
        Value::Object(members) => {
            for (name, member) in members {
                weight = weight.beside(value_weight(member)?);
                weight.work += 1 + string_work("a name in `enum` or `const`", name)?;
            }
            weight.work += (members.len() * members.len()) as u64 / 500;
            weight.flat = false;
        }
        _ => (),
    }
    Ok(weight)
}

fn string_work(what: &str, text: &str) -> Result<u64, String> {
    match text.len() {
        0..=MAX_STRING => Ok(text.len() as u64 / 32),
        len => Err(format!("{what}: expected at most {MAX_STRING} bytes, found {len}")),
    }
}

/// A number's digits without the decimal point.
fn digits(number: f64) -> u64 {
    let mut number = number.abs();
    while number.fract() != 0.0 && number < 1e15 {
        number *= 10.0;
    }
    (number as u64).max(1)
}
