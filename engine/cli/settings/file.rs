//! The file: where it is looked for, and what it says.

use super::layers::{Stated, Whence};
use super::scopes::{Scope, names};
use super::values;
use crate::error::{Error, Result, nearest};
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The most bytes that a file may have.
const MOST_BYTES: u64 = 1 << 20;

/// A file that was found.
pub struct Found {
    pub path: PathBuf,
    text: String,
}

/// Where a file is looked for that nobody named, in this order: that of the user, that of the machine. The working directory is not among
/// them: whoever can put a file there would change what a command does.
pub fn places() -> Vec<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let of_user = folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")));
    of_user
        .into_iter()
        .chain([PathBuf::from("/etc")])
        .map(|folder| folder.join("qernel/qernel.toml"))
        .collect()
}

/// Reads the file that was named, or else the first that there is.
///
/// # Errors
/// [`Error::Io`] for one that cannot be read, [`Error::Request`] for one that is too large or no text. A place that cannot be looked at,
/// such as another user's folder, has none.
pub fn find(named: Option<&Path>) -> Result<Option<Found>> {
    named.map(Path::to_owned).or_else(unasked).map(read).transpose()
}

/// The file that there is though nobody named it.
pub fn unasked() -> Option<PathBuf> {
    places().into_iter().find(|path| path.exists())
}

fn read(path: PathBuf) -> Result<Found> {
    let failed = |error| Error::io(&path, error);
    let mut text = String::new();
    let file = File::open(&path).map_err(failed)?;
    match file.take(MOST_BYTES + 1).read_to_string(&mut text) {
        Ok(_) if text.len() as u64 > MOST_BYTES => {
            let path = path.display();
            Err(Error::Request(format!("{path}: expected at most {MOST_BYTES} bytes, found more")))
        }
        Ok(_) => Ok(Found { path, text }),
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            Err(Error::Request(format!("{}: expected UTF-8 text", path.display())))
        }
        Err(error) => Err(failed(error)),
    }
}

impl Found {
    /// What the file says of the options of all commands.
    ///
    /// # Errors
    /// [`Error::Request`] that names the line, for what is no TOML, for a table or an option that there is not, and for a value that the
    /// option cannot have.
    pub fn stated(&self, scopes: &[Scope]) -> Result<Vec<Stated>> {
        let table = DeTable::parse(&self.text).map_err(|error| {
            self.at(error.span().unwrap_or_default(), error.message().trim().replace('\n', "; "))
        })?;
        let mut stated = Vec::new();
        self.read_table(scopes, &[], table.get_ref(), &mut stated)?;
        stated.sort_by_key(|stated: &Stated| match stated.whence {
            Whence::File(line) => line,
            _ => 0,
        });
        Ok(stated)
    }

    fn read_table(
        &self,
        scopes: &[Scope],
        path: &[String],
        table: &DeTable<'_>,
        stated: &mut Vec<Stated>,
    ) -> Result<()> {
        let scope = scopes.iter().position(|scope| scope.path == path);
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let inner = [path, &[name.to_owned()]].concat();
            let arg = scope.and_then(|scope| Some((scope, scopes[scope].option(name)?)));
            match (value.get_ref(), arg) {
                (DeValue::Table(table), _) if scopes.iter().any(|scope| scope.path.starts_with(&inner)) => {
                    self.read_table(scopes, &inner, table, stated)?;
                }
                (_, Some((scope, arg))) => {
                    let setting = self.read_value(scopes, scope, arg, value)?;
                    if stated.iter().any(|other| (other.scope, &other.id) == (scope, &setting.id)) {
                        return Err(self.at(key.span(), format!("{name} is there under another name too")));
                    }
                    stated.push(setting);
                }
                _ => return Err(self.at(key.span(), unknown(scopes, path, name, value))),
            }
        }
        Ok(())
    }

    fn read_value(
        &self,
        scopes: &[Scope],
        scope: usize,
        arg: &clap::Arg,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Stated> {
        let checked = values::of_file(arg, value.get_ref()).and_then(|values: Vec<OsString>| {
            values::check(&scopes[scope].command, arg, &values).map(|()| values)
        });
        let name = arg.get_long().unwrap_or_default();
        let values = checked.map_err(|why| self.at(value.span(), format!("{name}: {why}")))?;
        Ok(Stated { scope, id: arg.get_id().clone(), values, whence: Whence::File(self.line(value.span())) })
    }

    /// An error at a place of the file.
    fn at(&self, span: Range<usize>, what: String) -> Error {
        Error::Request(format!("{}:{}: {what}", self.path.display(), self.line(span)))
    }

    /// The line that something begins in, counted from 1.
    fn line(&self, span: Range<usize>) -> usize {
        1 + self.text.bytes().take(span.start).filter(|&byte| byte == b'\n').count()
    }
}

/// What is wrong with a key that there is not, and what may have been meant.
fn unknown(scopes: &[Scope], path: &[String], name: &str, value: &Spanned<DeValue<'_>>) -> String {
    let own = scopes.iter().find(|scope| scope.path == path);
    let options = own.into_iter().flat_map(|scope| scope.options().flat_map(names)).collect::<Vec<_>>();
    let below = scopes.iter().filter(|scope| scope.path.len() > path.len() && scope.path.starts_with(path));
    let tables: Vec<&str> = below.map(|scope| &scope.path[path.len()][..]).collect();
    let is_table = matches!(value.get_ref(), DeValue::Table(_));
    let header =
        if path.is_empty() { "before all tables".to_owned() } else { format!("in [{}]", path.join(".")) };
    if is_table {
        let full = [path, &[name.to_owned()]].concat().join(".");
        let nearest = nearest(name, tables.iter().copied());
        let meant = nearest.map_or(String::new(), |name| format!("; the nearest by name is `{name}`"));
        return format!("there is no table [{full}]{meant}");
    }
    let elsewhere = || {
        let scope = scopes.iter().find(|scope| scope.option(name).is_some())?;
        Some(format!("; there is one in {}", scope.header()))
    };
    let near = || nearest(name, options).map(|name| format!("; the nearest by name is `{name}`"));
    let meant = elsewhere().or_else(near).unwrap_or_default();
    format!("there is no option `{name}` {header}{meant}")
}
