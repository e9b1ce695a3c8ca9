//! Models in one file from several, and in several from one: the tensors are copied as they are.

use super::super::{DEFAULT_ALIGNMENT, Gguf, Tensor};
use super::{Header, StreamWriter, Value};
use crate::error::{Error, Result};
use std::io::Write;
use std::path::Path;

/// Where a model is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartSize {
    /// Tensors of a part at most.
    Tensors(usize),
    /// Bytes of tensors of a part at most; one that is larger has a part of its own.
    Bytes(u64),
}

/// All metadata but what a part says of itself.
fn metadata(gguf: &Gguf) -> Vec<(String, Value)> {
    let whole = gguf.metadata().filter(|(key, _)| !key.starts_with("split."));
    whole.map(|(key, value)| (key.to_owned(), value.into())).collect()
}

/// Writes a file with this metadata and these tensors; `path` is where `out` leads.
fn copy(
    gguf: &Gguf,
    metadata: Vec<(String, Value)>,
    tensors: &[Tensor],
    path: &Path,
    out: &mut dyn Write,
) -> Result<()> {
    let failed = |error| Error::io(path, error);
    let alignment = u32::try_from(gguf.alignment()).unwrap_or(DEFAULT_ALIGNMENT);
    let mut header = Header::new(alignment, metadata);
    for tensor in tensors {
        let num_bytes = match tensor.num_bytes() {
            Some(num_bytes) => num_bytes,
            None => tensor.data()?.len() as u64,
        };
        header.tensor(tensor.name(), &tensor.shape(), tensor.ggml_type(), num_bytes);
    }
    let mut writer = StreamWriter::new(out, &header).map_err(failed)?;
    for tensor in tensors {
        writer.write(&tensor.data()?).map_err(failed)?;
    }
    writer.finish().map_err(failed)
}

/// Writes all parts of a model as one file.
///
/// # Errors
/// [`Error::Gguf`] if a tensor has a type whose size is not known; [`Error::Io`] for `path`, which is where `out` leads.
pub fn merge(gguf: &Gguf, path: &Path, out: &mut dyn Write) -> Result<()> {
    copy(gguf, metadata(gguf), &gguf.tensors().collect::<Vec<_>>(), path, out)
}

/// A model cut into parts.
pub struct Parts<'a> {
    gguf: &'a Gguf,
    tensors: Vec<Vec<Tensor<'a>>>,
}

impl<'a> Parts<'a> {
    /// Cuts a model, its tensors in their order.
    ///
    /// # Errors
    /// [`Error::Request`] if that makes more parts than file names have room for, or they may hold nothing.
    pub fn new(gguf: &'a Gguf, size: PartSize) -> Result<Self> {
        if matches!(size, PartSize::Tensors(0) | PartSize::Bytes(0)) {
            return Err(Error::Request("expected parts that hold at least one tensor or byte".to_owned()));
        }
        let mut tensors: Vec<Vec<Tensor>> = vec![Vec::new()];
        let mut bytes = 0;
        for tensor in gguf.tensors() {
            let more = tensor.num_bytes().unwrap_or(0);
            let last = tensors.last_mut().expect("there is one");
            let is_full = match size {
                PartSize::Tensors(count) => last.len() == count,
                PartSize::Bytes(most) => !last.is_empty() && bytes + more > most,
            };
            if is_full {
                tensors.push(vec![tensor]);
                bytes = more;
            } else {
                last.push(tensor);
                bytes += more;
            }
        }
        if tensors.len() > usize::from(u16::MAX) {
            return Err(Error::Request(format!(
                "{} parts are more than 65535; take larger ones",
                tensors.len()
            )));
        }
        Ok(Self { gguf, tensors })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.tensors.len()
    }

    /// Writes part `i`.
    ///
    /// # Errors
    /// As [`merge`].
    ///
    /// # Panics
    /// If there are not so many.
    pub fn write(&self, i: usize, path: &Path, out: &mut dyn Write) -> Result<()> {
        // No more than 65,535.
        let [no, count] = [i, self.count()].map(|number| number as u16);
        let num_tensors: usize = self.tensors.iter().map(Vec::len).sum();
        let mut metadata = if i == 0 { metadata(self.gguf) } else { Vec::new() };
        if i > 0 && self.gguf.alignment() != u64::from(DEFAULT_ALIGNMENT) {
            metadata.push(("general.alignment".to_owned(), (self.gguf.alignment() as u32).into()));
        }
        metadata.push(("split.no".to_owned(), no.into()));
        metadata.push(("split.count".to_owned(), count.into()));
        metadata.push(("split.tensors.count".to_owned(), (num_tensors as i32).into()));
        copy(self.gguf, metadata, &self.tensors[i], path, out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Writer;
    use super::*;
    use crate::gguf::GgmlType;

    fn model() -> Gguf {
        let mut writer = Writer::new();
        writer.alignment(64).metadata("general.architecture", "qwen2");
        for (i, bytes) in [16, 400, 16, 16].into_iter().enumerate() {
            writer.tensor(&format!("t{i}"), &[bytes / 4], GgmlType::F32, vec![i as u8; bytes as usize]);
        }
        Gguf::from_bytes(writer.to_bytes().into()).unwrap()
    }

    #[test]
    fn parts_are_put_together_again() {
        let gguf = model();
        let whole = |gguf: &Gguf| {
            let mut bytes = Vec::new();
            merge(gguf, Path::new("whole"), &mut bytes).unwrap();
            bytes
        };
        for (size, count) in [(PartSize::Tensors(3), 2), (PartSize::Bytes(40), 3), (PartSize::Bytes(1000), 1)]
        {
            let folder = tempfile::tempdir().unwrap();
            let parts = Parts::new(&gguf, size).unwrap();
            assert_eq!(parts.count(), count, "{size:?}");
            let path = |i: usize| folder.path().join(format!("m-{:05}-of-{count:05}.gguf", i + 1));
            for i in 0..count {
                let mut bytes = Vec::new();
                parts.write(i, &path(i), &mut bytes).unwrap();
                std::fs::write(path(i), bytes).unwrap();
            }
            let opened = Gguf::open(path(count - 1)).unwrap();
            assert_eq!((opened.num_parts(), opened.alignment()), (count, 64));
            assert_eq!(whole(&opened), whole(&gguf), "{size:?}");
        }
        assert!(Parts::new(&gguf, PartSize::Tensors(0)).is_err());
    }
}
