//! The part of the weights that a rank has, where a model is shared out over several.

use super::{LowRank, Matrix, TensorShape, TensorSpec, Weights};
use crate::error::{Error, Result};
use crate::formats::MatrixFormat;
use crate::host_memory;
use std::ops::Range;

impl Weights {
    /// Those of rank `rank`, whose model asks for `specs`, and its part of what adapters add to the matrices `adaptable`: of a tensor that has
    /// more rows than there, or more columns, the `rank`th share of as many ([`TensorSpec::parts`]); others whole. One range of rows stays
    /// where it is; columns, rows of experts and several ranges are copied.
    ///
    /// # Errors
    /// [`Error::Model`] if a share is not there, or is not whole blocks of the matrix's format; [`Error::Memory`] if there is no room.
    pub fn of_rank(&self, specs: &[TensorSpec], adaptable: &[TensorSpec], rank: usize) -> Result<Self> {
        let mut part = self.clone();
        for TensorSpec { name, shape, parts, .. } in specs {
            // A file may lack biases.
            let Some(&place) = self.places.get(name) else { continue };
            let matrix = |count, sizes| self.matrices[place].share(count, sizes, parts, rank);
            let rows_of_table = |rows: usize, cols: usize| -> Result<Vec<f32>> {
                let values = &self.vectors[place].1;
                let ranges = shares(name, values.len() / cols.max(1), rows, parts, rank)?;
                let values = ranges.into_iter().flat_map(|rows| &values[rows.start * cols..rows.end * cols]);
                Ok(values.copied().collect())
            };
            match *shape {
                TensorShape::Matrix { rows, cols } => part.matrices[place] = matrix(1, [rows, cols])?,
                TensorShape::Experts { count, rows, cols, .. } => {
                    part.matrices[place] = matrix(count, [rows, cols])?;
                }
                TensorShape::Vector { len } => part.vectors[place].1 = rows_of_table(len, 1)?,
                TensorShape::Table { rows, cols } => part.vectors[place].1 = rows_of_table(rows, cols)?,
            }
        }
        for adapter in &mut part.adapters {
            for TensorSpec { name, shape, parts, .. } in adaptable {
                let TensorShape::Matrix { rows, cols } = *shape else { continue };
                if let Some(update) = adapter.updates.get_mut(name) {
                    *update = update.share([rows, cols], parts, rank)?;
                }
            }
        }
        part.expert_bytes = part.experts().map(|matrix| matrix.data.len() as u64).sum();
        Ok(part)
    }

    /// Bytes of the weights of each rank, whose model asks for `specs`, adapters apart: [`Weights::num_bytes`] of [`Weights::of_rank`].
    ///
    /// # Errors
    /// As [`Weights::of_rank`].
    pub fn num_bytes_of_rank(&self, specs: &[TensorSpec]) -> Result<u64> {
        let mut sum = 0;
        for TensorSpec { name, shape, parts, .. } in specs {
            let Some(&place) = self.places.get(name) else { continue };
            let matrix = |count, sizes| self.matrices[place].share_bytes(count, sizes, parts);
            sum += match *shape {
                TensorShape::Matrix { rows, cols } => matrix(1, [rows, cols])?,
                TensorShape::Experts { count, rows, cols, .. } => matrix(count, [rows, cols])?,
                TensorShape::Vector { len } => len * size_of::<f32>(),
                TensorShape::Table { rows, cols } => rows * cols * size_of::<f32>(),
            } as u64;
        }
        Ok(sum)
    }
}

/// What somebody can do whose model is not shared out so.
fn advice(error: Error) -> Error {
    match error {
        Error::Model(what) => Error::Model(format!("{what}: take fewer GPUs (--tensor-parallel)")),
        other => other,
    }
}

/// What rank `rank` has of `whole` rows or columns where each rank has `of_rank`: all, or its share of each of `parts`.
fn shares(
    name: &str,
    whole: usize,
    of_rank: usize,
    parts: &[usize],
    rank: usize,
) -> Result<Vec<Range<usize>>> {
    if whole == of_rank {
        return Ok(std::iter::once(0..whole).collect());
    }
    let ranks = whole / of_rank.max(1);
    let all = [of_rank];
    let parts = if parts.is_empty() { &all } else { parts };
    if ranks * of_rank != whole || rank >= ranks || parts.iter().sum::<usize>() != of_rank {
        return Err(Error::Model(format!(
            "{name}: {whole} are no shares of {of_rank} in parts of {parts:?}"
        )));
    }
    let firsts = parts.iter().scan(0, |end, part| {
        let first = *end;
        *end += part;
        Some(first)
    });
    Ok(firsts
        .zip(parts)
        .map(|(first, part)| ranks * first + rank * part..ranks * first + (rank + 1) * part)
        .collect())
}

/// What a rank has of a matrix.
enum Share {
    Whole,
    Rows(Vec<Range<usize>>),
    Columns(Vec<Range<usize>>),
}

impl Matrix {
    /// Of `count` matrices one below the other rank `rank`'s share, of `rows` rows and `cols` columns each.
    fn shares(&self, count: usize, [rows, cols]: [usize; 2], parts: &[usize], rank: usize) -> Result<Share> {
        let of_each = self.rows / count.max(1);
        Ok(if self.cols > cols {
            Share::Columns(shares(&self.name, self.cols, cols, parts, rank)?)
        } else if of_each == rows {
            Share::Whole
        } else {
            Share::Rows(shares(&self.name, of_each, rows, parts, rank)?)
        })
    }

    /// The same, as a matrix.
    fn share(&self, count: usize, sizes: [usize; 2], parts: &[usize], rank: usize) -> Result<Self> {
        match self.shares(count, sizes, parts, rank)? {
            Share::Whole => Ok(self.clone()),
            Share::Columns(ranges) => self.column_ranges(&ranges).map_err(advice),
            Share::Rows(ranges) => match &ranges[..] {
                [range] if count == 1 => self.row_range(range.start, range.len()),
                _ => {
                    self.of_heads(self.rows / count.max(1), &ranges.into_iter().flatten().collect::<Vec<_>>())
                }
            },
        }
    }

    /// Its bytes; all ranks have as many.
    fn share_bytes(&self, count: usize, sizes: [usize; 2], parts: &[usize]) -> Result<usize> {
        Ok(match self.shares(count, sizes, parts, 0)? {
            Share::Whole => self.data.len(),
            Share::Rows(_) => self.row_bytes()? * count * sizes[0],
            Share::Columns(ranges) => {
                let of_row = self.column_bytes(&ranges).map_err(advice)?;
                self.rows * of_row.iter().map(Range::len).sum::<usize>()
            }
        })
    }

    /// The same in f32.
    fn widened(&self) -> Result<Self> {
        let values = self.to_f32()?;
        let mut data = Vec::new();
        host_memory::reserve(&self.name, &mut data, size_of_val(&values[..]))?;
        values.iter().for_each(|value| data.extend_from_slice(&value.to_le_bytes()));
        Ok(Self { format: MatrixFormat::F32, scale: 1.0, data: data.into(), ..self.clone() })
    }
}

impl LowRank {
    /// What rank `rank` adds to its product, with a matrix `[rows, cols]`: its rows of B, or where it has some columns of the matrix those of A,
    /// whose products are added up with the matrix's.
    fn share(&self, [rows, cols]: [usize; 2], parts: &[usize], rank: usize) -> Result<Self> {
        // Blocks of A need not be those of the matrix, and it is loaded as f32.
        let wide = if self.a.cols > cols { self.a.widened()? } else { self.a.clone() };
        Ok(Self {
            a: wide.share(1, [wide.rows, cols], parts, rank)?,
            b: self.b.share(1, [rows, self.b.cols], parts, rank)?,
            scale: self.scale,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, LinearSizes};
    use crate::model::build::plan;
    use crate::ops::hybrid::ValueHeads;
    use crate::testing::{Random, TinyModel};

    #[test]
    fn heads_of_v_are_where_their_heads_of_k_are() {
        let linear = LinearSizes {
            linear_num_key_heads: 4,
            linear_num_value_heads: 12,
            ..TinyModel::default().linear
        };
        for (architecture, order) in [("qwen35", ValueHeads::Tiled), ("qwen3next", ValueHeads::Grouped)] {
            let model = TinyModel { architecture, linear, num_key_value_heads: 4, ..TinyModel::default() };
            let config = Config::from_gguf(&model.gguf()).unwrap();
            for ranks in [2, 4] {
                let of_rank = config.of_rank(ranks).unwrap();
                let sizes = of_rank.linear.unwrap();
                let specs = plan(&of_rank).unwrap().tensors;
                let decay = specs.iter().find(|spec| spec.name == "blk.0.ssm_a").unwrap();
                let mut seen = Vec::new();
                for rank in 0..ranks {
                    let here = shares(&decay.name, 12, 12 / ranks, &decay.parts, rank).unwrap();
                    for (head, of_whole) in here.into_iter().flatten().enumerate() {
                        let key_head = order.key_head(head, &sizes) + rank * sizes.linear_num_key_heads;
                        assert_eq!(key_head, order.key_head(of_whole, &linear), "{architecture}, {ranks}");
                        seen.push(of_whole);
                    }
                }
                seen.sort_unstable();
                assert_eq!(seen, (0..12).collect::<Vec<_>>(), "{architecture}, {ranks}");
            }
        }
    }

    #[test]
    fn ranks_have_all_weights_together() {
        for (architecture, fused_qkv) in
            [("qwen2", true), ("gpt2", true), ("qwen35", false), ("qwen3next", false)]
        {
            let gguf = TinyModel { architecture, fused_qkv, ..TinyModel::default() }.gguf();
            let config = Config::from_gguf(&gguf).unwrap();
            let weights = Weights::from_gguf(&gguf, &config).unwrap();
            let of_rank = plan(&config.of_rank(2).unwrap()).unwrap();
            let parts = [0, 1].map(|rank| weights.of_rank(&of_rank.tensors, &[], rank).unwrap());
            let bytes = weights.num_bytes_of_rank(&of_rank.tensors).unwrap();
            assert_eq!(parts.each_ref().map(Weights::num_bytes), [bytes; 2], "{architecture}");
            for matrix in weights.matrices() {
                let [first, second] =
                    parts.each_ref().map(|part| part.matrix(&matrix.name).unwrap().to_f32().unwrap());
                let mut all = matrix.to_f32().unwrap();
                let mut of_ranks = first.clone();
                if first.len() < all.len() {
                    of_ranks.extend(&second);
                } else {
                    assert_eq!(first, second, "{}", matrix.name);
                }
                all.sort_by(f32::total_cmp);
                of_ranks.sort_by(f32::total_cmp);
                assert_eq!(of_ranks, all, "{architecture}: {}", matrix.name);
            }
        }
    }

    /// Of a matrix `[4, 64]`: by rows its product is the ranks' side by side, by columns their sum, whole blocks of A or not.
    #[test]
    fn updates_are_shared_out() {
        let matrix = |name: &str, format: MatrixFormat, rows: usize, cols: usize| {
            let values: Vec<f32> = Random::new(1, name).take(rows * cols).collect();
            let data = crate::testing::blocks(format, 1, name, &values).into();
            Matrix { name: name.into(), format, rows, cols, scale: 1.0, data }
        };
        let update = LowRank {
            a: matrix("a", MatrixFormat::Q8_0, 3, 64),
            b: matrix("b", MatrixFormat::F16, 4, 3),
            scale: 0.5,
        };
        let x: Vec<f32> = Random::new(2, "x").take(64).collect();
        let product = |LowRank { a, b, scale }: &LowRank, x: &[f32]| -> Vec<f32> {
            let dot = |row: &[f32], x: &[f32]| row.iter().zip(x).map(|(a, b)| a * b).sum::<f32>();
            let inner: Vec<_> = a.to_f32().unwrap().chunks(a.cols).map(|row| dot(row, x)).collect();
            b.to_f32().unwrap().chunks(b.cols).map(|row| scale * dot(row, &inner)).collect()
        };
        let expected = product(&update, &x);
        let by_rows = [0, 1].map(|rank| product(&update.share([2, 64], &[], rank).unwrap(), &x)).concat();
        assert_eq!(by_rows, expected);
        for ranks in [2, 4] {
            let cols = 64 / ranks;
            let of = |rank| {
                product(&update.share([4, cols], &[], rank).unwrap(), &x[rank * cols..(rank + 1) * cols])
            };
            let sums = (0..ranks).map(of).reduce(|sum, of| sum.iter().zip(of).map(|(a, b)| a + b).collect());
            for (found, expected) in sums.unwrap().iter().zip(&expected) {
                assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} {expected}");
            }
        }
        assert!(update.share([3, 64], &[], 0).is_err(), "4 rows are no shares of 3");
    }
}
