//! Writes the file that a plan describes: some rows at a time, on all cores.

use super::mixture::Mixture;
use super::plan::{Step, expect_encoders};
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::gguf::Gguf;
use crate::gguf::write::{Header, StreamWriter, Value};
use crate::host_memory;
use crate::importance::ImportanceMatrix;
use rayon::prelude::*;
use std::io::{self, Write};

/// Values of the rows that are encoded before they are written: their blocks take 64 MiB at most.
const VALUES_AT_ONCE: usize = 1 << 24;

/// `general.quantization_version` of ggml.
const QUANTIZATION_VERSION: u32 = 2;

/// How far the values of a tensor are from what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// The sum of the squares of all values.
    pub squares: f64,
    /// That of their differences.
    pub differences: f64,
}

impl Difference {
    /// The root mean square of the differences, as a share of that of the values.
    pub fn relative(self) -> f64 {
        if self.squares > 0.0 { (self.differences / self.squares).sqrt() } else { 0.0 }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { squares: self.squares + other.squares, differences: self.differences + other.differences }
    }
}

/// What the new file says of itself: all that the old one does, but for its parts, and what it was made with.
fn metadata(
    gguf: &Gguf,
    mixture: Mixture,
    importance: Option<(&ImportanceMatrix, &str)>,
) -> Vec<(String, Value)> {
    let is_kept = |key: &str| {
        !key.starts_with("split.")
            && !key.starts_with("quantize.imatrix.")
            && !["general.file_type", "general.quantization_version"].contains(&key)
    };
    let kept = gguf.metadata().filter(|(key, _)| is_kept(key));
    let mut metadata: Vec<(String, Value)> =
        kept.map(|(key, value)| (key.to_owned(), value.into())).collect();
    let mut add = |key: &str, value: Value| metadata.push((key.to_owned(), value));
    add("general.quantization_version", QUANTIZATION_VERSION.into());
    add("general.file_type", mixture.file_type().into());
    if let Some((importance, file)) = importance {
        add("quantize.imatrix.file", file.into());
        if let Some(dataset) = importance.datasets.first() {
            add("quantize.imatrix.dataset", dataset.as_str().into());
        }
        add("quantize.imatrix.entries_count", (importance.num_entries() as u32).into());
        add("quantize.imatrix.chunks_count", importance.chunk_count.into());
    }
    metadata
}

/// How far the work is.
#[derive(Debug)]
pub enum Progress<'a> {
    /// Another part of a tensor is written, of so many bytes.
    Bytes(u64),
    /// All of a tensor is written; how far its values are from what they were, `None` if it was copied.
    Tensor(&'a Step<'a>, Option<Difference>),
}

/// Writes the file of `steps`, which are a plan of `gguf`. `importance` is a matrix and the name of its file.
///
/// # Errors
/// Those of `progress`; [`Error::NotFinite`] naming a tensor with values that are NaN or infinite, or too large for the new format;
/// [`Error::Model`] if the importance matrix is of another model; as [`expect_encoders`]; [`Error::Io`] for `path`, which is where `out` leads.
pub fn write(
    gguf: &Gguf,
    steps: &[Step],
    mixture: Mixture,
    importance: Option<(&ImportanceMatrix, &str)>,
    (path, out): (&std::path::Path, &mut dyn Write),
    progress: &mut dyn FnMut(Progress) -> Result<()>,
) -> Result<()> {
    expect_encoders(steps)?;
    let failed = |error: io::Error| Error::io(path, error);
    let alignment = u32::try_from(gguf.alignment()).unwrap_or(crate::gguf::DEFAULT_ALIGNMENT);
    let mut header = Header::new(alignment, metadata(gguf, mixture, importance));
    for step in steps {
        let to = step.formats.map_or(step.tensor.ggml_type(), |[_, to]| to.ggml_type());
        header.tensor(step.tensor.name(), &step.tensor.shape(), to, step.num_bytes);
    }
    let mut writer = StreamWriter::new(out, &header).map_err(failed)?;
    for step in steps {
        let difference = match step.formats {
            None => {
                writer.write(&step.tensor.data()?).map_err(failed)?;
                progress(Progress::Bytes(step.num_bytes))?;
                None
            }
            Some(formats) => {
                let matrix = Conversion::new(step, formats, importance.map(|(importance, _)| importance))?;
                Some(matrix.run(&mut |blocks| {
                    writer.write(blocks).map_err(failed)?;
                    progress(Progress::Bytes(blocks.len() as u64))
                })?)
            }
        };
        progress(Progress::Tensor(step, difference))?;
    }
    writer.finish().map_err(failed)
}

/// Matrices of one tensor on their way from one format to another.
struct Conversion<'a> {
    name: &'a str,
    from: MatrixFormat,
    to: MatrixFormat,
    cols: usize,
    rows_of_matrix: usize,
    data: bytes::Bytes,
    /// As [`Step::scales`].
    scales: &'a [f32],
    /// Of each column of each matrix.
    importance: Option<Vec<f32>>,
}

impl<'a> Conversion<'a> {
    fn new(
        step: &'a Step,
        [from, to]: [MatrixFormat; 2],
        importance: Option<&ImportanceMatrix>,
    ) -> Result<Self> {
        let tensor = &step.tensor;
        let shape = tensor.shape();
        // Fits: as many values as the file holds.
        let [rows_of_matrix, cols] =
            [shape[shape.len() - 2], shape[shape.len() - 1]].map(|size| size as usize);
        let matrices = shape[..shape.len() - 2].iter().product::<u64>() as usize;
        let importance = match importance {
            Some(importance) => importance.of(tensor.name(), cols, matrices)?,
            None => None,
        };
        Ok(Self {
            name: tensor.name(),
            from,
            to,
            cols,
            rows_of_matrix,
            data: tensor.data()?,
            scales: &step.scales,
            importance,
        })
    }

    /// Encodes all rows; `write` takes their blocks in order.
    fn run(&self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Difference> {
        let unsuitable = || Error::Model(format!("{}: its rows are no whole blocks", self.name));
        let [from_bytes, to_bytes] = [self.from, self.to].map(|format| format.row_bytes(self.cols));
        let (from_bytes, to_bytes) = from_bytes.zip(to_bytes).ok_or_else(unsuitable)?;
        if from_bytes == 0 || to_bytes == 0 {
            return Ok(Difference::default());
        }
        let at_once = (VALUES_AT_ONCE / self.cols).max(1);
        let mut blocks = Vec::new();
        let mut sum = Difference::default();
        for (slab, rows) in self.data.chunks(at_once * from_bytes).enumerate() {
            let num_bytes = rows.len() / from_bytes * to_bytes;
            let more = num_bytes.saturating_sub(blocks.len());
            host_memory::reserve(self.name, &mut blocks, more)?;
            blocks.resize(num_bytes, 0);
            let rows = rows.par_chunks_exact(from_bytes).zip(blocks.par_chunks_exact_mut(to_bytes));
            let differences = rows
                .enumerate()
                .map_init(
                    || [vec![0.0; self.cols], vec![0.0; self.cols]],
                    |scratch, (i, (from, to))| self.row(slab * at_once + i, from, to, scratch),
                )
                .collect::<Result<Vec<_>>>()?;
            sum = differences.into_iter().fold(sum, Difference::plus);
            write(&blocks)?;
        }
        Ok(sum)
    }

    /// Row `i` of all matrices.
    fn row(
        &self,
        i: usize,
        from: &[u8],
        to: &mut [u8],
        [values, decoded]: &mut [Vec<f32>; 2],
    ) -> Result<Difference> {
        let matrix = i / self.rows_of_matrix;
        self.from.decode(from, values);
        if let Some(&scale) = self.scales.get(matrix).or(self.scales.first()) {
            values.iter_mut().for_each(|value| *value *= scale);
        }
        let importance = self.importance.as_ref().map(|all| &all[matrix * self.cols..][..self.cols]);
        self.to.encode_row(values, importance, to);
        self.to.decode(to, decoded);
        let mut row = Difference::default();
        for (&value, &decoded) in values.iter().zip(&*decoded) {
            row.squares += f64::from(value).powi(2);
            row.differences += f64::from(value - decoded).powi(2);
        }
        if !(row.squares + row.differences).is_finite() {
            let is_finite = values.iter().all(|value| value.is_finite());
            let what = if is_finite {
                "values too large for"
            } else {
                "values that are NaN or infinite; no use for"
            };
            return Err(Error::NotFinite(format!("{}: row {i} has {what} {}", self.name, self.to)));
        }
        Ok(row)
    }
}
