//! A folder of models for a server, which a test can hold back and limit.

use crate::client::*;
use qernel::disk::Access;
use qernel::error::{Error, Result};
use qernel::load::{ModelsFolder, RunnerOptions, model_bytes, open_gguf};
use qernel::server::{ListedModel, ModelSource, Room, ServedModel};
use qernel::testing::TinyModel;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// The models of a folder, as a test has them opened.
pub struct Folder {
    folder: ModelsFolder,
    pub(super) path: TempDir,
    max_num_sequences: usize,
    controls: Mutex<BTreeMap<String, Arc<Control>>>,
    /// Nothing is loaded while it is true.
    pub(super) is_held: AtomicBool,
    /// Models that there is memory for; 0: enough.
    pub(super) memory: AtomicUsize,
}

impl Folder {
    /// The embedded model (`haiku`), and models with random weights by these names.
    pub fn new(names: &[(&str, u64)]) -> Arc<Self> {
        let path = TempDir::new().unwrap();
        let haiku = concat!(env!("CARGO_MANIFEST_DIR"), "/models/haiku/haiku.gguf");
        std::os::unix::fs::symlink(haiku, path.path().join("haiku.gguf")).unwrap();
        let folder = Self {
            folder: ModelsFolder::new(path.path(), None).unwrap(),
            path,
            max_num_sequences: config().max_num_sequences,
            controls: Mutex::default(),
            is_held: AtomicBool::new(false),
            memory: AtomicUsize::new(0),
        };
        names.iter().for_each(|(name, seed)| folder.write(name, *seed));
        Arc::new(folder)
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.path().join(format!("{name}.gguf"))
    }

    /// Writes a model beside the older one, and then in its place.
    pub fn write(&self, name: &str, seed: u64) {
        let model = TinyModel { seed, hidden_size: 128, intermediate_size: 128, ..TinyModel::default() };
        std::fs::write(self.path.path().join("new"), model.to_bytes()).unwrap();
        std::fs::rename(self.path.path().join("new"), self.file(name)).unwrap();
    }

    pub(super) fn control(&self, name: &str) -> Arc<Control> {
        Arc::clone(self.controls.lock().unwrap().entry(name.to_owned()).or_default())
    }

    /// Models whose weights are held by somebody.
    pub(super) fn in_memory(&self) -> usize {
        self.controls.lock().unwrap().values().filter(|control| Arc::strong_count(control) > 1).count()
    }
}

impl ModelSource for Folder {
    fn list(&self) -> Result<Vec<ListedModel>> {
        let models = self.folder.list()?.into_iter();
        Ok(models.map(|model| ListedModel { name: model.name, version: model.version }).collect())
    }

    fn check(&self, name: &str) -> Result<u64> {
        model_bytes(&open_gguf(Some(&self.file(name)), Access::Map)?, &RunnerOptions::default())
    }

    fn open(&self, name: &str, room: Room) -> Result<ServedModel> {
        while self.is_held.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let memory = self.memory.load(Ordering::Relaxed);
        if memory > 0 && self.in_memory() >= memory {
            assert!(!room.is_last, "what others held is free");
            return Err(Error::Memory("as much as a test has".into()));
        }
        let found = self.folder.find(name)?.expect("it was listed");
        open_file(&found.path, self.max_num_sequences, self.control(name))
    }

    fn explain(&self, error: &Error) -> String {
        error.to_string().replace(&format!("{}/", self.path.path().display()), "")
    }
}
