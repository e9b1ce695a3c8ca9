//! From a name to files on the disk.

use crate::Event;
use crate::cache::RepoCache;
use crate::choose::{Choice, choose, parts, sidecar};
use crate::download::Loader;
use crate::environment::Environment;
use crate::http::{Failure, Http, Patience};
use crate::listing::{Listing, Remote};
use crate::name::Name;
use qernel_core::error::{Error, Result};
use qernel_core::folder;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The hub, and the cache.
pub struct Hub {
    pub(crate) environment: Environment,
    http: Http,
    with_sidecar: bool,
}

/// A model that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The file, of several the first, or the folder.
    pub path: PathBuf,
    /// The block that drafts for it, in a file of its own, of several the first: where it was asked for ([`Hub::with_sidecar`]) and there is one.
    pub sidecar: Option<PathBuf>,
    /// Bytes that came for it now.
    pub loaded: u64,
}

impl Hub {
    /// The hub that an environment names. Nothing is asked yet.
    ///
    /// # Errors
    /// [`Error::Request`] where the environment's values are none; [`Error::Io`] for certificates that cannot be read.
    pub fn new(environment: Environment, patience: Patience) -> Result<Self> {
        Ok(Self { http: Http::new(&environment, patience)?, environment, with_sidecar: false })
    }

    /// Whether with a GGUF file comes the block that drafts for it, where its repository has it in a file of its own (`mtp-….gguf`).
    pub fn with_sidecar(self, with_sidecar: bool) -> Self {
        Self { with_sidecar, ..self }
    }

    /// Loads a model, or what of it has changed.
    ///
    /// # Errors
    /// [`Error::Request`] where there is no such model, this user may not have it, or no network is to be used; [`Error::Network`] where the
    /// hub does not answer or what comes is not what it promised; [`Error::Io`] where the cache cannot be written. What has come of a
    /// file stays for the next time.
    pub fn pull(&self, name: &Name, progress: &mut dyn FnMut(Event)) -> Result<Model> {
        if self.environment.is_offline {
            return Err(Error::Request(format!(
                "HF_HUB_OFFLINE is set, so that {name} is not loaded: unset it"
            )));
        }
        self.load(name, progress).map_err(|failure| self.told(failure))
    }

    /// The model as the hub has it now; where it cannot be reached, or is not to be, as it is in the cache.
    ///
    /// # Errors
    /// As [`Hub::pull`], where it is not in the cache either.
    pub fn open(&self, name: &Name, progress: &mut dyn FnMut(Event)) -> Result<Model> {
        if self.environment.is_offline {
            return self.cached(name);
        }
        match self.load(name, progress) {
            Err(Failure::Final(error)) => Err(error),
            Err(failure) => match self.cached(name) {
                Ok(model) => {
                    let (Failure::Unreachable(why) | Failure::Busy(why)) = failure else { return Ok(model) };
                    progress(Event::Note(format!("{name} as it is in the cache, for {why}")));
                    Ok(model)
                }
                Err(_) => Err(self.told(failure)),
            },
            Ok(model) => Ok(model),
        }
    }

    /// The model as it is in the cache.
    ///
    /// # Errors
    /// [`Error::Request`] where it is not there.
    pub fn cached(&self, name: &Name) -> Result<Model> {
        let cache = self.cache(name);
        let mut problem = None;
        for commit in cache.commits_of(name.revision.as_ref()) {
            match self.whole(&cache, name, &commit) {
                Ok(model) => return Ok(model),
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        let cause = problem.map_or_else(|| "nothing of it was loaded".to_owned(), |error| error.to_string());
        Err(Error::Request(format!(
            "{name} is not in the cache ({cause}): `qernel pull {name}` loads it where there is a network"
        )))
    }

    pub(crate) fn cache(&self, name: &Name) -> RepoCache {
        RepoCache::new(&self.environment.cache, &name.repo)
    }

    fn load(&self, name: &Name, progress: &mut dyn FnMut(Event)) -> Result<Model, Failure> {
        let (endpoint, revision) = (&self.environment.endpoint, name.revision.as_ref());
        let listing = Listing::load(&self.http, endpoint, &name.repo, revision, progress)?;
        let paths: BTreeSet<String> = listing.files.keys().cloned().collect();
        let cache = self.cache(name);
        let pull = Pull { hub: self, name, listing: &listing, cache: &cache };
        let folder = cache.snapshot(&listing.commit);
        let model = match choose(name, &paths).map_err(Failure::Final)? {
            Choice::Gguf(mut files) => {
                let path = folder.join(&files[0]);
                let block = self.block(name, &files[0], &paths).transpose().map_err(Failure::Final)?;
                let sidecar = block.as_ref().map(|files| folder.join(&files[0]));
                files.extend(block.into_iter().flatten());
                Model { path, sidecar, loaded: pull.all(&files, progress)? }
            }
            Choice::Folder(small) => {
                let loaded = pull.all(&small, progress)?;
                let weights = folder::weight_files(&folder).map_err(Failure::Final)?;
                let loaded = loaded + pull.all(&weights.into_iter().collect::<Vec<_>>(), progress)?;
                Model { path: folder, sidecar: None, loaded }
            }
        };
        cache.set_commit(revision, &listing.commit).map_err(Failure::Final)?;
        Ok(model)
    }

    /// The files of the block that drafts for a file, where it is asked for.
    fn block(&self, name: &Name, file: &str, paths: &BTreeSet<String>) -> Option<Result<Vec<String>>> {
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let block = self.with_sidecar.then(|| sidecar(file, &paths)).flatten()?;
        Some(parts(name, block, &paths))
    }

    /// The model in a commit of the cache, if all of it is there. A block of which parts are missing is none.
    fn whole(&self, cache: &RepoCache, name: &Name, commit: &str) -> Result<Model> {
        let (folder, paths) = (cache.snapshot(commit), cache.paths(commit));
        let model = |path| Model { path, sidecar: None, loaded: 0 };
        match choose(name, &paths)? {
            Choice::Gguf(files) => {
                let block = self.block(name, &files[0], &paths).and_then(Result::ok);
                let sidecar = block.map(|files| folder.join(&files[0]));
                Ok(Model { sidecar, ..model(folder.join(&files[0])) })
            }
            Choice::Folder(_) => {
                match folder::weight_files(&folder)?.into_iter().find(|file| !paths.contains(file)) {
                    Some(file) => Err(Error::Request(format!("{file} is missing"))),
                    None => Ok(model(folder)),
                }
            }
        }
    }

    /// What people can do about it.
    fn told(&self, failure: Failure) -> Error {
        match failure {
            Failure::Final(error) => error,
            Failure::Busy(why) => Error::Network(format!(
                "{why}: try again later; with a token (HF_TOKEN) more requests are free"
            )),
            Failure::Unreachable(why) => Error::Network(format!(
                "{why}. Look whether there is a network (HTTPS_PROXY is a proxy, SSL_CERT_FILE its certificates); HF_ENDPOINT names another hub than {}, HF_HUB_OFFLINE=1 \
                 takes what is in the cache, and --model takes a file that was loaded by hand",
                self.environment.endpoint
            )),
        }
    }
}

/// The files of one model, on their way.
struct Pull<'a> {
    hub: &'a Hub,
    name: &'a Name,
    listing: &'a Listing,
    cache: &'a RepoCache,
}

impl Pull<'_> {
    /// Loads files and gives them their names; gives the number of bytes that came.
    fn all(&self, paths: &[String], progress: &mut dyn FnMut(Event)) -> Result<u64, Failure> {
        let Hub { environment, http, .. } = self.hub;
        let (repo, commit) = (&self.name.repo, &self.listing.commit);
        let mut remotes = Vec::new();
        for path in paths {
            remotes.push((path, self.remote(path, progress)?));
        }
        let missing =
            remotes.iter().map(|(_, remote)| self.cache.missing(remote)).fold(0, u64::saturating_add);
        self.cache.expect_room(missing).map_err(Failure::Final)?;
        let loader = Loader { http, endpoint: &environment.endpoint, repo, commit, cache: self.cache };
        let mut loaded = 0;
        for (path, remote) in &remotes {
            loaded += loader.load(path, remote, progress)?;
            self.cache.place(commit, path, &remote.hash).map_err(Failure::Final)?;
        }
        Ok(loaded)
    }

    fn remote(&self, path: &str, progress: &mut dyn FnMut(Event)) -> Result<Remote, Failure> {
        let (repo, commit) = (&self.name.repo, &self.listing.commit);
        match self.listing.files.get(path) {
            Some(Some(remote)) => Ok(remote.clone()),
            Some(None) => {
                Remote::ask(&self.hub.http, &self.hub.environment.endpoint, (repo, commit, path), progress)
            }
            None => Err(Failure::Final(Error::Request(format!(
                "{repo} has no {path}, which its index names, or which a folder must have: weights in other forms (.bin, .pth) are not read"
            )))),
        }
    }
}
