//! What the hub says of a repository: its newest commit and its files.

use crate::Event;
use crate::hash::Hash;
use crate::http::{Ask, Failure, Http, words};
use crate::name::{MAIN, Repo, Revision};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use qernel_core::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use ureq::http::{HeaderMap, StatusCode};

/// Bytes of a listing, at most: some hundred thousand files.
const MOST_BYTES: u64 = 64 << 20;
/// Characters of a path, at most, and of a name in it.
const LONGEST_PATH: usize = 1024;
const LONGEST_NAME: usize = 255;
/// What stands in an address as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A repository at one commit.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) commit: String,
    /// What is known of them; `None` where the listing does not say, and each has to be asked for ([`Remote::ask`]).
    pub(crate) files: BTreeMap<String, Option<Remote>>,
}

/// What is known of a file before it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    pub(crate) size: u64,
    pub(crate) hash: Hash,
}

/// The hub's answer, as far as it matters.
#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    /// What git calls the file, or what stands for it where it is large.
    blob_id: Option<String>,
    /// Of a large file.
    lfs: Option<Large>,
}

#[derive(Deserialize)]
struct Large {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Asks the hub for the commit that a revision names, the newest of `main` where there is none.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] where it does not answer; [`Failure::Final`] where there is no such repository, this user may not read
    /// it, or the answer is none that can be used.
    pub(crate) fn load(
        http: &Http,
        endpoint: &str,
        repo: &Repo,
        revision: Option<&Revision>,
        progress: &mut dyn FnMut(Event),
    ) -> Result<Self, Failure> {
        let of = utf8_percent_encode(revision.map_or(MAIN, Revision::as_str), PLAIN);
        let address = format!("{endpoint}/api/models/{repo}/revision/{of}?blobs=true");
        let mut answer = http.ask(&address, Ask::From(0), &mut |note| progress(Event::Note(note)))?;
        let status = answer.response.status();
        if status != StatusCode::OK {
            let what = revision.map(|revision| format!("revision {revision}"));
            return Err(Failure::Final(refused(http, endpoint, repo, what.as_deref(), status)));
        }
        let body = answer.response.body_mut().with_config().limit(MOST_BYTES).read_to_vec();
        let body = body.map_err(|error| {
            Failure::Unreachable(format!("{}: the listing was cut off: {error}", http.host()))
        })?;
        Self::parse(&body).map_err(|why| {
            Failure::Final(Error::Network(format!("{}, listing of {repo}: {why}", http.host())))
        })
    }

    fn parse(body: &[u8]) -> Result<Self, String> {
        let info: ModelInfo = serde_json::from_slice(body)
            .map_err(|error| format!("expected JSON as the hub writes it: {error}"))?;
        if !is_commit(&info.sha) {
            return Err(format!("expected the 40 digits of a commit, found {:?}", info.sha));
        }
        let mut files = BTreeMap::new();
        for sibling in info.siblings {
            if !is_inside(&sibling.rfilename) {
                return Err(format!(
                    "the name {:?} leads out of the folder, or is none: refused",
                    sibling.rfilename
                ));
            }
            let remote = sibling.remote();
            files.insert(sibling.rfilename, remote);
        }
        Ok(Self { commit: info.sha, files })
    }
}

impl Sibling {
    fn remote(&self) -> Option<Remote> {
        let large = self.lfs.as_ref();
        let text = large.map_or(self.blob_id.as_deref(), |large| large.sha256.as_deref());
        let size = large.map_or(self.size, |large| large.size);
        Some(Remote { size: size?, hash: Hash::parse(text?)? })
    }
}

impl Remote {
    /// Asks the hub for what a listing does not say.
    ///
    /// # Errors
    /// As [`Listing::load`].
    pub(crate) fn ask(
        http: &Http,
        endpoint: &str,
        (repo, commit, path): (&Repo, &str, &str),
        progress: &mut dyn FnMut(Event),
    ) -> Result<Self, Failure> {
        let address = address(endpoint, repo, commit, path);
        let answer = http.ask(&address, Ask::Head, &mut |note| progress(Event::Note(note)))?;
        let status = answer.response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(Failure::Final(refused(http, endpoint, repo, Some(path), status)));
        }
        let text = |name: &str| answer.of_hub.get(name).and_then(|value| value.to_str().ok());
        let size = text("x-linked-size").or_else(|| text("content-length").filter(|_| status.is_success()));
        let size = size.and_then(|size| size.parse().ok());
        said_hash(&answer.of_hub).zip(size).map(|(hash, size)| Self { size, hash }).ok_or_else(|| {
            let host = http.host();
            Failure::Final(Error::Network(format!(
                "{host} says no size of {path}, or no hash to check it by"
            )))
        })
    }
}

/// The hash that the hub's answer names: that of a large file's bytes, or its entity tag.
pub(crate) fn said_hash(of_hub: &HeaderMap) -> Option<Hash> {
    let text = |name: &str| of_hub.get(name).and_then(|value| value.to_str().ok());
    text("x-linked-etag").or_else(|| text("etag")).and_then(Hash::parse)
}

/// Where a file of a commit is.
pub(crate) fn address(endpoint: &str, repo: &Repo, commit: &str, path: &str) -> String {
    let path: Vec<String> =
        path.split('/').map(|name| utf8_percent_encode(name, PLAIN).to_string()).collect();
    format!("{endpoint}/{repo}/resolve/{commit}/{}", path.join("/"))
}

/// Whether a text is a commit's name, which is a folder's in the cache.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether a path stays in the folder that it is relative to, on any system.
fn is_inside(path: &str) -> bool {
    let is_name = |name: &str| {
        !matches!(name, "" | "." | "..")
            && name.len() <= LONGEST_NAME
            && !name.contains(['\\', ':'])
            && !name.chars().any(char::is_control)
    };
    path.len() <= LONGEST_PATH && path.split('/').all(is_name)
}

/// What an answer that is no success means.
pub(crate) fn refused(
    http: &Http,
    endpoint: &str,
    repo: &Repo,
    path: Option<&str>,
    status: StatusCode,
) -> Error {
    let (host, said) = (http.host(), words(status));
    let page = format!("{endpoint}/{repo}");
    let what = path.map_or_else(|| repo.to_string(), |path| format!("{path} of {repo}"));
    Error::Request(match (status.as_u16(), http.has_token()) {
        (401, false) => format!(
            "{host} answers {said} for {what}: there is no model of this name, or it is private or gated; check the name, and set \
             HF_TOKEN to a token that may read it"
        ),
        (401, true) => format!(
            "{host} answers {said} for {what}: the token (HF_TOKEN, or the file of HF_TOKEN_PATH) is not valid, or there is no model \
             of this name"
        ),
        (403, _) => format!(
            "{host} answers {said} for {what}: it is gated; accept its conditions at {page}, and set HF_TOKEN to a token of the same \
             account"
        ),
        (404, _) => format!("{host} has no {what}: expected OWNER/NAME as the address {page} would have it"),
        _ => return Error::Network(format!("{host} answers {said} for {what}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn listing(sibling: &str) -> Result<Listing, String> {
        Listing::parse(format!(r#"{{"sha": "{COMMIT}", "siblings": [{sibling}]}}"#).as_bytes())
    }

    #[test]
    fn files_have_sizes_and_hashes() {
        let sha256 = "ab".repeat(32);
        let found = listing(&format!(
            r#"{{"rfilename": "a/b.gguf", "size": 130, "blobId": "{COMMIT}", "lfs": {{"sha256": "{sha256}", "size": 7, "pointerSize": 130}}}},
               {{"rfilename": "config.json", "size": 3, "blobId": "{COMMIT}", "lfs": null, "more": 1}}"#
        ));
        let files = found.unwrap().files;
        assert_eq!(files["a/b.gguf"], Some(Remote { size: 7, hash: Hash::parse(&sha256).unwrap() }));
        assert_eq!(files["config.json"], Some(Remote { size: 3, hash: Hash::parse(COMMIT).unwrap() }));
        for unknown in
            [r#""size": 1"#, r#""size": 1, "blobId": "x""#, r#""size": null, "blobId": "{COMMIT}""#]
        {
            assert_eq!(
                listing(&format!(r#"{{"rfilename": "a", {unknown}}}"#)).unwrap().files["a"],
                None,
                "{unknown}"
            );
        }
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in [
            "../x",
            "/etc/passwd",
            "a/../../b",
            "a//b",
            "",
            ".",
            "a/",
            "C:/x",
            "a\\\\b",
            "a\\u0000b",
            "a\\nb",
        ] {
            let error = listing(&format!(r#"{{"rfilename": "{name}", "size": 1, "blobId": "{COMMIT}"}}"#))
                .unwrap_err();
            assert!(error.contains("leads out of the folder"), "{name}: {error}");
        }
        assert!(!is_inside(&"x".repeat(LONGEST_NAME + 1)) && is_inside("a b/ü.gguf") && is_inside("..a/b.."));
    }

    #[test]
    fn what_is_no_listing_is_refused() {
        for size in ["-1", "1e30", "99999999999999999999", "\"1\""] {
            assert!(
                listing(&format!(r#"{{"rfilename": "a", "size": {size}, "blobId": "{COMMIT}"}}"#)).is_err(),
                "{size}"
            );
        }
        for bad in ["", "[]", "<html>", r#"{"sha": "../../x", "siblings": []}"#, r#"{"siblings": []}"#] {
            assert!(Listing::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Listing::parse(format!(r#"{{"sha": "{COMMIT}"}}"#).as_bytes()).unwrap().files.is_empty());
    }

    #[test]
    fn addresses_are_escaped() {
        let repo = "o/n".parse().unwrap();
        let found = address("https://h", &repo, COMMIT, "a b/c#d?e%f-1_2.gguf");
        assert_eq!(found, format!("https://h/o/n/resolve/{COMMIT}/a%20b/c%23d%3Fe%25f-1_2.gguf"));
    }
}
