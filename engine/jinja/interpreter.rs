//! Runs a template: statements and scopes. Expressions are in [`crate::expressions`].

use crate::arguments::Arguments;
use crate::ast::{self, Body, Statement, StatementKind, Target};
use crate::error::{Error, Result};
use crate::functions::Function;
use crate::heap::{Heap, Held, OVERHEAD, Writer};
use crate::iterate::Items;
use crate::scope::Scope;
use crate::value::{Entries, Key, Loop, Macro, Namespace, Value};
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;

/// Work of one step, in the bytes that could be looked at meanwhile.
const STEP: usize = 64;

/// How a statement ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Normal,
    Break,
    Continue,
}

/// One rendering.
pub struct Interpreter {
    pub heap: Heap,
    depth: usize,
    globals: Rc<Scope>,
    /// What may hold itself, to be emptied at the end.
    namespaces: Vec<Weak<Namespace>>,
    scopes: Vec<Weak<Scope>>,
    held: Held,
    loop_name: Arc<str>,
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        self.namespaces.drain(..).filter_map(|weak| weak.upgrade()).for_each(|namespace| namespace.clear());
        self.scopes.drain(..).filter_map(|weak| weak.upgrade()).for_each(|scope| scope.clear());
    }
}

impl Interpreter {
    pub fn new(heap: &Heap) -> Result<Self> {
        let globals = Scope::new(heap, None)?;
        for (name, function) in Function::ALL {
            globals.set(&Arc::from(name), Value::Function(function))?;
        }
        let held = heap.hold(0)?;
        Ok(Self {
            heap: heap.clone(),
            depth: 0,
            globals,
            namespaces: Vec::new(),
            scopes: Vec::new(),
            held,
            loop_name: "loop".into(),
        })
    }

    /// Renders a template with the entries of a dictionary as its variables.
    pub fn run(&mut self, body: &Body, variables: &Value) -> Result<String> {
        let scope = Scope::new(&self.heap, Some(&self.globals))?;
        if let Value::Dict(variables) = variables {
            for (name, value) in variables.entries.values() {
                scope.set(&Arc::from(name.as_str().unwrap_or_default()), value.clone())?;
            }
        }
        let scope = Scope::new(&self.heap, Some(&scope))?;
        let mut out = Writer::new(&self.heap)?;
        self.body(body, &scope, &mut out)?;
        Ok(out.into_string())
    }

    /// Runs what nests one deeper.
    pub fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.heap.work(STEP)?;
        if self.depth >= 2 * self.heap.max_depth() {
            return Err(Error::limit(format!("it calls itself more than {} deep", self.heap.max_depth())));
        }
        self.depth += 1;
        let done = run(self);
        self.depth -= 1;
        done
    }

    /// A namespace, remembered since it may come to hold itself.
    pub fn namespace(&mut self, values: Vec<(String, Value)>) -> Result<Value> {
        let bytes: usize = values.iter().map(|(name, _)| name.len() + 2 * OVERHEAD).sum();
        let held = RefCell::new(self.heap.hold(OVERHEAD + bytes)?);
        let namespace = Rc::new(Namespace { values: RefCell::new(values.into_iter().collect()), held });
        self.held.grow(2 * OVERHEAD)?;
        self.namespaces.push(Rc::downgrade(&namespace));
        Ok(Value::Namespace(namespace))
    }

    /// A macro of this scope, which is remembered since it may come to hold the macro.
    fn closure(&mut self, definition: &Arc<ast::Macro>, scope: &Rc<Scope>) -> Result<Value> {
        self.held.grow(2 * OVERHEAD)?;
        self.scopes.push(Rc::downgrade(scope));
        Ok(Value::Macro(Rc::new(Macro { definition: Arc::clone(definition), scope: Rc::clone(scope) })))
    }

    fn body(&mut self, body: &Body, scope: &Rc<Scope>, out: &mut Writer) -> Result<Flow> {
        for statement in body {
            let flow = self.statement(statement, scope, out).map_err(|error| error.at(statement.line))?;
            if flow != Flow::Normal {
                return Ok(flow);
            }
        }
        Ok(Flow::Normal)
    }

    fn statement(&mut self, statement: &Statement, scope: &Rc<Scope>, out: &mut Writer) -> Result<Flow> {
        self.heap.work(STEP)?;
        match &statement.kind {
            StatementKind::Text(text) => out.push_str(text)?,
            StatementKind::Print(expression) => {
                let value = self.evaluate(expression, scope)?;
                value.write_to(out)?;
            }
            StatementKind::Set(target, expression) => {
                let value = self.evaluate(expression, scope)?;
                self.assign(target, value, scope)?;
            }
            StatementKind::If(branches, otherwise) => return self.condition(branches, otherwise, scope, out),
            StatementKind::For(definition) => {
                return self.deeper(|this| {
                    let iterable = this.evaluate(&definition.iterable, scope)?;
                    this.for_loop(definition, &iterable, 0, scope, out)
                });
            }
            StatementKind::Macro(definition) => {
                let value = self.closure(definition, scope)?;
                scope.set(&definition.name, value)?;
            }
            StatementKind::SetBlock(target, filters, body) => {
                let value = self.captured(body, filters, scope)?;
                self.assign(target, value, scope)?;
            }
            StatementKind::Filter(filters, body) => {
                let value = self.captured(body, filters, scope)?;
                value.write_to(out)?;
            }
            StatementKind::Call(call, caller) => {
                let caller = self.closure(caller, scope)?;
                let value = self.evaluate_call(call, caller, scope)?;
                value.write_to(out)?;
            }
            StatementKind::With(values, body) => {
                let inner = Scope::new(&self.heap, Some(scope))?;
                for (target, expression) in values {
                    let value = self.evaluate(expression, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.deeper(|this| this.body(body, &inner, out));
            }
            StatementKind::Scope(body) => {
                let inner = Scope::new(&self.heap, Some(scope))?;
                return self.deeper(|this| this.body(body, &inner, out));
            }
            StatementKind::Break => return Ok(Flow::Break),
            StatementKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Normal)
    }

    fn condition(
        &mut self,
        branches: &[(ast::Expression, Body)],
        otherwise: &Body,
        scope: &Rc<Scope>,
        out: &mut Writer,
    ) -> Result<Flow> {
        self.deeper(|this| {
            for (condition, body) in branches {
                this.heap.work(STEP)?;
                if this.evaluate(condition, scope)?.is_true() {
                    return this.body(body, scope, out);
                }
            }
            this.body(otherwise, scope, out)
        })
    }

    /// What a body writes, through filters.
    fn captured(&mut self, body: &Body, filters: &[ast::Operation], scope: &Rc<Scope>) -> Result<Value> {
        let inner = Scope::new(&self.heap, Some(scope))?;
        let mut text = Writer::new(&self.heap)?;
        self.deeper(|this| this.body(body, &inner, &mut text))?;
        let text = self.heap.written(text)?;
        self.chain(text, filters, scope)
    }

    fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Attribute(name, attribute) => match scope.get(name) {
                Some(Value::Namespace(namespace)) => {
                    let old = namespace.values.borrow_mut().insert((**attribute).to_owned(), value);
                    if old.is_none() {
                        namespace.held.borrow_mut().grow(attribute.len() + 2 * OVERHEAD)?;
                    }
                    Ok(())
                }
                _ => Err(Error::failed("cannot assign attribute on non-namespace object")),
            },
            Target::Tuple(targets) => {
                let mut items = Items::of(&value)?;
                for target in targets {
                    let Some(item) = items.next(&self.heap)? else {
                        let message = format!("not enough values to unpack (expected {})", targets.len());
                        return Err(Error::failed(message));
                    };
                    self.assign(target, item, scope)?;
                }
                match items.next(&self.heap)? {
                    None => Ok(()),
                    Some(_) => {
                        Err(Error::failed(format!("too many values to unpack (expected {})", targets.len())))
                    }
                }
            }
        }
    }

    /// Runs a loop over `iterable`; `depth0` counts the recursions before.
    fn for_loop(
        &mut self,
        definition: &Arc<ast::For>,
        iterable: &Value,
        depth0: usize,
        scope: &Rc<Scope>,
        out: &mut Writer,
    ) -> Result<Flow> {
        let mut items = Items::of(iterable)?;
        if let Some(condition) = &definition.condition {
            let mut kept = Vec::new();
            while let Some(item) = items.next(&self.heap)? {
                let inner = Scope::new(&self.heap, Some(scope))?;
                self.assign(&definition.target, item.clone(), &inner)?;
                if self.evaluate(condition, &inner)?.is_true() {
                    kept.push(item);
                }
            }
            items = Items::List(self.heap.sequence(kept)?, 0);
        }
        let len = items.remaining();
        let last_changed = Rc::default();
        let (mut previous, mut current) = (None, items.next(&self.heap)?);
        if current.is_none() {
            return self.body(&definition.otherwise, scope, out);
        }
        let mut index0 = 0;
        while let Some(item) = current {
            let next = items.next(&self.heap)?;
            let inner = Scope::new(&self.heap, Some(scope))?;
            let recursion = definition.is_recursive.then(|| (Arc::clone(definition), Rc::clone(scope)));
            let neighbours = [&previous, &next].into_iter().flatten();
            let lap = Loop {
                index0,
                len,
                depth0,
                depth: neighbours.map(Value::depth).max().unwrap_or(0) + 1,
                previous,
                next: next.clone(),
                last_changed: Rc::clone(&last_changed),
                recursion,
                held: self.heap.hold(2 * OVERHEAD)?,
            };
            inner.set(&self.loop_name, Value::Loop(Rc::new(lap)))?;
            self.assign(&definition.target, item.clone(), &inner)?;
            if self.body(&definition.body, &inner, out)? == Flow::Break {
                break;
            }
            (previous, current) = (Some(item), next);
            index0 += 1;
        }
        Ok(Flow::Normal)
    }

    /// What a macro writes.
    pub fn call_macro(&mut self, called: &Macro, mut arguments: Arguments) -> Result<Value> {
        let definition = &called.definition;
        let scope = Scope::new(&self.heap, Some(&called.scope))?;
        let mut positional = std::mem::take(&mut arguments.positional).into_iter();
        for (name, default) in &definition.parameters {
            let given = positional.next();
            let named = arguments.take_named(name);
            let value = match (given, named, default) {
                (Some(_), Some(_), _) => {
                    return Err(Error::failed(format!(
                        "macro '{}' got two values for '{name}'",
                        definition.name
                    )));
                }
                (Some(value), ..) | (None, Some(value), _) => value,
                (None, None, Some(default)) => self.deeper(|this| this.evaluate(default, &scope))?,
                (None, None, None) => Value::undefined(format!("parameter '{name:.100}' was not provided")),
            };
            scope.set(name, value)?;
        }
        let caller = arguments.take_named("caller");
        match caller {
            Some(caller) if definition.takes_caller => scope.set(&"caller".into(), caller)?,
            None if definition.takes_caller => {
                scope.set(&"caller".into(), Value::undefined("No caller defined"))?
            }
            Some(_) => {
                let message = format!("macro '{}' takes no caller, but was called with one", definition.name);
                return Err(Error::failed(message));
            }
            None => {}
        }
        let varargs: Vec<Value> = positional.collect();
        if definition.takes_varargs {
            scope.set(&"varargs".into(), self.heap.tuple(varargs)?)?;
        } else if !varargs.is_empty() {
            let message = format!(
                "macro '{}' takes not more than {} arguments",
                definition.name,
                definition.parameters.len()
            );
            return Err(Error::failed(message));
        }
        if definition.takes_kwargs {
            let mut entries = Entries::new();
            for (name, value) in arguments.named {
                let name = self.heap.text(&*name)?;
                entries.insert(Key::of(&name, &self.heap)?, (name, value));
            }
            scope.set(&"kwargs".into(), self.heap.dict(entries)?)?;
        } else if let Some((name, _)) = arguments.named.first() {
            return Err(Error::failed(format!(
                "macro '{}' takes no keyword argument '{name}'",
                definition.name
            )));
        }
        let mut out = Writer::new(&self.heap)?;
        self.deeper(|this| this.body(&definition.body, &scope, &mut out))?;
        self.heap.written(out)
    }

    /// What a recursive loop writes over another iterable.
    fn recurse(&mut self, lap: &Loop, mut arguments: Arguments) -> Result<Value> {
        let Some((definition, scope)) = &lap.recursion else {
            return Err(Error::failed("The loop must have the 'recursive' marker to be called recursively."));
        };
        let (Some(iterable), 1) = (arguments.positional.pop(), arguments.positional.len() + 1) else {
            return Err(Error::failed("loop: expected one argument"));
        };
        let mut out = Writer::new(&self.heap)?;
        self.deeper(|this| this.for_loop(definition, &iterable, lap.depth0 + 1, scope, &mut out))?;
        self.heap.written(out)
    }

    /// Calls a value.
    pub fn call(&mut self, called: &Value, arguments: Arguments) -> Result<Value> {
        self.heap.work(STEP)?;
        match called {
            Value::Macro(called) => self.call_macro(called, arguments),
            Value::Method(method) => crate::methods::call(self, &method.receiver, method.name, arguments),
            Value::Function(function) => function.call(self, arguments),
            Value::Loop(lap) => self.recurse(lap, arguments),
            Value::Undefined(why) => Err(Error::failed(&**why)),
            _ => Err(Error::failed(format!("'{}' object is not callable", called.type_name()))),
        }
    }
}
