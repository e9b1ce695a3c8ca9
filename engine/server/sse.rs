//! Answers as Server-Sent Events.

use super::answer::Answer;
use super::error::{ApiError, ErrorResponse};
use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use qernel_core::engine::Event;
use serde::Serialize;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use utoipa::ToSchema;

/// One event of a stream, for the OpenAPI document.
#[derive(ToSchema)]
#[allow(dead_code)] // Events are written as they come.
pub struct ServerSentEvent {
    /// What it is, where it is no `message`.
    event: Option<String>,
    /// JSON, or `[DONE]`.
    data: String,
}

/// What stands between an answer's events and the stream.
pub trait Encoder: Send + 'static {
    /// Before anything else.
    fn start(&mut self, out: &mut EventStream);
    /// Something happened to the sequence of this index.
    fn event(&mut self, choice: usize, event: Event, out: &mut EventStream);
    /// All sequences have ended.
    fn end(&mut self, out: &mut EventStream);
    /// The answer ended early.
    fn error(&mut self, error: ApiError, out: &mut EventStream) {
        out.error(error);
    }
}

/// Events as they go over the wire.
#[derive(Default)]
pub struct EventStream(Vec<u8>);

impl EventStream {
    /// An event without a name.
    pub fn data(&mut self, value: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, value).expect("values with string keys always serialise");
        self.0.extend_from_slice(b"\n\n");
    }

    /// An event with a name.
    pub fn named(&mut self, name: &str, value: &impl Serialize) {
        self.0.extend_from_slice(format!("event: {name}\n").as_bytes());
        self.data(value);
    }

    /// OpenAI's last word.
    pub fn done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// The answer ended early.
    fn error(&mut self, error: ApiError) {
        self.named("error", &ErrorResponse { error: error.body });
    }
}

/// So often an answer that has nothing to say shows that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

struct Streaming<E> {
    answer: Answer,
    encoder: E,
    keep_alive: Duration,
    started: bool,
    ended: bool,
}

/// The stream of an accepted answer. Events that are there together go out together.
pub fn respond(answer: Answer, encoder: impl Encoder) -> Response {
    let start = Streaming { answer, encoder, keep_alive: KEEP_ALIVE, started: false, ended: false };
    let body = stream::unfold(start, |mut state| async move {
        let bytes = state.next().await?;
        Some((Ok::<_, Infallible>(bytes), state))
    });
    let headers = [(CONTENT_TYPE, "text/event-stream; charset=utf-8"), (CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(body)).into_response()
}

impl<E: Encoder> Streaming<E> {
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = EventStream::default();
        if !std::mem::replace(&mut self.started, true) {
            self.encoder.start(&mut out);
        }
        // From the last byte on: events that say nothing do not put it off.
        let silent_until = Instant::now() + self.keep_alive;
        while out.0.is_empty() && !self.ended {
            match timeout_at(silent_until, self.answer.next()).await {
                Err(_) => out.0.extend_from_slice(b": waiting\n\n"),
                Ok(next) => self.take(next, &mut out),
            }
            while !self.ended {
                match self.answer.try_next() {
                    Ok(None) => break,
                    next => self.take(next, &mut out),
                }
            }
        }
        Some(out.0.into())
    }

    fn take(&mut self, next: Result<Option<(usize, Event)>, ApiError>, out: &mut EventStream) {
        match next {
            Ok(Some((choice, event))) => self.encoder.event(choice, event, out),
            Ok(None) => {
                self.encoder.end(out);
                self.ended = true;
            }
            Err(error) => {
                self.encoder.error(error, out);
                self.ended = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Update;
    use qernel_core::scheduler::SequenceId;

    struct Silent;

    impl Encoder for Silent {
        fn start(&mut self, _: &mut EventStream) {}

        fn event(&mut self, _: usize, _: Event, _: &mut EventStream) {}

        fn end(&mut self, _: &mut EventStream) {}
    }

    /// Events of which nothing is sent do not keep a stream from showing that it is alive.
    #[test]
    fn a_silent_stream_is_alive() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bytes = runtime.block_on(async {
            let (sender, receiver) = tokio::sync::mpsc::channel(8);
            let patience = Duration::from_secs(60);
            let answer = Answer::new(receiver, 1, std::time::Instant::now() + patience, patience);
            let keep_alive = Duration::from_millis(60);
            let mut streaming =
                Streaming { answer, encoder: Silent, keep_alive, started: false, ended: false };
            let send = async {
                for token in 0..500 {
                    let event = Event::Token {
                        id: SequenceId(0),
                        index: 0,
                        token,
                        text: String::new(),
                        logprobs: None,
                    };
                    if sender.send(Update::Event(0, event)).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                drop(sender);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                bytes = streaming.next() => bytes,
                () = send => None,
            }
        });
        assert_eq!(bytes.as_deref(), Some(&b": waiting\n\n"[..]));
    }
}
