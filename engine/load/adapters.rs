//! Adapters that are loaded beside a model.

use qernel_core::batch::AdapterScale;
use qernel_core::config::Config;
use qernel_core::disk::Access;
use qernel_core::error::{Error, Result};
use qernel_core::lora;
use qernel_core::model::build;
use qernel_core::weights::{Adapter, Weights};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An adapter, as the command line names it: `FILE`, `FILE:SCALE`, `NAME=FILE` or `NAME=FILE:SCALE`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterChoice {
    /// What requests call it; `None`: as its file, without the ending.
    pub name: Option<String>,
    /// A GGUF file, or a folder as PEFT saves it.
    pub path: PathBuf,
    /// What its updates are multiplied with where a request names it and says nothing else.
    pub scale: f32,
}

impl FromStr for AdapterChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_file = |text: &str| Path::new(text).exists();
        let bad = |what: &str| {
            Err(Error::Request(format!(
                "expected an adapter as FILE, FILE:SCALE or NAME=FILE:SCALE, found {text:?}: {what}"
            )))
        };
        // A name is no path; a file whose own name has such a sign is taken as it is.
        let named = text.split_once('=').filter(|(name, _)| !is_file(text) && !name.contains(['/', '\\']));
        let (name, rest) = named.map_or((None, text), |(name, rest)| (Some(name.to_owned()), rest));
        let scaled = rest.rsplit_once(':').filter(|_| !is_file(rest));
        let scaled = scaled.and_then(|(path, scale)| Some((path, scale.parse::<f32>().ok()?)));
        let (path, scale) = scaled.unwrap_or((rest, 1.0));
        if name.as_deref() == Some("") || path.is_empty() {
            return bad("a name or a file is missing");
        }
        if !(AdapterScale { adapter: 0, scale }).is_in_range() {
            return bad(&format!("scales are -{0} to {0}", AdapterScale::MAX));
        }
        Ok(Self { name, path: path.into(), scale })
    }
}

impl AdapterChoice {
    /// What requests call it.
    pub fn name(&self) -> String {
        let of_file = || {
            // A folder may be given as `.` or with a slash behind it.
            let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
            let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
            name.map_or_else(|| "adapter".to_owned(), |name| name.to_string_lossy().into_owned())
        };
        self.name.clone().unwrap_or_else(of_file)
    }
}

/// The weights with these adapters beside them.
///
/// # Errors
/// As [`lora::open`]; [`Error::Request`] where two have the same name.
pub fn with_adapters(weights: Weights, config: &Config, choices: &[AdapterChoice]) -> Result<Weights> {
    if choices.is_empty() {
        return Ok(weights);
    }
    let adaptable = build::plan(config)?.adaptable;
    let mut adapters: Vec<Adapter> = Vec::with_capacity(choices.len());
    for choice in choices {
        let name = choice.name();
        if adapters.iter().any(|adapter| adapter.name == name) {
            return Err(Error::Request(format!(
                "--lora {}: another adapter is called {name} too; give each a name of its own (NAME=FILE)",
                choice.path.display()
            )));
        }
        let adapter = lora::open(&choice.path, Access::Map, &name, config, &adaptable)?;
        let bytes = adapter.num_bytes();
        tracing::info!(name, scale = choice.scale, updates = adapter.updates.len(), bytes, "adapter");
        adapters.push(Adapter { scale: choice.scale, ..adapter });
    }
    Ok(weights.with_adapters(adapters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_have_names_and_scales() {
        let choice = |text: &str| text.parse::<AdapterChoice>().unwrap();
        let expected = |name: Option<&str>, path: &str, scale| AdapterChoice {
            name: name.map(str::to_owned),
            path: path.into(),
            scale,
        };
        for (text, expected, name) in [
            ("no/such/poet.gguf", expected(None, "no/such/poet.gguf", 1.0), "poet"),
            ("poet.gguf:0.5", expected(None, "poet.gguf", 0.5), "poet"),
            ("bard=no/such/poet.gguf:-2", expected(Some("bard"), "no/such/poet.gguf", -2.0), "bard"),
            ("bard=poet:x", expected(Some("bard"), "poet:x", 1.0), "bard"),
            ("no/a=b.gguf", expected(None, "no/a=b.gguf", 1.0), "a=b"),
        ] {
            assert_eq!(choice(text), expected, "{text}");
            assert_eq!(choice(text).name(), name, "{text}");
        }
        for bad in ["", "=poet.gguf", "bard=", "poet.gguf:inf", "poet.gguf:101", ":1"] {
            assert!(matches!(bad.parse::<AdapterChoice>(), Err(Error::Request(_))), "{bad}");
        }
    }
}
