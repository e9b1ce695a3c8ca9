//! The part of the weights that a device has, where each of several has some layers of the model.

use super::{TensorShape, TensorSpec, Weights};
use std::collections::{HashMap, HashSet};

impl Weights {
    /// Those that a device's model asks for, `specs`, and what adapters add to them; `has_head`: it multiplies with the head, which may be the
    /// embedding. Nothing is copied but norms and biases.
    #[must_use]
    pub fn of_stage(&self, specs: &[TensorSpec], has_head: bool) -> Self {
        let names: HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let experts: HashSet<&str> = (specs.iter())
            .filter(|spec| matches!(spec.shape, TensorShape::Experts { .. }))
            .map(|spec| spec.name.as_str())
            .collect();
        let matrices: Vec<_> =
            self.matrices.iter().filter(|matrix| names.contains(matrix.name.as_str())).cloned().collect();
        let vectors: Vec<_> =
            self.vectors.iter().filter(|(name, _)| names.contains(name.as_str())).cloned().collect();
        let of_matrices = matrices.iter().map(|matrix| matrix.name.clone()).enumerate();
        let of_vectors = vectors.iter().map(|(name, _)| name.clone()).enumerate();
        let places: HashMap<_, _> =
            of_matrices.chain(of_vectors).map(|(place, name)| (name, place)).collect();
        let mut adapters = self.adapters.clone();
        for adapter in &mut adapters {
            adapter.updates.retain(|name, _| names.contains(name.as_str()));
        }
        let experts: Vec<_> =
            (0..matrices.len()).filter(|&i| experts.contains(matrices[i].name.as_str())).collect();
        let expert_bytes = experts.iter().map(|&i| matrices[i].data.len() as u64).sum();
        Self {
            matrices,
            vectors,
            places,
            experts,
            expert_bytes,
            idle_share: self.idle_share,
            has_head,
            adapters,
            unused: Vec::new(),
        }
    }
}
