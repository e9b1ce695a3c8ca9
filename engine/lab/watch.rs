//! From a saved kernel to its PTX: what `lab watch` compiles, and when.

use super::source::Checkout;
use crate::cuda;
use crate::error::{Error, Result};
use cuda_builder::{CudaBuilder, NvvmArch};
use notify::{RecursiveMode, Watcher};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Folders whose files make kernels.
const FOLDERS: [&str; 3] = ["gpu-kernels/src", "cuda/cuda_std/src", "cuda/cuda_std_macros/src"];

/// An editor writes a file in several steps: changes that follow each other so closely are one.
const SETTLED: Duration = Duration::from_millis(150);

/// Compiles the kernels of a checkout for one target, keeping what did not change.
pub struct Rebuild {
    kernel_crate: PathBuf,
    folder: PathBuf,
    arch: NvvmArch,
    left_out: Vec<String>,
}

impl Rebuild {
    /// For `target`, one of [`qernel_ptx::TARGETS`], without the kernels that `op` has no need of; what is kept between
    /// compilations lies in the checkout's `target/`.
    ///
    /// # Errors
    /// [`Error::Request`] for another target.
    pub fn new(checkout: &Checkout, target: &str, op: &str) -> Result<Self> {
        let known = [NvvmArch::Compute80, NvvmArch::Compute90a];
        let arch = known.into_iter().find(|arch| arch.target_cpu() == target).ok_or_else(|| {
            Error::Request(format!(
                "expected {} as the target, found {target:?}",
                qernel_ptx::TARGETS.join(" or ")
            ))
        })?;
        let left_out = left_out(op);
        // What is left out decides what cargo may keep: most operations share a folder.
        let name = if EXPENSIVE.contains(&op) { op } else { "common" };
        let folder = checkout.path("target/lab").join(name);
        Ok(Self { kernel_crate: checkout.path("gpu-kernels"), folder, arch, left_out })
    }

    /// Compiles; the PTX, with source lines. `Ok(Err(…))` is what the compiler says of the kernels.
    ///
    /// # Errors
    /// [`Error::Io`] if files cannot be written, [`Error::Device`] if there is no device compiler.
    pub fn run(&self) -> Result<Result<String, String>> {
        std::fs::create_dir_all(&self.folder).map_err(|error| Error::io(&self.folder, error))?;
        let ptx = self.folder.join(format!("gpu-kernels.{}.ptx", self.arch.target_cpu()));
        let builder = CudaBuilder::new(&self.kernel_crate).arch(self.arch).out_dir(&self.folder);
        match builder.leave_out(&self.left_out).generate_line_info(true).copy_to(&ptx).build() {
            Ok(built) => {
                std::fs::read_to_string(&built.path).map(Ok).map_err(|error| Error::io(&built.path, error))
            }
            Err(cuda_builder::Error::Kernels { output, .. }) => Ok(Err(output)),
            Err(error @ (cuda_builder::Error::Unresolved { .. } | cuda_builder::Error::Ptx { .. })) => {
                Ok(Err(error.to_string()))
            }
            Err(error) => Err(Error::Device(error.to_string())),
        }
    }

    /// Writes what the driver is to load: the module without source lines.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write_for_driver(&self, ptx: &str) -> Result<PathBuf> {
        let path = self.folder.join(format!("run.{}.ptx", self.arch.target_cpu()));
        std::fs::write(&path, cuda_builder::without_line_info(ptx))
            .map_err(|error| Error::io(&path, error))?;
        Ok(path)
    }
}

/// Operations whose kernels take the compiler most of the time that it takes for all, and that no other operation's check needs.
const EXPENSIVE: [&str; 7] =
    ["attention", "argmax", "sample", "matmul_add", "norm_gate_up", "norm_matmul", "norm_qkv_rope"];

/// What the names of kernels begin with that are not needed for checking and timing `op`.
pub fn left_out(op: &str) -> Vec<String> {
    let others =
        cuda::operations().into_iter().filter(|other| other.name != op && EXPENSIVE.contains(&other.name));
    let kernels = others.flat_map(|other| other.variants).flat_map(|variant| variant.kernels);
    let mut names: Vec<String> = kernels.map(|kernel| kernel.name.to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

/// Waits for changes in the folders that kernels are made from.
pub struct Changes {
    events: Receiver<PathBuf>,
    // Dropped, it stops watching.
    _watcher: notify::RecommendedWatcher,
}

impl Changes {
    /// Begins to watch.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses to.
    pub fn of(checkout: &Checkout) -> Result<Self> {
        let (sender, events) = channel();
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: notify::Error| Error::io(path, std::io::Error::other(error))
        };
        let root = checkout.root();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            if matches!(event.kind, notify::EventKind::Access(_)) {
                return;
            }
            for path in event.paths.into_iter().filter(|path| is_source(path)) {
                // Nobody listens any more: the program is ending.
                let _ = sender.send(path);
            }
        })
        .map_err(failed(root))?;
        for folder in FOLDERS {
            let folder = checkout.path(folder);
            watcher.watch(&folder, RecursiveMode::Recursive).map_err(failed(&folder))?;
        }
        Ok(Self { events, _watcher: watcher })
    }

    /// The files that changed once they have settled; `None` if `ended` said so first.
    pub fn next(&self, ended: impl Fn() -> bool) -> Option<Vec<PathBuf>> {
        let mut changed: Vec<PathBuf> = Vec::new();
        let mut last = Instant::now();
        loop {
            if ended() {
                return None;
            }
            match self.events.recv_timeout(Duration::from_millis(50)) {
                Ok(path) => {
                    last = Instant::now();
                    if !changed.contains(&path) {
                        changed.push(path);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if changed.is_empty() || last.elapsed() < SETTLED => {}
                Err(RecvTimeoutError::Timeout) => return Some(changed),
            }
        }
    }
}

/// Not an editor's temporary file.
fn is_source(path: &Path) -> bool {
    let hidden =
        path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with(['.', '#']));
    !hidden && path.extension().is_some_and(|end| end == "rs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::kernels::entries;

    #[test]
    fn what_an_operation_needs_is_compiled() {
        let all = qernel_ptx::ptx("sm_80").unwrap();
        for (op, needed, not_needed) in [
            ("rms_norm", "rms_norm_bf16_plain", "norm_matmul_f16_one"),
            ("matmul", "split_f32_bf16_plain", "attention_prefill_f16_tiled_h64"),
            ("attention", "attention_decode_merge_f32_plain", "top_p_f32_plain"),
            ("norm_qkv_rope", "matmul_bf16_gemv", "argmax_f32_plain"),
        ] {
            let left_out = left_out(op);
            let compiled = |kernel: &str| !left_out.iter().any(|prefix| kernel.starts_with(prefix));
            assert!(entries(all).any(|name| name == needed) && compiled(needed), "{op} needs {needed}");
            assert!(
                entries(all).any(|name| name == not_needed) && !compiled(not_needed),
                "{op}: {not_needed}"
            );
            let info = cuda::operations().into_iter().find(|other| other.name == op).unwrap();
            let own = entries(all).filter(|name| info.variants.iter().any(|variant| variant.launches(name)));
            for kernel in own {
                // cuBLAS's variant of matmul launches a conversion.
                assert!(compiled(kernel), "{op}: its own {kernel}");
            }
        }
    }

    #[test]
    fn a_saved_file_is_reported_once_and_temporary_files_are_not() {
        let folder = tempfile::tempdir().unwrap();
        for inside in FOLDERS.iter().chain(&["engine/cuda"]) {
            std::fs::create_dir_all(folder.path().join(inside)).unwrap();
        }
        let kernels = folder.path().join("gpu-kernels/src");
        std::fs::write(kernels.join("lib.rs"), "").unwrap();
        let changes = Changes::of(&Checkout::around(folder.path()).unwrap()).unwrap();
        std::fs::write(kernels.join(".add.rs.swp"), "x").unwrap();
        for text in ["x", "xy"] {
            std::fs::write(kernels.join("add.rs"), text).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let changed = changes.next(|| Instant::now() > deadline).expect("the change is seen");
        assert_eq!(changed.len(), 1);
        assert!(changed[0].ends_with("add.rs"));
        assert_eq!(changes.next(|| true), None);
    }
}
