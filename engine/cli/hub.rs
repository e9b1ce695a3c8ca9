//! Models by name, where other commands take a file: options, and what is shown while they are loaded.

use super::output::{note, one_line};
use crate::error::{Error, Result};
use crate::hub::{Environment, Event, Hub, Model, Name, Patience};
use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, ErrorKind, IsTerminal};

/// A model by its name.
#[derive(Clone, Debug, Default, Args)]
pub struct HubArgs {
    /// Model of Hugging Face's hub, with a file or a type of it [default: Q4_K_M, Q8_0, or the first file]; it is loaded once, into the cache
    /// that the hub's tools share; instead of --model; also -hf
    #[arg(long, value_name = "OWNER/NAME[@REVISION][:TYPE]", conflicts_with = "model")]
    pub hf_repo: Option<Name>,
    /// File of it, instead of a type; also -hff
    #[arg(long, value_name = "FILE", requires = "hf_repo")]
    pub hf_file: Option<String>,
}

impl HubArgs {
    /// Where the model is, loaded if it was not here, with the block that drafts for it or without; `None` where none is named.
    ///
    /// # Errors
    /// As [`Hub::open`].
    pub fn open(&self, with_sidecar: bool, show: &mut dyn FnMut(Event)) -> Result<Option<Model>> {
        let Some(mut name) = self.hf_repo.clone() else { return Ok(None) };
        if let Some(file) = &self.hf_file {
            name.file = Some(file.clone());
        }
        hub()?.with_sidecar(with_sidecar).open(&name, show).map(Some)
    }
}

/// The hub and the cache that the environment names.
///
/// # Errors
/// As [`Environment::of_process`] and [`Hub::new`].
pub fn hub() -> Result<Hub> {
    Hub::new(Environment::of_process()?, Patience::default())
}

/// Says of a file that is not there, and could be a model's name, how those are given.
pub fn perhaps_a_name(error: Error) -> Error {
    match error {
        Error::Io { path, source }
            if source.kind() == ErrorKind::NotFound && path.to_str().is_some_and(is_name) =>
        {
            let why = format!("{source}; a model of Hugging Face's hub is named by -hf");
            Error::Io { path, source: io::Error::new(ErrorKind::NotFound, why) }
        }
        error => error,
    }
}

fn is_name(text: &str) -> bool {
    text.contains('/') && !text.ends_with(".gguf") && text.parse::<Name>().is_ok()
}

/// Shows on standard error what is loaded: bars in a terminal, lines elsewhere.
#[derive(Default)]
pub struct Display {
    bar: Option<ProgressBar>,
}

impl Display {
    /// Shows what happens.
    pub fn show(&mut self, event: Event) {
        match event {
            Event::Begin { path, size, done } if io::stderr().is_terminal() => {
                let bar = progress_bar(size).with_message(one_line(path)).with_position(done);
                // The speed is that of what comes now.
                bar.reset_eta();
                self.bar = Some(bar);
            }
            Event::Begin { path, size, done } => note(beginning(path, size, done)),
            Event::At(position) => self.bar.iter().for_each(|bar| bar.set_position(position)),
            Event::End => self.bar.take().iter().for_each(ProgressBar::finish_and_clear),
            Event::Note(text) => match &self.bar {
                Some(bar) => bar.suspend(|| note(text)),
                None => note(text),
            },
        }
    }
}

impl Drop for Display {
    /// What is told next, such as an error, has a line of its own.
    fn drop(&mut self) {
        self.show(Event::End);
    }
}

/// The same for the log of a server, whose standard error may be read by nobody.
pub fn log(event: Event) {
    match event {
        Event::Begin { path, size, done } => tracing::info!("{}", beginning(path, size, done)),
        Event::Note(text) => tracing::warn!("{text}"),
        Event::At(_) => {}
        Event::End => tracing::info!("loaded"),
    }
}

fn beginning(path: &str, size: u64, done: u64) -> String {
    let here = if done > 0 { format!(", {} are here", HumanBytes(done)) } else { String::new() };
    format!("loading {path}, {}{here}", HumanBytes(size))
}

fn progress_bar(size: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left")
            .expect("the template is well-formed");
    let bar = ProgressBar::with_draw_target(Some(size), ProgressDrawTarget::stderr_with_hz(10));
    bar.with_style(style)
}
