//! Tokens -> expressions.

use crate::ast::{Arguments, Comparison, Conditional, Constant, Expression, Operation, Operator};
use crate::error::{Error, ErrorKind, Result};
use crate::lexer::Spanned;
use crate::lexer_tokens::Token;
use std::sync::Arc;

/// Where in the tokens, and how deep.
pub struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Spanned>>,
    pub line: u32,
    depth: usize,
    max_depth: usize,
    /// Loops around the statement.
    pub loops: usize,
    /// Those of `varargs`, `kwargs` and `caller` that the macro's body has read so far.
    pub special_names: Vec<Arc<str>>,
}

impl Parser {
    pub fn new(tokens: Vec<Spanned>, max_depth: usize) -> Self {
        Self {
            tokens: tokens.into_iter().peekable(),
            line: 1,
            depth: 0,
            max_depth,
            loops: 0,
            special_names: Vec::new(),
        }
    }

    pub fn next(&mut self) -> Option<Token> {
        let (token, line) = self.tokens.next()?;
        self.line = line;
        Some(token)
    }

    pub fn peek(&mut self) -> Option<&Token> {
        self.tokens.peek().map(|(token, _)| token)
    }

    pub fn fault<T>(&mut self, expected: &str) -> Result<T> {
        let (found, line) = match self.tokens.peek() {
            Some((token, line)) => (token.to_string(), *line),
            None => ("the end".to_owned(), self.line),
        };
        Err(Error::syntax(line, format!("expected {expected}, found {found}")))
    }

    /// Parses with one more level around it.
    pub fn deeper<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= self.max_depth {
            let message = format!("it is nested more than {} deep", self.max_depth);
            return Err(Error::new(ErrorKind::Limit, message).at(self.line));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    pub fn is_operator(&mut self, operator: &str) -> bool {
        matches!(self.peek(), Some(Token::Operator(found)) if *found == operator)
    }

    pub fn takes_operator(&mut self, operator: &str) -> bool {
        self.is_operator(operator) && self.next().is_some()
    }

    pub fn expect_operator(&mut self, operator: &str) -> Result<()> {
        if self.takes_operator(operator) { Ok(()) } else { self.fault(&format!("`{operator}`")) }
    }

    pub fn is_name(&mut self, names: &[&str]) -> bool {
        matches!(self.peek(), Some(Token::Name(found)) if names.contains(&found.as_str()))
    }

    pub fn takes_name(&mut self, name: &str) -> bool {
        self.is_name(&[name]) && self.next().is_some()
    }

    pub fn expect_name(&mut self) -> Result<Arc<str>> {
        if let Some(Token::Name(_)) = self.peek()
            && let Some(Token::Name(name)) = self.next()
        {
            return Ok(name.into());
        }
        self.fault("a name")
    }

    pub fn expect_tag_end(&mut self) -> Result<()> {
        if let Some(Token::TagEnd) = self.peek() {
            self.next();
            return Ok(());
        }
        self.fault("the end of the tag")
    }

    /// One expression, or several with commas: a tuple. `ends` are names that end it.
    pub fn tuple(&mut self, conditional: bool, ends: &[&str]) -> Result<Expression> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() && !self.takes_operator(",") {
                break;
            }
            is_tuple = !items.is_empty();
            let is_end = matches!(self.peek(), None | Some(Token::TagEnd | Token::Operator(")")))
                || self.is_name(ends);
            if is_end {
                break;
            }
            items.push(if conditional { self.expression()? } else { self.or()? });
        }
        match items.pop() {
            None => self.fault("an expression"),
            Some(only) if !is_tuple => Ok(only),
            Some(last) => {
                items.push(last);
                Ok(Expression::Tuple(items))
            }
        }
    }

    /// An expression, with `if` and `else`.
    pub fn expression(&mut self) -> Result<Expression> {
        self.deeper(|parser| {
            let mut then = parser.or()?;
            while parser.takes_name("if") {
                let condition = parser.or()?;
                let otherwise = parser.takes_name("else").then(|| parser.expression()).transpose()?;
                then = Expression::If(Box::new(Conditional { condition, then, otherwise }));
                if parser.is_name(&["if"]) {
                    // Each further one would nest in those before it.
                    return parser.fault("`else`");
                }
            }
            Ok(then)
        })
    }

    /// Operands with `word` between them.
    fn words(
        &mut self,
        word: &str,
        operand: fn(&mut Self) -> Result<Expression>,
        made: fn(Vec<Expression>) -> Expression,
    ) -> Result<Expression> {
        let first = operand(self)?;
        if !self.is_name(&[word]) {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.takes_name(word) {
            operands.push(operand(self)?);
        }
        Ok(made(operands))
    }

    fn or(&mut self) -> Result<Expression> {
        self.words("or", Self::and, Expression::Or)
    }

    fn and(&mut self) -> Result<Expression> {
        self.words("and", Self::not, Expression::And)
    }

    fn not(&mut self) -> Result<Expression> {
        if self.takes_name("not") {
            return self.deeper(|parser| Ok(Expression::Not(Box::new(parser.not()?))));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expression> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let comparison = match self.peek() {
                Some(Token::Operator("==")) => Comparison::Equal,
                Some(Token::Operator("!=")) => Comparison::NotEqual,
                Some(Token::Operator("<")) => Comparison::Less,
                Some(Token::Operator("<=")) => Comparison::LessOrEqual,
                Some(Token::Operator(">")) => Comparison::Greater,
                Some(Token::Operator(">=")) => Comparison::GreaterOrEqual,
                Some(Token::Name(name)) if name == "in" => Comparison::In,
                Some(Token::Name(name)) if name == "not" => Comparison::NotIn,
                _ => break,
            };
            self.next();
            if comparison == Comparison::NotIn && !self.takes_name("in") {
                return self.fault("`in` after `not`");
            }
            rest.push((comparison, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expression::Compare(Box::new(first), rest) })
    }

    /// Operands with operators of one rank between them.
    fn rank(
        &mut self,
        operators: &[(&str, Operator)],
        operand: fn(&mut Self) -> Result<Expression>,
    ) -> Result<Expression> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some(Token::Operator(found)) = self.peek()
            && let Some(&(_, operator)) = operators.iter().find(|(name, _)| name == found)
        {
            self.next();
            rest.push((operator, operand(self)?));
        }
        Ok(if rest.is_empty() { first } else { Expression::Binary(Box::new(first), rest) })
    }

    fn sum(&mut self) -> Result<Expression> {
        self.rank(&[("+", Operator::Add), ("-", Operator::Subtract)], Self::concat)
    }

    fn concat(&mut self) -> Result<Expression> {
        let first = self.product()?;
        if !self.is_operator("~") {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.takes_operator("~") {
            operands.push(self.product()?);
        }
        Ok(Expression::Concat(operands))
    }

    fn product(&mut self) -> Result<Expression> {
        let operators = [
            ("*", Operator::Multiply),
            ("/", Operator::Divide),
            ("//", Operator::FloorDivide),
            ("%", Operator::Remainder),
        ];
        self.rank(&operators, Self::power)
    }

    fn power(&mut self) -> Result<Expression> {
        self.rank(&[("**", Operator::Power)], |parser| parser.unary(true))
    }

    /// A value with its sign, and with what follows it; filters and tests are of the signed value.
    fn unary(&mut self, filters: bool) -> Result<Expression> {
        let base = if self.takes_operator("-") {
            self.deeper(|parser| Ok(Expression::Negative(Box::new(parser.unary(false)?))))?
        } else if self.takes_operator("+") {
            self.deeper(|parser| Ok(Expression::Positive(Box::new(parser.unary(false)?))))?
        } else {
            self.primary()?
        };
        let mut operations = Vec::new();
        self.postfixes(&mut operations)?;
        if filters {
            self.filters_and_tests(&mut operations)?;
        }
        Ok(if operations.is_empty() { base } else { Expression::Chain(Box::new(base), operations) })
    }

    fn primary(&mut self) -> Result<Expression> {
        let is_value = matches!(
            self.peek(),
            Some(
                Token::Name(_)
                    | Token::Str(_)
                    | Token::Int(_)
                    | Token::Float(_)
                    | Token::Operator("(" | "[" | "{")
            )
        );
        if !is_value {
            return self.fault("an expression");
        }
        let constant = match self.next() {
            Some(Token::Name(name)) => match name.as_str() {
                "true" | "True" => Constant::Bool(true),
                "false" | "False" => Constant::Bool(false),
                "none" | "None" => Constant::None,
                _ => {
                    let name: Arc<str> = name.into();
                    if ["varargs", "kwargs", "caller"].contains(&&*name) {
                        self.special_names.push(Arc::clone(&name));
                    }
                    return Ok(Expression::Name(name));
                }
            },
            Some(Token::Str(mut text)) => {
                while let Some(Token::Str(next)) = self.peek() {
                    text.push_str(next);
                    self.next();
                }
                Constant::Str(text)
            }
            Some(Token::Int(int)) => Constant::Int(int),
            Some(Token::Float(float)) => Constant::Float(float),
            Some(Token::Operator("(")) => return self.deeper(Self::parentheses),
            Some(Token::Operator("[")) => {
                return self.deeper(|parser| parser.items("]", Self::expression).map(Expression::List));
            }
            _ => return self.deeper(|parser| parser.items("}", Self::pair).map(Expression::Dict)),
        };
        Ok(Expression::Constant(constant))
    }

    fn parentheses(&mut self) -> Result<Expression> {
        if self.takes_operator(")") {
            return Ok(Expression::Tuple(Vec::new()));
        }
        let inner = self.tuple(true, &[])?;
        self.expect_operator(")")?;
        Ok(inner)
    }

    fn pair(&mut self) -> Result<(Expression, Expression)> {
        let key = self.expression()?;
        self.expect_operator(":")?;
        Ok((key, self.expression()?))
    }

    /// Items with commas between them, and perhaps after the last, up to `end`.
    fn items<T>(&mut self, end: &'static str, item: fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.takes_operator(end) {
            if !items.is_empty() {
                self.expect_operator(",")?;
                if self.takes_operator(end) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// Attributes, items and calls.
    fn postfixes(&mut self, operations: &mut Vec<Operation>) -> Result<()> {
        loop {
            if self.takes_operator(".") {
                let operation = match self.peek() {
                    Some(Token::Int(int)) => {
                        let int = *int;
                        self.next();
                        Operation::Item(Expression::Constant(Constant::Int(int)))
                    }
                    _ => Operation::Attribute(self.expect_name()?),
                };
                operations.push(operation);
            } else if self.takes_operator("[") {
                operations.push(self.deeper(Self::subscript)?);
            } else if self.is_operator("(") {
                operations.push(Operation::Call(self.arguments()?));
            } else {
                return Ok(());
            }
        }
    }

    fn subscript(&mut self) -> Result<Operation> {
        let mut parts = [None, None, None];
        let mut colons = 0;
        for part in &mut parts {
            if !self.is_operator(":") && !self.is_operator("]") {
                *part = Some(self.expression()?);
            }
            if !self.takes_operator(":") {
                break;
            }
            colons += 1;
        }
        if colons > 0 {
            self.expect_operator("]")?;
            return Ok(Operation::Slice(Box::new(parts)));
        }
        let [first, ..] = parts;
        let Some(first) = first else { return self.fault("an expression") };
        if !self.is_operator(",") {
            self.expect_operator("]")?;
            return Ok(Operation::Item(first));
        }
        self.next();
        let mut items = vec![first];
        items.extend(self.items("]", Self::expression)?);
        Ok(Operation::Item(Expression::Tuple(items)))
    }

    /// Arguments in parentheses.
    pub fn arguments(&mut self) -> Result<Arguments> {
        self.deeper(|parser| {
            let mut arguments = Arguments::default();
            parser.expect_operator("(")?;
            let mut is_first = true;
            while !parser.takes_operator(")") {
                if !is_first {
                    parser.expect_operator(",")?;
                    if parser.takes_operator(")") {
                        break;
                    }
                }
                is_first = false;
                parser.argument(&mut arguments)?;
            }
            Ok(arguments)
        })
    }

    fn argument(&mut self, arguments: &mut Arguments) -> Result<()> {
        if arguments.named_rest.is_none() && self.takes_operator("**") {
            arguments.named_rest = Some(Box::new(self.expression()?));
            return Ok(());
        }
        if arguments.rest.is_none() && arguments.named_rest.is_none() && self.takes_operator("*") {
            arguments.rest = Some(Box::new(self.expression()?));
            return Ok(());
        }
        let value = self.expression()?;
        if self.is_operator("=") {
            let Expression::Name(name) = value else { return self.fault("`,` or `)`") };
            self.next();
            arguments.named.push((name, self.expression()?));
        } else if arguments.named.is_empty() && arguments.named_rest.is_none() {
            arguments.positional.push(value);
        } else {
            return self.fault("an argument with a name after others that have one");
        }
        Ok(())
    }

    fn filters_and_tests(&mut self, operations: &mut Vec<Operation>) -> Result<()> {
        loop {
            if self.takes_operator("|") {
                operations.push(self.filter()?);
            } else if self.takes_name("is") {
                operations.push(self.test()?);
            } else if self.is_operator("(") {
                operations.push(Operation::Call(self.arguments()?));
            } else {
                return Ok(());
            }
        }
    }

    /// A filter's name and arguments, after `|`.
    pub fn filter(&mut self) -> Result<Operation> {
        let name = self.dotted()?;
        let arguments = if self.is_operator("(") { self.arguments()? } else { Arguments::default() };
        Ok(Operation::Filter(name, arguments))
    }

    fn dotted(&mut self) -> Result<Arc<str>> {
        let mut name = self.expect_name()?;
        while self.takes_operator(".") {
            name = format!("{name}.{}", self.expect_name()?).into();
        }
        Ok(name)
    }

    fn test(&mut self) -> Result<Operation> {
        let is_negated = self.takes_name("not");
        let name = self.dotted()?;
        let mut arguments = Arguments::default();
        if self.is_operator("(") {
            arguments = self.arguments()?;
        } else if !self.is_name(&["else", "or", "and", "if", "in", "not"]) {
            if self.is_name(&["is"]) {
                return self.fault("one test");
            }
            let is_argument = matches!(
                self.peek(),
                Some(
                    Token::Name(_)
                        | Token::Str(_)
                        | Token::Int(_)
                        | Token::Float(_)
                        | Token::Operator("[" | "{")
                )
            );
            if is_argument {
                let base = self.primary()?;
                let mut operations = Vec::new();
                self.postfixes(&mut operations)?;
                arguments.positional.push(match operations.is_empty() {
                    true => base,
                    false => Expression::Chain(Box::new(base), operations),
                });
            }
        }
        Ok(Operation::Test { name, arguments, is_negated })
    }
}
