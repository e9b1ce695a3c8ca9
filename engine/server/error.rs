//! Errors as OpenAI's clients expect them.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use qernel_core::engine::{Refusal, RequestPart};
use qernel_core::error::Error;
use serde::Serialize;
use utoipa::ToSchema;

/// The code of an error of the model's chat template.
pub const TEMPLATE_FAILED: &str = "template_failed";

/// Why a request is not answered, with the status that says so.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub body: ErrorObject,
    /// Seconds after which another try makes sense.
    pub retry_after: Option<u32>,
}

/// The body of every answer that is an error.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorResponse {
    pub error: ErrorObject,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ErrorObject {
    /// What was expected, what was found, what to do.
    pub message: String,
    /// The class of the error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The field of the request that it is about.
    #[schema(required)]
    pub param: Option<String>,
    /// A name for programs, such as `queue_full`.
    #[schema(required)]
    pub code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: String) -> Self {
        Self { status, body: ErrorObject { message, kind, param: None, code }, retry_after: None }
    }

    /// The request is wrong: 400.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, None, message)
    }

    /// The request is wrong in this field: 400.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::invalid(message);
        error.body.param = Some(param.into());
        error
    }

    /// The prompt is longer than the context: 400, with the code by which clients shorten a conversation.
    pub fn context_length(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::field(param, message);
        error.body.code = Some("context_length_exceeded");
        error
    }

    /// The engine does not take the request, whose prompt was made of the field `prompt_param`: 400.
    pub fn of_request(Refusal { part, message }: Refusal, prompt_param: &str) -> Self {
        match part {
            RequestPart::Prompt => Self::field(prompt_param, format!("{prompt_param}: {message}")),
            RequestPart::PromptLength => Self::context_length(prompt_param, message),
            RequestPart::Sampling(option) => Self::field(option, message),
            RequestPart::Adapters => Self::field("lora", format!("lora: {message}")),
            RequestPart::MaxTokens => Self::field("max_tokens", format!("max_tokens: {message}")),
            RequestPart::Stop => Self::field("stop", message),
            RequestPart::BannedStrings => Self::field("banned_strings", format!("banned_strings: {message}")),
        }
    }

    /// The request is wrong, with another status than 400.
    pub fn refused(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", code, message.into())
    }

    /// 401, with the challenge that makes a browser ask for the key.
    pub fn unauthorized() -> Self {
        let message = "this server asks for its API key: send it as `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"), message.into())
    }

    /// 429.
    pub fn queue_full(max: usize) -> Self {
        let message =
            format!("{max} answers are being made or waiting, the most that this server takes; try again");
        let kind = "rate_limit_error";
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, kind, Some("queue_full"), message);
        Self { retry_after: Some(1), ..error }
    }

    /// 429 for what needs no sequence.
    pub fn busy(max: usize) -> Self {
        let message =
            format!("{max} requests wait to be worked on, the most that this server takes; try again");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full"), message);
        Self { retry_after: Some(1), ..error }
    }

    /// 503: not now.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some(code), message.into());
        Self { retry_after: Some(5), ..error }
    }

    /// 404: there is no such model.
    pub fn no_model(message: impl Into<String>) -> Self {
        let mut error = Self::refused(StatusCode::NOT_FOUND, Some("model_not_found"), message);
        error.body.param = Some("model".into());
        error
    }

    /// 500: the model's files are there and cannot be used.
    pub fn model_failed(name: &str, why: &str) -> Self {
        let mut error = Self::server(format!("the model {name:?} cannot be loaded: {why}"));
        error.body.code = Some("model_failed");
        error
    }

    /// 409: the model is not unloaded now.
    pub fn model_in_use(name: &str) -> Self {
        let message =
            format!("model: {name:?} is being loaded or has requests to answer; unload it when it has none");
        let mut error = Self::refused(StatusCode::CONFLICT, Some("model_in_use"), message);
        error.body.param = Some("model".into());
        Self { retry_after: Some(1), ..error }
    }

    /// Its body, as JSON.
    pub fn json(self) -> String {
        serde_json::to_string(&ErrorResponse { error: self.body }).expect("names and texts always serialise")
    }

    /// 504: it took longer than it may.
    pub fn timeout(seconds: u64) -> Self {
        let message = format!(
            "the answer was not complete after {seconds} s, the longest that this server works on one"
        );
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", Some("timeout"), message)
    }

    /// 500: not the request's fault.
    pub fn server(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message.into())
    }
}

impl From<Error> for ApiError {
    /// What the request is to blame for is 400, all else 500.
    fn from(error: Error) -> Self {
        match error {
            Error::Request(message) => Self::invalid(message),
            error @ Error::Template(_) => {
                Self::refused(StatusCode::BAD_REQUEST, Some(TEMPLATE_FAILED), error.to_string())
            }
            error => Self::server(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(ErrorResponse { error: self.body })).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Basic realm=\"qernel\", charset=\"UTF-8\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
