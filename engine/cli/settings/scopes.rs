//! Which options a table of the file has, and the names of their variables.

use crate::cli::cache_types::CacheTypeArgs;
use crate::cli::options::{ExpertArgs, FileArgs, LoraArgs, ModelArgs, SamplingArgs};
use crate::cli::split_mode::RankArgs;
use clap::{Arg, Args, Command, Id};

/// What the names of variables begin with. Kubernetes gives programs variables with the names of services (`QERNEL_SERVE_PORT` of one called
/// `qernel-serve`), which this keeps apart.
pub const PREFIX: &str = "QERNEL_ARG_";

/// A table of the file.
pub struct Scope {
    /// Its name; nothing for what stands before all tables.
    pub path: Vec<String>,
    /// Whether several commands have its options.
    pub is_shared: bool,
    /// A command that has its options and perhaps others.
    pub command: Command,
    /// The structures whose fields a shared table's options are.
    structures: Vec<Structure>,
}

/// A structure of options. A command that has them has a group of its name too, which `clap` leaves empty where structures are nested.
struct Structure {
    group: Id,
    options: Command,
}

impl Structure {
    fn of<T: Args>() -> Option<Self> {
        Some(Self { group: T::group_id()?, options: T::augment_args(Command::new("options")) })
    }

    /// Whether `command` has the option `id` as one of this structure.
    fn is_in(&self, command: &Command, id: &Id) -> bool {
        command.get_groups().any(|group| group.get_id() == &self.group)
            && self.options.get_arguments().any(|arg| arg.get_id() == id)
    }
}

/// Every table that there may be: options of all commands, those that several share, and those of each.
pub fn scopes(root: &Command) -> Vec<Scope> {
    let shared = |name: &str, command: Command, structures: Vec<Option<Structure>>| Scope {
        path: [name].iter().filter(|name| !name.is_empty()).map(|&name| name.to_owned()).collect(),
        is_shared: true,
        command,
        structures: structures.into_iter().flatten().collect(),
    };
    let model = ModelArgs::augment_args(Command::new("model"));
    let sampling = SamplingArgs::augment_args(Command::new("sampling"));
    let mut scopes = vec![
        shared("", root.clone(), Vec::new()),
        shared("model", model, structures_of_models()),
        shared("sampling", sampling, vec![Structure::of::<SamplingArgs>()]),
    ];
    add_commands(root, root, &mut Vec::new(), &mut scopes);
    scopes
}

/// The structure of all options of models, and those in it that commands have without the others.
fn structures_of_models() -> Vec<Option<Structure>> {
    vec![
        Structure::of::<ModelArgs>(),
        Structure::of::<FileArgs>(),
        Structure::of::<CacheTypeArgs>(),
        Structure::of::<ExpertArgs>(),
        Structure::of::<LoraArgs>(),
        Structure::of::<RankArgs>(),
    ]
}

/// Adds a table for each command below `command` that has no subcommands. It may have the options of all commands too.
fn add_commands(root: &Command, command: &Command, path: &mut Vec<String>, scopes: &mut Vec<Scope>) {
    for subcommand in command.get_subcommands() {
        path.push(subcommand.get_name().to_owned());
        if subcommand.has_subcommands() {
            add_commands(root, subcommand, path, scopes);
        } else {
            let global = root.get_arguments().filter(|arg| arg.is_global_set()).cloned();
            let command = subcommand.clone().args(global);
            scopes.push(Scope { path: path.clone(), is_shared: false, command, structures: Vec::new() });
        }
        path.pop();
    }
}

/// Whether an argument is an option that a file may have.
pub fn is_option(arg: &Arg) -> bool {
    let is_of_the_command_line = matches!(arg.get_id().as_str(), "help" | "version" | "config");
    arg.get_long().is_some() && !arg.is_hide_set() && !is_of_the_command_line
}

/// The long names of an argument, the usual one first.
pub fn names(arg: &Arg) -> impl Iterator<Item = &str> {
    arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default())
}

impl Scope {
    /// Its options.
    pub fn options(&self) -> impl Iterator<Item = &Arg> {
        self.command.get_arguments().filter(|arg| is_option(arg))
    }

    /// The option of this long name.
    pub fn option(&self, name: &str) -> Option<&Arg> {
        self.options().find(|arg| names(arg).any(|known| known == name))
    }

    /// As the file has it: `[serve]`; nothing for what stands before all tables.
    pub fn header(&self) -> String {
        if self.path.is_empty() { String::new() } else { format!("[{}]", self.path.join(".")) }
    }

    /// The variable of an option of this table, by one of its names.
    pub fn variable(&self, name: &str) -> String {
        let path = if self.is_shared { &[] } else { &self.path[..] };
        let words: Vec<&str> = path.iter().map(String::as_str).chain([name]).collect();
        format!("{PREFIX}{}", words.join("_").replace('-', "_").to_ascii_uppercase())
    }

    /// Whether what this table says of an option holds for a command: its own table, and what it shares with others.
    pub fn holds_for(&self, path: &[String], command: &Command, id: &Id) -> bool {
        match (self.is_shared, &self.path[..]) {
            (false, own) => own == path,
            (true, []) => true,
            (true, _) => self.structures.iter().any(|structure| structure.is_in(command, id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;
    use std::collections::BTreeMap;

    #[test]
    fn no_two_options_have_the_same_variable_and_no_table_the_name_of_another() {
        let root = Cli::command();
        let scopes = scopes(&root);
        let mut variables = BTreeMap::new();
        let mut headers = Vec::new();
        for scope in &scopes {
            assert!(!headers.contains(&scope.header()), "{}", scope.header());
            headers.push(scope.header());
            for arg in scope.options() {
                for name in names(arg) {
                    let variable = scope.variable(name);
                    if let Some(other) = variables.insert(variable.clone(), scope.header()) {
                        panic!("{variable} is of {other} and of {}", scope.header());
                    }
                }
            }
        }
        for known in ["QERNEL_ARG_CTX_SIZE", "QERNEL_ARG_SERVE_PORT", "QERNEL_ARG_TEMP", "QERNEL_ARG_VERBOSE"]
        {
            assert!(variables.contains_key(known), "{known}");
        }
    }

    #[test]
    fn shared_tables_hold_for_commands_with_the_same_options() {
        let root = Cli::command();
        let scopes = scopes(&root);
        let holds = |table: &str, command: &str, id: &str| {
            let scope = scopes.iter().find(|scope| scope.header() == table).unwrap();
            let path = [command.to_owned()];
            scope.holds_for(&path, root.find_subcommand(command).unwrap(), &Id::from(id.to_owned()))
        };
        assert!(holds("[model]", "serve", "ctx_size") && holds("[model]", "inspect", "model"));
        assert!(holds("[model]", "bench", "batch_size"), "it has another name there");
        assert!(holds("[model]", "inspect", "cpu_moe") && holds("[model]", "logits", "lora"));
        assert!(!holds("[model]", "tokenize", "ctx_size") && !holds("[sampling]", "serve", "temperature"));
        assert!(holds("[serve]", "serve", "port") && !holds("[serve]", "chat", "ctx_size"));
    }
}
