//! `qernel config`: which options have which values, and whence.

use super::Cli;
use super::output::{Output, one_line};
use super::settings::{self, Scope, Sources, Whence, is_switch, places};
use crate::error::Result;
use clap::{Arg, ArgAction, CommandFactory};
use std::ffi::OsString;
use std::path::Path;

/// Print which options have which values, and whence: the file, the environment, the command line or the default
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// The command whose options are printed, such as serve [default: all, of which what the file and the environment say is printed]
    #[arg(num_args = 0..=2)]
    command: Vec<String>,
    /// Print a file that says the same, with what is not said in comments
    #[arg(long)]
    toml: bool,
    /// Options of the command, as it would be called with
    #[arg(last = true, value_name = "OPTIONS")]
    options: Vec<OsString>,
}

/// An option and what it has.
struct Row {
    /// Which table it is in.
    scope: usize,
    arg: Arg,
    values: Vec<OsString>,
    whence: Whence,
}

/// Runs the command; `file` is the one that was named.
pub fn run(args: ConfigArgs, file: Option<&Path>) -> Result<()> {
    let is_of_all = args.command.is_empty();
    let (sources, rows) = if is_of_all { of_all(file)? } else { of_command(&args, file)? };
    if args.toml {
        return Output::stdout().text(&toml(&sources, &rows));
    }
    let shown = rows.iter().filter(|row| !is_of_all || row.whence != Whence::Default);
    Output::stdout().text(&table(&sources, shown))
}

/// The options of one command.
fn of_command(args: &ConfigArgs, file: Option<&Path>) -> Result<(Sources, Vec<Row>)> {
    let mut line = vec![OsString::from("qernel")];
    line.extend(file.into_iter().flat_map(|file| [OsString::from("--config"), file.into()]));
    line.extend(args.command.iter().map(OsString::from));
    line.extend(args.options.iter().cloned());
    let in_force = settings::resolve(&line)?;
    let matches = settings::matches(&in_force.command, &line);
    let path = &in_force.path;
    let own = in_force.sources.scopes.iter().position(|scope| &scope.path == path).unwrap_or_default();
    let command = &in_force.sources.scopes[own].command;
    let row = |arg: &Arg| {
        let (values, whence) = in_force.value(&matches, arg);
        let chosen = in_force.chosen.iter().find(|stated| &stated.id == arg.get_id());
        let scope = match (&whence, chosen) {
            (Whence::CommandLine, _) => own,
            (_, Some(stated)) => stated.scope,
            (_, None) => in_force.sources.home(path, command, arg),
        };
        Row { scope, arg: arg.clone(), values, whence }
    };
    let mut rows: Vec<Row> = in_force.options().map(row).collect();
    rows.sort_by_key(|row| row.scope);
    Ok((in_force.sources, rows))
}

/// The options of all commands, each in the table that it is in by itself, and in others that something is said in.
fn of_all(file: Option<&Path>) -> Result<(Sources, Vec<Row>)> {
    let sources = Sources::read(&Cli::command(), file)?;
    let mut rows = Vec::new();
    for (index, scope) in sources.scopes.iter().enumerate() {
        for arg in scope.options() {
            let variable = || {
                let name = arg.get_env()?;
                Some((vec![std::env::var_os(name)?], Whence::Variable(name.to_string_lossy().into_owned())))
            };
            let default = || (default_values(arg), Whence::Default);
            let is_at_home = sources.home(&scope.path, &scope.command, arg) == index;
            let (values, whence) = match sources.stated_in(index, arg) {
                Some(stated) => (stated.values.clone(), stated.whence.clone()),
                None if is_at_home => variable().unwrap_or_else(default),
                None => continue,
            };
            rows.push(Row { scope: index, arg: arg.clone(), values, whence });
        }
    }
    Ok((sources, rows))
}

/// What the file and the environment say, a line an option, for other people's eyes: of a value that may be a text, such as a path, only that there
/// is one.
///
/// # Errors
/// As [`Sources::read`].
pub fn set_without_texts(file: Option<&Path>) -> Result<Vec<String>> {
    let (sources, rows) = of_all(file)?;
    let set = rows.iter().filter(|row| row.whence != Whence::Default);
    let line = |row: &Row| {
        let known: Vec<_> = row.arg.get_possible_values();
        let is_number = |text: &str| text.parse::<f64>().is_ok();
        let is_no_text = |text: &String| {
            is_switch(&row.arg) || is_number(text) || known.iter().any(|value| value.matches(text, false))
        };
        let texts = texts(row);
        let shown = if is_hidden(row) || !texts.iter().all(is_no_text) {
            "(not shown)".into()
        } else {
            texts.join(", ")
        };
        let whence = if matches!(row.whence, Whence::File(_)) { "file" } else { "environment" };
        let header = sources.scopes[row.scope].header();
        let name = row.arg.get_long().unwrap_or_default();
        format!("{header} {name} = {shown} ({whence})").trim_start().to_owned()
    };
    Ok(set.map(line).collect())
}

/// What an option has where nothing is said.
fn default_values(arg: &Arg) -> Vec<OsString> {
    match arg.get_action() {
        ArgAction::Count => vec!["0".into()],
        _ if is_switch(arg) => vec!["false".into()],
        _ => arg.get_default_values().iter().map(OsString::from).collect(),
    }
}

/// A line an option, after one that names the file.
fn table<'a>(sources: &Sources, rows: impl Iterator<Item = &'a Row>) -> String {
    let mut text = match &sources.file {
        Some(file) => format!("file: {}\n", file.path.display()),
        None => {
            let places: Vec<String> = places().iter().map(|place| place.display().to_string()).collect();
            format!("file: none ({})\n", places.join(", "))
        }
    };
    let mut last = None;
    for row in rows {
        if last != Some(row.scope) {
            last = Some(row.scope);
            let header = sources.scopes[row.scope].header();
            text += &format!("\n{}\n", if header.is_empty() { "all commands" } else { &header });
        }
        let value = match row.values.is_empty() {
            _ if is_hidden(row) => "(not shown)".to_owned(),
            true => "-".to_owned(),
            false => texts(row).join(", "),
        };
        let name = row.arg.get_long().unwrap_or_default();
        text += &format!("{name:<26}  {:<28}  {}\n", one_line(&value), sources.place(&row.whence));
    }
    text
}

/// Whether a value is a secret.
fn is_hidden(row: &Row) -> bool {
    row.arg.is_hide_env_values_set() && !row.values.is_empty()
}

fn texts(row: &Row) -> Vec<String> {
    row.values.iter().map(|value| value.to_string_lossy().into_owned()).collect()
}

/// A file that says what the rows say.
fn toml(sources: &Sources, rows: &[Row]) -> String {
    let mut text =
        "# Options of qernel, as `qernel <command> --help` has them (docs/configuration.md).\n".to_owned();
    let mut last = None;
    for row in rows {
        let scope: &Scope = &sources.scopes[row.scope];
        if last != Some(row.scope) {
            last = Some(row.scope);
            text += &format!("\n{}", scope.header());
            text += if scope.path.is_empty() { "" } else { "\n" };
        }
        let help = row.arg.get_help().map(ToString::to_string).unwrap_or_default();
        let name = row.arg.get_long().unwrap_or_default();
        text += &if help.is_empty() { String::new() } else { format!("# {}\n", one_line(&help)) };
        text += &match (&row.whence, row.values.is_empty()) {
            _ if is_hidden(row) => {
                format!("# {name} is said by {} and not shown\n", sources.place(&row.whence))
            }
            (Whence::Default, true) => format!("# {name} =\n"),
            (Whence::Default, false) => format!("# {name} = {}\n", value(row)),
            _ => format!("{name} = {}\n", value(row)),
        };
    }
    text
}

/// The values of an option as TOML has them.
fn value(row: &Row) -> String {
    let texts = texts(row);
    let literals: Vec<String> = texts.iter().map(|text| literal(&row.arg, text)).collect();
    match &literals[..] {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}

fn literal(arg: &Arg, text: &str) -> String {
    let is_number = text.parse::<i64>().is_ok_and(|number| number.to_string() == text)
        || text.parse::<f64>().is_ok_and(|number| number.is_finite() && number.to_string() == text);
    if is_switch(arg) || is_number {
        return text.to_owned();
    }
    let quoted = serde_json::to_string(text).expect("a text always serialises");
    // What TOML does not take as it is, and JSON does.
    quoted.replace('\u{7F}', "\\u007F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_read_as_they_were_written() {
        let arg = Arg::new("x").long("x");
        for (text, expected) in [
            ("8080", "8080"),
            ("-1", "-1"),
            ("0.95", "0.95"),
            ("007", "\"007\""),
            ("1e3", "\"1e3\""),
            ("NaN", "\"NaN\""),
            ("a \"b\"\n\u{7F}", "\"a \\\"b\\\"\\n\\u007F\""),
        ] {
            let found = literal(&arg, text);
            assert_eq!(found, expected);
            let line = format!("x = {found}");
            let table = toml::de::DeTable::parse(&line).unwrap();
            let read = settings::of_file(&arg, table.get_ref()["x"].get_ref()).unwrap();
            assert_eq!(read, [OsString::from(text)]);
        }
    }
}
