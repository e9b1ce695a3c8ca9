//! Prompts that no template makes: those of `/v1/completions`.

use super::fim;
use crate::error::ApiError;
use crate::models::Serving;
use crate::number::Whole;
use crate::work::RequestPermit;
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use std::fmt;
use std::sync::Arc;
use utoipa::ToSchema;

/// One prompt or several, as text or as token ids.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    IdLists(Vec<Vec<u32>>),
}

impl Prompt {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Text(_) | Self::Ids(_) => 1,
            Self::Texts(texts) => texts.len(),
            Self::IdLists(lists) => lists.len(),
        }
    }
}

/// A prompt as the model gets it.
pub struct Encoded {
    pub ids: Vec<u32>,
    /// The text that it is made of, where it is made of one.
    pub text: Option<String>,
    /// How many of its ids the vocabulary puts before a text.
    pub added: usize,
}

impl Prompt {
    /// The ids of each prompt; with a suffix those that ask for what stands between.
    ///
    /// # Errors
    /// 400 where a text is longer than the context, or the model does not fill in the middle.
    pub async fn encode(
        self,
        app: &Arc<Serving>,
        mut permit: RequestPermit,
        suffix: Option<String>,
    ) -> Result<(RequestPermit, Vec<Encoded>), ApiError> {
        let texts = match self {
            Self::Text(text) => Ok(vec![text]),
            Self::Texts(texts) => Ok(texts),
            Self::Ids(ids) => Err(vec![ids]),
            Self::IdLists(lists) => Err(lists),
        };
        let mut prompts = match texts {
            Err(lists) => {
                lists.into_iter().map(|ids| Encoded { ids, text: None, added: 0 }).collect::<Vec<_>>()
            }
            Ok(texts) => {
                let bos = bos(app)?;
                let mut prompts = Vec::with_capacity(texts.len());
                for text in texts {
                    let made;
                    (permit, made) = encode(app, permit, "prompt", text.clone()).await?;
                    let ids = bos.into_iter().chain(made).collect();
                    prompts.push(Encoded { ids, text: Some(text), added: usize::from(bos.is_some()) });
                }
                prompts
            }
        };
        if let Some(suffix) = suffix {
            let fim = fim::tokens(&app.engine.model()?.tokenizer, "suffix")?;
            let behind;
            (permit, behind) = encode(app, permit, "suffix", suffix).await?;
            for prompt in &mut prompts {
                let (added, before) = prompt.ids.split_at(prompt.added);
                prompt.ids = [added, &fim::between(&fim, before, &behind)].concat();
            }
        }
        Ok((permit, prompts))
    }
}

async fn encode(
    app: &Arc<Serving>,
    permit: RequestPermit,
    param: &'static str,
    text: String,
) -> Result<(RequestPermit, Vec<u32>), ApiError> {
    let (permit, prompt) = app.encode(permit, param, |_| Ok(text)).await?;
    Ok((permit, prompt.ids))
}

/// The token that comes before a text, where the vocabulary has it so.
fn bos(app: &Serving) -> Result<Option<u32>, ApiError> {
    let tokenizer = &app.engine.model()?.tokenizer;
    Ok(tokenizer.bos_token_id().filter(|_| tokenizer.adds_bos()))
}

/// The ids of a prompt that no template made.
///
/// # Errors
/// 400 where it is longer than the context.
pub async fn plain(
    app: &Arc<Serving>,
    permit: RequestPermit,
    text: String,
) -> Result<(RequestPermit, Vec<u32>), ApiError> {
    let bos = bos(app)?;
    let (permit, ids) = encode(app, permit, "prompt", text).await?;
    Ok((permit, bos.into_iter().chain(ids).collect()))
}

/// What a list of prompts begins with; the others are of its kind.
enum First {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Prompt;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter
                    .write_str("a string, a list of strings, a list of token ids, or a list of such lists")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Prompt, E> {
                Ok(Prompt::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompt, A::Error> {
                Ok(match list.next_element()? {
                    None => Prompt::Texts(Vec::new()),
                    Some(First::Text(first)) => Prompt::Texts(rest(first, list, |text: String| text)?),
                    Some(First::Id(first)) => Prompt::Ids(rest(first, list, |id: Whole<u32>| id.0)?),
                    Some(First::Ids(first)) => Prompt::IdLists(rest(first, list, ids)?),
                })
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn ids(list: Vec<Whole<u32>>) -> Vec<u32> {
    list.into_iter().map(|id| id.0).collect()
}

/// The whole of a list whose first item has been read.
fn rest<'de, A: SeqAccess<'de>, T: Deserialize<'de>, U>(
    first: U,
    mut list: A,
    convert: impl Fn(T) -> U,
) -> Result<Vec<U>, A::Error> {
    let mut items = vec![first];
    while let Some(item) = list.next_element()? {
        items.push(convert(item));
    }
    Ok(items)
}

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = First;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("a string, a token id, or a list of token ids")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<First, E> {
                Ok(First::Text(text.to_owned()))
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<First, E> {
                Whole::deserialize(serde::de::value::U64Deserializer::new(id)).map(|id| First::Id(id.0))
            }

            fn visit_i64<E: Error>(self, id: i64) -> Result<First, E> {
                Whole::deserialize(serde::de::value::I64Deserializer::new(id)).map(|id| First::Id(id.0))
            }

            fn visit_f64<E: Error>(self, id: f64) -> Result<First, E> {
                Whole::deserialize(serde::de::value::F64Deserializer::new(id)).map(|id| First::Id(id.0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<First, A::Error> {
                Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(list))
                    .map(|list| First::Ids(ids(list)))
            }
        }
        deserializer.deserialize_any(Any)
    }
}
