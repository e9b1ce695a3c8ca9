//! Requests to the hub and to the hosts that it sends to: redirects, waiting, and words for what goes wrong.

use crate::environment::{Environment, Token};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use qernel_core::error::{Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

/// Hosts that one request may be sent on to.
const MOST_REDIRECTS: usize = 5;

/// How long is waited, and how often something is tried.
#[derive(Clone, Debug)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For an answer to begin, and for each further part of it.
    pub read: Duration,
    /// How often a request is repeated that the hub has no time for, and a connection begun anew that brings nothing.
    pub tries: u32,
    /// Before the first repetition; before each further one twice as long as before.
    pub backoff: Duration,
    /// Before a repetition, at most; a hub that asks for more is not asked again.
    pub longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { connect: seconds(10), read: seconds(30), tries: 5, backoff: seconds(1), longest: seconds(300) }
    }
}

impl Patience {
    /// Before repetition `number`, from 1.
    pub(crate) fn pause(&self, number: u32) -> Duration {
        self.backoff.saturating_mul(1 << (number.max(1) - 1).min(16)).min(self.longest)
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// What an answer would say of itself.
    Head,
    /// All bytes, from this one on.
    From(u64),
}

/// An answer that is no redirect, with what the hub itself said on the way to it.
pub(crate) struct Answer {
    /// The header fields of the hub's own answer, which may be that redirect.
    pub(crate) of_hub: HeaderMap,
    /// Whether the answer is the hub's own, and not of a host that it sent to.
    pub(crate) is_hub: bool,
    pub(crate) response: Response<Body>,
}

/// Why there is no answer.
pub(crate) enum Failure {
    /// No connection, or one that was cut off: later there may be one.
    Unreachable(String),
    /// The hub has no time, and was asked often enough.
    Busy(String),
    /// What will not change by asking again.
    Final(Error),
}

/// Asks the hub, showing the token to it alone.
pub(crate) struct Http {
    agent: Agent,
    hub: Uri,
    token: Option<Token>,
    pub(crate) patience: Patience,
}

impl Http {
    /// # Errors
    /// [`Error::Request`] for an address that is none; [`Error::Io`] for certificates that cannot be read.
    pub(crate) fn new(environment: &Environment, patience: Patience) -> Result<Self> {
        let address = &environment.endpoint;
        let hub: Uri = address.parse().map_err(|error| {
            Error::Request(format!("HF_ENDPOINT: expected an address, found {address:?} ({error})"))
        })?;
        let is_secure = hub.scheme_str() == Some("https");
        let tls = TlsConfig::builder().root_certs(match &environment.certificates {
            Some(path) if is_secure => certificates(path)?,
            _ => RootCerts::WebPki,
        });
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .https_only(is_secure)
            .tls_config(tls.build())
            .user_agent(concat!("qernel/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(patience.connect))
            .timeout_recv_response(Some(patience.read))
            .timeout_per_read(Some(patience.read));
        // What is on this machine is not behind a proxy.
        let is_here = hub.host().is_some_and(|host| ["127.0.0.1", "localhost", "[::1]"].contains(&host));
        let config = config.proxy(if is_here { None } else { Proxy::try_from_env() });
        let token = environment.token.clone();
        Ok(Self { agent: config.build().into(), hub, token, patience })
    }

    /// The hub's host, for people.
    pub(crate) fn host(&self) -> &str {
        self.hub.authority().map_or("", |authority| authority.as_str())
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Asks until there is an answer that is not "later", at most [`Patience::tries`] times.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] where there is none; [`Failure::Busy`] where the hub asks for more patience than there is.
    pub(crate) fn ask(
        &self,
        address: &str,
        ask: Ask,
        note: &mut dyn FnMut(String),
    ) -> Result<Answer, Failure> {
        let mut number = 0;
        loop {
            let answer = self.ask_once(address, ask)?;
            let status = answer.response.status();
            if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
                return Ok(answer);
            }
            number += 1;
            let host = self.host();
            let asked = asked_to_wait(answer.response.headers(), Timestamp::now());
            let pause = asked.unwrap_or_else(|| self.patience.pause(number));
            if number >= self.patience.tries || pause > self.patience.longest {
                let until = asked
                    .map_or(String::new(), |asked| format!(", and asks to wait for {} s", asked.as_secs()));
                return Err(Failure::Busy(format!("{host} answers {}{until}", words(status))));
            }
            note(format!("{host} answers {}: asking again in {} s", words(status), pause.as_secs()));
            std::thread::sleep(pause);
        }
    }

    fn ask_once(&self, address: &str, ask: Ask) -> Result<Answer, Failure> {
        let mut uri: Uri = address.parse().map_err(|error| no_address(address, &error))?;
        let mut of_hub = HeaderMap::new();
        for _ in 0..=MOST_REDIRECTS {
            let response = self.send(&uri, ask).map_err(|error| unreachable(&uri, &error))?;
            let is_hub = is_same_origin(&uri, &self.hub);
            if is_hub {
                // A hub that sends on within itself says what it knows in its last answer.
                of_hub = response.headers().clone();
            }
            let next = response.headers().get("location").filter(|_| response.status().is_redirection());
            let Some(next) = next else { return Ok(Answer { of_hub, is_hub, response }) };
            let next = next.to_str().unwrap_or_default();
            // Elsewhere it is another host's word; what a file is was said before.
            let next = joined(&uri, next).ok_or_else(|| no_address(next, &"as a redirect"))?;
            if ask == Ask::Head && !is_same_origin(&next, &self.hub) {
                return Ok(Answer { of_hub, is_hub, response });
            }
            uri = next;
        }
        Err(Failure::Final(Error::Network(format!(
            "{} sends on and on: {MOST_REDIRECTS} redirects",
            self.host()
        ))))
    }

    fn send(&self, uri: &Uri, ask: Ask) -> Result<Response<Body>, ureq::Error> {
        let mut request = match ask {
            Ask::Head => self.agent.head(uri),
            Ask::From(_) => self.agent.get(uri),
        };
        if let Ask::From(start @ 1..) = ask {
            request = request.header("Range", format!("bytes={start}-"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| is_same_origin(uri, &self.hub)) {
            request = request.header("Authorization", token.header());
        }
        request.call()
    }
}

/// Those that `SSL_CERT_FILE` names.
fn certificates(path: &Path) -> Result<RootCerts> {
    let pem = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    let items = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = items.collect();
    if certificates.is_empty() {
        return Err(Error::Request(format!(
            "SSL_CERT_FILE: expected certificates in PEM, found none in {}",
            path.display()
        )));
    }
    Ok(RootCerts::Specific(Arc::new(certificates)))
}

/// A status as people know it: `404 Not Found`.
pub(crate) fn words(status: StatusCode) -> String {
    status
        .canonical_reason()
        .map_or_else(|| status.as_str().to_owned(), |reason| format!("{} {reason}", status.as_str()))
}

fn no_address(address: &str, why: &dyn std::fmt::Display) -> Failure {
    Failure::Final(Error::Network(format!("expected an address of HTTP, found {address:?} ({why})")))
}

fn unreachable(uri: &Uri, error: &ureq::Error) -> Failure {
    let host = uri.authority().map_or("", |authority| authority.as_str());
    match error {
        ureq::Error::RequireHttpsOnly(_) => Failure::Final(Error::Network(format!(
            "the hub sends on to {host} without encryption, which is refused"
        ))),
        error => Failure::Unreachable(format!("{host}: {error}")),
    }
}

fn is_same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |uri: &Uri| uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

/// Where a redirect from `base` leads; `None` where that is no address.
fn joined(base: &Uri, location: &str) -> Option<Uri> {
    let text = match location {
        _ if location.starts_with("//") => format!("{}:{location}", base.scheme_str()?),
        _ if location.starts_with('/') => format!("{}://{}{location}", base.scheme_str()?, base.authority()?),
        _ => location.to_owned(),
    };
    let uri: Uri = text.parse().ok()?;
    (matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()).then_some(uri)
}

/// How long the hub asks to wait: `Retry-After` in seconds or as a date, or what is left of its window.
fn asked_to_wait(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(value) = text("retry-after") {
        if let Ok(seconds) = value.trim().parse() {
            return Some(Duration::from_secs(seconds));
        }
        let date = DateTimeParser::new().parse_timestamp(value.trim()).ok()?;
        return Some(Duration::try_from(date.duration_since(now)).unwrap_or_default());
    }
    // `"api";r=0;t=55`: nothing is left for so many seconds.
    let seconds = text("ratelimit")?.split(';').find_map(|part| part.trim().strip_prefix("t="))?;
    seconds.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_scheme_host_and_port() {
        let is_same = |a: &str, b: &str| is_same_origin(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(is_same("https://Hub.example/a", "https://hub.example:443/b?c"));
        for other in [
            "http://hub.example",
            "https://hub.example:444",
            "https://hub.example.evil",
            "https://cdn.hub.example",
        ] {
            assert!(!is_same(other, "https://hub.example"), "{other}");
        }
    }

    #[test]
    fn redirects_are_relative_or_whole() {
        let base: Uri = "https://hub.example/a/b?c".parse().unwrap();
        let joined = |location| joined(&base, location).map(|uri| uri.to_string());
        assert_eq!(joined("/x?y").as_deref(), Some("https://hub.example/x?y"));
        assert_eq!(joined("//cdn.example/x").as_deref(), Some("https://cdn.example/x"));
        assert_eq!(joined("http://cdn.example/x").as_deref(), Some("http://cdn.example/x"));
        for bad in ["", "x", "file:///etc/passwd", "ftp://a/b", "https://", "http:///x"] {
            assert_eq!(joined(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_hub_says_how_long_to_wait() {
        let now: Timestamp = "2026-11-30T06:00:00Z".parse().unwrap();
        for (name, value, expected) in [
            ("retry-after", "7", Some(7)),
            ("retry-after", "Mon, 30 Nov 2026 06:00:09 GMT", Some(9)),
            ("retry-after", "Mon, 30 Nov 2026 05:00:00 GMT", Some(0)),
            ("retry-after", "soon", None),
            ("retry-after", "-1", None),
            ("ratelimit", "\"api\";r=0;t=55", Some(55)),
            ("ratelimit", "nothing", None),
            ("x", "7", None),
        ] {
            let headers = HeaderMap::from_iter([(
                name.parse::<ureq::http::HeaderName>().unwrap(),
                value.parse().unwrap(),
            )]);
            assert_eq!(asked_to_wait(&headers, now), expected.map(Duration::from_secs), "{name}: {value}");
        }
    }

    #[test]
    fn pauses_double_and_end() {
        let patience = Patience {
            backoff: Duration::from_secs(1),
            longest: Duration::from_secs(6),
            ..Patience::default()
        };
        assert_eq!([1, 2, 3, 4, 60].map(|number| patience.pause(number).as_secs()), [1, 2, 4, 6, 6]);
    }
}
