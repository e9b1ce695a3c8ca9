//! A template, parsed. What stands in a row (operators, attributes, filters) is a row here too, so that only brackets and blocks nest.

use std::sync::Arc;

pub struct Statement {
    pub line: u32,
    pub kind: StatementKind,
}

pub type Body = Vec<Statement>;

pub enum StatementKind {
    Text(String),
    Print(Expression),
    For(Arc<For>),
    /// Conditions with what each guards, and what is left.
    If(Vec<(Expression, Body)>, Body),
    Set(Target, Expression),
    SetBlock(Target, Vec<Operation>, Body),
    Macro(Arc<Macro>),
    /// `call`: the call, and what the macro gets as `caller`.
    Call(Expression, Arc<Macro>),
    /// `filter`.
    Filter(Vec<Operation>, Body),
    With(Vec<(Target, Expression)>, Body),
    /// `block` and `generation`: the body in a scope of its own.
    Scope(Body),
    Break,
    Continue,
}

pub struct For {
    pub target: Target,
    pub iterable: Expression,
    pub condition: Option<Expression>,
    pub body: Body,
    pub otherwise: Body,
    pub is_recursive: bool,
}

pub struct Macro {
    pub name: Arc<str>,
    pub parameters: Vec<(Arc<str>, Option<Expression>)>,
    /// Whether the body asks for `varargs` and `kwargs`.
    pub takes_varargs: bool,
    pub takes_kwargs: bool,
    pub takes_caller: bool,
    pub body: Body,
}

pub enum Target {
    Name(Arc<str>),
    Tuple(Vec<Target>),
    /// An attribute of a namespace.
    Attribute(Arc<str>, Arc<str>),
}

pub enum Constant {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
}

pub enum Expression {
    Constant(Constant),
    Name(Arc<str>),
    List(Vec<Expression>),
    Tuple(Vec<Expression>),
    Dict(Vec<(Expression, Expression)>),
    /// Operators of one rank, from the left.
    Binary(Box<Expression>, Vec<(Operator, Expression)>),
    /// `~`
    Concat(Vec<Expression>),
    And(Vec<Expression>),
    Or(Vec<Expression>),
    Compare(Box<Expression>, Vec<(Comparison, Expression)>),
    Not(Box<Expression>),
    Negative(Box<Expression>),
    Positive(Box<Expression>),
    If(Box<Conditional>),
    /// What follows a value, from the left.
    Chain(Box<Expression>, Vec<Operation>),
}

pub struct Conditional {
    pub condition: Expression,
    pub then: Expression,
    pub otherwise: Option<Expression>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Remainder,
    Power,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
    NotIn,
}

pub enum Operation {
    Attribute(Arc<str>),
    Item(Expression),
    /// Start, stop, step.
    Slice(Box<[Option<Expression>; 3]>),
    Call(Arguments),
    Filter(Arc<str>, Arguments),
    Test {
        name: Arc<str>,
        arguments: Arguments,
        is_negated: bool,
    },
}

#[derive(Default)]
pub struct Arguments {
    pub positional: Vec<Expression>,
    pub named: Vec<(Arc<str>, Expression)>,
    /// `*` and `**`.
    pub rest: Option<Box<Expression>>,
    pub named_rest: Option<Box<Expression>>,
}
