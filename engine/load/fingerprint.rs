//! What a model is known by, without reading all of it.

use super::runner::RunnerOptions;
use bytes::Bytes;
use qernel_core::engine::Fingerprint;
use qernel_core::error::Result;
use qernel_core::gguf::{Gguf, Tensor};
use qernel_core::weights::Weights;
use std::time::UNIX_EPOCH;

/// Bytes at the beginning and at the end of each tensor that are looked at.
const SAMPLE: usize = 4096;
/// A tensor that no file has as it is is made to be looked at where it has no more bytes: norms and biases.
const MOST_MADE: u64 = 1 << 20;

/// Of the program's version, metadata, tensors (names, types, shapes and some of their data; all of it where the model is in no file), sizes and
/// times of the files, adapters, and the options that change what is computed.
///
/// # Errors
/// As [`Tensor::data`].
pub(crate) fn fingerprint(gguf: &Gguf, weights: &Weights, options: &RunnerOptions) -> Result<Fingerprint> {
    let mut parts =
        vec![Bytes::from_static(env!("CARGO_PKG_VERSION").as_bytes()), options_that_matter(options).into()];
    parts.extend(gguf.metadata_bytes().map(Bytes::copy_from_slice));
    let watch = gguf.watch();
    for stamp in watch.stamps() {
        let since = stamp.modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        parts.push(format!("{} {since:?}", stamp.size).into());
    }
    let whole = watch.stamps().next().is_none();
    for tensor in gguf.tensors() {
        parts.push(format!("{tensor:?}").into());
        parts.extend(samples(&tensor, whole)?);
    }
    for adapter in weights.adapters() {
        parts.push(format!("adapter {}", adapter.updates.len()).into());
        for (name, update) in &adapter.updates {
            parts.push(format!("{name} {}", update.scale).into());
            parts.extend([update.a.data.clone(), update.b.data.clone()]);
        }
    }
    Ok(Fingerprint::of(parts))
}

/// Some of a tensor's data.
fn samples(tensor: &Tensor, whole: bool) -> Result<Vec<Bytes>> {
    let is_read = match tensor.num_bytes() {
        Some(bytes) => !tensor.is_made() || bytes <= MOST_MADE,
        None => false,
    };
    if !is_read {
        return Ok(Vec::new());
    }
    let data = tensor.data()?;
    if whole || data.len() <= 2 * SAMPLE {
        return Ok(vec![data]);
    }
    Ok(vec![data.slice(..SAMPLE), data.slice(data.len() - SAMPLE..)])
}

fn options_that_matter(options: &RunnerOptions) -> String {
    let RunnerOptions { dtype, cpu_blocks, cpu_moe, .. } = options;
    #[cfg(feature = "cuda")]
    let kernels = &options.kernels;
    #[cfg(not(feature = "cuda"))]
    let kernels = ();
    format!("{dtype:?} {cpu_blocks:?} {cpu_moe} {kernels:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::with_adapters;
    use crate::open_gguf;
    use qernel_core::config::Config;
    use qernel_core::disk::Access;
    use qernel_core::gguf::write::Value;
    use qernel_core::testing::TinyModel;
    use std::fs::File;
    use std::path::Path;

    fn of(path: &Path, access: Access, change: impl FnOnce(&mut Gguf)) -> Fingerprint {
        let mut gguf = open_gguf(Some(path), access).unwrap();
        change(&mut gguf);
        let config = Config::from_gguf(&gguf).unwrap();
        let weights = with_adapters(Weights::from_gguf(&gguf, &config).unwrap(), &config, &[]).unwrap();
        fingerprint(&gguf, &weights, &RunnerOptions::default()).unwrap()
    }

    #[test]
    fn models_are_told_from_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, seed| {
            let path = folder.path().join(name);
            std::fs::write(&path, TinyModel { seed, ..TinyModel::default() }.to_bytes()).unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(UNIX_EPOCH).unwrap();
            path
        };
        let (one, other) = (write("one", 1), write("other", 2));
        let plain = of(&one, Access::Map, |_| ());
        assert_eq!(plain, of(&one, Access::Read, |_| ()));
        assert_ne!(plain, of(&other, Access::Map, |_| ()), "equal sizes and times, other weights");
        let key = "general.name";
        assert_ne!(plain, of(&one, Access::Map, |gguf| gguf.set_metadata(key, &Value::from("x")).unwrap()));
        File::options().write(true).open(&one).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
        assert_ne!(plain, of(&one, Access::Map, |_| ()));

        let gguf = TinyModel::default().gguf();
        let weights = Weights::from_gguf(&gguf, &Config::from_gguf(&gguf).unwrap()).unwrap();
        let with = |options: &RunnerOptions| fingerprint(&gguf, &weights, options).unwrap();
        let exact = RunnerOptions { cpu_moe: 1, ..RunnerOptions::default() };
        assert_ne!(with(&RunnerOptions::default()), with(&exact));
    }
}
