//! Runs expressions.

use crate::arguments::Arguments;
use crate::ast::{self, Constant, Expression, Operation};
use crate::error::{Error, Result};
use crate::heap::Writer;
use crate::interpreter::Interpreter;
use crate::scope::Scope;
use crate::value::Value;
use crate::{attributes, binary, compare, filters, sequences, tests};
use std::rc::Rc;

impl Interpreter {
    /// The value of an expression.
    ///
    /// # Errors
    /// Where Python refuses an operation too, or a bound is reached.
    pub fn evaluate(&mut self, expression: &Expression, scope: &Rc<Scope>) -> Result<Value> {
        self.deeper(|this| match expression {
            Expression::Constant(constant) => this.constant(constant),
            Expression::Name(name) => {
                Ok(scope.get(name).unwrap_or_else(|| Value::undefined(format!("'{name:.100}' is undefined"))))
            }
            Expression::List(items) => {
                let items = this.all(items, scope)?;
                this.heap.list(items)
            }
            Expression::Tuple(items) => {
                let items = this.all(items, scope)?;
                this.heap.tuple(items)
            }
            Expression::Dict(pairs) => this.dict(pairs, scope),
            Expression::Binary(first, rest) => {
                let mut value = this.evaluate(first, scope)?;
                for (operator, operand) in rest {
                    let operand = this.evaluate(operand, scope)?;
                    value = binary::apply(&value, *operator, &operand, &this.heap)?;
                }
                Ok(value)
            }
            Expression::Concat(operands) => {
                let mut text = Writer::new(&this.heap)?;
                for operand in operands {
                    this.evaluate(operand, scope)?.write_to(&mut text)?;
                }
                this.heap.written(text)
            }
            Expression::And(operands) => this.first_that_is(false, operands, scope),
            Expression::Or(operands) => this.first_that_is(true, operands, scope),
            Expression::Compare(first, rest) => this.comparison(first, rest, scope),
            Expression::Not(operand) => Ok((!this.evaluate(operand, scope)?.is_true()).into()),
            Expression::Negative(operand) => binary::negative(&this.evaluate(operand, scope)?),
            Expression::Positive(operand) => binary::positive(&this.evaluate(operand, scope)?),
            Expression::If(conditional) => this.conditional(conditional, scope),
            Expression::Chain(base, operations) => {
                let value = this.evaluate(base, scope)?;
                this.chain(value, operations, scope)
            }
        })
    }

    fn constant(&self, constant: &Constant) -> Result<Value> {
        Ok(match constant {
            Constant::None => Value::None,
            Constant::Bool(bool) => Value::Bool(*bool),
            Constant::Int(int) => Value::Int(*int),
            Constant::Float(float) => Value::Float(*float),
            Constant::Str(text) => self.heap.text(text.as_str())?,
        })
    }

    fn all(&mut self, expressions: &[Expression], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        expressions.iter().map(|expression| self.evaluate(expression, scope)).collect()
    }

    fn dict(&mut self, pairs: &[(Expression, Expression)], scope: &Rc<Scope>) -> Result<Value> {
        let mut evaluated = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            evaluated.push(Ok((self.evaluate(key, scope)?, self.evaluate(value, scope)?)));
        }
        self.heap.dict_of(evaluated)
    }

    /// The first operand whose truth is `truth`, else the last one.
    fn first_that_is(&mut self, truth: bool, operands: &[Expression], scope: &Rc<Scope>) -> Result<Value> {
        let mut value = Value::None;
        for operand in operands {
            value = self.evaluate(operand, scope)?;
            if value.is_true() == truth {
                break;
            }
        }
        Ok(value)
    }

    fn comparison(
        &mut self,
        first: &Expression,
        rest: &[(ast::Comparison, Expression)],
        scope: &Rc<Scope>,
    ) -> Result<Value> {
        let mut left = self.evaluate(first, scope)?;
        for (comparison, operand) in rest {
            let right = self.evaluate(operand, scope)?;
            if !compare::compare(&left, *comparison, &right, &self.heap)? {
                return Ok(false.into());
            }
            left = right;
        }
        Ok(true.into())
    }

    fn conditional(&mut self, conditional: &ast::Conditional, scope: &Rc<Scope>) -> Result<Value> {
        if self.evaluate(&conditional.condition, scope)?.is_true() {
            return self.evaluate(&conditional.then, scope);
        }
        match &conditional.otherwise {
            Some(otherwise) => self.evaluate(otherwise, scope),
            None => Ok(Value::undefined(
                "the inline if-expression evaluated to false and no else section was defined.",
            )),
        }
    }

    /// What follows a value, from the left.
    pub fn chain(&mut self, mut value: Value, operations: &[Operation], scope: &Rc<Scope>) -> Result<Value> {
        for operation in operations {
            self.heap.work(16)?;
            value = self.operation(value, operation, scope)?;
        }
        Ok(value)
    }

    fn operation(&mut self, value: Value, operation: &Operation, scope: &Rc<Scope>) -> Result<Value> {
        match operation {
            Operation::Attribute(name) => attributes::attribute(&value, name, &self.heap),
            Operation::Item(index) => {
                let index = self.evaluate(index, scope)?;
                attributes::item(&value, &index, &self.heap)
            }
            Operation::Slice(parts) => {
                let mut bounds = [const { Value::None }; 3];
                for (bound, part) in bounds.iter_mut().zip(parts.iter()) {
                    if let Some(part) = part {
                        *bound = self.evaluate(part, scope)?;
                    }
                }
                sequences::slice(&value, &bounds, &self.heap)
            }
            Operation::Call(arguments) => {
                let arguments = self.arguments(arguments, scope)?;
                self.call(&value, arguments)
            }
            Operation::Filter(name, arguments) => {
                let arguments = self.arguments(arguments, scope)?;
                filters::apply(self, name, value, arguments)
            }
            Operation::Test { name, arguments, is_negated } => {
                let arguments = self.arguments(arguments, scope)?;
                Ok((tests::apply(self, name, &value, arguments)? != *is_negated).into())
            }
        }
    }

    fn arguments(&mut self, arguments: &ast::Arguments, scope: &Rc<Scope>) -> Result<Arguments> {
        let mut positional = self.all(&arguments.positional, scope)?;
        let mut named = Vec::with_capacity(arguments.named.len());
        for (name, expression) in &arguments.named {
            named.push((name.clone(), self.evaluate(expression, scope)?));
        }
        if let Some(rest) = &arguments.rest {
            positional.extend(self.evaluate(rest, scope)?.items(&self.heap)?);
        }
        if let Some(rest) = &arguments.named_rest {
            let Value::Dict(rest) = self.evaluate(rest, scope)? else {
                return Err(Error::failed("argument after ** must be a mapping"));
            };
            for (key, value) in rest.entries.values() {
                let name = key.as_str().ok_or_else(|| Error::failed("keywords must be strings"))?;
                self.heap.room(name.len())?;
                named.push((name.into(), value.clone()));
            }
        }
        Ok(Arguments { positional, named })
    }

    /// The value of a `call` block's call, which gets the block as `caller`.
    ///
    /// # Errors
    /// As [`Interpreter::evaluate`], and where it is no call.
    pub fn evaluate_call(&mut self, call: &Expression, caller: Value, scope: &Rc<Scope>) -> Result<Value> {
        let Expression::Chain(base, operations) = call else { return Err(no_call()) };
        let Some((Operation::Call(arguments), before)) = operations.split_last() else {
            return Err(no_call());
        };
        let base = self.evaluate(base, scope)?;
        let called = self.chain(base, before, scope)?;
        let mut arguments = self.arguments(arguments, scope)?;
        arguments.named.push(("caller".into(), caller));
        self.call(&called, arguments)
    }
}

fn no_call() -> Error {
    Error::failed("`call` needs a call of a macro")
}
