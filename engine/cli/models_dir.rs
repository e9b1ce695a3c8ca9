//! The models of `serve --models-dir`.

use super::conversation::TemplateArgs;
use super::options::{ModelArgs, parse_size};
use crate::error::{Error, Result};
use crate::load::{DraftChoice, LoadedModel, ModelsFolder, RunnerOptions, model_bytes};
use crate::server::{ListedModel, ModelSource, Room, ServedModel};
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// Tokens of a context that is not made shorter as long as another model could be unloaded instead.
const USEFUL_CONTEXT: usize = 4096;

/// Models that are loaded when requests name them.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Several models")]
pub struct ModelsArgs {
    /// Serve the models of this folder too, each loaded when a request names it: GGUF files, by their names without .gguf, and folders;
    /// without --model these alone
    #[arg(long, value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
    /// Those of them that are loaded at a time; 0 for as many as fit
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub models_max: usize,
    /// Memory that those that are loaded take together, as 16GiB or bytes: their weights, and for each one context of at most 32768 tokens, or
    /// what --ctx-size or --kv-cache-memory say; one alone may take more [default: no bound]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub models_memory: Option<usize>,
    /// Unload one that nobody has asked for so many seconds [default: when another one needs its place]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=31_536_000))]
    pub models_idle: Option<u64>,
    /// Another name of a model; may be given several times
    #[arg(long, value_name = "NAME=MODEL", value_parser = parse_alias)]
    pub alias: Vec<(String, String)>,
}

impl ModelsArgs {
    /// After how long without a request a model is unloaded.
    pub fn idle(&self) -> Option<Duration> {
        self.models_idle.map(Duration::from_secs)
    }
}

/// A name, and the model that it stands for.
fn parse_alias(text: &str) -> Result<(String, String)> {
    match text.split_once('=').filter(|(name, model)| !name.is_empty() && !model.is_empty()) {
        Some((name, model)) => Ok((name.into(), model.into())),
        None => Err(Error::Request(format!("expected an alias as NAME=MODEL, found {text:?}"))),
    }
}

/// How the models of a folder are opened: as the command line says, but for what it says of one model.
pub struct FolderModels {
    folder: ModelsFolder,
    model: ModelArgs,
    template: TemplateArgs,
    max_num_sequences: usize,
}

impl FolderModels {
    /// The models of `folder`. Adapters and a model that drafts are `model`'s own.
    pub fn new(
        folder: ModelsFolder,
        mut model: ModelArgs,
        template: TemplateArgs,
        max_num_sequences: usize,
    ) -> Self {
        model.lora.lora.clear();
        if !matches!(model.drafts.choice(), Ok(DraftChoice::Ngram(_))) {
            (model.drafts.model_draft, model.drafts.spec_type) = (None, None);
        }
        Self { folder, model, template, max_num_sequences }
    }

    /// The options of the model of this name.
    fn named(&self, name: &str) -> Result<ModelArgs> {
        let gone = || Error::Model("its file is gone".into());
        let mut model = self.model.clone();
        model.file.model = Some(self.folder.find(name)?.ok_or_else(gone)?.path);
        Ok(model)
    }

    /// What the model that `--model` names leaves those of the folder.
    ///
    /// # Errors
    /// As [`ModelsFolder::list`].
    pub fn room_beside(&self, models_max: usize) -> Result<Room> {
        let most = if models_max == 0 { usize::MAX } else { models_max };
        let others = self.folder.list()?.len().min(most);
        Ok(Room { share: 1.0 / (1 + others) as f64, is_last: true })
    }
}

/// Loads a model: with its share of what is free, or with all that it needs, but not with a context of no use where another model could
/// go.
///
/// # Errors
/// As [`ModelArgs::open`].
pub fn load_beside(model: &ModelArgs, max_num_sequences: usize, room: Room) -> Result<LoadedModel> {
    let options = model.options(max_num_sequences)?;
    let shortest_context = USEFUL_CONTEXT;
    let modest = RunnerOptions { cache_share: room.share, shortest_context, ..options.clone() };
    let greedy = RunnerOptions { shortest_context, ..options.clone() };
    let mut loaded = model.load(&modest);
    for options in [Some(&greedy), room.is_last.then_some(&options)].into_iter().flatten() {
        if matches!(loaded, Err(Error::Memory(_))) {
            loaded = model.load(options);
        }
    }
    loaded
}

impl ModelSource for FolderModels {
    fn list(&self) -> Result<Vec<ListedModel>> {
        let models = self.folder.list()?.into_iter();
        Ok(models.map(|model| ListedModel { name: model.name, version: model.version }).collect())
    }

    fn check(&self, name: &str) -> Result<u64> {
        let model = self.named(name)?;
        model_bytes(&model.file.open()?, &model.options(self.max_num_sequences)?)
    }

    fn open(&self, name: &str, room: Room) -> Result<ServedModel> {
        served(
            load_beside(&self.named(name)?, self.max_num_sequences, room)?,
            &self.template,
            name.to_owned(),
        )
    }

    fn explain(&self, error: &Error) -> String {
        let folder = format!("{}/", self.folder.path().display().to_string().trim_end_matches('/'));
        error.to_string().replace(&folder, "")
    }
}

/// A loaded model, ready to be served by this name.
pub fn served(loaded: LoadedModel, template: &TemplateArgs, name: String) -> Result<ServedModel> {
    let template = template.open(&loaded.tokenizer).inspect_err(|error| tracing::warn!("no chat: {error}"));
    let (watch, fingerprint) = (loaded.watch.clone(), loaded.fingerprint);
    Ok(ServedModel { engine: loaded.into_engine()?, template, name, watch, fingerprint })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_has_two_names() {
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        assert_eq!(parse_alias("gpt-4o=qwen").unwrap(), pair("gpt-4o", "qwen"));
        assert_eq!(parse_alias("a=b=c").unwrap(), pair("a", "b=c"));
        for bad in ["", "a", "=a", "a="] {
            assert!(parse_alias(bad).is_err(), "{bad}");
        }
    }
}
