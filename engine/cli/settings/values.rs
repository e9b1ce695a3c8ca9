//! Values of options as the file and the environment write them, and as the command line would.

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command};
use std::ffi::{OsStr, OsString};
use toml::de::DeValue;

/// Whether an option may be given several times.
pub fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// Whether an option is on or off.
pub fn is_switch(arg: &Arg) -> bool {
    // `=true` on the command line makes another action of it, but not another kind of value.
    matches!(arg.get_action(), ArgAction::SetTrue) || arg.get_num_args().is_some_and(|n| n.min_values() == 0)
}

/// What an option is given by a value of the file.
///
/// # Errors
/// What was expected, and what was found.
pub fn of_file(arg: &Arg, value: &DeValue<'_>) -> Result<Vec<OsString>, String> {
    match value {
        DeValue::Array(values) if is_list(arg) => {
            values.iter().map(|value| one_of_file(arg, value.get_ref())).collect()
        }
        value => Ok(vec![one_of_file(arg, value)?]),
    }
}

fn one_of_file(arg: &Arg, value: &DeValue<'_>) -> Result<OsString, String> {
    let expected = match (is_switch(arg), is_list(arg), arg.get_action()) {
        (true, ..) => "true or false",
        (_, true, _) => "a text, a number, or an array of them",
        (.., ArgAction::Count) => "a number",
        _ => "a text or a number",
    };
    let text = match value {
        DeValue::Boolean(on) if is_switch(arg) => on.to_string(),
        DeValue::Integer(number) if !is_switch(arg) => {
            let value = i128::from_str_radix(number.as_str(), number.radix());
            value.map_err(|_| format!("{number} is too large"))?.to_string()
        }
        DeValue::Float(number) if !is_switch(arg) => number.as_str().to_owned(),
        DeValue::String(text) if !is_switch(arg) => text.to_string(),
        other => return Err(format!("expected {expected}, found {}", kind(other))),
    };
    Ok(text.into())
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// What an option is given by a variable: of a list a value a line.
///
/// # Errors
/// What was expected, and what was found.
pub fn of_variable(arg: &Arg, value: OsString) -> Result<Vec<OsString>, String> {
    let Some(text) = value.to_str() else { return Ok(vec![value]) };
    if is_list(arg) {
        return Ok(text.lines().filter(|line| !line.is_empty()).map(OsString::from).collect());
    }
    if !is_switch(arg) {
        return Ok(vec![value]);
    }
    match &text.to_ascii_lowercase()[..] {
        "true" | "1" | "on" | "yes" => Ok(vec!["true".into()]),
        "false" | "0" | "off" | "no" => Ok(vec!["false".into()]),
        _ => Err(format!("expected true or false, found {text:?}")),
    }
}

/// Lets the command line's own parser look at values of an option of `command`.
///
/// # Errors
/// What that parser says.
pub fn check(command: &Command, arg: &Arg, values: &[OsString]) -> Result<(), String> {
    let name = arg.get_long().unwrap_or_default();
    if is_switch(arg) {
        return Ok(());
    }
    if let ArgAction::Count = arg.get_action() {
        let is_count = |text: &OsStr| text.to_str().is_some_and(|text| text.parse::<u8>().is_ok());
        let wrong = values.iter().find(|value| !is_count(value));
        return wrong
            .map_or(Ok(()), |value| Err(format!("expected a number from 0 to 255, found {value:?}")));
    }
    for value in values {
        let mut argument = OsString::from(format!("--{name}="));
        argument.push(value);
        let command = command.clone().no_binary_name(true);
        match command.try_get_matches_from([argument]) {
            Err(error) if is_about_the_value(error.kind()) => return Err(first_sentence(&error)),
            _ => {}
        }
    }
    Ok(())
}

/// An option that misses another one is no fault of its value.
fn is_about_the_value(kind: ErrorKind) -> bool {
    use ErrorKind::{
        InvalidUtf8, InvalidValue, TooFewValues, TooManyValues, ValueValidation, WrongNumberOfValues,
    };
    matches!(
        kind,
        InvalidUtf8 | InvalidValue | TooFewValues | TooManyValues | ValueValidation | WrongNumberOfValues
    )
}

/// What the parser says, without hints for the command line.
fn first_sentence(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").to_owned()
}
