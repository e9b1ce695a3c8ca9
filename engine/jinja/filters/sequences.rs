//! Filters of lists and other values with items.

use super::apply as filter;
use crate::arguments::{Arguments, length};
use crate::attributes;
use crate::compare;
use crate::error::{Error, Result};
use crate::heap::{Heap, Writer};
use crate::interpreter::Interpreter;
use crate::iterate::Items;
use crate::value::{Entries, Key, Value, View, ViewKind};
use crate::{ast, binary, tests};
use std::cmp::Ordering;
use std::collections::HashSet;
use std::rc::Rc;

/// A value through one of these filters; `None` where there is none of that name.
///
/// # Errors
/// Where Jinja's refuses the value or arguments too.
pub fn apply(
    interpreter: &mut Interpreter,
    name: &str,
    value: &Value,
    arguments: &mut Arguments,
) -> Result<Option<Value>> {
    let heap = interpreter.heap.clone();
    let heap = &heap;
    let given = std::mem::take(arguments);
    let done = match name {
        "length" | "count" => {
            given.none(name)?;
            value.len(heap)?.into()
        }
        "first" => {
            given.none(name)?;
            let first = Items::of(value)?.next(heap)?;
            first.unwrap_or_else(|| Value::undefined("No first item, sequence was empty."))
        }
        "last" => {
            given.none(name)?;
            let last = value.items(heap)?.pop();
            last.unwrap_or_else(|| Value::undefined("No last item, sequence was empty."))
        }
        "list" => {
            given.none(name)?;
            heap.list(value.items(heap)?)?
        }
        "items" => {
            given.none(name)?;
            match value {
                Value::Dict(dict) => {
                    let view = Value::View(Rc::new(View { kind: ViewKind::Items, dict: Rc::clone(dict) }));
                    heap.generator(view.items(heap)?)?
                }
                Value::Undefined(_) => heap.generator(Vec::new())?,
                _ => return Err(Error::failed("Can only get item pairs from a mapping.")),
            }
        }
        "reverse" => {
            given.none(name)?;
            match value {
                Value::Str(text) => {
                    heap.room(text.len())?;
                    heap.text(text.chars().rev().collect::<String>())?
                }
                _ => {
                    let mut items = value.items(heap)?;
                    items.reverse();
                    heap.generator(items)?
                }
            }
        }
        "join" => join(value, given, heap)?,
        "sum" => {
            let [attribute, start] = given.bind(name, ["attribute", "start"], 0)?;
            let attribute = Attribute::new(attribute, heap)?;
            let mut sum = start.unwrap_or(Value::Int(0));
            let mut items = Items::of(value)?;
            while let Some(item) = items.next(heap)? {
                sum = binary::apply(&sum, ast::Operator::Add, &attribute.of(&item, heap)?, heap)?;
            }
            sum
        }
        "min" | "max" => extreme(value, name, given, heap)?,
        "sort" => {
            let [reverse, case, attribute] =
                given.bind(name, ["reverse", "case_sensitive", "attribute"], 0)?;
            let mut items = keyed(value, &Attributes::new(attribute, heap)?, is_set(case.as_ref()), heap)?;
            sort(&mut items, is_set(reverse.as_ref()), heap)?;
            heap.list(items.into_iter().map(|(_, item)| item).collect())?
        }
        "unique" => {
            let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"], 0)?;
            let items = keyed(value, &Attributes::new(attribute, heap)?, is_set(case.as_ref()), heap)?;
            let mut seen = HashSet::new();
            let mut kept = Vec::new();
            for (key, item) in items {
                if seen.insert(Key::of(&key, heap)?) {
                    kept.push(item);
                }
            }
            heap.generator(kept)?
        }
        "groupby" => group(value, given, heap)?,
        "dictsort" => dictsort(value, given, heap)?,
        "batch" | "slice" => chunks(value, name, given, heap)?,
        "map" => map(interpreter, value, given)?,
        "select" | "reject" | "selectattr" | "rejectattr" => select(interpreter, value, name, given)?,
        _ => {
            *arguments = given;
            return Ok(None);
        }
    };
    Ok(Some(done))
}

fn is_set(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}

/// A path such as `function.name` or `0`, or the item itself.
struct Attribute(Option<Vec<Value>>);

impl Attribute {
    fn new(attribute: Option<Value>, heap: &Heap) -> Result<Self> {
        Ok(Self(match attribute {
            None | Some(Value::None) => None,
            Some(Value::Str(path)) => {
                let part = |part: &str| match part.parse::<u32>() {
                    Ok(index) => Ok(Value::Int(index.into())),
                    Err(_) => heap.text(part),
                };
                Some(path.split('.').map(part).collect::<Result<_>>()?)
            }
            Some(other) => Some(vec![other]),
        }))
    }

    fn of(&self, item: &Value, heap: &Heap) -> Result<Value> {
        self.or(item, None, heap)
    }

    /// With a default in the place of every part that is not there.
    fn or(&self, item: &Value, default: Option<&Value>, heap: &Heap) -> Result<Value> {
        let mut value = item.clone();
        for part in self.0.iter().flatten() {
            value = match (attributes::item(&value, part, heap)?, default) {
                (Value::Undefined(_), Some(default)) => default.clone(),
                (value, _) => value,
            };
        }
        Ok(value)
    }
}

/// Several of them with commas: then the key is a list.
struct Attributes(Vec<Attribute>);

impl Attributes {
    fn new(attribute: Option<Value>, heap: &Heap) -> Result<Self> {
        match &attribute {
            Some(Value::Str(paths)) if paths.contains(',') => {
                let paths = paths.split(',').map(|path| Attribute::new(Some(heap.text(path)?), heap));
                paths.collect::<Result<_>>().map(Self)
            }
            _ => Ok(Self(vec![Attribute::new(attribute, heap)?])),
        }
    }

    fn of(&self, item: &Value, heap: &Heap) -> Result<Value> {
        match &self.0[..] {
            [only] => only.of(item, heap),
            several => heap.list(several.iter().map(|one| one.of(item, heap)).collect::<Result<_>>()?),
        }
    }
}

/// Items with what they are ordered by: small letters unless case counts.
fn keyed(
    value: &Value,
    attributes: &Attributes,
    case_sensitive: bool,
    heap: &Heap,
) -> Result<Vec<(Value, Value)>> {
    let mut keyed = Vec::new();
    for item in value.items(heap)? {
        let key = attributes.of(&item, heap)?;
        keyed.push((folded(key, case_sensitive, heap)?, item));
    }
    Ok(keyed)
}

fn folded(key: Value, case_sensitive: bool, heap: &Heap) -> Result<Value> {
    match &key {
        Value::Str(text) if !case_sensitive => {
            heap.room(text.len())?;
            heap.text(text.to_lowercase())
        }
        Value::List(list) if !case_sensitive => {
            let items = list.items.iter().map(|item| folded(item.clone(), false, heap));
            heap.list(items.collect::<Result<_>>()?)
        }
        _ => Ok(key),
    }
}

/// Sorts by the keys, without changing the order of equal ones.
fn sort(items: &mut [(Value, Value)], reverse: bool, heap: &Heap) -> Result<()> {
    let mut fault = None;
    items.sort_by(|(a, _), (b, _)| {
        if fault.is_some() {
            return Ordering::Equal;
        }
        let (a, b) = if reverse { (b, a) } else { (a, b) };
        match compare::order(a, b, "<", heap) {
            Ok(order) => order.unwrap_or(Ordering::Equal),
            Err(error) => {
                fault = Some(error);
                Ordering::Equal
            }
        }
    });
    fault.map_or(Ok(()), Err)
}

fn join(value: &Value, given: Arguments, heap: &Heap) -> Result<Value> {
    let [separator, attribute] = given.bind("join", ["d", "attribute"], 0)?;
    let separator = match &separator {
        Some(separator) => separator.to_text(heap)?,
        None => "".into(),
    };
    let attribute = Attribute::new(attribute, heap)?;
    let mut items = Items::of(value)?;
    let mut out = Writer::new(heap)?;
    let mut is_first = true;
    while let Some(item) = items.next(heap)? {
        if !is_first {
            out.push_str(&separator)?;
        }
        is_first = false;
        attribute.of(&item, heap)?.write_to(&mut out)?;
    }
    heap.written(out)
}

fn extreme(value: &Value, name: &str, given: Arguments, heap: &Heap) -> Result<Value> {
    let [case, attribute] = given.bind(name, ["case_sensitive", "attribute"], 0)?;
    let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
    let operator = if name == "min" { "<" } else { ">" };
    let mut best: Option<(Value, Value)> = None;
    for (key, item) in keyed(value, &Attributes::new(attribute, heap)?, is_set(case.as_ref()), heap)? {
        let is_better = match &best {
            Some((best, _)) => compare::order(&key, best, operator, heap)? == Some(wanted),
            None => true,
        };
        if is_better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or_else(|| Value::undefined("No aggregated item, sequence was empty."), |(_, item)| item))
}

fn group(value: &Value, given: Arguments, heap: &Heap) -> Result<Value> {
    let [attribute, default, case] = given.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
    let case_sensitive = is_set(case.as_ref());
    let attribute = Attribute::new(attribute, heap)?;
    let mut items = Vec::new();
    for item in value.items(heap)? {
        let key = attribute.or(&item, default.as_ref(), heap)?;
        items.push((folded(key.clone(), case_sensitive, heap)?, heap.tuple(vec![key, item])?));
    }
    sort(&mut items, false, heap)?;
    let mut groups = Vec::new();
    let mut items = items.into_iter().peekable();
    while let Some((key, first)) = items.next() {
        let parts = |pair: &Value| {
            let pair = pair.as_sequence().map(|pair| (pair.items[0].clone(), pair.items[1].clone()));
            pair.unwrap_or((Value::None, Value::None))
        };
        let (grouper, first) = parts(&first);
        let mut members = vec![first];
        while let Some((next, _)) = items.peek()
            && compare::equal(next, &key, heap)?
        {
            members.extend(items.next().map(|(_, pair)| parts(&pair).1));
        }
        groups.push(heap.group(grouper, heap.list(members)?)?);
    }
    heap.list(groups)
}

fn dictsort(value: &Value, given: Arguments, heap: &Heap) -> Result<Value> {
    let [case, by, reverse] = given.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
    let Value::Dict(dict) = value else { return Err(Error::failed("dictsort: expected a mapping")) };
    let by = match &by {
        Some(by) => by.to_text(heap)?.into_owned(),
        None => "key".into(),
    };
    let mut items = Vec::new();
    for (key, value) in dict.entries.values() {
        let by = match by.as_str() {
            "key" => key,
            "value" => value,
            _ => return Err(Error::failed("You can only sort by either \"key\" or \"value\"")),
        };
        let pair = heap.tuple(vec![key.clone(), value.clone()])?;
        items.push((folded(by.clone(), is_set(case.as_ref()), heap)?, pair));
    }
    sort(&mut items, is_set(reverse.as_ref()), heap)?;
    heap.list(items.into_iter().map(|(_, pair)| pair).collect())
}

/// `batch` cuts into lists of a length, `slice` into so many lists.
fn chunks(value: &Value, name: &str, given: Arguments, heap: &Heap) -> Result<Value> {
    let count_name = if name == "batch" { "linecount" } else { "slices" };
    let [count, fill] = given.bind(name, [count_name, "fill_with"], 1)?;
    let count = length(name, count.as_ref(), 0)?;
    if count == 0 {
        return Err(Error::failed(format!("{name}: expected at least 1")));
    }
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let items = value.items(heap)?;
    let mut chunks = Vec::new();
    if name == "batch" {
        for chunk in items.chunks(count) {
            heap.room(if fill.is_some() { count.saturating_mul(size_of::<Value>()) } else { 0 })?;
            let missing =
                if let Some(fill) = &fill { vec![fill.clone(); count - chunk.len()] } else { Vec::new() };
            chunks.push(heap.list(chunk.iter().cloned().chain(missing).collect())?);
        }
        return heap.generator(chunks);
    }
    heap.room(count.saturating_mul(2 * size_of::<Value>()))?;
    let (each, longer) = (items.len() / count, items.len() % count);
    let mut items = items.into_iter();
    for i in 0..count {
        let mut chunk: Vec<Value> = items.by_ref().take(each + usize::from(i < longer)).collect();
        chunk.extend(fill.clone().filter(|_| longer > 0 && i >= longer));
        chunks.push(heap.list(chunk)?);
    }
    heap.generator(chunks)
}

/// The first positional argument, a name.
fn take_name(called: &str, given: &mut Arguments, heap: &Heap) -> Result<String> {
    if given.positional.is_empty() {
        return Err(Error::failed(format!("{called}: a name is missing")));
    }
    Ok(given.positional.remove(0).to_text(heap)?.into_owned())
}

/// What `map` and its siblings walk through: Jinja's do not look at what is false.
fn walked(value: &Value) -> Result<Items> {
    if value.is_true() { Items::of(value) } else { Ok(Items::Nothing) }
}

/// Arguments once more, for the next item.
fn again(given: &Arguments) -> Arguments {
    Arguments { positional: given.positional.clone(), named: given.named.clone() }
}

fn map(interpreter: &mut Interpreter, value: &Value, mut given: Arguments) -> Result<Value> {
    let heap = interpreter.heap.clone();
    let mut mapped = Vec::new();
    let mut items = walked(value)?;
    if given.positional.is_empty()
        && let Some(attribute) = given.take_named("attribute")
    {
        let default = given.take_named("default");
        given.none("map")?;
        let attribute = Attribute::new(Some(attribute), &heap)?;
        while let Some(item) = items.next(&heap)? {
            mapped.push(attribute.or(&item, default.as_ref(), &heap)?);
        }
        return heap.generator(mapped);
    }
    let name = take_name("map", &mut given, &heap)?;
    while let Some(item) = items.next(&heap)? {
        let value = interpreter.deeper(|interpreter| filter(interpreter, &name, item, again(&given)))?;
        mapped.push(value);
    }
    heap.generator(mapped)
}

fn select(interpreter: &mut Interpreter, value: &Value, name: &str, mut given: Arguments) -> Result<Value> {
    let heap = interpreter.heap.clone();
    let attribute = match name.ends_with("attr") {
        true => Attribute::new(Some(heap.text(take_name(name, &mut given, &heap)?)?), &heap)?,
        false => Attribute(None),
    };
    let test = match given.positional.is_empty() {
        true => None,
        false => Some(take_name(name, &mut given, &heap)?),
    };
    let wanted = name.starts_with("select");
    let mut kept = Vec::new();
    let mut items = walked(value)?;
    while let Some(item) = items.next(&heap)? {
        let tested = attribute.of(&item, &heap)?;
        let holds = match &test {
            Some(test) => tests::apply(interpreter, test, &tested, again(&given))?,
            None => tested.is_true(),
        };
        if holds == wanted {
            kept.push(item);
        }
    }
    heap.generator(kept)
}

/// The entries of dictionaries and pairs, for `dict(…)`.
///
/// # Errors
/// Where an item is no pair.
pub fn pairs(value: &Value, heap: &Heap) -> Result<Entries> {
    if let Value::Dict(dict) = value {
        heap.room(dict.entries.len() * 2 * size_of::<Value>())?;
        return Ok(dict.entries.clone());
    }
    let mut entries = Entries::new();
    let mut items = Items::of(value)?;
    while let Some(item) = items.next(heap)? {
        let [key, value] =
            <[Value; 2]>::try_from(item.items(heap)?).map_err(|_| Error::failed("dict: expected pairs"))?;
        entries.insert(Key::of(&key, heap)?, (key, value));
    }
    Ok(entries)
}
