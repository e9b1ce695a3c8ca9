//! Integers of four or eight bits with a scale, and maybe a zero point, for each group of neighbouring columns of a row: what GPTQ, AWQ and
//! compressed-tensors save. A value is `scale * (code - zero)`.
//!
//! Where groups are whole blocks GGUF has blocks that hold the same: Q4_0 and Q8_0 where the zero points are in the middle, and Q5_0 for four
//! bits with others, since `code - zero` is -15 to 15 (Q4_1 would round its minimum `-scale * zero`). Scales that are no f16 are rounded to
//! it. Other matrices (columns that were sorted before they were grouped, odd sizes) become f16.
//!
//! Layouts as their writers document them: AutoGPTQ and GPTQModel (`qweight`, `qzeros`, `scales`, `g_idx`), AutoAWQ's GEMM version,
//! compressed-tensors (`weight_packed`, `weight_scale`, `weight_zero_point`, `weight_g_idx`).

use super::fault;
use super::safetensors::{Dtype, Stored};
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use bytes::Bytes;
use half::f16;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Values of a block of Q4_0, Q5_0 and Q8_0.
const BLOCK: usize = 32;
/// At which place of a word each of eight rows is, as AutoAWQ's GEMM kernels want them.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
/// What compressed-tensors says once more: the shape of a matrix.
const SHAPE: &str = ".weight_shape";

/// How codes lie in words of 32 bits, the first in the lowest bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `[cols / n, rows]`: neighbouring columns in a word. Zeros `[groups, rows / n]`, in the older form one less than they are; scales
    /// `[groups, rows]`.
    Gptq { bits: u32, is_one_less: bool },
    /// `[cols, rows / 8]`: neighbouring rows in a word, at [`AWQ_PLACES`]. Zeros `[groups, rows /
    /// 8]` likewise; scales `[groups, rows]`.
    Awq,
    /// `[rows, cols / n]`. Zeros `[rows / n, groups]`; scales `[rows, groups]`.
    Packed { bits: u32 },
    /// A signed byte each, `[rows, cols]`; scales `[rows, groups]`.
    Bytes,
}

impl Layout {
    /// What the tensors of a matrix are called behind its name: codes, scales, zeros, and which group each column is of.
    fn names(self) -> [&'static str; 4] {
        match self {
            Self::Gptq { .. } | Self::Awq => [".qweight", ".scales", ".qzeros", ".g_idx"],
            Self::Packed { .. } => [".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_g_idx"],
            Self::Bytes => [".weight", ".weight_scale", ".weight_zero_point", ".weight_g_idx"],
        }
    }
}

/// A matrix `[rows, cols]` of integers in groups.
#[derive(Debug)]
pub(super) struct Grouped {
    layout: Layout,
    bits: u32,
    rows: usize,
    cols: usize,
    groups: usize,
    codes: Bytes,
    scales: Bytes,
    scale_format: MatrixFormat,
    /// `None` where all are in the middle.
    zeros: Option<Bytes>,
    /// The group of each column, where they are not neighbours.
    group_of_col: Option<Vec<u32>>,
}

/// Codes that a thread has taken out of words of a matrix: of the row `first` and those that share its words.
#[derive(Debug, Default)]
pub(super) struct Held {
    first: Option<usize>,
    codes: Vec<u8>,
}

/// Takes the quantised matrices out of the tensors of a folder. For each a tensor named `….weight` with the matrix's shape takes its parts'
/// place, whose type is none that is read.
pub(super) fn take(
    layout: Option<Layout>,
    stored: &mut BTreeMap<String, Stored>,
) -> Result<BTreeMap<String, Arc<Grouped>>> {
    let Some(layout) = layout else {
        let found = stored.keys().find(|name| name.ends_with(".qweight") || name.ends_with(".weight_packed"));
        return match found {
            Some(name) => Err(fault(name, "it is quantised, but config.json has no `quantization_config`")),
            None => Ok(BTreeMap::new()),
        };
    };
    let [end, ..] = layout.names();
    // Matrices of floats may be called the same.
    let is_quantised = |stored: &Stored| layout != Layout::Bytes || stored.dtype.to_string() == "I8";
    let bases: Vec<String> = stored
        .iter()
        .filter(|(_, stored)| is_quantised(stored))
        .filter_map(|(name, _)| name.strip_suffix(end).map(str::to_owned))
        .collect();
    let mut matrices = BTreeMap::new();
    for base in bases {
        let parts = layout.names().map(|end| stored.remove(&format!("{base}{end}")));
        stored.remove(&format!("{base}{SHAPE}"));
        let name = format!("{base}.weight");
        let [Some(codes), scales, zeros, group_of_col] = parts else { continue };
        let grouped = Grouped::new(layout, codes, scales, zeros, group_of_col)
            .map_err(|what| fault(&name, format!("its {what}")))?;
        let stand_in = Stored {
            dtype: Dtype::Other(format!("integers of {} bits", grouped.bits)),
            shape: vec![grouped.rows as u64, grouped.cols as u64],
            data: Bytes::new(),
        };
        if stored.insert(name.clone(), stand_in).is_some() {
            return Err(Error::Folder(format!("`{name}` is there twice, quantised and as it is")));
        }
        matrices.insert(name, Arc::new(grouped));
    }
    Ok(matrices)
}

/// The sizes of a matrix in a file, which fit: as many values as the file holds.
fn two(stored: &Stored, what: &str) -> Result<[usize; 2], String> {
    match stored.shape[..] {
        [first, second] => Ok([first as usize, second as usize]),
        _ => Err(format!("{what} have the shape {:?}; expected a matrix", stored.shape)),
    }
}

fn expect(stored: &Stored, what: &str, dtype: &str, shape: &[usize]) -> Result<(), String> {
    let found: Vec<_> = stored.shape.iter().map(|&size| size as usize).collect();
    if stored.dtype.to_string() == dtype && found == shape {
        return Ok(());
    }
    Err(format!("{what} are {} of the shape {found:?}; expected {dtype} of {shape:?}", stored.dtype))
}

/// Word `i` of integers of 32 bits.
fn word(words: &[u8], i: usize) -> u32 {
    u32::from_le_bytes(words.as_chunks().0[i])
}

impl Grouped {
    fn new(
        layout: Layout,
        codes: Stored,
        scales: Option<Stored>,
        zeros: Option<Stored>,
        group_of_col: Option<Stored>,
    ) -> Result<Self, String> {
        let mut scales = scales.ok_or("scales are missing")?;
        if scales.shape.len() == 1 {
            // One for each row.
            scales.shape.push(1);
        }
        let scale_format = match scales.dtype {
            Dtype::F32 => MatrixFormat::F32,
            Dtype::F16 => MatrixFormat::F16,
            Dtype::Bf16 => MatrixFormat::Bf16,
            other => return Err(format!("scales are {other}; expected floats")),
        };
        let ([first, second], of_scales) = (two(&codes, "codes")?, two(&scales, "scales")?);
        let times = |size: usize, n: u32| {
            size.checked_mul(n as usize)
                .ok_or_else(|| format!("codes have the shape {:?}, which is too large", codes.shape))
        };
        let (bits, rows, cols) = match layout {
            Layout::Gptq { bits, .. } => (bits, second, times(first, 32 / bits)?),
            Layout::Awq => (4, times(second, 8)?, first),
            Layout::Packed { bits } => (bits, first, times(second, 32 / bits)?),
            Layout::Bytes => (8, first, second),
        };
        let dtype = if layout == Layout::Bytes { "I8" } else { "I32" };
        expect(&codes, "codes", dtype, &[first, second])?;
        let (groups, expected) = match layout {
            Layout::Gptq { .. } | Layout::Awq => (of_scales[0], [of_scales[0], rows]),
            Layout::Packed { .. } | Layout::Bytes => (of_scales[1], [rows, of_scales[1]]),
        };
        if of_scales != expected {
            return Err(format!("scales have the shape {of_scales:?}; expected {expected:?}"));
        }
        let mut grouped = Self {
            layout,
            bits,
            rows,
            cols,
            groups,
            codes: codes.data,
            scales: scales.data,
            scale_format,
            zeros: None,
            group_of_col: None,
        };
        grouped.check_scales()?;
        if let Some(zeros) = zeros {
            grouped.set_zeros(zeros, dtype)?;
        }
        grouped.set_groups(group_of_col)?;
        Ok(grouped)
    }

    /// Codes that are in one word, along the dimension that is packed.
    fn codes_of_word(&self) -> usize {
        (32 / self.bits) as usize
    }

    /// The code at a place of a word.
    fn code(&self, word: u32, place: usize) -> u8 {
        let mask = ((1_u32 << self.bits) - 1) as u8;
        (word >> (place as u32 * self.bits)) as u8 & mask
    }

    /// Columns of a group, where they are neighbours.
    fn cols_of_group(&self) -> usize {
        self.cols / self.groups.max(1)
    }

    /// Products must be numbers of 16 bits.
    fn check_scales(&self) -> Result<(), String> {
        let largest = f16::MAX.to_f32() / (1_u32 << self.bits) as f32;
        let bytes_of_scale = self.scale_format.block_bytes();
        let mut scales = vec![0.0; self.rows.min(self.scales.len() / bytes_of_scale)];
        for bytes in self.scales.chunks(scales.len().max(1) * bytes_of_scale) {
            let scales = &mut scales[..bytes.len() / bytes_of_scale];
            self.scale_format.decode(bytes, scales);
            if let Some(scale) = scales.iter().find(|scale| scale.is_nan() || scale.abs() > largest) {
                return Err(format!("scales have {scale}; expected at most {largest}"));
            }
        }
        Ok(())
    }

    fn set_zeros(&mut self, zeros: Stored, dtype: &str) -> Result<(), String> {
        let (n, rows, groups) = (self.codes_of_word(), self.rows, self.groups);
        let in_words = |shape| {
            if rows.is_multiple_of(n) {
                Ok(shape)
            } else {
                Err(format!("{rows} rows do not fill words of {n} zero points"))
            }
        };
        let shape = match self.layout {
            Layout::Gptq { .. } | Layout::Awq => in_words([groups, rows / n])?,
            Layout::Packed { .. } => in_words([rows / n, groups])?,
            Layout::Bytes => [rows, groups],
        };
        expect(&zeros, "zero points", dtype, &shape)?;
        self.zeros = Some(zeros.data);
        let middle = self.middle();
        if (0..rows).all(|row| (0..groups).all(|group| self.zero(row, group) == middle)) {
            self.zeros = None;
        }
        Ok(())
    }

    fn set_groups(&mut self, group_of_col: Option<Stored>) -> Result<(), String> {
        let of_group = self.cols_of_group();
        let is_even = of_group * self.groups == self.cols;
        if let Some(stored) = group_of_col {
            expect(&stored, "groups of columns", "I32", &[self.cols])?;
            let of_col: Vec<u32> = (0..self.cols).map(|col| word(&stored.data, col)).collect();
            // Writers that do not sort columns may fill it with -1.
            let is_plain = of_col.iter().all(|&group| group == u32::MAX)
                || is_even && of_col.iter().enumerate().all(|(col, &group)| group as usize == col / of_group);
            if !is_plain {
                if let Some(group) = of_col.iter().find(|group| **group as usize >= self.groups) {
                    return Err(format!(
                        "groups of columns have {group}; expected less than {}",
                        self.groups
                    ));
                }
                self.group_of_col = Some(of_col);
                return Ok(());
            }
        }
        if is_even {
            return Ok(());
        }
        Err(format!("{} columns are no {} groups of one size", self.cols, self.groups))
    }

    /// The zero point of integers that have a sign.
    fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    fn zero(&self, row: usize, group: usize) -> u8 {
        let Some(zeros) = &self.zeros else { return self.middle() };
        let n = self.codes_of_word();
        let at = |word: u32, place: usize| self.code(word, place);
        match self.layout {
            Layout::Gptq { is_one_less, .. } => {
                let zero = at(word(zeros, group * (self.rows / n) + row / n), row % n);
                self.code(u32::from(zero.wrapping_add(u8::from(is_one_less))), 0)
            }
            Layout::Awq => at(word(zeros, group * (self.rows / n) + row / n), AWQ_PLACES[row % n]),
            Layout::Packed { .. } => at(word(zeros, row / n * self.groups + group), row % n),
            Layout::Bytes => zeros[row * self.groups + group] ^ 0x80,
        }
    }

    fn scale(&self, row: usize, group: usize) -> f32 {
        let i = match self.layout {
            Layout::Gptq { .. } | Layout::Awq => group * self.rows + row,
            Layout::Packed { .. } | Layout::Bytes => row * self.groups + group,
        };
        let size = self.scale_format.block_bytes();
        let mut scale = [0.0];
        self.scale_format.decode(&self.scales[i * size..][..size], &mut scale);
        scale[0]
    }

    /// The codes of a row, none with a sign.
    fn codes<'a>(&self, row: usize, held: &'a mut Held) -> &'a [u8] {
        let (n, cols) = (self.codes_of_word(), self.cols);
        let rows_of_word = if self.layout == Layout::Awq { n } else { 1 };
        let first = row - row % rows_of_word;
        if held.first != Some(first) {
            held.first = Some(first);
            held.codes.resize(rows_of_word * cols, 0);
            let out = &mut held.codes[..];
            let code = |word: u32, place: usize| self.code(word, place);
            match self.layout {
                Layout::Gptq { .. } | Layout::Packed { .. } => {
                    for (i, out) in out.chunks_exact_mut(n).enumerate() {
                        let is_packed = matches!(self.layout, Layout::Packed { .. });
                        let at = if is_packed { row * (cols / n) + i } else { i * self.rows + row };
                        let word = word(&self.codes, at);
                        out.iter_mut().enumerate().for_each(|(place, out)| *out = code(word, place));
                    }
                }
                Layout::Awq => {
                    for col in 0..cols {
                        let word = word(&self.codes, col * (self.rows / n) + first / n);
                        for (row, &place) in AWQ_PLACES.iter().enumerate() {
                            out[row * cols + col] = code(word, place);
                        }
                    }
                }
                Layout::Bytes => {
                    let codes = &self.codes[row * cols..][..cols];
                    out.iter_mut().zip(codes).for_each(|(out, code)| *out = code ^ 0x80);
                }
            }
        }
        &held.codes[(row - first) * cols..][..cols]
    }

    /// The format that holds the values; blocks where groups are whole ones.
    pub(super) fn format(&self) -> MatrixFormat {
        let of_group = self.cols_of_group();
        let is_in_blocks = self.group_of_col.is_none() && of_group.is_multiple_of(BLOCK);
        match (self.bits, &self.zeros) {
            (4, None) if is_in_blocks => MatrixFormat::Q4_0,
            (4, Some(_)) if is_in_blocks => MatrixFormat::Q5_0,
            (8, None) if is_in_blocks => MatrixFormat::Q8_0,
            _ => MatrixFormat::F16,
        }
    }

    /// Writes the values of a row.
    pub(super) fn values(&self, row: usize, held: &mut Held, values: &mut [f32]) {
        let of_group = self.cols_of_group().max(1);
        let groups: Vec<_> = (0..self.groups)
            .map(|group| (self.scale(row, group), i16::from(self.zero(row, group))))
            .collect();
        for (col, (value, &code)) in values.iter_mut().zip(self.codes(row, held)).enumerate() {
            let group = self.group_of_col.as_ref().map_or(col / of_group, |groups| groups[col] as usize);
            let (scale, zero) = groups[group];
            *value = scale * f32::from(i16::from(code) - zero);
        }
    }

    /// Writes the blocks of a row in [`Grouped::format`], or in Q5_0 where that is Q4_0.
    pub(super) fn blocks(&self, row: usize, held: &mut Held, format: MatrixFormat, out: &mut [u8]) {
        let of_group = self.cols_of_group();
        let codes = self.codes(row, held);
        let blocks = out.chunks_exact_mut(format.block_bytes()).zip(codes.as_chunks::<BLOCK>().0);
        for (b, (block, codes)) in blocks.enumerate() {
            let group = b * BLOCK / of_group;
            let (scale, codes_of_block) = block.split_at_mut(2);
            scale.copy_from_slice(&f16::from_f32(self.scale(row, group)).to_le_bytes());
            match format {
                MatrixFormat::Q5_0 => {
                    let (fifths, low) = codes_of_block.split_at_mut(4);
                    // Raised by 16 instead of the zero point.
                    let zero = self.zero(row, group);
                    let raised = codes.map(|code| code + 16 - zero);
                    let bits = raised.iter().rev().fold(0_u32, |bits, code| bits << 1 | u32::from(code >> 4));
                    fifths.copy_from_slice(&bits.to_le_bytes());
                    nibbles(&raised, low);
                }
                MatrixFormat::Q4_0 => nibbles(codes, codes_of_block),
                _ => codes_of_block.iter_mut().zip(codes).for_each(|(byte, code)| *byte = code ^ 0x80),
            }
        }
    }
}

/// Four bits of each code, those of the second half of a block beside those of the first.
fn nibbles(codes: &[u8; BLOCK], out: &mut [u8]) {
    let (low, high) = codes.split_at(BLOCK / 2);
    out.iter_mut().zip(low.iter().zip(high)).for_each(|(byte, (low, high))| *byte = low & 15 | high << 4);
}

#[cfg(test)]
mod tests;
