//! Tokens -> statements.

use crate::ast::{Body, Expression, For, Macro, Statement, StatementKind, Target};
use crate::error::{Error, Result};
use crate::lexer_tokens::Token;
use crate::parser::Parser;
use std::sync::Arc;

/// Parses a whole template.
///
/// # Errors
/// Where it is no Jinja, or nested too deep.
pub fn parse(parser: &mut Parser) -> Result<Body> {
    let (body, _) = body(parser, &[])?;
    Ok(body)
}

/// Statements up to a tag that begins with one of `ends`, and its name, which is taken. Without `ends`, up to the end.
fn body(parser: &mut Parser, ends: &[&str]) -> Result<(Body, Arc<str>)> {
    let begin = parser.line;
    let mut body = Vec::new();
    loop {
        let token = parser.next();
        let line = parser.line;
        let kind = match token {
            None if ends.is_empty() => return Ok((body, "".into())),
            None => {
                let message = format!("the tag needs `{}`, which never comes", ends.join("` or `"));
                return Err(Error::syntax(begin, message));
            }
            Some(Token::Text(text)) => StatementKind::Text(text),
            Some(Token::VariableBegin) => {
                let printed = parser.tuple(true, &[])?;
                parser.expect_tag_end()?;
                StatementKind::Print(printed)
            }
            Some(Token::BlockBegin) => {
                let name = parser.expect_name()?;
                if ends.contains(&&*name) {
                    return Ok((body, name));
                }
                parser.deeper(|parser| statement(parser, &name))?
            }
            Some(other) => return Err(Error::syntax(line, format!("expected text or a tag, found {other}"))),
        };
        body.push(Statement { line, kind });
    }
}

/// A body whose end tag has nothing but its name.
fn body_to(parser: &mut Parser, end: &str) -> Result<Body> {
    let (body, _) = body(parser, &[end])?;
    parser.expect_tag_end()?;
    Ok(body)
}

fn statement(parser: &mut Parser, name: &str) -> Result<StatementKind> {
    match name {
        "for" => for_loop(parser),
        "if" => condition(parser),
        "set" => set(parser),
        "macro" => {
            let name = parser.expect_name()?;
            let parameters = parameters(parser)?;
            macro_body(parser, name, parameters, "endmacro").map(StatementKind::Macro)
        }
        "call" => {
            let parameters = if parser.is_operator("(") { parameters(parser)? } else { Vec::new() };
            let call = parser.expression()?;
            let caller = macro_body(parser, "caller".into(), parameters, "endcall")?;
            Ok(StatementKind::Call(call, caller))
        }
        "filter" => {
            let mut filters = vec![parser.filter()?];
            while parser.takes_operator("|") {
                filters.push(parser.filter()?);
            }
            parser.expect_tag_end()?;
            Ok(StatementKind::Filter(filters, body_to(parser, "endfilter")?))
        }
        "with" => with(parser),
        "block" => block(parser),
        // It marks the assistant's text for training: <https://huggingface.co/docs/transformers/chat_templating_writing>.
        "generation" => {
            parser.expect_tag_end()?;
            outside_loops(parser, |parser| body_to(parser, "endgeneration")).map(StatementKind::Scope)
        }
        "print" => {
            let mut printed = vec![parser.expression()?];
            while parser.takes_operator(",") {
                printed.push(parser.expression()?);
            }
            parser.expect_tag_end()?;
            Ok(StatementKind::Print(Expression::Concat(printed)))
        }
        "break" | "continue" => {
            if parser.loops == 0 {
                return Err(Error::syntax(parser.line, format!("`{name}` stands outside a loop")));
            }
            parser.expect_tag_end()?;
            Ok(if name == "break" { StatementKind::Break } else { StatementKind::Continue })
        }
        "include" | "import" | "from" | "extends" => Err(Error::syntax(
            parser.line,
            format!("`{name}`: a chat template has no other templates beside it"),
        )),
        _ => {
            let message = format!("there is no statement `{}`, or not here", name.escape_debug());
            Err(Error::syntax(parser.line, message))
        }
    }
}

/// What is a function of its own in Python, which `break` cannot leave.
fn outside_loops<T>(parser: &mut Parser, parse: impl FnOnce(&mut Parser) -> Result<T>) -> Result<T> {
    let loops = std::mem::take(&mut parser.loops);
    let parsed = parse(parser);
    parser.loops = loops;
    parsed
}

fn for_loop(parser: &mut Parser) -> Result<StatementKind> {
    let target = target(parser, &["in"])?;
    if matches!(&target, Target::Name(name) if **name == *"loop") {
        return parser.fault("another name than `loop` before this");
    }
    if !parser.takes_name("in") {
        return parser.fault("`in`");
    }
    let iterable = parser.tuple(false, &["if", "recursive"])?;
    let condition = parser.takes_name("if").then(|| parser.tuple(false, &["recursive"])).transpose()?;
    let is_recursive = parser.takes_name("recursive");
    parser.expect_tag_end()?;
    parser.loops += 1;
    let (statements, end) = body(parser, &["endfor", "else"])?;
    parser.loops -= 1;
    parser.expect_tag_end()?;
    let otherwise = if &*end == "else" { body_to(parser, "endfor")? } else { Vec::new() };
    let definition = For { target, iterable, condition, body: statements, otherwise, is_recursive };
    Ok(StatementKind::For(Arc::new(definition)))
}

fn condition(parser: &mut Parser) -> Result<StatementKind> {
    let mut branches = Vec::new();
    loop {
        let test = parser.tuple(false, &[])?;
        parser.expect_tag_end()?;
        let (statements, end) = body(parser, &["elif", "else", "endif"])?;
        branches.push((test, statements));
        match &*end {
            "elif" => {}
            "else" => {
                parser.expect_tag_end()?;
                return Ok(StatementKind::If(branches, body_to(parser, "endif")?));
            }
            _ => {
                parser.expect_tag_end()?;
                return Ok(StatementKind::If(branches, Vec::new()));
            }
        }
    }
}

fn set(parser: &mut Parser) -> Result<StatementKind> {
    let target = target(parser, &[])?;
    if parser.takes_operator("=") {
        let value = parser.tuple(true, &[])?;
        parser.expect_tag_end()?;
        return Ok(StatementKind::Set(target, value));
    }
    let mut filters = Vec::new();
    while parser.takes_operator("|") {
        filters.push(parser.filter()?);
    }
    parser.expect_tag_end()?;
    Ok(StatementKind::SetBlock(target, filters, body_to(parser, "endset")?))
}

fn with(parser: &mut Parser) -> Result<StatementKind> {
    let mut values = Vec::new();
    while !matches!(parser.peek(), Some(Token::TagEnd) | None) {
        if !values.is_empty() {
            parser.expect_operator(",")?;
        }
        let target = target_item(parser)?;
        parser.expect_operator("=")?;
        values.push((target, parser.expression()?));
    }
    parser.expect_tag_end()?;
    Ok(StatementKind::With(values, body_to(parser, "endwith")?))
}

fn block(parser: &mut Parser) -> Result<StatementKind> {
    let name = parser.expect_name()?;
    let _ = parser.takes_name("scoped");
    let _ = parser.takes_name("required");
    parser.expect_tag_end()?;
    outside_loops(parser, |parser| {
        let (statements, _) = body(parser, &["endblock"])?;
        let _ = parser.takes_name(&name);
        parser.expect_tag_end()?;
        Ok(StatementKind::Scope(statements))
    })
}

/// A name, an attribute of a namespace, or several of them; `ends` are names that end them.
fn target(parser: &mut Parser, ends: &[&str]) -> Result<Target> {
    let first = target_item(parser)?;
    if !parser.is_operator(",") {
        return Ok(first);
    }
    let mut items = vec![first];
    while parser.takes_operator(",") {
        if parser.is_name(ends) || parser.is_operator("=") {
            break;
        }
        items.push(target_item(parser)?);
    }
    Ok(Target::Tuple(items))
}

fn target_item(parser: &mut Parser) -> Result<Target> {
    if parser.takes_operator("(") {
        return parser.deeper(|parser| {
            let inner = target(parser, &[])?;
            parser.expect_operator(")")?;
            Ok(inner)
        });
    }
    let name = parser.expect_name()?;
    if ["true", "false", "none", "True", "False", "None"].contains(&&*name) {
        return Err(Error::syntax(parser.line, format!("`{name}` cannot be set")));
    }
    if parser.takes_operator(".") {
        return Ok(Target::Attribute(name, parser.expect_name()?));
    }
    Ok(Target::Name(name))
}

fn parameters(parser: &mut Parser) -> Result<Vec<(Arc<str>, Option<Expression>)>> {
    let mut parameters: Vec<(Arc<str>, Option<Expression>)> = Vec::new();
    parser.expect_operator("(")?;
    while !parser.takes_operator(")") {
        if !parameters.is_empty() {
            parser.expect_operator(",")?;
        }
        let name = parser.expect_name()?;
        let default = parser.takes_operator("=").then(|| parser.expression()).transpose()?;
        if default.is_none() && parameters.last().is_some_and(|(_, default)| default.is_some()) {
            let message = format!("the parameter `{name}` without a default follows one that has it");
            return Err(Error::syntax(parser.line, message));
        }
        parameters.push((name, default));
    }
    Ok(parameters)
}

fn macro_body(
    parser: &mut Parser,
    name: Arc<str>,
    parameters: Vec<(Arc<str>, Option<Expression>)>,
    end: &str,
) -> Result<Arc<Macro>> {
    parser.expect_tag_end()?;
    let asked = std::mem::take(&mut parser.special_names);
    let body = outside_loops(parser, |parser| body_to(parser, end))?;
    let special = std::mem::replace(&mut parser.special_names, asked);
    let takes = |name: &str| {
        special.iter().any(|found| **found == *name) && parameters.iter().all(|(of, _)| **of != *name)
    };
    let (takes_varargs, takes_kwargs, takes_caller) = (takes("varargs"), takes("kwargs"), takes("caller"));
    // A call inside a macro gives its own `caller`; a macro inside another one takes no part in what that takes.
    Ok(Arc::new(Macro { name, parameters, takes_varargs, takes_kwargs, takes_caller, body }))
}
