//! Which hosts the server answers for. A page of another site can have its own name point to this machine (DNS rebinding) and call a
//! server on loopback as if it were its own: then the name in `Host` is not one of this machine's.

use super::App;
use super::api::anthropic;
use super::config::ServerConfig;
use super::error::ApiError;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Version, header::HOST};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use qernel_core::error::{Error, Result};
use std::net::IpAddr;
use std::sync::Arc;

/// The names that requests may call the server by.
pub struct Hosts {
    /// `None`: any.
    names: Option<Vec<String>>,
}

impl Hosts {
    /// Those of the configuration. Without a list, a server on loopback that asks for no key answers for loopback's names and for
    /// the one that it listens on; others answer for any: what they are called in their network is not known to them, and a page
    /// that shows no key gets nothing.
    ///
    /// # Errors
    /// [`Error::Request`] for what is no host.
    pub fn new(config: &ServerConfig, bound: IpAddr) -> Result<Self> {
        let allowed = &config.allowed_hosts;
        if let Some(bad) = allowed
            .iter()
            .find(|host| *host != "*" && name(host).as_deref() != Some(host.to_lowercase().as_str()))
        {
            let message = format!(
                "--allowed-hosts: expected a name such as example.org, without a port, or *, found {bad:?}"
            );
            return Err(Error::Request(message));
        }
        let is_open = if allowed.is_empty() {
            config.api_key.is_some() || !bound.is_loopback()
        } else {
            allowed.iter().any(|host| host == "*")
        };
        let names = allowed.iter().chain([&config.host]).map(|host| host.to_lowercase());
        Ok(Self { names: (!is_open).then(|| names.collect()) })
    }

    /// Whether the server answers for it. An address is no name that could point elsewhere.
    fn allow(&self, authority: &str) -> bool {
        let Some(names) = &self.names else { return true };
        name(authority).is_some_and(|name| {
            let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
            is_address || name == "localhost" || name.ends_with(".localhost") || names.contains(&name)
        })
    }
}

/// The host of an authority in small letters, without its port and the dot that may end a name.
fn name(authority: &str) -> Option<String> {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            port.bytes().all(|byte| byte.is_ascii_digit()).then_some(host)?
        }
        _ => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:%".contains(&byte);
    (!host.is_empty() && host.bytes().all(is_host)).then(|| host.to_ascii_lowercase())
}

/// Lets through what is meant for this server.
pub async fn require_host(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let mut hosts = request.headers().get_all(HOST).iter();
    let found = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => {
            return ApiError::invalid("the request has more than one `Host` header").into_response();
        }
        (None, None) if request.version() >= Version::HTTP_11 => {
            return ApiError::invalid("the request has no `Host` header, which HTTP/1.1 asks for")
                .into_response();
        }
        (host, None) => host.map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned()),
    };
    // A request to a proxy names the host in its first line, too.
    let named = request.uri().authority().map(|authority| authority.as_str().to_owned());
    match found.into_iter().chain(named).find(|host| !app.hosts.allow(host)) {
        Some(host) => {
            let message = format!(
                "this server does not answer for the host {host:?}; call it by its address, or name the host with --allowed-hosts"
            );
            let error = ApiError::refused(StatusCode::FORBIDDEN, Some("host_not_allowed"), message);
            anthropic::respond(error, request.uri().path())
        }
        None => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(bound: &str, allowed: &[&str], api_key: Option<&str>) -> Result<Hosts> {
        let config = ServerConfig {
            allowed_hosts: allowed.iter().map(|host| (*host).to_owned()).collect(),
            api_key: api_key.map(str::to_owned),
            host: "box.local".into(),
            ..ServerConfig::default()
        };
        Hosts::new(&config, bound.parse().unwrap())
    }

    #[test]
    fn names_of_this_machine_and_no_others() {
        let of_loopback = hosts("127.0.0.1", &[], None).unwrap();
        let own = [
            "localhost",
            "localhost:8080",
            "LocalHost.",
            "a.localhost:1",
            "127.0.0.1:8080",
            "[::1]:8080",
            "10.1.2.3",
            "box.local:8080",
        ];
        assert!(own.iter().all(|host| of_loopback.allow(host)));
        let others = [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "notlocalhost",
            "127.0.0.1.evil.example",
            "",
            ":8080",
            "localhost:8080:evil.example",
            "localhost@evil.example",
            "x y",
        ];
        for host in others {
            assert!(!of_loopback.allow(host), "{host:?}");
            assert!(hosts("127.0.0.1", &["*"], None).unwrap().allow(host));
            assert!(hosts("127.0.0.1", &[], Some("key")).unwrap().allow(host));
            assert!(hosts("0.0.0.0", &[], None).unwrap().allow(host));
        }
        let listed = hosts("0.0.0.0", &["GPU.example"], Some("key")).unwrap();
        assert!(
            listed.allow("gpu.example:8080") && listed.allow("localhost") && !listed.allow("evil.example")
        );
        for bad in ["", "https://gpu.example", "gpu.example:8080", "a b"] {
            assert!(hosts("127.0.0.1", &[bad], None).is_err(), "{bad:?}");
        }
    }
}
