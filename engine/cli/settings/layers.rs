//! Which of the values that were said is in force.

use super::file::{self, Found};
use super::scopes::{PREFIX, Scope, is_option, names, scopes};
use super::{at, innermost, values};
use crate::error::{Error, Result, nearest};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, Id};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

/// Whence a value comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whence {
    Default,
    /// The line of the file.
    File(usize),
    /// The variable of the environment.
    Variable(String),
    CommandLine,
}

/// What the file or the environment says of an option.
#[derive(Clone, Debug)]
pub struct Stated {
    /// Which of [`Sources::scopes`] it stands in.
    pub scope: usize,
    pub id: Id,
    pub values: Vec<OsString>,
    pub whence: Whence,
}

/// All that the file and the environment say.
pub struct Sources {
    pub scopes: Vec<Scope>,
    pub file: Option<Found>,
    pub stated: Vec<Stated>,
}

/// Whether there is a file or a variable that may say something.
pub fn is_anything_said(named: Option<&Path>) -> bool {
    let is_option = |name: OsString| name.to_str().is_some_and(|name| name.starts_with(PREFIX));
    named.is_some() || file::unasked().is_some() || std::env::vars_os().any(|(name, _)| is_option(name))
}

/// What is in force for a call of the program.
pub struct InForce {
    pub sources: Sources,
    /// The whole command line, with what was chosen as defaults.
    pub command: Command,
    /// The names of the subcommands that are called.
    pub path: Vec<String>,
    /// What of the sources counts here.
    pub chosen: Vec<Stated>,
}

/// What comes first counts: the command line, then variables, then the file; of each of these a command's own table.
type Rank = (u8, bool);

const GIVEN: Rank = (2, true);

impl Sources {
    /// The table that an option of a command stands in by itself: one that it shares with others, or the command's own.
    pub fn home(&self, path: &[String], command: &Command, arg: &Arg) -> usize {
        let has = |scope: &Scope| scope.command.get_arguments().any(|other| other.get_id() == arg.get_id());
        let is_home = |scope: &Scope| has(scope) && scope.holds_for(path, command, arg.get_id());
        self.scopes.iter().position(is_home).unwrap_or_default()
    }

    /// What is said of an option in a table, in the first place.
    pub fn stated_in(&self, scope: usize, arg: &Arg) -> Option<&Stated> {
        let here = self.stated.iter().filter(|stated| (stated.scope, &stated.id) == (scope, arg.get_id()));
        here.max_by_key(|stated| self.rank(stated))
    }

    /// Reads the file, that of this name or the first that there is, and the environment.
    ///
    /// # Errors
    /// As [`file::find`] and [`Found::stated`]; [`Error::Request`] for a variable of no option, or with a value that its option cannot
    /// have.
    pub fn read(root: &Command, named: Option<&Path>) -> Result<Self> {
        let scopes = scopes(root);
        let file = file::find(named)?;
        let mut stated = file.as_ref().map_or(Ok(Vec::new()), |file| file.stated(&scopes))?;
        stated.extend(of_environment(&scopes, std::env::vars_os())?);
        Ok(Self { scopes, file, stated })
    }

    /// What is in force where the arguments of the program say what is `given`.
    ///
    /// # Errors
    /// [`Error::Request`] where two options are said in the same place that exclude each other.
    pub fn in_force(self, command: Command, given: &ArgMatches) -> Result<InForce> {
        let (path, given) = innermost(given);
        let chosen = self.chosen(&command, &path, given)?;
        let set = |command: Command| {
            chosen.iter().fold(command, |command, stated| {
                if command.get_arguments().all(|arg| arg.get_id() != &stated.id) {
                    return command;
                }
                command.mut_arg(&stated.id, |arg| arg.required(false).default_values(stated.values.clone()))
            })
        };
        let command = at(set(command), &path, &mut |subcommand| set(subcommand));
        Ok(InForce { sources: self, command, path, chosen })
    }

    fn rank(&self, stated: &Stated) -> Rank {
        let of_variable = matches!(stated.whence, Whence::Variable(_));
        (of_variable.into(), !self.scopes[stated.scope].is_shared)
    }

    /// Of what was said, what counts for the command that `path` leads to: what is said in the first place, unless it is excluded by
    /// another option that comes before it.
    fn chosen(&self, root: &Command, path: &[String], given: &ArgMatches) -> Result<Vec<Stated>> {
        let command =
            path.iter().try_fold(root, |command, name| command.find_subcommand(name)).unwrap_or(root);
        let options =
            || command.get_arguments().chain(root.get_arguments().filter(|arg| arg.is_global_set()));
        let on = options().filter(|arg| is_given(given, arg.get_id()) && !is_off(given, arg));
        let mut before: Vec<(&Arg, Rank, Option<&Stated>)> = on.map(|arg| (arg, GIVEN, None)).collect();
        let mut stated: Vec<&Stated> = self.stated.iter().collect();
        stated.sort_by_key(|stated| std::cmp::Reverse(self.rank(stated)));
        let mut chosen: Vec<Stated> = Vec::new();
        for stated in stated {
            let Some(arg) = options().find(|arg| arg.get_id() == &stated.id) else { continue };
            let holds = self.scopes[stated.scope].holds_for(path, command, &stated.id);
            if !holds || is_given(given, &stated.id) || chosen.iter().any(|other| other.id == stated.id) {
                continue;
            }
            if values::is_switch(arg) && stated.values == ["false"] {
                chosen.push(stated.clone());
                continue;
            }
            let rank = self.rank(stated);
            match before.iter().find(|(other, ..)| exclude(command, arg, other)) {
                Some((other, their, Some(of_other))) if *their == rank => {
                    return Err(self.both(arg, stated, other, of_other));
                }
                Some(_) => {}
                None => {
                    before.push((arg, rank, Some(stated)));
                    chosen.push(stated.clone());
                }
            }
        }
        Ok(chosen)
    }

    fn both(&self, arg: &Arg, stated: &Stated, other: &Arg, of_other: &Stated) -> Error {
        let [name, other] = [arg, other].map(|arg| arg.get_long().unwrap_or_default());
        let [here, there] = [stated, of_other].map(|stated| self.place(&stated.whence));
        Error::Request(format!(
            "{name} ({here}) and {other} ({there}) exclude each other: leave one of them out"
        ))
    }

    /// Whence something comes, for people.
    pub fn place(&self, whence: &Whence) -> String {
        match (whence, &self.file) {
            (Whence::File(line), Some(file)) => format!("{}:{line}", file.path.display()),
            (Whence::File(line), None) => format!("line {line}"),
            (Whence::Variable(name), _) => name.clone(),
            (Whence::CommandLine, _) => "command line".to_owned(),
            (Whence::Default, _) => "default".to_owned(),
        }
    }
}

/// Whether the command line, or one of the older variables, says something of an argument.
fn is_given(given: &ArgMatches, id: &Id) -> bool {
    let is_known = given.try_contains_id(id.as_str()).is_ok();
    let source = if is_known { given.value_source(id.as_str()) } else { None };
    matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
}

/// Whether an argument is a switch that is given as `=false`.
fn is_off(given: &ArgMatches, arg: &Arg) -> bool {
    let values = given.try_get_raw(arg.get_id().as_str()).ok().flatten();
    values::is_switch(arg) && values.is_some_and(|mut values| values.all(|value| value == "false"))
}

/// Whether only one of two arguments may be given.
fn exclude(command: &Command, one: &Arg, other: &Arg) -> bool {
    let names = |arg: &Arg, other: &Arg| {
        command.get_arg_conflicts_with(arg).iter().any(|found| found.get_id() == other.get_id())
    };
    names(one, other) || names(other, one)
}

/// What variables say. One without a value says nothing.
fn of_environment(
    scopes: &[Scope],
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<Stated>> {
    let variables = variables.filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with(PREFIX))?;
        (!value.is_empty()).then_some((name, value))
    });
    // Sorted, so that of several faults the same one is told each time.
    let variables: BTreeMap<String, OsString> = variables.collect();
    if variables.is_empty() {
        return Ok(Vec::new());
    }
    let of_scope = |(index, scope): (usize, &'_ Scope)| -> Vec<(String, (usize, Id))> {
        let of_arg = |arg: &Arg| {
            names(arg).map(|name| (scope.variable(name), (index, arg.get_id().clone()))).collect::<Vec<_>>()
        };
        scope.options().flat_map(of_arg).collect()
    };
    let known: BTreeMap<String, (usize, Id)> = scopes.iter().enumerate().flat_map(of_scope).collect();
    let mut stated: Vec<Stated> = Vec::new();
    for (variable, value) in variables {
        let Some((scope, id)) = known.get(&variable) else {
            let nearest = nearest(&variable, known.keys().map(String::as_str));
            let meant = nearest.map_or(String::new(), |name| format!("; the nearest by name is {name}"));
            return Err(Error::Request(format!("{variable}: there is no such option{meant}")));
        };
        let command = &scopes[*scope].command;
        let arg =
            command.get_arguments().find(|arg| arg.get_id() == id).expect("it is known by its arguments");
        let values = values::of_variable(arg, value)
            .and_then(|values| values::check(command, arg, &values).map(|()| values))
            .map_err(|why| Error::Request(format!("{variable}: {why}")))?;
        if stated.iter().any(|other| (other.scope, &other.id) == (*scope, id)) {
            return Err(Error::Request(format!("{variable}: another variable is of the same option")));
        }
        stated.push(Stated { scope: *scope, id: id.clone(), values, whence: Whence::Variable(variable) });
    }
    Ok(stated)
}

impl InForce {
    /// The options of the command that is called, its own first.
    pub fn options(&self) -> impl Iterator<Item = &Arg> {
        let innermost =
            self.path.iter().try_fold(&self.command, |command, name| command.find_subcommand(name));
        let global = self.command.get_arguments().filter(|arg| arg.is_global_set());
        innermost.into_iter().flat_map(Command::get_arguments).chain(global).filter(|arg| is_option(arg))
    }

    /// The values of one of these options and whence they come; none where it was not given and has no default. `matches` is what the
    /// arguments say together with what was chosen.
    pub fn value(&self, matches: &ArgMatches, arg: &Arg) -> (Vec<OsString>, Whence) {
        let (_, matches) = innermost(matches);
        let id = arg.get_id();
        let raw = matches.get_raw(id.as_str()).into_iter().flatten().map(OsString::from).collect();
        let chosen = self.chosen.iter().find(|stated| &stated.id == id);
        match (matches.value_source(id.as_str()), chosen) {
            (Some(ValueSource::CommandLine), _) => {
                let values = match arg.get_action() {
                    clap::ArgAction::Count => vec![matches.get_count(id.as_str()).to_string().into()],
                    clap::ArgAction::SetTrue => vec!["true".into()],
                    _ => raw,
                };
                (values, Whence::CommandLine)
            }
            (_, Some(stated)) => (stated.values.clone(), stated.whence.clone()),
            (Some(ValueSource::EnvVariable), None) => {
                let variable = arg.get_env().unwrap_or_default().to_string_lossy().into_owned();
                (raw, Whence::Variable(variable))
            }
            _ => (raw, Whence::Default),
        }
    }
}
