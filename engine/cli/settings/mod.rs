//! Where the values of options come from: the command line, the environment, a file, defaults, in this order (docs/configuration.md).
//!
//! Nothing here knows an option by name. What the command line can say (`clap::Command`) says which tables, keys and variables
//! there are and what their values must be; what the file or the environment says becomes the default of an option before
//! the command line is parsed.

mod file;
mod layers;
mod scopes;
mod values;

pub use file::{Found, places};
pub use layers::{InForce, Sources, Whence};
pub use scopes::{Scope, is_option};
pub use values::{is_switch, of_file};

use super::Cli;
use crate::error::Result;
use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches, value_parser};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Parses the program's arguments; options that they leave open have what the environment or the file says. Ends the program where
/// the arguments are wrong, or ask for help.
///
/// # Errors
/// As [`Sources::read`] and [`Sources::in_force`].
pub fn parse(args: &[OsString]) -> Result<Cli> {
    let command = command_for(args);
    let matches = match command.try_get_matches_from(args) {
        // As it usually is: the arguments are all that there is, and nothing more is looked at.
        Ok(matches) if !layers::is_anything_said(named_file(&matches)) => matches,
        _ => resolve(args)?.command.get_matches_from(args),
    };
    Ok(Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
}

/// What is in force where the program is called with `args`, which need not have all that the command must have.
///
/// # Errors
/// As [`parse`].
pub fn resolve(args: &[OsString]) -> Result<InForce> {
    let command = command_for(args);
    // What is wrong with the arguments alone, or help, is told without a look at the file.
    let given = matches(&command, args);
    Sources::read(&command, named_file(&given))?.in_force(command, &given)
}

/// The file that the arguments name, or `QERNEL_CONFIG`.
fn named_file(matches: &ArgMatches) -> Option<&Path> {
    matches.get_one::<PathBuf>("config").map(PathBuf::as_path)
}

/// What the arguments say, though something that must be said may be missing. Ends the program where they are wrong otherwise.
pub fn matches(command: &Command, args: &[OsString]) -> ArgMatches {
    match command.clone().try_get_matches_from(args) {
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
            command.clone().ignore_errors(true).get_matches_from(args)
        }
        parsed => parsed.unwrap_or_else(|error| error.exit()),
    }
}

/// The names of the subcommands that were called, from the outermost on, and what the innermost was given.
fn innermost(matches: &ArgMatches) -> (Vec<String>, &ArgMatches) {
    let (mut path, mut matches) = (Vec::new(), matches);
    while let Some((name, of_subcommand)) = matches.subcommand() {
        path.push(name.to_owned());
        matches = of_subcommand;
    }
    (path, matches)
}

/// The command line that `args` are parsed by.
fn command_for(args: &[OsString]) -> Command {
    let command = with_switch_values(Cli::command(), args);
    match command.clone().try_get_matches_from(args) {
        Err(error) if error.kind() == ErrorKind::ArgumentConflict => without_variables(command, &error),
        _ => command,
    }
}

/// Lets the arguments come before variables of options that they exclude (`-hf` before `QERNEL_MODEL`): those that `error` names have
/// none. Where both are arguments the error stays.
fn without_variables(command: Command, error: &clap::Error) -> Command {
    let named: Vec<&String> = [ContextKind::InvalidArg, ContextKind::PriorArg]
        .into_iter()
        .flat_map(|kind| match error.get(kind) {
            Some(ContextValue::String(name)) => std::slice::from_ref(name).iter(),
            Some(ContextValue::Strings(names)) => names.iter(),
            _ => [].iter(),
        })
        .collect();
    // As in the message: `--model <PATH>`.
    let is_named = |arg: &Arg| {
        let long = arg.get_long().unwrap_or_default();
        named.iter().any(|name| name.split([' ', '=']).next() == Some(&format!("--{long}")))
    };
    each_arg(command, &|arg| if is_named(&arg) { arg.env(Resettable::Reset) } else { arg })
}

/// The command after changing each of its options and those of all its subcommands.
fn each_arg(command: Command, change: &dyn Fn(Arg) -> Arg) -> Command {
    command.mut_args(change).mut_subcommands(|subcommand| each_arg(subcommand, change))
}

/// The command with `change` made to the subcommand that `path` leads to.
fn at(command: Command, path: &[String], change: &mut dyn FnMut(Command) -> Command) -> Command {
    match path.split_first() {
        None => change(command),
        Some((name, path)) => command.mut_subcommand(name, |subcommand| at(subcommand, path, change)),
    }
}

/// Lets switches take `=true` and `=false`, so that the command line can take back what a file or a variable switched on. Only those that
/// `args` have with a value are changed: the help of the others stays as short as it is.
fn with_switch_values(command: Command, args: &[OsString]) -> Command {
    let with_value = args.iter().filter_map(|arg| arg.to_str()?.strip_prefix("--")?.split_once('='));
    let with_value: Vec<&str> = with_value.map(|(name, _)| name).collect();
    if with_value.is_empty() {
        return command;
    }
    each_arg(command, &|arg| {
        let has_value = scopes::names(&arg).any(|name| with_value.contains(&name));
        if !matches!(arg.get_action(), ArgAction::SetTrue) || !has_value {
            return arg;
        }
        let arg = arg.action(ArgAction::Set).value_parser(value_parser!(bool)).num_args(0..=1);
        arg.require_equals(true).default_missing_value("true").default_value("false")
    })
}
