//! How the bytes of a tensor are made of those of the folder, once they are asked for.

use super::fault;
use super::fp8::{self, Scales};
use super::grouped::{Grouped, Held};
use super::safetensors::{Dtype, Stored};
use crate::error::Result;
use crate::formats::MatrixFormat;
use crate::host_memory;
use bytes::Bytes;
use half::{bf16, f16};
use rayon::prelude::*;
use std::sync::Arc;

/// Values that a thread makes at least.
const VALUES_AT_ONCE: usize = 1 << 14;

/// A matrix `[rows, cols]` of the folder; a vector has one column.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub data: Bytes,
    pub kind: Kind,
    pub rows: usize,
    pub cols: usize,
}

/// What its values are.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Float(MatrixFormat),
    Fp8(Arc<Scales>),
    Grouped(Arc<Grouped>),
}

impl Kind {
    /// The format in which the values are kept.
    pub(super) fn format(&self) -> MatrixFormat {
        match self {
            Self::Float(format) => *format,
            Self::Fp8(scales) => scales.format(),
            Self::Grouped(grouped) => grouped.format(),
        }
    }

    /// The same without blocks.
    pub(super) fn float_format(&self) -> MatrixFormat {
        let format = self.format();
        if format.float().is_some() { format } else { MatrixFormat::F16 }
    }
}

impl Source {
    /// A tensor of floats, or of FP8 with its scales; all dimensions but the last are rows. `name` is for messages.
    pub(super) fn new(
        name: &str,
        stored: &Stored,
        scales: Option<&Stored>,
        block: [usize; 2],
    ) -> Result<Self> {
        let (rows, cols) = match stored.shape[..] {
            [] => (1, 1),
            [len] => (len, 1),
            [ref rows @ .., cols] => (rows.iter().product(), cols),
        };
        // Fits: as many values as the file holds.
        let (rows, cols) = (rows as usize, cols as usize);
        let kind = match (&stored.dtype, scales) {
            (Dtype::F32, _) => Kind::Float(MatrixFormat::F32),
            (Dtype::F16, _) => Kind::Float(MatrixFormat::F16),
            (Dtype::Bf16, _) => Kind::Float(MatrixFormat::Bf16),
            (Dtype::F8E4m3, Some(scales)) => {
                let scales = Scales::new(scales, [rows, cols], block);
                Kind::Fp8(Arc::new(scales.map_err(|what| fault(name, format!("its scale {what}")))?))
            }
            (Dtype::F8E4m3, None) => {
                return Err(fault(name, "it is F8_E4M3 without a scale (…_scale_inv or …_scale)"));
            }
            (Dtype::Other(other), _) => {
                let text = format!(
                    "it is {other}; BF16, F16, F32 and F8_E4M3 with scales are read: take the model in one of those, or as GGUF"
                );
                return Err(fault(name, text));
            }
        };
        Ok(Self { data: stored.data.clone(), kind, rows, cols })
    }

    /// Writes the values of a row.
    fn row(&self, row: usize, codes: &[f32; 256], held: &mut Held, values: &mut [f32]) {
        let bytes = |of_row: usize| &self.data[row * of_row..][..of_row];
        match &self.kind {
            Kind::Float(format) => format.decode(bytes(self.cols * format.block_bytes()), values),
            Kind::Fp8(scales) => {
                let bytes = bytes(self.cols);
                values.iter_mut().zip(bytes).for_each(|(value, &code)| *value = codes[usize::from(code)]);
                scales.scale(row, values);
            }
            Kind::Grouped(grouped) => grouped.values(row, held, values),
        }
    }
}

/// What is done to each value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Change {
    #[default]
    None,
    /// 1 is added.
    PlusOne,
    /// `-exp(x)`
    MinusExp,
}

/// What a thread makes rows of a source in.
#[derive(Default)]
struct Scratch {
    /// The values of a row.
    all: Vec<f32>,
    /// Those of the columns that are wanted.
    some: Vec<f32>,
    held: Held,
}

/// A tensor made of matrices one below the other.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub sources: Vec<Source>,
    /// Which rows of each, in which order; `None` for all as they are.
    pub rows: Option<Arc<[usize]>>,
    /// Which columns, likewise.
    pub cols: Option<Arc<[usize]>>,
    /// Rows of each become columns; then all rows are there, as floats.
    pub is_transposed: bool,
    pub change: Change,
    /// Floats, but where all sources are integers in groups, which are neither transposed nor changed, and whose columns stay.
    pub to: MatrixFormat,
}

impl Recipe {
    /// The source as it is, in the format `to`.
    pub(super) fn plain(source: Source, to: MatrixFormat) -> Self {
        Self { sources: vec![source], rows: None, cols: None, is_transposed: false, change: Change::None, to }
    }

    /// Makes the bytes, or hands out those of the file where they are what is wanted.
    ///
    /// # Errors
    /// [`crate::error::Error::Memory`] if there is no room for them.
    pub(super) fn make(&self, name: &str) -> Result<Bytes> {
        if let [source] = &self.sources[..]
            && self.keeps_rows(source)
            && self.rows.is_none()
            && !self.is_transposed
        {
            return Ok(source.data.clone());
        }
        if self.is_transposed {
            return self.transposed(name);
        }
        let codes = fp8::values();
        let cols = self.cols.as_ref().map_or(self.sources[0].cols, |cols| cols.len());
        let row_bytes = self.to.row_bytes(cols).unwrap_or(0);
        let rows = |source: &Source| self.rows.as_ref().map_or(source.rows, |rows| rows.len());
        let total: usize = self.sources.iter().map(|source| rows(source) * row_bytes).sum();
        let mut out = zeros(name, total)?;
        let mut rest = &mut out[..];
        for source in &self.sources {
            let (of_source, others) = rest.split_at_mut(rows(source) * row_bytes);
            rest = others;
            if row_bytes == 0 {
                continue;
            }
            let rows = of_source.par_chunks_exact_mut(row_bytes).enumerate();
            let scratch =
                || Scratch { all: vec![0.0; source.cols], some: vec![0.0; cols], ..Scratch::default() };
            rows.with_min_len((VALUES_AT_ONCE / cols).max(1)).for_each_init(scratch, |scratch, (i, out)| {
                let row = self.rows.as_ref().map_or(i, |rows| rows[i]);
                self.make_row(source, row, &codes, scratch, out);
            });
        }
        Ok(out.into())
    }

    fn value_bytes(&self) -> usize {
        self.to.row_bytes(1).unwrap_or(0)
    }

    /// Whether rows of a source are copied as they are.
    fn keeps_rows(&self, source: &Source) -> bool {
        let is_wanted = matches!(source.kind, Kind::Float(format) if format == self.to);
        is_wanted && self.cols.is_none() && self.change == Change::None
    }

    fn make_row(
        &self,
        source: &Source,
        row: usize,
        codes: &[f32; 256],
        Scratch { all, some, held }: &mut Scratch,
        out: &mut [u8],
    ) {
        if self.keeps_rows(source) {
            return out.copy_from_slice(&source.data[row * out.len()..][..out.len()]);
        }
        if let Kind::Grouped(grouped) = &source.kind
            && self.to.float().is_none()
        {
            return grouped.blocks(row, held, self.to, out);
        }
        source.row(row, codes, held, all);
        let values = match &self.cols {
            None => all,
            Some(cols) => {
                some.iter_mut().zip(&**cols).for_each(|(value, &col)| *value = all[col]);
                some
            }
        };
        match self.change {
            Change::None => {}
            Change::PlusOne => values.iter_mut().for_each(|value| *value += 1.0),
            Change::MinusExp => values.iter_mut().for_each(|value| *value = -value.exp()),
        }
        encode(self.to, values, out);
    }

    /// Columns as rows, of one source after the other.
    fn transposed(&self, name: &str) -> Result<Bytes> {
        let (codes, size) = (fp8::values(), self.value_bytes());
        let cols = self.cols.as_ref().map_or(self.sources[0].cols, |cols| cols.len());
        let (row_bytes, total) =
            (cols * size, self.sources.iter().map(|source| source.rows * cols * size).sum());
        let mut out = zeros(name, total)?;
        let mut rest = &mut out[..];
        for source in &self.sources {
            let rows = source.rows;
            let (of_source, others) = rest.split_at_mut(rows * row_bytes);
            rest = others;
            if row_bytes == 0 || rows == 0 {
                continue;
            }
            let mut whole = zeros(name, of_source.len())?;
            let scratch =
                || Scratch { all: vec![0.0; source.cols], some: vec![0.0; cols], ..Scratch::default() };
            whole
                .par_chunks_exact_mut(row_bytes)
                .enumerate()
                .for_each_init(scratch, |scratch, (row, out)| {
                    self.make_row(source, row, &codes, scratch, out)
                });
            of_source.par_chunks_exact_mut(rows * size).enumerate().for_each(|(col, out)| {
                for (row, value) in out.chunks_exact_mut(size).enumerate() {
                    value.copy_from_slice(&whole[row * row_bytes + col * size..][..size]);
                }
            });
        }
        Ok(out.into())
    }
}

fn zeros(name: &str, len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    host_memory::reserve(name, &mut bytes, len)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

fn encode(format: MatrixFormat, values: &[f32], out: &mut [u8]) {
    match format {
        MatrixFormat::F16 => {
            let pairs = values.iter().zip(out.as_chunks_mut().0);
            pairs.for_each(|(&value, out)| *out = f16::from_f32(value).to_le_bytes());
        }
        MatrixFormat::Bf16 => {
            let pairs = values.iter().zip(out.as_chunks_mut().0);
            pairs.for_each(|(&value, out)| *out = bf16::from_f32(value).to_le_bytes());
        }
        _ => values.iter().zip(out.as_chunks_mut().0).for_each(|(value, out)| *out = value.to_le_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Bytes {
        values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>().into()
    }

    #[test]
    fn rows_columns_and_values_are_what_the_recipe_says() {
        let data = floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let source = Source { data: data.clone(), kind: Kind::Float(MatrixFormat::F32), rows: 3, cols: 2 };
        let plain = Recipe::plain(source.clone(), MatrixFormat::F32);
        let made = |recipe: &Recipe| recipe.make("x").unwrap();
        assert_eq!(made(&plain).as_ptr(), data.as_ptr(), "not copied");
        let rows = Recipe {
            rows: Some([2, 0].into()),
            sources: vec![source.clone(), source.clone()],
            ..plain.clone()
        };
        assert_eq!(made(&rows), floats(&[5.0, 6.0, 1.0, 2.0, 5.0, 6.0, 1.0, 2.0]));
        let cols = Recipe { cols: Some([1].into()), change: Change::PlusOne, ..plain.clone() };
        assert_eq!(made(&cols), floats(&[3.0, 5.0, 7.0]));
        let transposed = Recipe { is_transposed: true, ..plain.clone() };
        assert_eq!(made(&transposed), floats(&[1.0, 3.0, 5.0, 2.0, 4.0, 6.0]));
        let second =
            Recipe { cols: Some([1].into()), sources: vec![source.clone(), source.clone()], ..transposed };
        assert_eq!(made(&second), floats(&[2.0, 4.0, 6.0, 2.0, 4.0, 6.0]));
        let halves: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]
            .iter()
            .flat_map(|&value| f16::from_f32(value).to_le_bytes())
            .collect();
        assert_eq!(made(&Recipe { to: MatrixFormat::F16, ..plain }), halves);
    }
}
