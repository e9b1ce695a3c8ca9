//! Importance matrices: for each column of a model's matrices the sum of the squares of what it was multiplied with, over a text.
//!
//! The files are those of llama-imatrix: GGUF with tensors `NAME.in_sum2` and `NAME.counts`, and the older `.dat`, which is read alone.
//! Source: llama.cpp's tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp.

use crate::disk::{self, Access};
use crate::error::{Error, Result};
use crate::gguf::write::Writer;
use crate::gguf::{GgmlType, Gguf};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// Sums over rows of a text, for each matrix of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImportanceMatrix {
    entries: BTreeMap<String, Entry>,
    /// The texts.
    pub datasets: Vec<String>,
    /// Chunks of the texts.
    pub chunk_count: u32,
    /// Tokens of a chunk; 0 where the file does not say.
    pub chunk_size: u32,
}

/// The matrices of one tensor.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    /// Of squares, `[matrices, cols]`.
    sums: Vec<f32>,
    /// Rows that went to each matrix: one number, or one for each.
    counts: Vec<f32>,
}

impl ImportanceMatrix {
    /// Tensors that something is known of.
    pub fn num_entries(&self) -> usize {
        self.entries.len()
    }

    /// Adds rows `[n, cols]` that were multiplied with matrix `index` of the `matrices` of a tensor.
    ///
    /// # Panics
    /// If `index` is not below `matrices`, or `cols` is another than before.
    pub fn add(&mut self, name: &str, index: usize, matrices: usize, rows: &[f32], cols: usize) {
        if !self.entries.contains_key(name) {
            let entry = Entry { sums: vec![0.0; matrices * cols], counts: vec![0.0; matrices] };
            self.entries.insert(name.to_owned(), entry);
        }
        let entry = self.entries.get_mut(name).expect("it was added");
        let sums = &mut entry.sums[index * cols..][..cols];
        for row in rows.chunks_exact(cols) {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
            entry.counts[index] += 1.0;
        }
    }

    /// Matrices that no row went to, of several of a tensor.
    pub fn num_idle(&self) -> usize {
        let counts = self.entries.values().flat_map(|entry| &entry.counts);
        counts.filter(|&&count| count == 0.0).count()
    }

    /// The name of a matrix with a sum that is no number, if there is one.
    pub fn find_not_finite(&self) -> Option<&str> {
        let is_finite = |entry: &Entry| entry.sums.iter().all(|sum| sum.is_finite());
        self.entries.iter().find(|(_, entry)| !is_finite(entry)).map(|(name, _)| &name[..])
    }

    /// The mean square of each column of a tensor's matrices, `[matrices, cols]`, 1 for a matrix that no row went to; `None` where nothing is
    /// known of it.
    ///
    /// # Errors
    /// [`Error::Model`] if the tensor had another shape in the model that the text was read with.
    pub fn of(&self, name: &str, cols: usize, matrices: usize) -> Result<Option<Vec<f32>>> {
        let Some(Entry { sums, counts }) = self.entries.get(name) else { return Ok(None) };
        if cols.checked_mul(matrices) != Some(sums.len()) || !sums.len().is_multiple_of(counts.len()) {
            return Err(Error::Model(format!(
                "the importance matrix is of another model: it has {} values for {name}, whose {matrices} matrices have {cols} columns",
                sums.len()
            )));
        }
        let of_matrix = |(sums, &count): (&[f32], &f32)| {
            let mean = move |&sum: &f32| if count > 0.0 { sum / count } else { 1.0 };
            sums.iter().map(mean).collect::<Vec<_>>()
        };
        let means = sums.chunks((sums.len() / counts.len()).max(1)).zip(counts).flat_map(of_matrix);
        Ok(Some(means.collect()))
    }

    /// Opens a file of either kind.
    ///
    /// # Errors
    /// As [`disk::open`]; [`Error::Gguf`] if it is no importance matrix.
    pub fn open(path: &Path) -> Result<Self> {
        let (data, _) = disk::open(path, Access::Read)?;
        let named = |what: String| {
            Error::Gguf(format!(
                "{}: {what}; expected an importance matrix, as `qernel imatrix` makes one",
                path.display()
            ))
        };
        let read = if data.starts_with(b"GGUF") {
            Self::from_gguf(&Gguf::from_bytes(data)?)
        } else {
            Legacy { rest: &data }.read()
        };
        let matrix = read.map_err(named)?;
        if matrix.entries.is_empty() {
            return Err(named("it is empty".to_owned()));
        }
        match matrix.find_not_finite() {
            Some(name) => Err(named(format!("`{name}` has a sum that is NaN or infinite"))),
            None => Ok(matrix),
        }
    }

    fn from_gguf(gguf: &Gguf) -> Result<Self, String> {
        let values = |name: &str| {
            let tensor = gguf.tensor(name).filter(|tensor| tensor.ggml_type() == GgmlType::F32);
            let data = tensor.and_then(|tensor| tensor.data().ok());
            let data = data.ok_or_else(|| format!("the tensor `{name}` of F32 is missing"))?;
            Ok::<_, String>(
                data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect::<Vec<_>>(),
            )
        };
        let mut entries = BTreeMap::new();
        for name in gguf.tensors().filter_map(|tensor| tensor.name().strip_suffix(SUMS)) {
            let entry = Entry {
                sums: values(&format!("{name}{SUMS}"))?,
                counts: values(&format!("{name}{COUNTS}"))?,
            };
            if entry.counts.is_empty() {
                return Err(format!("`{name}{COUNTS}` is empty"));
            }
            entries.insert(name.to_owned(), entry);
        }
        let number = |key: &str| gguf.get::<u32>(key).map_err(|error| error.to_string());
        let datasets = gguf.get::<Vec<&str>>(DATASETS).map_err(|error| error.to_string())?;
        Ok(Self {
            entries,
            datasets: datasets.unwrap_or_default().into_iter().map(str::to_owned).collect(),
            chunk_count: number(CHUNK_COUNT)?.unwrap_or(0),
            chunk_size: number(CHUNK_SIZE)?.unwrap_or(0),
        })
    }

    /// Writes the file, as llama-imatrix does.
    ///
    /// # Errors
    /// What `out` says.
    pub fn write_to(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let mut writer = Writer::new();
        writer
            .metadata("general.type", "imatrix")
            .metadata(DATASETS, &self.datasets[..])
            .metadata(CHUNK_COUNT, self.chunk_count)
            .metadata(CHUNK_SIZE, self.chunk_size);
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
        for (name, Entry { sums, counts }) in &self.entries {
            let matrices = counts.len() as u64;
            let cols = (sums.len() / counts.len()) as u64;
            writer.tensor(&format!("{name}{SUMS}"), &[matrices, cols], GgmlType::F32, bytes(sums)).tensor(
                &format!("{name}{COUNTS}"),
                &[matrices, 1],
                GgmlType::F32,
                bytes(counts),
            );
        }
        writer.write_to(out)
    }
}

/// What is left of a file of the older kind: numbers of entries, then of each the length of its name, the name, how often it was added to,
/// how many values, the means times that; and at the end chunks, and the name of the text.
struct Legacy<'a> {
    rest: &'a [u8],
}

impl<'a> Legacy<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or("it ends too early, or is none")?;
        self.rest = rest;
        Ok(taken)
    }

    /// A number that is not negative.
    fn number(&mut self) -> Result<usize, String> {
        let bytes = self.take(4)?.try_into().expect("four bytes");
        usize::try_from(i32::from_le_bytes(bytes)).map_err(|_| "a number is negative".to_owned())
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.number()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a name is not UTF-8".to_owned())
    }

    fn read(mut self) -> Result<ImportanceMatrix, String> {
        let mut matrix = ImportanceMatrix::default();
        for _ in 0..self.number()? {
            let name = self.text()?;
            let calls = self.number()?;
            let length = self.number()?.checked_mul(4).ok_or("a number is too large")?;
            let values = self.take(length)?.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
            // Sums of means over calls: to be divided by their number, as the others are by that of rows.
            let counts = vec![calls.max(1) as f32];
            matrix.entries.insert(name, Entry { sums: values.collect(), counts });
        }
        if !self.rest.is_empty() {
            matrix.chunk_count = self.number()? as u32;
            matrix.datasets.extend(self.text().ok().filter(|name| !name.is_empty()));
        }
        Ok(matrix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix() -> ImportanceMatrix {
        let mut matrix = ImportanceMatrix {
            datasets: vec!["a.txt".to_owned()],
            chunk_count: 3,
            chunk_size: 512,
            ..ImportanceMatrix::default()
        };
        matrix.add("blk.0.attn_q.weight", 0, 1, &[1.0, 2.0, 3.0, 4.0], 2);
        matrix.add("blk.0.ffn_up_exps.weight", 1, 3, &[5.0, 6.0], 2);
        matrix
    }

    fn file(name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("qernel-importance-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn open(name: &str, bytes: &[u8]) -> Result<ImportanceMatrix> {
        let path = file(name, bytes);
        let opened = ImportanceMatrix::open(&path);
        std::fs::remove_file(path).unwrap();
        opened
    }

    #[test]
    fn means_are_those_of_squares() {
        let matrix = matrix();
        assert_eq!(matrix.of("blk.0.attn_q.weight", 2, 1).unwrap().unwrap(), [5.0, 10.0]);
        let of_experts = matrix.of("blk.0.ffn_up_exps.weight", 2, 3).unwrap().unwrap();
        assert_eq!(of_experts, [1.0, 1.0, 25.0, 36.0, 1.0, 1.0]);
        assert_eq!(matrix.of("output.weight", 2, 1).unwrap(), None);
        let error = matrix.of("blk.0.attn_q.weight", 4, 1).unwrap_err().to_string();
        assert!(error.contains("of another model"), "{error}");
    }

    #[test]
    fn files_are_read_as_they_were_written() {
        let mut bytes = Vec::new();
        matrix().write_to(&mut bytes).unwrap();
        assert_eq!(open("new", &bytes).unwrap(), matrix());
        for cut in [3, 20, bytes.len() - 40] {
            assert!(matches!(open("cut", &bytes[..cut]), Err(Error::Gguf(_))), "{cut}");
        }
    }

    #[test]
    fn older_files_are_read_and_broken_ones_refused() {
        let mut bytes = Vec::new();
        let number = |value: i32| value.to_le_bytes();
        bytes.extend([number(1), number(5)].concat());
        bytes.extend(b"a.b.c");
        bytes.extend([number(4), number(2)].concat());
        bytes.extend([8.0_f32, 2.0].map(f32::to_le_bytes).concat());
        let without_end = bytes.clone();
        bytes.extend([number(7), number(4)].concat());
        bytes.extend(b"text");
        let matrix = open("old", &bytes).unwrap();
        assert_eq!(matrix.of("a.b.c", 2, 1).unwrap().unwrap(), [2.0, 0.5]);
        assert_eq!((matrix.chunk_count, &matrix.datasets[..]), (7, &["text".to_owned()][..]));
        assert_eq!(open("shorter", &without_end).unwrap().chunk_count, 0);
        for cut in 0..without_end.len() {
            assert!(matches!(open("old-cut", &bytes[..cut]), Err(Error::Gguf(_))), "{cut}");
        }
        let not_finite = bytes.len() - 12 - 8..bytes.len() - 12 - 4;
        bytes[not_finite].copy_from_slice(&f32::NAN.to_le_bytes());
        let error = open("nan", &bytes).unwrap_err().to_string();
        assert!(error.contains("NaN"), "{error}");
        for claims in [[number(i32::MAX), number(i32::MAX)], [number(1), number(-1)]] {
            assert!(matches!(open("claims", &claims.concat()), Err(Error::Gguf(_))));
        }
    }
}
