//! The part of a model that one of several devices has, where each has some of its layers.

use super::Config;
use crate::error::{Error, Result};
use std::ops::Range;

impl Config {
    /// The model of the device that has these of the layers: the first one has the embedding too, the last one the head and what drafts.
    #[must_use]
    pub fn of_stage(&self, layers: Range<usize>) -> Self {
        let draft = self.draft.filter(|_| layers.end == self.num_hidden_layers);
        Self { stage: Some(layers), draft, ..self.clone() }
    }

    /// The layers that this device has.
    pub fn layers(&self) -> Range<usize> {
        self.stage.clone().unwrap_or(0..self.num_hidden_layers)
    }

    /// Whether it has the first layer, and so the embedding.
    pub fn is_first_stage(&self) -> bool {
        self.layers().start == 0
    }

    /// Whether it has the last layer, and so the head.
    pub fn is_last_stage(&self) -> bool {
        self.layers().end == self.num_hidden_layers
    }

    /// Whether what comes behind the last layer, the head or a block that drafts, reads the embedding matrix.
    pub fn head_reads_embedding(&self) -> bool {
        self.tie_word_embeddings || self.draft.is_some()
    }

    /// Which layers each of several devices has: consecutive ones, as many as its share of `shares`, at least one; none where that is 0.
    ///
    /// # Errors
    /// [`Error::Request`] if a share is no number of at least 0, all are 0, or there are more devices than layers.
    pub fn split_layers(&self, shares: &[f64]) -> Result<Vec<Range<usize>>> {
        let layers = self.num_hidden_layers;
        let sum: f64 = shares.iter().sum();
        if shares.iter().any(|share| share.is_nan() || *share < 0.0) || !(sum > 0.0 && sum.is_finite()) {
            return Err(Error::Request(format!(
                "--tensor-split {shares:?}: expected proportions of at least 0, not all of them 0, such as 3,1"
            )));
        }
        let devices = shares.iter().filter(|share| **share > 0.0).count();
        if devices > layers {
            return Err(Error::Request(format!(
                "--split-mode layer: the model has {layers} layers, too few for {devices} GPUs: take at most {layers} (--device, --tensor-split)"
            )));
        }
        let (mut ranges, mut first, mut before, mut left) = (Vec::new(), 0, 0.0, devices);
        for &share in shares {
            before += share;
            let mut end = first;
            if share > 0.0 {
                left -= 1;
                let wanted = (layers as f64 * before / sum).round() as usize;
                // Each of those behind has one too.
                end = if left == 0 { layers } else { wanted.clamp(first + 1, layers - left) };
            }
            ranges.push(first..end);
            first = end;
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use crate::model::build::plan;
    use crate::model::published_config;

    #[test]
    fn layers_are_shared_out_in_proportion() {
        let config = published_config("qwen2.5-7b").unwrap();
        assert_eq!(config.num_hidden_layers, 28);
        for (shares, expected) in [
            (&[1.0, 1.0][..], &[0..14, 14..28][..]),
            (&[3.0, 1.0], &[0..21, 21..28]),
            (&[1.0, 0.0, 1.0], &[0..14, 14..14, 14..28]),
            (&[0.0, 5.0], &[0..0, 0..28]),
            (&[1000.0, 1.0, 1.0], &[0..26, 26..27, 27..28]),
            (&[1.0, 1.0, 1000.0], &[0..1, 1..2, 2..28]),
            (&[7.5e10, 2.5e10], &[0..21, 21..28]),
        ] {
            assert_eq!(config.split_layers(shares).unwrap(), expected, "{shares:?}");
        }
        for (shares, expected) in [
            (&[0.0, 0.0][..], "not all of them 0"),
            (&[], "not all of them 0"),
            (&[1.0, -1.0], "at least 0"),
            (&[f64::NAN, 1.0], "at least 0"),
            (&[f64::INFINITY, 1.0], "proportions"),
            (&[1.0; 29], "28 layers, too few for 29 GPUs"),
        ] {
            let error = config.split_layers(shares).unwrap_err().to_string();
            assert!(error.contains(expected), "{shares:?}: {error}");
        }
    }

    #[test]
    fn devices_have_all_tensors_together() {
        for name in ["qwen2.5-0.5b", "qwen2.5-7b", "qwen3-30b-a3b", "qwen3.5-4b", "gpt2-124m"] {
            let config = published_config(name).unwrap();
            let whole = plan(&config).unwrap();
            let parts: Vec<_> = (config.split_layers(&[1.0, 2.0, 3.0]).unwrap().into_iter())
                .map(|layers| plan(&config.of_stage(layers)).unwrap())
                .collect();
            for spec in &whole.tensors {
                let count = parts.iter().filter(|part| part.tensors.contains(spec)).count();
                let is_twice = spec.name == crate::weights::EMBEDDING && config.tie_word_embeddings;
                assert_eq!(count, if is_twice { 2 } else { 1 }, "{name}: {}", spec.name);
            }
            let states: Vec<_> = parts.iter().flat_map(|part| part.state.layers.clone()).collect();
            assert_eq!(states, whole.state.layers, "{name}");
        }
    }
}
