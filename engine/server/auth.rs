//! The API key.

use super::App;
use super::error::ApiError;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Lets through who shows the key; `/health` is open to all.
pub async fn require_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match &app.config.api_key {
        Some(key) if request.uri().path() != "/health" && !shows_key(request.headers(), key) => {
            ApiError::unauthorized().into_response()
        }
        _ => next.run(request).await,
    }
}

/// `Bearer KEY`, or basic authentication with the key as the password, which browsers ask people for.
fn shows_key(headers: &HeaderMap, key: &str) -> bool {
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
    }
}
