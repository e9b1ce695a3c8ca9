//! What one rendering may take: bytes of values, nesting, time.

use crate::error::{Error, Result};
use crate::value::Value;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Bounds of a template and of one rendering.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the source.
    pub source: usize,
    /// Nesting of expressions, statements, calls of macros and values.
    pub depth: usize,
    /// Bytes of all values that live at a time, output included, beside [`Limits::per_input_byte`].
    pub bytes: usize,
    /// Further bytes of values for each byte of input.
    pub per_input_byte: usize,
    /// From the beginning of a rendering on.
    pub time: Duration,
}

impl Default for Limits {
    /// Published templates have at most some 20 KB, nest a dozen deep and render in milliseconds.
    fn default() -> Self {
        Self {
            source: 256 << 10,
            depth: 150,
            bytes: 64 << 20,
            per_input_byte: 16,
            time: Duration::from_secs(5),
        }
    }
}

/// Bytes that the parts of a value take beside what they hold.
pub const OVERHEAD: usize = 64;

/// A clock is looked at after so many units of work (a byte looked at, or a step of the interpreter).
const LOOK: usize = 1 << 16;

/// Counts the values of one rendering, and its time.
#[derive(Clone)]
pub struct Heap(Rc<Counters>);

struct Counters {
    live: Cell<usize>,
    max: usize,
    max_depth: usize,
    work: Cell<usize>,
    time: Duration,
    deadline: Instant,
    /// What is to be dropped, and whether somebody is at it.
    discarded: RefCell<Vec<Value>>,
    is_discarding: Cell<bool>,
}

impl Heap {
    /// Counters for a rendering that begins now, of `input` bytes.
    pub fn new(limits: &Limits, input: usize) -> Self {
        Self(Rc::new(Counters {
            live: Cell::new(0),
            max: limits.bytes.saturating_add(input.saturating_mul(limits.per_input_byte)),
            max_depth: limits.depth,
            work: Cell::new(0),
            time: limits.time,
            deadline: Instant::now() + limits.time,
            discarded: RefCell::default(),
            is_discarding: Cell::new(false),
        }))
    }

    pub fn max_depth(&self) -> usize {
        self.0.max_depth
    }

    /// Drops values one after the other. What namespaces and scopes hold may be a chain of any length, since they may come to hold
    /// each other: dropped the usual way, each would be dropped inside the one before.
    pub fn discard(&self, values: impl Iterator<Item = Value>) {
        self.0.discarded.borrow_mut().extend(values);
        if self.0.is_discarding.replace(true) {
            return;
        }
        loop {
            let next = self.0.discarded.borrow_mut().pop();
            if next.is_none() {
                break;
            }
        }
        self.0.is_discarding.set(false);
    }

    /// Counts `units` of work that are about to be done.
    ///
    /// # Errors
    /// Where the time is over.
    pub fn work(&self, units: usize) -> Result<()> {
        let before = self.0.work.get();
        let after = before.wrapping_add(units);
        self.0.work.set(after);
        if before / LOOK != after / LOOK && Instant::now() > self.0.deadline {
            return Err(Error::limit(format!("it ran for more than {} s", self.0.time.as_secs_f64())));
        }
        Ok(())
    }

    /// Whether there is room for so many bytes, which also is that much work.
    ///
    /// # Errors
    /// Where there is not.
    pub fn room(&self, bytes: usize) -> Result<()> {
        self.work(bytes)?;
        if bytes > self.0.max.saturating_sub(self.0.live.get()) {
            return Err(Error::limit(format!("its values take more than {} MiB", self.0.max >> 20)));
        }
        Ok(())
    }

    /// Counts bytes for as long as the result lives.
    ///
    /// # Errors
    /// As [`Heap::room`].
    pub fn hold(&self, bytes: usize) -> Result<Held> {
        self.room(bytes)?;
        self.0.live.set(self.0.live.get() + bytes);
        Ok(Held { heap: self.clone(), bytes })
    }
}

/// Bytes that are counted.
pub struct Held {
    heap: Heap,
    bytes: usize,
}

impl Held {
    pub fn heap(&self) -> &Heap {
        &self.heap
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts more bytes.
    ///
    /// # Errors
    /// As [`Heap::room`].
    pub fn grow(&mut self, bytes: usize) -> Result<()> {
        self.heap.room(bytes)?;
        self.heap.0.live.set(self.heap.0.live.get() + bytes);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.heap.0.live.set(self.heap.0.live.get() - self.bytes);
    }
}

/// A text that grows, counted as it does.
pub struct Writer {
    text: String,
    held: Held,
}

impl Writer {
    /// # Errors
    /// As [`Heap::room`].
    pub fn new(heap: &Heap) -> Result<Self> {
        Ok(Self { text: String::new(), held: heap.hold(OVERHEAD)? })
    }

    /// # Errors
    /// As [`Heap::room`].
    pub fn push_str(&mut self, text: &str) -> Result<()> {
        // A string doubles when it grows.
        let needed = OVERHEAD + 2 * (self.text.len() + text.len());
        if needed > self.held.bytes() {
            self.held.grow(needed - self.held.bytes())?;
        }
        self.text.push_str(text);
        Ok(())
    }

    /// # Errors
    /// As [`Heap::room`].
    pub fn push(&mut self, c: char) -> Result<()> {
        self.push_str(c.encode_utf8(&mut [0; 4]))
    }

    /// A character, so many times.
    ///
    /// # Errors
    /// As [`Heap::room`].
    pub fn fill(&mut self, c: char, count: usize) -> Result<()> {
        self.held.heap().room(count.saturating_mul(c.len_utf8()))?;
        (0..count).try_for_each(|_| self.push(c))
    }

    pub fn heap(&self) -> &Heap {
        self.held.heap()
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The text, no longer counted.
    pub fn into_string(self) -> String {
        self.text
    }
}
