//! The values of a template: Python's, immutable but for namespaces.

use crate::ast;
use crate::error::{Error, Result};
use crate::functions::Function;
use crate::heap::{Heap, Held, OVERHEAD, Writer};
use crate::scope::Scope;
use indexmap::{Equivalent, IndexMap};
use std::cell::{Cell, RefCell};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

/// Bytes of a value in a list.
const SLOT: usize = size_of::<Value>();

/// A value. Copies share what they hold.
#[derive(Clone)]
pub enum Value {
    /// What is not there, and the message if it is used.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<Text>),
    List(Rc<List>),
    Tuple(Rc<List>),
    Dict(Rc<Dict>),
    /// `dict.keys()` and its siblings.
    View(Rc<View>),
    Range(Range),
    /// What some filters give: it can be walked through once.
    Generator(Rc<Generator>),
    Namespace(Rc<Namespace>),
    /// The variable `loop`.
    Loop(Rc<Loop>),
    Macro(Rc<Macro>),
    Method(Rc<Method>),
    Function(Function),
}

/// A string.
pub struct Text {
    text: String,
    _held: Held,
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// A list or tuple.
pub struct List {
    pub items: Vec<Value>,
    /// As written out in full: parts that occur twice count twice.
    size: usize,
    depth: usize,
    /// Whether it is what `groupby` gives: a pair with names.
    pub is_group: bool,
    _held: Held,
}

/// A dictionary.
pub struct Dict {
    pub entries: Entries,
    size: usize,
    depth: usize,
    _held: Held,
}

/// The entries of a dictionary in their order, each with the key as it was given.
pub type Entries = IndexMap<Key, (Value, Value)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ViewKind {
    Keys,
    Values,
    Items,
}

pub struct View {
    pub kind: ViewKind,
    pub dict: Rc<Dict>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub start: i64,
    pub step: i64,
    pub len: usize,
    pub stop: i64,
}

pub struct Generator {
    pub items: Rc<List>,
    pub next: Cell<usize>,
}

/// `namespace(…)`.
pub struct Namespace {
    pub values: RefCell<IndexMap<String, Value>>,
    pub held: RefCell<Held>,
}

impl Namespace {
    /// Forgets everything: it may hold itself.
    pub fn clear(&self) {
        let values = std::mem::take(&mut *self.values.borrow_mut());
        let heap = self.held.borrow().heap().clone();
        heap.discard(values.into_values());
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.clear();
    }
}

/// What `loop` knows.
pub struct Loop {
    pub index0: usize,
    pub len: usize,
    pub depth0: usize,
    pub previous: Option<Value>,
    pub next: Option<Value>,
    /// What `changed` was last called with, as text: a value could hold this one.
    pub last_changed: Rc<RefCell<Option<String>>>,
    /// Where the loop is recursive: what calling it runs, and what it sees.
    pub recursion: Option<(Arc<ast::For>, Rc<Scope>)>,
    pub depth: usize,
    pub held: Held,
}

pub struct Macro {
    pub definition: Arc<ast::Macro>,
    pub scope: Rc<Scope>,
}

/// A method of a value, not called yet.
pub struct Method {
    pub receiver: Value,
    pub name: &'static str,
}

/// A value as a dictionary finds it: 1, 1.0 and true are one key.
#[derive(Clone, PartialEq, Eq)]
pub enum Key {
    None,
    Int(i128),
    Float(u64),
    Str(Rc<str>),
    Tuple(Vec<Key>),
    /// A value that is equal to itself alone.
    Identity(usize),
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::None => state.write_u8(0),
            Self::Int(int) => int.hash(state),
            Self::Float(bits) => bits.hash(state),
            Self::Str(text) => text.hash(state),
            Self::Tuple(keys) => keys.hash(state),
            Self::Identity(address) => address.hash(state),
        }
    }
}

impl Equivalent<Key> for str {
    fn equivalent(&self, key: &Key) -> bool {
        matches!(key, Key::Str(text) if **text == *self)
    }
}

impl Key {
    /// # Errors
    /// Where the value cannot be a key.
    pub fn of(value: &Value, heap: &Heap) -> Result<Self> {
        heap.work(value.size())?;
        Ok(match value {
            Value::None => Self::None,
            Value::Bool(bool) => Self::Int((*bool).into()),
            Value::Int(int) => Self::Int(*int),
            Value::Float(float) if float.fract() == 0.0 && float.abs() < 1e30 => Self::Int(*float as i128),
            Value::Float(float) => Self::Float(float.to_bits()),
            Value::Str(text) => Self::Str(Rc::from(&***text)),
            Value::Tuple(list) => {
                Self::Tuple(list.items.iter().map(|item| Self::of(item, heap)).collect::<Result<_>>()?)
            }
            Value::List(_) | Value::Dict(_) | Value::View(_) => {
                return Err(Error::failed(format!("unhashable type: '{}'", value.type_name())));
            }
            Value::Undefined(_) => Self::Identity(0),
            Value::Range(range) => Self::Identity(range.start as usize ^ range.len.rotate_left(32)),
            Value::Generator(shared) => Self::Identity(Rc::as_ptr(shared).addr()),
            Value::Namespace(shared) => Self::Identity(Rc::as_ptr(shared).addr()),
            Value::Loop(shared) => Self::Identity(Rc::as_ptr(shared).addr()),
            Value::Macro(shared) => Self::Identity(Rc::as_ptr(shared).addr()),
            Value::Method(shared) => Self::Identity(Rc::as_ptr(shared).addr()),
            Value::Function(function) => Self::Identity(1 + *function as usize),
        })
    }
}

impl Value {
    /// Python's name of its type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(view) => match view.kind {
                ViewKind::Keys => "dict_keys",
                ViewKind::Values => "dict_values",
                ViewKind::Items => "dict_items",
            },
            Self::Range(_) => "range",
            Self::Generator(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) => "Macro",
            Self::Method(_) => "builtin_function_or_method",
            Self::Function(_) => "function",
        }
    }

    /// A measure of how long walking through all of it takes, and how long its text is.
    pub fn size(&self) -> usize {
        match self {
            Self::Str(text) => 1 + text.len(),
            Self::List(list) | Self::Tuple(list) => list.size,
            Self::Dict(dict) => dict.size,
            Self::View(view) => view.dict.size,
            Self::Generator(generator) => generator.items.size,
            Self::Range(range) => range.len,
            _ => 1,
        }
    }

    pub fn depth(&self) -> usize {
        match self {
            Self::List(list) | Self::Tuple(list) => list.depth,
            Self::Dict(dict) => dict.depth,
            Self::View(view) => view.dict.depth + 1,
            Self::Generator(generator) => generator.items.depth,
            Self::Loop(lap) => lap.depth,
            Self::Method(method) => method.receiver.depth() + 1,
            _ => 0,
        }
    }

    /// Whether `if` takes it for true.
    pub fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(bool) => *bool,
            Self::Int(int) => *int != 0,
            Self::Float(float) => *float != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(list) | Self::Tuple(list) => !list.items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            Self::View(view) => !view.dict.entries.is_empty(),
            Self::Range(range) => range.len > 0,
            _ => true,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// As a whole number: of ints and bools.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(int) => Some(*int),
            Self::Bool(bool) => Some((*bool).into()),
            _ => None,
        }
    }

    /// As a float: of ints, bools and floats.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(float) => Some(*float),
            _ => self.as_int().map(|int| int as f64),
        }
    }

    pub fn undefined(why: impl AsRef<str>) -> Self {
        Self::Undefined(Rc::from(why.as_ref()))
    }
}

impl From<bool> for Value {
    fn from(bool: bool) -> Self {
        Self::Bool(bool)
    }
}

impl From<usize> for Value {
    fn from(int: usize) -> Self {
        Self::Int(int as i128)
    }
}

/// Size and depth of values that stand in another one.
fn extent<'a>(values: impl Iterator<Item = &'a Value>) -> (usize, usize) {
    values.fold((2, 0), |(size, depth), value| {
        (size.saturating_add(value.size()).saturating_add(2), depth.max(value.depth()))
    })
}

/// Values are made here alone, counted.
impl Heap {
    /// # Errors
    /// As [`Heap::room`].
    pub fn text(&self, text: impl Into<String>) -> Result<Value> {
        let text = text.into();
        let held = self.hold(OVERHEAD + text.capacity())?;
        Ok(Value::Str(Rc::new(Text { text, _held: held })))
    }

    /// # Errors
    /// As [`Heap::room`].
    pub fn written(&self, writer: Writer) -> Result<Value> {
        let mut text = writer.into_string();
        text.shrink_to_fit();
        self.text(text)
    }

    /// # Errors
    /// As [`Heap::room`], and where it is nested too deep, or too large written out.
    pub fn sequence(&self, mut items: Vec<Value>) -> Result<Rc<List>> {
        items.shrink_to_fit();
        let (size, depth) = extent(items.iter());
        self.check(size, depth)?;
        let held = self.hold(OVERHEAD + SLOT * items.len())?;
        Ok(Rc::new(List { items, size, depth: depth + 1, is_group: false, _held: held }))
    }

    /// # Errors
    /// As [`Heap::sequence`].
    pub fn list(&self, items: Vec<Value>) -> Result<Value> {
        self.sequence(items).map(Value::List)
    }

    /// # Errors
    /// As [`Heap::sequence`].
    pub fn tuple(&self, items: Vec<Value>) -> Result<Value> {
        self.sequence(items).map(Value::Tuple)
    }

    /// What `groupby` gives: a pair of which the parts have names.
    ///
    /// # Errors
    /// As [`Heap::sequence`].
    pub fn group(&self, grouper: Value, items: Value) -> Result<Value> {
        let pair = Rc::into_inner(self.sequence(vec![grouper, items])?);
        let pair = pair.map(|pair| Rc::new(List { is_group: true, ..pair }));
        pair.map(Value::Tuple).ok_or_else(|| Error::failed("a pair is shared"))
    }

    /// # Errors
    /// As [`Heap::sequence`].
    pub fn generator(&self, items: Vec<Value>) -> Result<Value> {
        Ok(Value::Generator(Rc::new(Generator { items: self.sequence(items)?, next: Cell::new(0) })))
    }

    /// # Errors
    /// As [`Heap::sequence`].
    pub fn dict(&self, entries: Entries) -> Result<Value> {
        let (size, depth) = extent(entries.values().flat_map(|(key, value)| [key, value]));
        self.check(size, depth)?;
        // The key stands there twice, and each entry has a hash and an index.
        let keys: usize = entries.values().map(|(key, _)| key.size()).sum();
        let held = self.hold(OVERHEAD + entries.capacity() * (3 * SLOT + 32) + keys)?;
        Ok(Value::Dict(Rc::new(Dict { entries, size, depth: depth + 1, _held: held })))
    }

    /// # Errors
    /// Where a key cannot be one, and as [`Heap::dict`].
    pub fn dict_of(&self, pairs: impl IntoIterator<Item = Result<(Value, Value)>>) -> Result<Value> {
        let mut entries = Entries::new();
        for pair in pairs {
            let (key, value) = pair?;
            let found = entries.entry(Key::of(&key, self)?);
            found.and_modify(|entry| entry.1 = value.clone()).or_insert((key, value));
        }
        self.dict(entries)
    }

    fn check(&self, size: usize, depth: usize) -> Result<()> {
        if depth >= self.max_depth() {
            return Err(Error::limit(format!("its values are nested more than {} deep", self.max_depth())));
        }
        self.room(size)
    }
}
