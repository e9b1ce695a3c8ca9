//! Which requests an engine takes.

use super::Engine;
use super::banned::{MAX_TEXT_BYTES, MAX_TEXTS};
use super::request::{Refusal, Request, RequestPart};
use crate::kv_layout::{PAGE_SIZE, pages_for};

impl Engine {
    /// Refuses what makes no sense or can never run, as every submission does.
    ///
    /// # Errors
    /// What of the request is wrong.
    pub fn check(&self, request: &Request) -> Result<(), Refusal> {
        let refuse = |part: RequestPart, message: String| Err(Refusal { part, message });
        let (prompt, max_model_len) = (request.prompt.len(), self.max_model_len);
        if prompt == 0 {
            return refuse(RequestPart::Prompt, "the prompt is empty; it needs at least one token".into());
        }
        let vocab_size = self.runner.vocab_size();
        if let Some(i) = request.prompt.iter().position(|&token| token as usize >= vocab_size) {
            let (token, last) = (request.prompt[i], vocab_size - 1);
            let message =
                format!("token {i} of the prompt is {token}, but the model has only tokens 0 to {last}");
            return refuse(RequestPart::Prompt, message);
        }
        let beyond = || request.sampling.chain.as_ref()?.bias_fault(vocab_size);
        if let Some((option, fault)) = request.sampling.fault().or_else(beyond) {
            return refuse(RequestPart::Sampling(option), format!("{option}: {fault}"));
        }
        if request.max_tokens == Some(0) {
            return refuse(
                RequestPart::MaxTokens,
                "max_tokens is 0; at least 1 token must be asked for".into(),
            );
        }
        if let Err(message) = self.check_adapters(request) {
            return refuse(RequestPart::Adapters, message);
        }
        if request.stop.iter().any(String::is_empty) {
            let message = "a stop string is empty; it would end every answer before it begins";
            return refuse(RequestPart::Stop, message.into());
        }
        if self.tokenizer.is_none() && (request.text || !request.stop.is_empty()) {
            let message = "the model file has no vocabulary, so neither text nor stop strings can be had";
            return refuse(RequestPart::Stop, message.into());
        }
        self.check_banned(&request.banned_strings)?;
        let model = self.runner.max_model_len();
        let memory = if max_model_len < model {
            format!(
                " (the model allows {model}, but its KV cache has only {} pages of {PAGE_SIZE} tokens)",
                self.pool().num_pages()
            )
        } else {
            String::new()
        };
        if prompt >= max_model_len {
            let message = format!(
                "the prompt has {prompt} tokens, but this model's maximum context length is {max_model_len} \
                 tokens{memory}, of which at least one is for the answer; shorten the prompt or enlarge the context"
            );
            return refuse(RequestPart::PromptLength, message);
        }
        // Beyond the model's context an answer just ends early, as it always may; memory is worth an error.
        let requested =
            request.max_tokens.map_or(0, |max_tokens| prompt.saturating_add(max_tokens)).min(model);
        if requested > max_model_len {
            let message = format!(
                "prompt and answer may take {requested} tokens ({} pages), but the largest context that fits is \
                 {max_model_len} tokens{memory}; ask for at most {} tokens",
                pages_for(requested),
                max_model_len - prompt
            );
            return refuse(RequestPart::MaxTokens, message);
        }
        Ok(())
    }

    /// Refuses texts that are too many, too long or empty, and all where there is no text.
    fn check_banned(&self, texts: &[String]) -> Result<(), Refusal> {
        let refuse = |message: String| Err(Refusal { part: RequestPart::BannedStrings, message });
        if texts.len() > MAX_TEXTS {
            return refuse(format!("expected at most {MAX_TEXTS} banned strings, found {}", texts.len()));
        }
        if let Some(len) = texts.iter().map(String::len).find(|len| !(1..=MAX_TEXT_BYTES).contains(len)) {
            return refuse(format!(
                "expected banned strings of 1 to {MAX_TEXT_BYTES} bytes, found one of {len}"
            ));
        }
        if self.tokenizer.is_none() && !texts.is_empty() {
            return refuse(
                "the model file has no vocabulary, so no string can be banned; leave them out".into(),
            );
        }
        Ok(())
    }
}
