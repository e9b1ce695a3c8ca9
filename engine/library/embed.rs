//! Vectors and scores of texts.

use super::Model;
use crate::engine::pooling::{Normalize, Pooler, Pooling};
use crate::error::{Error, Result};
use std::sync::Arc;

impl Model {
    /// The vector of a text, of length 1, made as the model's file says: of its last token where it says nothing.
    ///
    /// ```
    /// # fn main() -> qernel::Result<()> {
    /// let mut model = qernel::Model::haiku()?;
    /// let [sea, ocean] = [model.embed("the sea")?, model.embed("the ocean")?];
    /// let similarity: f32 = sea.iter().zip(&ocean).map(|(a, b)| a * b).sum();
    /// assert!(similarity <= 1.0001);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Request`] if the text is empty or longer than the context; [`Error::Device`] if the device fails.
    pub fn embed(&mut self, text: &str) -> Result<Vec<f32>> {
        let pooler = self.pooler()?;
        let pooling = match pooler.pooling {
            Some(pooling @ (Pooling::Mean | Pooling::Cls)) => pooling,
            _ => Pooling::Last,
        };
        let tokens = pooler.encode(&self.tokenizer, text)?;
        let mut vector = self.pooled(&tokens, pooling)?;
        Normalize::Euclidean.apply(&mut vector);
        Ok(vector)
    }

    /// How well each document fits a query, from 0 to 1, of a model that was made for it (Qwen3-Reranker).
    ///
    /// # Errors
    /// As [`Model::embed`]; [`Error::Request`] if the model is no reranker.
    pub fn rerank(&mut self, query: &str, documents: &[&str]) -> Result<Vec<f32>> {
        let pooler = self.pooler()?;
        let mut score = |document: &&str| {
            let tokens = self.tokenizer.encode(&pooler.pair(query, document)?, true)?;
            Ok(self.pooled(&tokens, Pooling::Rank)?.first().copied().unwrap_or_default())
        };
        documents.iter().map(&mut score).collect()
    }

    fn pooler(&self) -> Result<Arc<Pooler>> {
        self.engine.pooler().cloned().ok_or_else(|| Error::Request("the model makes no vectors".to_owned()))
    }

    fn pooled(&mut self, tokens: &[u32], pooling: Pooling) -> Result<Vec<f32>> {
        let made = self.engine.embed(tokens, pooling)?;
        made.map(|vectors| vectors.concat())
            .ok_or_else(|| Error::Request("requests that run leave no room for the text".to_owned()))
    }
}
