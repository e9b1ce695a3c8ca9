//! Adapters of a model: updates of low rank that are added to what its matrices make.

use super::{Listing, Matrix, TensorShape, TensorSpec, Weights};
use crate::error::{Error, Result};
use crate::host_memory;
use std::collections::BTreeMap;

/// An adapter that fits a model.
#[derive(Clone, Debug)]
pub struct Adapter {
    /// What requests call it.
    pub name: String,
    /// What its updates are multiplied with where a request names it and says nothing else.
    pub scale: f32,
    /// By the names of the matrices that they are for.
    pub updates: BTreeMap<String, LowRank>,
}

/// The update of a matrix `[out_features, in_features]`: `scale * b · a`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[rank, in_features]`
    pub a: Matrix,
    /// `[out_features, rank]`, its rows in the order of the file that the model is in.
    pub b: Matrix,
    /// alpha / rank, or what the adapter has in its place.
    pub scale: f32,
}

/// One of both matrices of an update, as a reader of files found it.
#[derive(Clone, Debug)]
pub struct Half {
    /// What its file calls it, for messages.
    pub name: String,
    /// The matrix of the model that the update is for.
    pub target: String,
    pub is_b: bool,
    pub matrix: Matrix,
}

impl LowRank {
    /// Values between its matrices.
    pub fn rank(&self) -> usize {
        self.a.rows
    }

    /// Bytes of its values in f32.
    fn num_bytes(&self) -> usize {
        let values = |matrix: &Matrix| matrix.rows.saturating_mul(matrix.cols);
        values(&self.a).saturating_add(values(&self.b)).saturating_mul(size_of::<f32>())
    }
}

impl Adapter {
    /// The updates of these halves, for a model that takes updates of the matrices `adaptable`. `scale` gives what the update of a matrix is
    /// multiplied with, for its rank, or what is wrong with that; `problems` were found before.
    ///
    /// # Errors
    /// [`Error::Model`] that lists all that does not fit.
    pub fn of_halves(
        name: &str,
        halves: Vec<Half>,
        adaptable: &[TensorSpec],
        scale: impl Fn(&str, usize) -> Result<f32, String>,
        problems: Vec<String>,
    ) -> Result<Self> {
        let mut listing = Listing::default();
        problems.into_iter().for_each(|problem| listing.push(|| problem));
        let mut pairs: BTreeMap<String, [Option<Matrix>; 2]> = BTreeMap::new();
        for Half { name, target, is_b, matrix } in halves {
            let spec = adaptable.iter().find(|spec| spec.name == target);
            let Some(TensorShape::Matrix { rows, cols }) = spec.map(|spec| spec.shape) else {
                listing.push(|| {
                    format!("{name}: adapters of this matrix of the model are not computed ({target})")
                });
                continue;
            };
            let fits = if is_b { matrix.rows == rows } else { matrix.cols == cols };
            if !fits {
                let expected = if is_b { format!("[{rows}, rank]") } else { format!("[rank, {cols}]") };
                let found = [matrix.rows, matrix.cols];
                listing
                    .push(|| format!("{name}: expected {expected}, found {found:?}: it is of another model"));
            }
            if let Err(error) = matrix.row_bytes() {
                listing.push(|| error.to_string());
            }
            let place = &mut pairs.entry(target).or_default()[usize::from(is_b)];
            if place.replace(matrix).is_some() {
                listing.push(|| format!("{name}: it is there twice"));
            }
        }
        let mut updates = BTreeMap::new();
        for (target, pair) in pairs {
            let [Some(a), Some(b)] = pair else {
                listing.push(|| format!("{target}: one of the two matrices of its update is missing"));
                continue;
            };
            if a.rows == 0 || a.rows != b.cols {
                listing.push(|| {
                    format!("{target}: the rank is {} in one matrix and {} in the other", a.rows, b.cols)
                });
                continue;
            }
            match scale(&target, a.rows) {
                Ok(scale) if scale.is_finite() => _ = updates.insert(target, LowRank { a, b, scale }),
                Ok(scale) => listing.push(|| format!("{target}: its updates are multiplied with {scale}")),
                Err(problem) => listing.push(|| problem),
            }
        }
        if listing.total == 0 && updates.is_empty() {
            listing.push(|| "there are no updates in it".to_owned());
        }
        if listing.total > 0 {
            return Err(Error::Model(format!(
                "the adapter {name} cannot be used with this model: {listing}"
            )));
        }
        Ok(Self { name: name.to_owned(), scale: 1.0, updates })
    }

    /// Bytes of its values in f32, as which they are loaded.
    pub fn num_bytes(&self) -> usize {
        self.updates.values().map(LowRank::num_bytes).fold(0, usize::saturating_add)
    }
}

impl Matrix {
    /// Its values, row-major.
    ///
    /// # Errors
    /// As [`Matrix::row_bytes`]; [`Error::Memory`] if there is no room for them.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        self.row_bytes()?;
        let count = self.rows * self.cols;
        let mut values = Vec::new();
        host_memory::reserve(&self.name, &mut values, count)?;
        values.resize(count, 0.0);
        self.format.decode(&self.data, &mut values);
        values.iter_mut().for_each(|value| *value *= self.scale);
        Ok(values)
    }
}

impl Weights {
    /// The same with adapters, whose numbers are their places.
    #[must_use]
    pub fn with_adapters(self, adapters: Vec<Adapter>) -> Self {
        Self { adapters, ..self }
    }

    /// The adapters of the model.
    pub fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// Bytes that the adapters take once they are loaded.
    pub fn adapter_bytes(&self) -> usize {
        self.adapters.iter().map(Adapter::num_bytes).fold(0, usize::saturating_add)
    }

    /// The largest rank of an adapter's update, 0 where there is none.
    pub fn adapter_rank(&self) -> usize {
        let updates = self.adapters.iter().flat_map(|adapter| adapter.updates.values());
        updates.map(LowRank::rank).max().unwrap_or(0)
    }
}
