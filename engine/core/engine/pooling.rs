//! What becomes of the residual stream of a text whose meaning is wanted, not its continuation: one vector, or a score.
//!
//! The last norm, the mean and a classifier of a few rows are computed here, in f64, for any device: next to the layers they cost nothing.

use crate::config::{Config, Keys};
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::tokenizer::Tokenizer;
use crate::weights::{CLASSIFIER, Weights};
use std::str::FromStr;

/// How the rows of a text become what is asked for, by llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// A vector for each token.
    None,
    /// The mean of all.
    Mean,
    /// That of the first token.
    Cls,
    /// That of the last token.
    Last,
    /// A classifier's score of the last token.
    Rank,
}

impl Pooling {
    /// llama.cpp's number.
    fn numbered(number: u64) -> Option<Self> {
        [Self::None, Self::Mean, Self::Cls, Self::Last, Self::Rank]
            .get(usize::try_from(number).ok()?)
            .copied()
    }

    /// Whether the rows of all tokens are needed.
    pub fn needs_all(self) -> bool {
        matches!(self, Self::None | Self::Mean | Self::Cls)
    }
}

impl FromStr for Pooling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "none" => Self::None,
            "mean" => Self::Mean,
            "cls" => Self::Cls,
            "last" => Self::Last,
            "rank" => Self::Rank,
            _ => return Err(format!("expected none, mean, cls, last or rank, found {text:?}")),
        })
    }
}

/// What is made of a vector's length, by llama.cpp's numbers (`--embd-normalize`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalize {
    /// -1: nothing.
    No,
    /// 0: the largest value is 32,760, as for 16-bit integers.
    MaxAbsolute,
    /// 1: the values' absolute sum is 1.
    Taxicab,
    /// 2: the Euclidean length is 1.
    #[default]
    Euclidean,
    /// p above 2: the p-norm is 1.
    P(u32),
}

impl Normalize {
    /// Scales a vector. One of zeros stays.
    pub fn apply(self, vector: &mut [f32]) {
        let absolute = || vector.iter().map(|&x| f64::from(x).abs());
        let length = match self {
            Self::No => 1.0,
            Self::MaxAbsolute => absolute().fold(0.0, f64::max) / 32_760.0,
            Self::Taxicab => absolute().sum(),
            Self::Euclidean => absolute().map(|x| x * x).sum::<f64>().sqrt(),
            Self::P(p) => absolute().map(|x| x.powf(p.into())).sum::<f64>().powf(1.0 / f64::from(p)),
        };
        if length > 0.0 {
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
}

impl FromStr for Normalize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.parse::<i32>() {
            Ok(-1) => Self::No,
            Ok(0) => Self::MaxAbsolute,
            Ok(1) => Self::Taxicab,
            Ok(2) => Self::Euclidean,
            Ok(p) if p > 2 => Self::P(p as u32),
            _ => return Err(format!("expected -1 (none), 0, 1, 2 or a larger p, found {text:?}")),
        })
    }
}

/// A classifier behind the last norm.
#[derive(Clone, Debug)]
struct Classifier {
    /// `[labels, hidden_size]`
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// Of the labels the one whose share is the score.
    wanted: usize,
}

/// Turns rows of the residual stream into vectors and scores.
#[derive(Clone, Debug)]
pub struct Pooler {
    /// What the file says; `None` for a model that was made to continue texts.
    pub pooling: Option<Pooling>,
    norm: Vec<f32>,
    /// Where norms subtract the mean.
    norm_bias: Option<Vec<f32>>,
    eps: f64,
    classifier: Option<Classifier>,
    /// The prompt of a reranker, with `{query}` and `{document}` in it.
    pub rerank_template: Option<String>,
    /// Texts end with this token, which was there when the model was trained on them.
    pub adds_eos: bool,
}

impl Pooler {
    /// Values of a text's vector.
    pub fn num_values(&self) -> usize {
        self.norm.len()
    }

    /// What the file of a model has of it.
    ///
    /// # Errors
    /// [`Error::Model`] for a type of pooling that llama.cpp does not have, and a classifier that does not fit.
    pub fn new(gguf: &Gguf, config: &Config, weights: &Weights) -> Result<Self> {
        let keys = Keys::new(gguf)?;
        let pooling = match keys.get::<u64>("pooling_type")? {
            None => None,
            Some(number) => Some(
                Pooling::numbered(number).ok_or_else(|| keys.invalid("pooling_type", number, "0 to 4"))?,
            ),
        };
        let norm = weights.vector("output_norm.weight").map(<[f32]>::to_vec);
        Ok(Self {
            pooling,
            norm: norm.ok_or_else(|| Error::Model("the model has no output_norm.weight".to_owned()))?,
            norm_bias: weights.vector("output_norm.bias").map(<[f32]>::to_vec),
            eps: f64::from(config.rms_norm_eps),
            classifier: classifier(gguf, &keys, config.hidden_size)?,
            rerank_template: gguf.get::<&str>("tokenizer.chat_template.rerank")?.map(str::to_owned),
            adds_eos: gguf.get("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
        })
    }

    /// The tokens of a text whose vector is wanted.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        Ok(self.around(tokenizer, tokenizer.encode(text, true)?))
    }

    /// The tokens of a text with BOS and EOS around them where the model has seen them there.
    pub fn around(&self, tokenizer: &Tokenizer, tokens: Vec<u32>) -> Vec<u32> {
        let bos = tokenizer.bos_token_id().filter(|_| tokenizer.adds_bos());
        let eos = tokenizer.eos_token_id().filter(|eos| self.adds_eos && tokens.last() != Some(eos));
        bos.into_iter().chain(tokens).chain(eos).collect()
    }

    /// The prompt by which a document is scored for a query: the file's template.
    ///
    /// # Errors
    /// [`Error::Request`] if the model is no reranker.
    pub fn pair(&self, query: &str, document: &str) -> Result<String> {
        let template = self.rerank_template.as_ref().filter(|_| self.classifier.is_some());
        template.map(|template| fill(template, query, document)).ok_or_else(|| {
            Error::Request(
                "the model cannot rerank: expected a classifier (cls.output.weight) and a template \
                 (tokenizer.chat_template.rerank) in its file"
                    .to_owned(),
            )
        })
    }

    /// Rows of the residual stream `[n, hidden_size]`, all of a text or its last one, as vectors: one, or as many for [`Pooling::None`].
    /// A score is a vector of one value.
    ///
    /// # Errors
    /// [`Error::Request`] for a score of a model without a classifier.
    pub fn pool(&self, pooling: Pooling, rows: &[f32]) -> Result<Vec<Vec<f32>>> {
        let mut pooled = self.begin(pooling)?;
        self.add(&mut pooled, rows);
        Ok(self.finish(pooled))
    }

    /// The beginning of a text whose rows come in parts.
    ///
    /// # Errors
    /// As [`Pooler::pool`].
    pub fn begin(&self, pooling: Pooling) -> Result<Pooled> {
        if pooling == Pooling::Rank && self.classifier.is_none() {
            return Err(Error::Request(
                "the model has no classifier (cls.output.weight) to score with".to_owned(),
            ));
        }
        Ok(Pooled { pooling, count: 0, row: Vec::new(), each: Vec::new() })
    }

    /// Takes the next rows of a text `[n, hidden_size]`. Of these no more is kept than its vector needs.
    pub fn add(&self, pooled: &mut Pooled, rows: &[f32]) {
        for row in rows.chunks_exact(self.norm.len()) {
            pooled.count += 1;
            match pooled.pooling {
                Pooling::None => pooled.each.push(as_f32(self.normalise(row))),
                Pooling::Mean => {
                    pooled.row.resize(row.len(), 0.0);
                    pooled.row.iter_mut().zip(self.normalise(row)).for_each(|(sum, x)| *sum += x);
                }
                Pooling::Cls if pooled.count > 1 => {}
                Pooling::Cls | Pooling::Last | Pooling::Rank => pooled.row = self.normalise(row),
            }
        }
    }

    /// The vectors of a text whose rows have all come.
    pub fn finish(&self, pooled: Pooled) -> Vec<Vec<f32>> {
        let Pooled { pooling, count, mut row, each } = pooled;
        match (pooling, &self.classifier) {
            (Pooling::None, _) => return each,
            (Pooling::Mean, _) => row.iter_mut().for_each(|sum| *sum /= count.max(1) as f64),
            (Pooling::Rank, Some(classifier)) => row = vec![classifier.score(&row)],
            _ => {}
        }
        vec![as_f32(row)]
    }

    /// The norm behind the last layer.
    fn normalise(&self, row: &[f32]) -> Vec<f64> {
        let count = row.len().max(1) as f64;
        let mean = match self.norm_bias {
            Some(_) => row.iter().map(|&x| f64::from(x)).sum::<f64>() / count,
            None => 0.0,
        };
        let squares: f64 = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
        let scale = 1.0 / (squares / count + self.eps).sqrt();
        let mut normed: Vec<f64> = row
            .iter()
            .zip(&self.norm)
            .map(|(&x, &weight)| (f64::from(x) - mean) * scale * f64::from(weight))
            .collect();
        if let Some(bias) = &self.norm_bias {
            normed.iter_mut().zip(bias).for_each(|(x, &bias)| *x += f64::from(bias));
        }
        normed
    }
}

/// What is known of a text's vector while its rows come.
#[derive(Clone, Debug)]
pub struct Pooled {
    pooling: Pooling,
    /// Rows so far.
    count: usize,
    /// Their normed sum, the first one or the last.
    row: Vec<f64>,
    /// All of them, where each is wanted.
    each: Vec<Vec<f32>>,
}

fn as_f32(row: Vec<f64>) -> Vec<f32> {
    row.into_iter().map(|x| x as f32).collect()
}

impl Classifier {
    /// The share of the wanted label, or what a classifier of one output says.
    fn score(&self, row: &[f64]) -> f64 {
        let logits = self.weight.chunks_exact(row.len().max(1)).enumerate().map(|(i, weight)| {
            let bias = self.bias.get(i).map_or(0.0, |&bias| f64::from(bias));
            row.iter().zip(weight).fold(bias, |sum, (x, &weight)| sum + x * f64::from(weight))
        });
        let logits: Vec<f64> = logits.collect();
        let wanted = logits.get(self.wanted).copied().unwrap_or_default();
        if logits.len() < 2 {
            return wanted;
        }
        1.0 / logits.iter().map(|logit| (logit - wanted).exp()).sum::<f64>()
    }
}

/// A template with what belongs in its places; what stands in the texts is not looked at.
fn fill(template: &str, query: &str, document: &str) -> String {
    let pieces =
        template.split("{query}").map(|piece| piece.split("{document}").collect::<Vec<_>>().join(document));
    pieces.collect::<Vec<_>>().join(query)
}

/// The classifier of a file, if it has one.
fn classifier(gguf: &Gguf, keys: &Keys, hidden_size: usize) -> Result<Option<Classifier>> {
    const LABELS: &str = "classifier.output_labels";
    let Some(tensor) = gguf.tensor(CLASSIFIER[0]) else { return Ok(None) };
    // A vector is a classifier of one output.
    let (count, cols) = match tensor.shape()[..] {
        [cols] => (1, cols),
        [count, cols] => (count, cols),
        _ => (0, 0),
    };
    if count == 0 || cols != hidden_size as u64 {
        let found = tensor.shape();
        return Err(Error::Model(format!(
            "{} is {found:?}; expected [labels, {hidden_size}]",
            CLASSIFIER[0]
        )));
    }
    let labels: Vec<&str> = keys.get(LABELS)?.unwrap_or_default();
    // Fits: the file holds them.
    let count = count as usize;
    Ok(Some(Classifier {
        weight: keys.matrix(CLASSIFIER[0], count * hidden_size)?,
        bias: keys.floats(CLASSIFIER[1], count)?.unwrap_or_default(),
        wanted: labels.iter().position(|&label| label == "yes").filter(|&label| label < count).unwrap_or(0),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooler(classifier: Option<Classifier>) -> Pooler {
        Pooler {
            pooling: None,
            norm: vec![1.0, 2.0],
            norm_bias: None,
            eps: 0.0,
            classifier,
            rerank_template: None,
            adds_eos: false,
        }
    }

    #[test]
    fn rows_become_vectors_by_every_pooling() {
        let rows = [3.0, 3.0, 5.0, -5.0, 7.0, 7.0];
        let of = |pooling| pooler(None).pool(pooling, &rows).unwrap();
        assert_eq!(of(Pooling::None), [[1.0, 2.0], [1.0, -2.0], [1.0, 2.0]]);
        assert_eq!(of(Pooling::Mean), [[1.0, 2.0 / 3.0]]);
        assert_eq!((of(Pooling::Cls), of(Pooling::Last)), (vec![vec![1.0, 2.0]], vec![vec![1.0, 2.0]]));
        assert!(pooler(None).pool(Pooling::Rank, &rows).unwrap_err().to_string().contains("no classifier"));
        let biased = Pooler { norm_bias: Some(vec![0.5, 0.0]), ..pooler(None) };
        assert_eq!(biased.pool(Pooling::Last, &[5.0, 7.0]).unwrap(), [[-0.5, 2.0]]);
    }

    #[test]
    fn a_template_is_filled_once() {
        assert_eq!(fill("q {query} d {document}.", "{document}?", "{query}!"), "q {document}? d {query}!.");
    }

    #[test]
    fn a_score_is_the_share_of_yes() {
        let two = Classifier { weight: vec![1.0, 0.0, 0.0, 1.0], bias: Vec::new(), wanted: 0 };
        let of = |classifier| pooler(Some(classifier)).pool(Pooling::Rank, &[4.0, 4.0]).unwrap()[0][0];
        assert!((of(two.clone()) - 1.0 / (1.0 + 1f32.exp())).abs() < 1e-6);
        assert!((of(Classifier { wanted: 1, ..two }) - 1.0 / (1.0 + (-1f32).exp())).abs() < 1e-6);
        assert_eq!(of(Classifier { weight: vec![3.0, 1.0], bias: vec![0.5], wanted: 0 }), 5.5);
    }

    #[test]
    fn lengths_are_llama_cpps() {
        let of = |text: &str| {
            let mut vector = [3.0, -4.0];
            text.parse::<Normalize>().unwrap().apply(&mut vector);
            vector
        };
        assert_eq!((of("-1"), of("2")), ([3.0, -4.0], [0.6, -0.8]));
        assert_eq!((of("0"), of("1")), ([24_570.0, -32_760.0], [3.0 / 7.0, -4.0 / 7.0]));
        assert!((of("3")[0] - 3.0 / 91f32.powf(1.0 / 3.0)).abs() < 1e-6);
        let mut zeros = [0.0; 2];
        Normalize::Euclidean.apply(&mut zeros);
        assert_eq!(zeros, [0.0; 2]);
        assert!("x".parse::<Normalize>().is_err() && "-2".parse::<Normalize>().is_err());
    }
}
