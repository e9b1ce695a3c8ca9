//! The API key.

use super::App;
use super::api::anthropic;
use super::error::ApiError;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine as _;
use qernel_core::error::{Error, Result};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Whether clients can show the key in a header.
///
/// # Errors
/// [`Error::Request`] where they cannot.
pub fn check(key: &str) -> Result<()> {
    let refuse = |what| {
        Err(Error::Request(format!(
            "the API key {what}, so that no client could show it as `Bearer KEY`; take another"
        )))
    };
    if key.is_empty() {
        return Err(Error::Request("the API key is empty; leave it out or give one".into()));
    }
    if !key.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        return refuse("has characters that are not printable ASCII");
    }
    if key.trim() != key {
        return refuse("begins or ends with a blank");
    }
    Ok(())
}

/// Lets through who shows the key; `/health` is open to all.
pub async fn require_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match &app.config.api_key {
        Some(key) if request.uri().path() != "/health" && !shows_key(request.headers(), key) => {
            anthropic::respond(ApiError::unauthorized(), request.uri().path())
        }
        _ => next.run(request).await,
    }
}

/// `Bearer KEY`, or basic authentication with the key as the password, which browsers ask people for, or `x-api-key` as Anthropic's
/// clients send it.
fn shows_key(headers: &HeaderMap, key: &str) -> bool {
    if headers.get("x-api-key").is_some_and(|shown| equal(shown.as_bytes(), key)) {
        return true;
    }
    let Some((scheme, shown)) =
        headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '))
    else {
        return false;
    };
    let shown = shown.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return equal(shown.as_bytes(), key);
    }
    let decoded = base64::prelude::BASE64_STANDARD.decode(shown).unwrap_or_default();
    let password = decoded.iter().position(|&byte| byte == b':').map(|colon| &decoded[colon + 1..]);
    scheme.eq_ignore_ascii_case("basic") && password.is_some_and(|password| equal(password, key))
}

/// Takes the same time whatever is shown: digests are compared, so not even the key's length is told.
fn equal(shown: &[u8], key: &str) -> bool {
    Sha256::digest(shown).ct_eq(&Sha256::digest(key)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_opens() {
        let shows = |value: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
            shows_key(&headers, "secret")
        };
        for good in ["Bearer secret", "bearer  secret", "Basic OnNlY3JldA==", "basic YW5uOnNlY3JldA=="] {
            assert!(shows(good), "{good}");
        }
        for bad in [
            "",
            "secret",
            "Bearer",
            "Bearer ",
            "Bearer secret2",
            "Bearer secre",
            "Basic secret",
            "Basic c2VjcmV0",
            "Digest secret",
        ] {
            assert!(!shows(bad), "{bad}");
        }
        assert!(!shows_key(&HeaderMap::new(), "secret"));
        let plain =
            |value: &str| HeaderMap::from_iter([("x-api-key".parse().unwrap(), value.parse().unwrap())]);
        assert!(shows_key(&plain("secret"), "secret") && !shows_key(&plain("secret2"), "secret"));
    }

    #[test]
    fn keys_that_no_header_can_have() {
        for good in ["secret", "two words", "~!\"#%:"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", " ", " secret", "secret ", "s\u{e9}cret", "sec\nret", "sec\tret"] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }
}
