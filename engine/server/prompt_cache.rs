//! Files in which prefix caches outlive the server.

use super::config::PromptCacheConfig;
use qernel_core::disk;
use qernel_core::engine::{Engine, Fingerprint};
use qernel_core::error::{Error, Result};
use std::fs::DirBuilder;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes of a file's name that are made of the model's, at most.
const MOST_NAME: usize = 200;

impl PromptCacheConfig {
    /// Makes the folder, for nobody else to read, where it is not there.
    ///
    /// # Errors
    /// [`Error::Io`] where that fails.
    pub(super) fn make_folder(&self) -> Result<()> {
        let mut builder = DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(&self.folder).map_err(|error| Error::io(&self.folder, error))
    }
}

/// The file of a model.
pub(super) struct PromptCache {
    config: PromptCacheConfig,
    path: PathBuf,
    of: Fingerprint,
    /// When it was read or written, and what the engine knew then.
    saved: (Instant, u64),
}

impl PromptCache {
    /// That of the model of this name, from which the engine takes what is there.
    pub(super) fn open(
        config: PromptCacheConfig,
        name: &str,
        of: Fingerprint,
        engine: &mut Engine,
    ) -> Option<Self> {
        if !engine.can_keep_prompts() {
            tracing::warn!(
                "--prompt-cache: {name} shares no beginnings, or is on several GPUs: nothing is kept of it"
            );
            return None;
        }
        let path = config.folder.join(file_name(name));
        let start = Instant::now();
        match disk::reader(&path).and_then(|mut file| engine.take_prompts(&of, &mut file)) {
            Ok(kept) => {
                let (tokens, states, bytes) = (kept.tokens, kept.states, kept.bytes);
                let seconds = start.elapsed().as_secs_f32();
                tracing::info!(
                    tokens,
                    states,
                    bytes,
                    seconds,
                    "prompts of an earlier run from {}",
                    path.display()
                );
            }
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("kept prompts are left out: {}", explain(&path, &error)),
        }
        let saved = (Instant::now(), engine.pool().prefixes().version());
        Some(Self { config, path, of, saved })
    }

    /// Writes the file, where anything is known.
    pub(super) fn save(&mut self, engine: &mut Engine) {
        self.saved.1 = engine.pool().prefixes().version();
        if engine.pool().prefixes().newest_first().next().is_none() {
            return;
        }
        let start = Instant::now();
        let Self { config, path, of, .. } = &*self;
        let mut kept = None;
        let written = disk::save_private(path, |out| {
            kept = Some(engine.keep_prompts(of, config.max_bytes, out)?);
            Ok(())
        });
        match (written, kept) {
            (Ok(()), Some(kept)) => {
                let (tokens, states, bytes) = (kept.tokens, kept.states, kept.bytes);
                let seconds = start.elapsed().as_secs_f32();
                tracing::info!(tokens, states, bytes, seconds, "prompts are kept in {}", path.display());
            }
            (Err(error), _) => tracing::warn!("prompts are not kept: {}", explain(path, &error)),
            _ => {}
        }
        self.saved.0 = Instant::now();
    }

    /// Writes it where that is asked for from time to time, it is time, and something else is known.
    pub(super) fn save_if_due(&mut self, engine: &mut Engine) {
        let (at, version) = self.saved;
        let is_due = self.config.interval.is_some_and(|interval| at.elapsed() >= interval);
        if is_due && version != engine.pool().prefixes().version() {
            self.save(engine);
        }
    }
}

/// What is wrong with a file, by its name.
fn explain(path: &Path, error: &Error) -> String {
    match error {
        Error::Io { .. } | Error::Gguf(_) => error.to_string(),
        _ => format!("{}: {error}", path.display()),
    }
}

/// The name of a model's file: its own, but for what means something to a file system.
fn file_name(model: &str) -> String {
    let mut name = String::new();
    for byte in model.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => name.push(char::from(byte)),
            _ => name += &format!("%{byte:02x}"),
        }
    }
    name.truncate(MOST_NAME);
    name + ".prompts"
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn a_name_is_no_path() {
        assert_eq!(file_name("Qwen3-0.6B"), "Qwen3-0.6B.prompts");
        assert_eq!(file_name("../a b/ü"), "..%2fa%20b%2f%c3%bc.prompts");
        assert_eq!(file_name(&"x".repeat(1000)).len(), 208);
    }
}
