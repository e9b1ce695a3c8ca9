//! How a model comes into being: its build function asks for its tensors and its work buffers one by one, and who answers decides
//! what that does.
//!
//! [`plan`] writes down what was asked for: from that list files are checked, memory is planned and random test models are written.
//! [`Load`] answers with the tensors of a file on a device.

mod load;

pub use load::Load;

use crate::batch::BatchLimits;
use crate::config::{Config, ExpertSizes};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::kv_layout::{LayerState, StateLayout};
use crate::ops::lora::Update;
use crate::ops::parts::{LayerNorm, Norm, QkNorm, RmsNorm};
use crate::ops::{Stacked, Types};
use crate::weights::{Group, TensorShape, TensorSpec};

/// A matrix that is multiplied with others at once.
#[derive(Clone, Debug)]
pub struct Projection<'a> {
    /// Its name in the file.
    pub name: String,
    /// `out_features`
    pub rows: usize,
    /// Which rows are wanted; `None` for all of the tensor, as they stand there.
    pub heads: Option<HeadRows<'a>>,
}

/// Which rows of every head of a tensor are wanted, and in what order.
#[derive(Clone, Copy, Debug)]
pub struct HeadRows<'a> {
    /// Rows of a head in the file.
    pub size: usize,
    /// Those that are wanted: all of them in another order ([`crate::rope::head_order`]), or some.
    pub order: &'a [usize],
}

impl Projection<'_> {
    /// Rows of the tensor.
    fn rows_in_file(&self) -> usize {
        self.heads.map_or(self.rows, |heads| self.rows / heads.order.len().max(1) * heads.size)
    }
}

/// What norms the rows of the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// [`RmsNorm`]
    Rms,
    /// [`LayerNorm`], with a bias.
    Layer,
}

/// How many rows a work buffer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferRows {
    /// As many as a step: [`BatchLimits::max_num_tokens`].
    Tokens,
    /// As many as logits are wanted for: [`BatchLimits::max_num_logits`].
    Logits,
}

impl BufferRows {
    /// Their number for batches within `limits`.
    fn within(self, limits: &BatchLimits) -> usize {
        match self {
            Self::Tokens => limits.max_num_tokens,
            Self::Logits => limits.max_num_logits,
        }
    }
}

/// What a work buffer is for, and so its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferKind {
    /// [`Ops::new_tensor`](crate::ops::Ops::new_tensor): f32.
    Tensor,
    /// [`Ops::new_activation`](crate::ops::Ops::new_activation).
    Activation,
    /// [`Ops::new_precise_activation`](crate::ops::Ops::new_precise_activation).
    Precise,
    /// [`Ops::new_product`](crate::ops::Ops::new_product).
    Product,
}

/// A work buffer that a model needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferSpec {
    pub rows: BufferRows,
    pub cols: usize,
    pub kind: BufferKind,
}

impl BufferSpec {
    /// Its bytes, where activations are in the format `activation`.
    fn bytes(&self, limits: &BatchLimits, activation: Dtype) -> u64 {
        let size = match self.kind {
            // A product is f32 where the library does not multiply.
            BufferKind::Tensor | BufferKind::Product => Dtype::F32.size(),
            BufferKind::Activation | BufferKind::Precise => activation.size(),
        };
        (self.rows.within(limits) as u64).saturating_mul(self.cols as u64).saturating_mul(size as u64)
    }
}

/// Everything that a model asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In the order in which they are loaded.
    pub tensors: Vec<TensorSpec>,
    pub buffers: Vec<BufferSpec>,
    pub state: StateLayout,
    /// The matrices that adapters may have updates for, as the file has them.
    pub adaptable: Vec<TensorSpec>,
}

impl Plan {
    /// Bytes of all work buffers for batches within `limits`, where activations are in the format `activation`.
    pub fn workspace_bytes(&self, limits: &BatchLimits, activation: Dtype) -> u64 {
        let bytes = self.buffers.iter().map(|buffer| buffer.bytes(limits, activation));
        bytes.fold(0, u64::saturating_add)
    }
}

/// Answers a model's build function.
pub trait Build<T: Types> {
    /// A matrix `[rows, cols]`.
    ///
    /// # Errors
    /// What the device says; likewise below.
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<T::Weight>;

    /// Some rows of a matrix of `cols` columns, of which others may be asked for too.
    ///
    /// # Errors
    /// As [`Build::matrix`].
    fn projection(&mut self, projection: &Projection, cols: usize) -> Result<T::Weight>;

    /// A matrix `[rows, 2 * cols]`, its left half and its right one by themselves.
    ///
    /// # Errors
    /// As [`Build::matrix`]; [`crate::Error::Model`] if a row's half is not whole blocks.
    fn halves(&mut self, name: &str, rows: usize, cols: usize) -> Result<[T::Weight; 2]>;

    /// Matrices of `cols` columns that are multiplied with the same inputs; in the file they are one tensor, one below the other,
    /// where `fused` names it. Of the rows of all, one below the other, a row and the one that is `apart` rows on are used together,
    /// or none, where it is 0.
    ///
    /// # Errors
    /// As [`Build::matrix`].
    fn stacked(
        &mut self,
        projections: &[Projection],
        cols: usize,
        apart: usize,
        fused: Option<&str>,
    ) -> Result<Stacked<T::Weight>>;

    /// What adapters add to the product with projections of `cols` columns; `fused` as for [`Build::stacked`].
    ///
    /// # Errors
    /// As [`Build::matrix`].
    fn updates(
        &mut self,
        projections: &[Projection],
        cols: usize,
        fused: Option<&str>,
    ) -> Result<Vec<Update<T::Vector>>>;

    /// A vector; its values in the order `order`, if one is given.
    ///
    /// # Errors
    /// As [`Build::matrix`].
    fn vector(&mut self, name: &str, len: usize, order: Option<&[usize]>) -> Result<T::Vector>;

    /// Matrices `[rows, cols]` of the experts of a layer, one below the other.
    ///
    /// # Errors
    /// As [`Build::matrix`].
    fn experts(&mut self, name: &str, sizes: &ExpertSizes, rows: usize, cols: usize) -> Result<T::Weight>;

    /// Gate and up of the experts of a layer, `[rows, cols]` each, one below the other.
    ///
    /// # Errors
    /// As [`Build::matrix`].
    fn gate_up_experts(
        &mut self,
        names: [&str; 2],
        sizes: &ExpertSizes,
        rows: usize,
        cols: usize,
    ) -> Result<[T::Weight; 2]>;

    /// A small table `[rows, cols]` of f32, row-major.
    ///
    /// # Errors
    /// As [`Build::matrix`].
    fn table(&mut self, name: &str, rows: usize, cols: usize) -> Result<T::Vector>;

    /// The biases of projections, of which a file has all or none: their names, rows and orders as those of the projections, and
    /// `fused` as there.
    ///
    /// # Errors
    /// As [`Build::matrix`].
    fn biases<const N: usize>(
        &mut self,
        of: [Projection; N],
        fused: Option<&str>,
    ) -> Result<[Option<T::Vector>; N]>;

    /// Says of which ranges a rank's share of a tensor consists that was asked for ([`TensorSpec::parts`]).
    fn in_parts(&mut self, _name: &str, _parts: &[usize]) {}

    /// What the next layer keeps of a sequence. Answers which it is of the layers that keep the like of it, by which operations
    /// know it.
    fn state(&mut self, state: LayerState) -> usize;

    /// A work buffer.
    ///
    /// # Errors
    /// As [`Build::matrix`].
    fn tensor(&mut self, rows: BufferRows, cols: usize) -> Result<T::Tensor>;

    /// A work buffer that products read or write.
    ///
    /// # Errors
    /// As [`Build::matrix`].
    fn activation(&mut self, rows: BufferRows, cols: usize, kind: BufferKind) -> Result<T::Activation>;

    /// A norm of rows of `len` values; `name` is without the `.weight` and `.bias` of its tensors.
    ///
    /// # Errors
    /// As [`Build::matrix`].
    fn norm(&mut self, kind: NormKind, name: &str, len: usize, eps: f32) -> Result<Norm<T::Vector>> {
        let weight = self.vector(&format!("{name}.weight"), len, None)?;
        Ok(match kind {
            NormKind::Rms => Norm::Rms(RmsNorm { weight, eps }),
            NormKind::Layer => {
                let bias = Some(self.vector(&format!("{name}.bias"), len, None)?);
                Norm::Layer(LayerNorm { weight, bias, eps })
            }
        })
    }

    /// The norms of the heads of Q and K, whose values are in the order `order`.
    ///
    /// # Errors
    /// As [`Build::matrix`].
    fn qk_norm(
        &mut self,
        [q, k]: [&str; 2],
        head_dim: usize,
        order: Option<&[usize]>,
        eps: f32,
    ) -> Result<QkNorm<T::Vector>> {
        Ok(QkNorm { q: self.vector(q, head_dim, order)?, k: self.vector(k, head_dim, order)?, eps })
    }
}

/// No device: nothing is there.
pub struct Nothing;

impl Types for Nothing {
    type Tensor = ();
    type Activation = ();
    type Weight = ();
    type Vector = ();
    type KvCache = ();
    type States = ();
    type Batch = ();
}

/// What the model of `config` asks for.
///
/// # Errors
/// [`crate::Error::Model`] for an architecture that is not known.
pub fn plan(config: &Config) -> Result<Plan> {
    let mut plan = Plan::default();
    super::Model::<Nothing>::build(&mut plan, config)?;
    Ok(plan)
}

impl Plan {
    /// Adds a tensor, once.
    fn tensor_spec(&mut self, name: &str, shape: TensorShape, group: Group) {
        if !self.tensors.iter().any(|spec| spec.name == name) {
            self.tensors.push(TensorSpec { name: name.to_owned(), shape, group, parts: Vec::new() });
        }
    }
}

impl Build<Nothing> for Plan {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<()> {
        self.tensor_spec(name, TensorShape::Matrix { rows, cols }, Group::Always);
        Ok(())
    }

    fn halves(&mut self, name: &str, rows: usize, cols: usize) -> Result<[(); 2]> {
        self.matrix(name, rows, cols.saturating_mul(2)).map(|()| [(); 2])
    }

    fn projection(&mut self, projection: &Projection, cols: usize) -> Result<()> {
        self.matrix(&projection.name, projection.rows_in_file(), cols)
    }

    fn stacked(
        &mut self,
        projections: &[Projection],
        cols: usize,
        _apart: usize,
        fused: Option<&str>,
    ) -> Result<Stacked<()>> {
        match fused {
            Some(name) => self.matrix(name, projections.iter().map(|part| part.rows).sum(), cols)?,
            None => projections.iter().try_for_each(|part| self.projection(part, cols))?,
        }
        Ok(Stacked { whole: (), matrices: vec![(); projections.len()] })
    }

    fn updates(
        &mut self,
        projections: &[Projection],
        cols: usize,
        fused: Option<&str>,
    ) -> Result<Vec<Update<()>>> {
        let of = |part: &Projection| (part.name.clone(), part.rows_in_file());
        let matrices = match fused {
            Some(name) => vec![(name.to_owned(), projections.iter().map(|part| part.rows).sum())],
            None => projections.iter().map(of).collect(),
        };
        for (name, rows) in matrices {
            if !self.adaptable.iter().any(|spec| spec.name == name) {
                let shape = TensorShape::Matrix { rows, cols };
                self.adaptable.push(TensorSpec { name, shape, group: Group::Always, parts: Vec::new() });
            }
        }
        Ok(Vec::new())
    }

    fn vector(&mut self, name: &str, len: usize, _: Option<&[usize]>) -> Result<()> {
        self.tensor_spec(name, TensorShape::Vector { len }, Group::Always);
        Ok(())
    }

    fn experts(&mut self, name: &str, sizes: &ExpertSizes, rows: usize, cols: usize) -> Result<()> {
        let &ExpertSizes { num_experts: count, num_experts_per_tok: used, .. } = sizes;
        self.tensor_spec(name, TensorShape::Experts { count, used, rows, cols }, Group::Always);
        Ok(())
    }

    fn gate_up_experts(
        &mut self,
        names: [&str; 2],
        sizes: &ExpertSizes,
        rows: usize,
        cols: usize,
    ) -> Result<[(); 2]> {
        names.iter().try_for_each(|name| self.experts(name, sizes, rows, cols))?;
        Ok([(); 2])
    }

    fn table(&mut self, name: &str, rows: usize, cols: usize) -> Result<()> {
        self.tensor_spec(name, TensorShape::Table { rows, cols }, Group::Always);
        Ok(())
    }

    fn biases<const N: usize>(
        &mut self,
        of: [Projection; N],
        fused: Option<&str>,
    ) -> Result<[Option<()>; N]> {
        let tensors: Vec<(&str, usize)> = match fused {
            Some(name) => vec![(name, of.iter().map(|bias| bias.rows).sum())],
            None => of.iter().map(|bias| (bias.name.as_str(), bias.rows)).collect(),
        };
        let names: Vec<_> = tensors.iter().map(|&(name, _)| name.to_owned()).collect();
        for (name, len) in tensors {
            self.tensor_spec(name, TensorShape::Vector { len }, Group::With(names.clone()));
        }
        Ok([Some(()); N])
    }

    fn in_parts(&mut self, name: &str, parts: &[usize]) {
        for spec in self.tensors.iter_mut().chain(&mut self.adaptable).filter(|spec| spec.name == name) {
            spec.parts = parts.to_vec();
        }
    }

    fn state(&mut self, state: LayerState) -> usize {
        self.state.add(state)
    }

    fn tensor(&mut self, rows: BufferRows, cols: usize) -> Result<()> {
        self.buffers.push(BufferSpec { rows, cols, kind: BufferKind::Tensor });
        Ok(())
    }

    fn activation(&mut self, rows: BufferRows, cols: usize, kind: BufferKind) -> Result<()> {
        self.buffers.push(BufferSpec { rows, cols, kind });
        Ok(())
    }
}
