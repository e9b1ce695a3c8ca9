//! A model's tensors and buffers on a device.

use super::{BufferKind, BufferRows, Build, HeadRows, Projection};
use crate::batch::BatchLimits;
use crate::config::ExpertSizes;
use crate::error::{Error, Result};
use crate::kv_layout::{LayerState, StateLayout};
use crate::ops::lora::Update;
use crate::ops::{Ops, Stacked};
use crate::weights::{Matrix, Weights};

/// Brings the tensors of a file to a device and allocates buffers there.
pub struct Load<'a, O: Ops> {
    ops: &'a mut O,
    weights: &'a Weights,
    limits: BatchLimits,
    state: StateLayout,
    loaded: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<'a, O: Ops> Load<'a, O> {
    /// `weights` for batches within `limits`. `progress` is called after each tensor with the bytes of weights loaded so far and
    /// with their sum.
    pub fn new(
        ops: &'a mut O,
        weights: &'a Weights,
        limits: &BatchLimits,
        progress: &'a mut dyn FnMut(u64, u64),
    ) -> Self {
        Self {
            ops,
            weights,
            limits: *limits,
            state: StateLayout::default(),
            loaded: 0,
            total: weights.num_bytes(),
            progress,
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.loaded += bytes as u64;
        (self.progress)(self.loaded, self.total);
    }

    /// The rows of `matrix` that `projection` wants.
    fn wanted_rows(matrix: &Matrix, projection: &Projection) -> Result<Matrix> {
        let HeadRows { size, order } = match projection.heads {
            Some(heads) => heads,
            None => return Ok(matrix.clone()),
        };
        matrix.of_heads(size, order)
    }

    fn load_vector(&mut self, values: &[f32], order: Option<&[usize]>) -> Result<O::Vector> {
        let vector = match order {
            None => self.ops.load_vector(values)?,
            Some(order) => {
                let heads = values.chunks_exact(order.len());
                let ordered: Vec<f32> = heads.flat_map(|head| order.iter().map(|&i| head[i])).collect();
                self.ops.load_vector(&ordered)?
            }
        };
        self.advance(size_of_val(values));
        Ok(vector)
    }
}

impl<O: Ops> Build<O> for Load<'_, O> {
    fn matrix(&mut self, name: &str, _rows: usize, _cols: usize) -> Result<O::Weight> {
        let weights = self.weights;
        let matrix = weights.matrix(name)?;
        let weight = self.ops.load_matrix(matrix)?;
        self.advance(matrix.data.len());
        Ok(weight)
    }

    fn halves(&mut self, name: &str, _rows: usize, cols: usize) -> Result<[O::Weight; 2]> {
        let weights = self.weights;
        let matrix = weights.matrix(name)?;
        let [left, right] = [0, cols].map(|first| self.ops.load_matrix(&matrix.column_range(first, cols)?));
        self.advance(matrix.data.len());
        Ok([left?, right?])
    }

    fn projection(&mut self, projection: &Projection, _cols: usize) -> Result<O::Weight> {
        let weights = self.weights;
        let matrix = Self::wanted_rows(weights.matrix(&projection.name)?, projection)?;
        let weight = self.ops.load_matrix(&matrix)?;
        self.advance(matrix.data.len());
        Ok(weight)
    }

    fn stacked(
        &mut self,
        projections: &[Projection],
        _cols: usize,
        apart: usize,
        fused: Option<&str>,
    ) -> Result<Stacked<O::Weight>> {
        let weights = self.weights;
        let mut first = 0;
        let mut ordered = |projection: &Projection| {
            let matrix = match fused {
                None => weights.matrix(&projection.name)?.clone(),
                Some(name) => weights.matrix(name)?.row_range(first, projection.rows)?,
            };
            first += projection.rows;
            Self::wanted_rows(&matrix, projection)
        };
        let matrices = projections.iter().map(&mut ordered).collect::<Result<Vec<_>>>()?;
        let stacked = self.ops.load_stacked(&matrices, apart)?;
        matrices.iter().for_each(|matrix| self.advance(matrix.data.len()));
        Ok(stacked)
    }

    fn updates(
        &mut self,
        projections: &[Projection],
        _cols: usize,
        fused: Option<&str>,
    ) -> Result<Vec<Update<O::Vector>>> {
        let weights = self.weights;
        let (mut updates, mut first) = (Vec::new(), 0);
        for (matrix, projection) in projections.iter().enumerate() {
            for (adapter, update) in (0..).zip(weights.adapters()).filter_map(|(adapter, of)| {
                Some((adapter, of.updates.get(fused.unwrap_or(&projection.name))?))
            }) {
                let b = match fused {
                    Some(_) => &update.b.row_range(first, projection.rows)?,
                    None => &update.b,
                };
                let b = Self::wanted_rows(b, projection)?;
                self.ops.reserve_rank(update.rank())?;
                updates.push(Update {
                    adapter,
                    matrix,
                    first,
                    out_features: b.rows,
                    in_features: update.a.cols,
                    rank: update.rank(),
                    scale: update.scale,
                    a: self.ops.load_vector(&update.a.to_f32()?)?,
                    b: self.ops.load_vector(&b.to_f32()?)?,
                });
            }
            first += projection.rows;
        }
        Ok(updates)
    }

    fn vector(&mut self, name: &str, _len: usize, order: Option<&[usize]>) -> Result<O::Vector> {
        let weights = self.weights;
        let missing = || Error::Model(format!("no vector {name}"));
        let values = weights.vector(name).ok_or_else(missing)?;
        self.load_vector(values, order)
    }

    fn experts(&mut self, name: &str, sizes: &ExpertSizes, _rows: usize, _cols: usize) -> Result<O::Weight> {
        let weights = self.weights;
        let matrix = weights.matrix(name)?;
        let weight = self.ops.load_experts(matrix, sizes.num_experts)?;
        self.advance(matrix.data.len());
        Ok(weight)
    }

    fn gate_up_experts(
        &mut self,
        names: [&str; 2],
        sizes: &ExpertSizes,
        _rows: usize,
        _cols: usize,
    ) -> Result<[O::Weight; 2]> {
        let weights = self.weights;
        let matrices = [weights.matrix(names[0])?, weights.matrix(names[1])?];
        let loaded = self.ops.load_gate_up_experts(matrices, sizes.num_experts)?;
        matrices.iter().for_each(|matrix| self.advance(matrix.data.len()));
        Ok(loaded)
    }

    fn table(&mut self, name: &str, _rows: usize, _cols: usize) -> Result<O::Vector> {
        self.vector(name, 0, None)
    }

    fn biases<const N: usize>(
        &mut self,
        of: [Projection; N],
        fused: Option<&str>,
    ) -> Result<[Option<O::Vector>; N]> {
        let weights = self.weights;
        let mut biases = [const { None }; N];
        let mut first = 0;
        for (bias, Projection { name, rows, heads }) in biases.iter_mut().zip(of) {
            let values = match fused {
                None => weights.vector(&name),
                Some(name) => weights.vector(name).and_then(|all| all.get(first..first + rows)),
            };
            first += rows;
            *bias =
                values.map(|values| self.load_vector(values, heads.map(|heads| heads.order))).transpose()?;
        }
        Ok(biases)
    }

    fn state(&mut self, state: LayerState) -> usize {
        self.state.add(state)
    }

    fn tensor(&mut self, rows: BufferRows, cols: usize) -> Result<O::Tensor> {
        self.ops.new_tensor(rows.within(&self.limits), cols)
    }

    fn activation(&mut self, rows: BufferRows, cols: usize, kind: BufferKind) -> Result<O::Activation> {
        let rows = rows.within(&self.limits);
        match kind {
            BufferKind::Precise => self.ops.new_precise_activation(rows, cols),
            BufferKind::Product => self.ops.new_product(rows, cols),
            BufferKind::Activation | BufferKind::Tensor => self.ops.new_activation(rows, cols),
        }
    }
}
