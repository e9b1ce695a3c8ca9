//! The engine for other programs: open a model, ask, read the answer.

mod embed;
mod generation;
mod options;
mod prompt;

pub use generation::{Generation, GenerationBuilder};
pub use options::ModelOptions;
pub use prompt::{Conversation, Prompt};

use crate::chat::ChatTemplate;
use crate::disk::Watch;
use crate::engine::{Engine, Request};
use crate::error::Result;
use crate::load;
use crate::tokenizer::Tokenizer;
use std::cell::OnceCell;
use std::path::Path;
use std::sync::Arc;

/// A model that is loaded and ready to answer, on the thread that opened it.
///
/// ```
/// use qernel::Model;
///
/// # fn main() -> qernel::Result<()> {
/// let mut model = Model::haiku()?;
/// let answer = model.chat("Write a haiku about the sea with the word forty-two").complete()?;
/// assert_eq!(answer.text.lines().count(), 3);
/// # Ok(()) }
/// ```
pub struct Model {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    /// Compiled when the first conversation needs it.
    template: OnceCell<ChatTemplate>,
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server asks it"))]
    watch: Watch,
}

impl Model {
    /// Opens a GGUF file with the defaults of [`ModelOptions`]: on the first GPU that can be used, or else on the CPU, with the
    /// longest context that fits in the memory there.
    ///
    /// # Errors
    /// As [`ModelOptions::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::options().open(path)
    }

    /// The small model that this library carries, which writes haikus; with the defaults of [`ModelOptions`].
    ///
    /// # Errors
    /// As [`ModelOptions::open`].
    pub fn haiku() -> Result<Self> {
        Self::options().open_haiku()
    }

    /// Says where a model runs and how much memory it takes, and then opens it.
    pub fn options() -> ModelOptions {
        ModelOptions::default()
    }

    fn new(model: load::LoadedModel) -> Result<Self> {
        let (tokenizer, watch) = (Arc::clone(&model.tokenizer), model.watch.clone());
        Ok(Self { engine: model.into_engine()?, tokenizer, template: OnceCell::new(), watch })
    }

    /// Continues a prompt: text, or token ids, as they are.
    ///
    /// ```
    /// # fn main() -> qernel::Result<()> {
    /// # let mut model = qernel::Model::haiku()?;
    /// let answer = model.generate("the sea").max_tokens(5).ignore_eos().complete()?;
    /// assert_eq!(answer.tokens.len(), 5);
    /// # Ok(()) }
    /// ```
    pub fn generate(&mut self, prompt: impl Into<Prompt>) -> GenerationBuilder<'_> {
        let tokens = match prompt.into() {
            Prompt::Text(text) => self.encode(&text),
            Prompt::Tokens(tokens) => Ok(tokens),
        };
        GenerationBuilder::new(self, tokens.map(Request::new))
    }

    /// Answers a conversation: one message of a user, or the messages so far. Its beginning is not computed again where an
    /// earlier answer left it in the KV cache.
    ///
    /// ```
    /// use qernel::Message;
    ///
    /// # fn main() -> qernel::Result<()> {
    /// # let mut model = qernel::Model::haiku()?;
    /// let mut messages = vec![Message::new("user", "Write a haiku about the moon with the word seven")];
    /// let first = model.chat(&messages).complete()?;
    /// messages.push(Message::new("assistant", first.text));
    /// messages.push(Message::new("user", "Write a haiku about rain with the word nine"));
    /// let second = model.chat(&messages).max_tokens(40).complete()?;
    /// assert!(second.usage.cached_tokens > 0);
    /// # Ok(()) }
    /// ```
    pub fn chat(&mut self, conversation: impl Into<Conversation>) -> GenerationBuilder<'_> {
        let tokens = self.encode_chat(conversation);
        GenerationBuilder::new(self, tokens.map(Request::new))
    }

    /// The logits behind each token of a prompt.
    ///
    /// ```
    /// # fn main() -> qernel::Result<()> {
    /// # let mut model = qernel::Model::haiku()?;
    /// let logits = model.logits("the sea")?;
    /// let last = logits.rows().last().expect("a row for each token");
    /// let likeliest = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).expect("a vocabulary");
    /// let answer = model.generate("the sea").temperature(0.0).max_tokens(1).complete()?;
    /// assert_eq!(answer.tokens, [likeliest as u32]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) if there is no token, one that the model does not have, or more than the
    /// context; [`Error::Device`](crate::Error::Device) if the device fails.
    pub fn logits(&mut self, prompt: impl Into<Prompt>) -> Result<Logits> {
        let tokens = match prompt.into() {
            Prompt::Text(text) => self.encode(&text)?,
            Prompt::Tokens(tokens) => tokens,
        };
        let values = self.engine.logits(&tokens)?;
        Ok(Logits { values, vocab_size: self.engine.runner().vocab_size() })
    }

    /// The token ids of a text, with the token that begins every text of the model where it has one. Names of special tokens
    /// in the text become those.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) where the vocabulary does not cover the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        load::encode_plain(&self.tokenizer, text)
    }

    /// The token ids of a conversation as the model's template writes it, up to where the answer begins.
    ///
    /// # Errors
    /// [`Error::Template`](crate::Error::Template) where the file has no template and ChatML cannot stand in, or where it
    /// fails; [`Error::Request`](crate::Error::Request) where it refuses the conversation.
    pub fn encode_chat(&self, conversation: impl Into<Conversation>) -> Result<Vec<u32>> {
        let text = self.template()?.render(&conversation.into().0, &[], true)?;
        self.tokenizer.encode(&text, true)
    }

    /// The text of token ids, without special tokens.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) for an id that the model does not have.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.decode(tokens, true)
    }

    fn template(&self) -> Result<&ChatTemplate> {
        if let Some(template) = self.template.get() {
            return Ok(template);
        }
        let template = ChatTemplate::from_tokenizer(&self.tokenizer)?;
        Ok(self.template.get_or_init(|| template))
    }

    /// What it computes on, for people.
    pub fn device_name(&self) -> String {
        self.engine.runner().device_name()
    }

    /// Tokens of the longest sequence, prompt and answer together.
    pub fn context(&self) -> usize {
        self.engine.max_model_len()
    }

    /// The number of tokens that the model has logits for.
    pub fn vocab_size(&self) -> usize {
        self.engine.runner().vocab_size()
    }

    /// What answers many requests at once: [`Engine::submit`] queues one, [`Engine::step`] computes a batch of them. Open the
    /// model with [`ModelOptions::max_num_sequences`].
    ///
    /// ```
    /// use qernel::{Model, Request};
    ///
    /// # fn main() -> qernel::Result<()> {
    /// let model = Model::options().max_num_sequences(8).open_haiku()?;
    /// let prompts = ["the sea", "the moon"].map(|text| model.encode(text));
    /// let mut engine = model.into_engine();
    /// for prompt in prompts {
    ///     engine.submit(Request { max_tokens: Some(8), ..Request::new(prompt?) })?;
    /// }
    /// let mut texts = std::collections::HashMap::<_, String>::new();
    /// while engine.has_work() {
    ///     for event in engine.step()? {
    ///         *texts.entry(event.id()).or_default() += event.text();
    ///     }
    /// }
    /// assert_eq!(texts.len(), 2);
    /// # Ok(()) }
    /// ```
    pub fn into_engine(self) -> Engine {
        self.engine
    }

    /// What a [`Server`](crate::server::Server) answers with; clients call the model `name`. Open it with
    /// [`ModelOptions::max_num_sequences`].
    #[cfg(feature = "server")]
    pub fn into_served(self, name: impl Into<String>) -> crate::server::ServedModel {
        // A file without a template is served all the same, for completions; what chat is answered says why.
        let template = ChatTemplate::from_tokenizer(&self.tokenizer);
        let (engine, watch) = (self.engine, self.watch);
        crate::server::ServedModel { engine, template, name: name.into(), watch, fingerprint: None }
    }
}

/// A row of logits for each token of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Row-major `[num_tokens, vocab_size]`.
    pub values: Vec<f32>,
    /// The length of a row.
    pub vocab_size: usize,
}

impl Logits {
    /// The rows: row `i` says what follows token `i`.
    pub fn rows(&self) -> impl DoubleEndedIterator<Item = &[f32]> + ExactSizeIterator {
        self.values.chunks_exact(self.vocab_size)
    }
}
