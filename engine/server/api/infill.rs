//! `/infill`: llama.cpp's interface for editors, which ask for what stands at a place in a file.

use super::fim::{self, File, Surroundings};
use super::openai::token_limit;
use super::samplers::{Samplers, sampled_request};
use super::{Stop, fields};
use crate::App;
use crate::answer::Answer;
use crate::body::JsonBody;
use crate::engine_handle::SequenceRequest;
use crate::error::{ApiError, ErrorResponse};
use crate::fields::described;
use crate::number::{Limit, whole};
use crate::served_model::ModelInfo;
use crate::sse::{self, Encoder, EventStream, ServerSentEvent};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use qernel_core::engine::{Event, FinishReason, Request, Usage};
use qernel_core::tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};
use utoipa::ToSchema;

sampled_request! {
    /// A place in a file. Sampling fields have llama.cpp's names, meaning, order and defaults.
    pub struct InfillRequest: fields::INFILL, Llama {
        /// Which model answers. [default: the only one, or the one that was loaded last]
        model: Option<String>,
        /// What stands before the place.
        input_prefix: String,
        /// What stands behind it.
        input_suffix: String,
        /// Other files, the most important last. [default: none]
        input_extra: Option<Vec<ExtraFile>>,
        /// What stands at the place already: it joins `input_prefix`. [default: nothing]
        prompt: Option<String>,
        /// Most tokens of the answer; 0 only takes the prompt in, -1 goes on as long as the context has room. [default: -1]
        n_predict: Option<Limit<0>>,
        /// Ends the answer before a line behind the first that is indented by less; blank lines do not count. [default: 0]
        #[serde(default, deserialize_with = "whole")]
        n_indent: Option<usize>,
        /// Ends the answer after so many milliseconds from its first token, once it has a line break. [default: no bound]
        #[serde(default, deserialize_with = "whole")]
        t_max_predict_ms: Option<u32>,
        /// Fields that the answer is to have; those within others by a path, such as `timings/prompt_n`. [default: all]
        response_fields: Option<Vec<String>>,
        /// Texts that end the answer; they are no part of it.
        stop: Option<Stop>,
        /// Whether to answer with Server-Sent Events. [default: false]
        stream: Option<bool>,
    }
}

described!(ExtraFile: fields::EXTRA_FILE);

/// A file beside the one that is written in, or a piece of one.
#[derive(Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct ExtraFile {
    /// [default: unnamed]
    filename: Option<String>,
    text: String,
}

/// What stands at the place, or a piece of it.
#[derive(Clone, Default, Serialize, ToSchema)]
pub struct Infilled {
    index: usize,
    content: String,
    /// Whether it is the last piece, or the whole.
    stop: bool,
    model: String,
    /// Tokens of the answer so far.
    tokens_predicted: usize,
    /// Tokens of the prompt.
    tokens_evaluated: usize,
    #[serde(flatten)]
    end: Option<InfillEnd>,
}

/// What is known at the end.
#[derive(Clone, Default, Serialize, ToSchema)]
pub struct InfillEnd {
    /// `eos`, `word` or `limit`.
    stop_type: &'static str,
    has_new_line: bool,
    /// Whether something of the file was left out of the prompt.
    truncated: bool,
    /// Tokens of prompt and answer.
    tokens_cached: usize,
    timings: InfillTimings,
}

/// What it cost.
#[derive(Clone, Default, Serialize, ToSchema)]
pub struct InfillTimings {
    /// Tokens of the prompt that were there from earlier requests.
    cache_n: usize,
    /// Tokens of the prompt that were computed.
    prompt_n: usize,
    /// Until the first token.
    prompt_ms: f64,
    prompt_per_token_ms: f64,
    prompt_per_second: f64,
    predicted_n: usize,
    /// From the first token on.
    predicted_ms: f64,
    predicted_per_token_ms: f64,
    predicted_per_second: f64,
}

/// Tokens of an answer that nobody bounded for which the prompt leaves room.
const ROOM: usize = 256;
/// What stands for names that the interface does not tell.
const REPOSITORY: &str = "project\n";
const CURRENT_FILE: &str = "current\n";
const UNNAMED: &str = "unnamed";
/// llama.cpp's sampler of answers that fill in: here the model ends them.
const INFILL_SAMPLER: &str = "infill";

/// What stands at a place in a file.
#[utoipa::path(post, path = "/infill", tag = "llama.cpp", request_body = InfillRequest, responses(
    (status = 200, description = "The answer; with `stream`, pieces of it as events.", content(
        (Infilled = "application/json"),
        (ServerSentEvent = "text/event-stream"),
    )),
    (status = "4XX", description = "The request is wrong, or the queue is full (429).", body = ErrorResponse),
    (status = 500, description = "The device failed.", body = ErrorResponse),
    (status = 503, description = "The model is being loaded.", body = ErrorResponse),
    (status = 504, description = "It took too long.", body = ErrorResponse),
))]
pub async fn infill(
    State(app): State<Arc<App>>,
    JsonBody(mut request): JsonBody<InfillRequest>,
) -> Result<Response, ApiError> {
    let app = app.serving(request.model.as_deref()).await?;
    let asked = app.asked(request.model.as_deref(), request.lora.as_deref())?;
    let tokenizer = Arc::clone(&asked.info.tokenizer);
    fim::tokens(&tokenizer, "input_prefix")?;
    if let Some(Samplers::Names(names)) = &mut request.samplers {
        names.retain(|name| name != INFILL_SAMPLER);
    }
    let drawing = request.drawing(&asked)?;
    let limit = token_limit([("n_predict", request.n_predict)], None)?;
    let stop = Stop::texts(request.stop.take())?;
    let is_stream = request.stream.unwrap_or(false);
    let bounds = Bounds {
        indent: request.n_indent.unwrap_or(0),
        time: request.t_max_predict_ms.filter(|ms| *ms > 0).map(|ms| Duration::from_millis(ms.into())),
        is_empty: limit == Some(0),
    };
    if is_stream && (bounds.indent > 0 || bounds.time.is_some() || request.response_fields.is_some()) {
        let message = "stream: `n_indent`, `t_max_predict_ms` and `response_fields` are for whole answers; leave them or `stream` out";
        return Err(ApiError::field("stream", message));
    }
    let permit = app.reserve("n", 1)?;
    let (permit, grammar) = app.gbnf(permit, request.grammar.take(), drawing.ignore_eos).await?;
    let place = Place {
        before: std::mem::take(&mut request.input_prefix) + request.prompt.as_deref().unwrap_or_default(),
        behind: std::mem::take(&mut request.input_suffix),
        files: request.input_extra.take().unwrap_or_default(),
        answer: limit.unwrap_or(ROOM).max(1),
    };
    let of_thread = Arc::clone(&app);
    let (permit, (prompt, truncated)) =
        app.work.prompt(permit, move || place.prompt(of_thread.engine.model()?)).await?;
    let making = Making {
        model: asked.name,
        prompt_tokens: prompt.len(),
        truncated,
        start: permit.start,
        first: None,
        tokens: 0,
        last: None,
        tokenizer,
    };
    let request_fields = request.response_fields.take();
    let sequence = SequenceRequest {
        request: Request { max_tokens: limit.map(|limit| limit.max(1)), stop, ..drawing.request(prompt) },
        grammar,
        thinking: None,
        prompt_param: "input_prefix",
    };
    let answer = app.submit(permit, vec![sequence]).await?;
    if is_stream {
        return Ok(sse::respond(answer, Pieces { making, has_new_line: false }));
    }
    let whole = bounds.collect(answer, making).await?;
    Ok(match request_fields {
        None => Json(whole).into_response(),
        Some(wanted) => {
            let whole = serde_json::to_value(whole).map_err(|error| ApiError::server(error.to_string()))?;
            Json(chosen(&whole, &wanted)).into_response()
        }
    })
}

/// The place as the request has it.
struct Place {
    before: String,
    behind: String,
    files: Vec<ExtraFile>,
    /// Tokens that are kept free for the answer.
    answer: usize,
}

impl Place {
    /// The prompt that asks for it, and whether something of the file had no room.
    fn prompt(&self, model: &ModelInfo) -> Result<(Vec<u32>, bool), ApiError> {
        let tokenizer = &model.tokenizer;
        let fim = fim::tokens(tokenizer, "input_prefix")?;
        // In a file, names of special tokens are text.
        let encode = |text: &str| tokenizer.encode(text, false);
        // What has more bytes has more tokens than the context.
        let most = model.max_prompt_bytes;
        let before = &self.before[self.before.ceil_char_boundary(self.before.len().saturating_sub(most))..];
        let behind = &self.behind[..self.behind.floor_char_boundary(most)];
        let mut files: Vec<File> = Vec::new();
        let mut bytes = 0;
        for ExtraFile { filename, text } in self.files.iter().rev() {
            let name = filename.as_deref().unwrap_or(UNNAMED);
            bytes += name.len() + text.len();
            if bytes > most {
                break;
            }
            files.push(File { name: encode(&format!("{name}\n"))?, text: encode(text)? });
        }
        files.reverse();
        let around = Surroundings {
            before: encode(before)?,
            behind: encode(behind)?,
            files,
            repository_name: encode(REPOSITORY)?,
            file_name: encode(CURRENT_FILE)?,
        };
        let bos = tokenizer.bos_token_id().filter(|_| tokenizer.adds_bos());
        // However long the answer may be, half of the context is for the prompt.
        let room = model.max_model_len.saturating_sub(self.answer).max(model.max_model_len / 2);
        let (prompt, is_cut) = fim::infill(&fim, &around, room.saturating_sub(usize::from(bos.is_some())));
        let is_cut = is_cut || before.len() < self.before.len() || behind.len() < self.behind.len();
        Ok((bos.into_iter().chain(prompt).collect(), is_cut))
    }
}

/// An answer while it is made.
struct Making {
    model: String,
    prompt_tokens: usize,
    truncated: bool,
    start: Instant,
    /// When its first token came.
    first: Option<Instant>,
    tokens: usize,
    last: Option<u32>,
    tokenizer: Arc<Tokenizer>,
}

impl Making {
    fn token(&mut self, token: u32) {
        self.first.get_or_insert_with(Instant::now);
        self.tokens += 1;
        self.last = Some(token);
    }

    fn piece(&self, content: String) -> Infilled {
        Infilled {
            index: 0,
            content,
            stop: false,
            model: self.model.clone(),
            tokens_predicted: self.tokens,
            tokens_evaluated: self.prompt_tokens,
            end: None,
        }
    }

    /// The last piece. `ended` is why the engine ended it, if it did.
    fn end(&self, content: String, has_new_line: bool, ended: Option<(FinishReason, Usage)>) -> Infilled {
        let now = Instant::now();
        let first = self.first.unwrap_or(now);
        let cached = ended.map_or(0, |(_, usage)| usage.cached_tokens);
        let stop_type = match ended {
            Some((FinishReason::Stop, _)) => {
                let is_end = self.last.is_some_and(|token| self.tokenizer.is_end_of_generation(token));
                if is_end { "eos" } else { "word" }
            }
            _ => "limit",
        };
        let (prompt, predicted) = (first - self.start, now - first);
        let (prompt_n, predicted_n) = (self.prompt_tokens - cached, self.tokens);
        let timings = InfillTimings {
            cache_n: cached,
            prompt_n,
            prompt_ms: prompt.as_secs_f64() * 1e3,
            prompt_per_token_ms: per(prompt.as_secs_f64() * 1e3, prompt_n as f64),
            prompt_per_second: per(prompt_n as f64, prompt.as_secs_f64()),
            predicted_n,
            predicted_ms: predicted.as_secs_f64() * 1e3,
            predicted_per_token_ms: per(predicted.as_secs_f64() * 1e3, predicted_n as f64),
            predicted_per_second: per(predicted_n as f64, predicted.as_secs_f64()),
        };
        let end = InfillEnd {
            stop_type,
            has_new_line,
            truncated: self.truncated,
            tokens_cached: self.prompt_tokens + self.tokens,
            timings,
        };
        Infilled { stop: true, end: Some(end), ..self.piece(content) }
    }
}

/// A share; 0 of nothing.
fn per(value: f64, count: f64) -> f64 {
    if count > 0.0 { value / count } else { 0.0 }
}

/// What ends an answer beside what ends any.
struct Bounds {
    indent: usize,
    time: Option<Duration>,
    /// Nothing is to come of it.
    is_empty: bool,
}

impl Bounds {
    /// Waits for all of an answer, or as much of it as is within the bounds: what is beyond is not computed.
    async fn collect(&self, mut answer: Answer, mut making: Making) -> Result<Infilled, ApiError> {
        let mut text = String::new();
        let mut ended = None;
        while let Some((_, event)) = answer.next().await? {
            text += event.text();
            match event {
                Event::Prompt { .. } => {}
                Event::Token { token, .. } => making.token(token),
                Event::Finished { reason, usage, .. } => ended = Some((reason, usage)),
            }
            if let Some(end) = outdented(&text, self.indent) {
                text.truncate(end);
                break;
            }
            let is_late = self.time.zip(making.first).is_some_and(|(time, first)| first.elapsed() > time);
            if is_late && text.contains('\n') {
                break;
            }
        }
        if self.is_empty {
            (text, making.tokens) = (String::new(), 0);
        }
        let has_new_line = text.contains('\n');
        Ok(making.end(text, has_new_line, ended))
    }
}

/// Where the first line behind the first begins that is indented by less, if there is one.
fn outdented(text: &str, indent: usize) -> Option<usize> {
    let starts = text.match_indices('\n').map(|(at, _)| at + 1);
    let mut starts = starts.filter(|_| indent > 0);
    starts.find(|&start| {
        let line = text[start..].split('\n').next().unwrap_or_default();
        let found = line.len() - line.trim_start_matches([' ', '\t']).len();
        found < indent && !line.trim().is_empty()
    })
}

/// The fields of an answer that are wanted, under the names that ask for them.
fn chosen(whole: &Value, wanted: &[String]) -> Map<String, Value> {
    let found = |path: &String| {
        let value = path.split('/').try_fold(whole, |value, name| value.get(name))?;
        Some((path.clone(), value.clone()))
    };
    wanted.iter().filter_map(found).collect()
}

/// An answer as it comes.
struct Pieces {
    making: Making,
    has_new_line: bool,
}

impl Encoder for Pieces {
    fn start(&mut self, _: &mut EventStream) {}

    fn event(&mut self, _: usize, event: Event, out: &mut EventStream) {
        self.has_new_line |= event.text().contains('\n');
        match event {
            Event::Prompt { .. } => (),
            Event::Token { token, text, .. } => {
                self.making.token(token);
                if !text.is_empty() {
                    out.data(&self.making.piece(text));
                }
            }
            Event::Finished { text, reason, usage, .. } => {
                out.data(&self.making.end(text, self.has_new_line, Some((reason, usage))));
            }
        }
    }

    fn end(&mut self, _: &mut EventStream) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_ends_before_a_line_that_is_indented_by_less() {
        assert_eq!(outdented("x = 1\n    y\n\n    z\n  w", 4), Some(19));
        assert_eq!(outdented("x = 1\n    y\n\n    z\n  ", 4), None);
        assert_eq!(outdented("x\ny", 0), None);
        assert_eq!(outdented("x\n\ty", 1), None);
    }

    #[test]
    fn fields_are_chosen_by_their_paths() {
        let whole = json!({"content": "x", "timings": {"prompt_n": 3}});
        let wanted = ["content", "timings/prompt_n", "timings/none", "", "content/x"].map(str::to_owned);
        let chosen = Value::Object(chosen(&whole, &wanted));
        assert_eq!(chosen, json!({"content": "x", "timings/prompt_n": 3}));
    }
}
