//! `qernel pull`, `qernel list` and `qernel rm`: models by name, in the cache that the tools of Hugging Face's hub share.

use super::hub::{Display, hub};
use super::interrupt::Interrupt;
use super::output::{Output, note, one_line};
use crate::error::Result;
use crate::hub::{Kind, Name, Stored};
use indicatif::HumanBytes;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};

/// Load a model of Hugging Face's hub and print where it is
///
/// It goes into the cache that the hub's tools share. What was cut off goes on where it ended.
#[derive(Debug, clap::Args)]
pub struct PullArgs {
    /// The model, with a file or a type of it [default: Q4_K_M, Q8_0, or the first file; without GGUF files the folder of safetensors]
    #[arg(value_name = "OWNER/NAME[@REVISION][:FILE or TYPE]")]
    name: Name,
    /// Load the block that drafts for it too, where it is in a file of its own (mtp-….gguf), as -hf does with --spec-type mtp
    #[arg(long)]
    mtp: bool,
}

/// List the models that are in the cache of Hugging Face's hub
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Print them as JSON
    #[arg(long)]
    json: bool,
}

/// Remove a model from the cache of Hugging Face's hub, without asking
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// The model, with a file or a type of it, or all that there is of it
    #[arg(value_name = "OWNER/NAME[:FILE or TYPE]")]
    name: Name,
}

/// Runs `pull`.
///
/// # Errors
/// As [`crate::hub::Hub::pull`].
pub fn pull(args: PullArgs) -> Result<()> {
    // An interrupt ends the program at once: what has come stays in the cache, and is no model before all of it is there.
    Interrupt::install();
    let mut display = Display::default();
    let hub = hub()?.with_sidecar(args.mtp);
    let model = hub.pull(&args.name, &mut |event| display.show(event))?;
    match &model.sidecar {
        Some(block) => note(format!("the block that drafts is {}", block.display())),
        None if args.mtp => note(format!("{} has no mtp-….gguf for this model", args.name.repo)),
        None => {}
    }
    if model.loaded == 0 {
        note(format!("{} was here already, and has not changed", args.name));
    }
    Output::stdout().line(&model.path.display().to_string())
}

/// Runs `list`.
///
/// # Errors
/// As [`crate::hub::Hub::list`].
pub fn list(args: ListArgs) -> Result<()> {
    let models = hub()?.list()?;
    let mut out = Output::stdout();
    if args.json {
        return out.json(&models.iter().map(|model| as_json(model, &models)).collect::<Vec<_>>());
    }
    if models.is_empty() {
        note("no models are here; `qernel pull OWNER/NAME` loads one");
    }
    let rows: Vec<[String; 4]> = models.iter().map(|model| row(model, &models)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (name, size) = (width(0), width(1));
    for row in &rows {
        out.line(format!("{:name$}  {:>size$}  {}  {}", row[0], row[1], row[2], row[3]).trim_end())?;
    }
    Ok(())
}

/// Runs `rm`.
///
/// # Errors
/// As [`crate::hub::Hub::remove`].
pub fn rm(args: RmArgs) -> Result<()> {
    let removed = hub()?.remove(&args.name)?;
    let mut out = Output::stdout();
    for file in &removed.files {
        out.line(&format!("removed {}", one_line(file)))?;
    }
    out.line(&format!("{} are free now ({} bytes)", HumanBytes(removed.bytes), removed.bytes))
}

/// What other commands call the model: by its type, or by its file where a type would not do.
fn name(model: &Stored, all: &[Stored]) -> String {
    let repo = &model.repo;
    let is_same_type = |other: &&Stored| other.repo == *repo && other.type_name == model.type_name;
    match (model.kind, &model.file, &model.type_name) {
        (Kind::Gguf, _, Some(type_name)) if all.iter().filter(is_same_type).count() == 1 => {
            format!("{repo}:{type_name}")
        }
        (Kind::Gguf, Some(file), _) => one_line(&format!("{repo}:{file}")),
        _ => repo.to_string(),
    }
}

fn row(model: &Stored, all: &[Stored]) -> [String; 4] {
    let when = model.modified.and_then(|time| Timestamp::try_from(time).ok());
    let when = when.map(|time| Zoned::new(time, TimeZone::system()).strftime("%Y-%m-%d %H:%M").to_string());
    let what = match model.kind {
        Kind::Gguf => one_line(model.file.as_deref().unwrap_or_default()),
        Kind::Folder => "(folder)".to_owned(),
        Kind::Unfinished => "(unfinished)".to_owned(),
    };
    [name(model, all), HumanBytes(model.size).to_string(), when.unwrap_or_default(), what]
}

fn as_json(model: &Stored, all: &[Stored]) -> Value {
    let modified = model.modified.and_then(|time| Timestamp::try_from(time).ok());
    json!({
        "name": name(model, all),
        "repo": model.repo.to_string(),
        "kind": match model.kind {
            Kind::Gguf => "gguf",
            Kind::Folder => "folder",
            Kind::Unfinished => "unfinished",
        },
        "file": model.file,
        "type": model.type_name,
        "size": model.size,
        "modified": modified.map(|time| time.to_string()),
        "path": model.path.display().to_string(),
    })
}
