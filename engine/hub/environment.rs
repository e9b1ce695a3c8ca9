//! What the environment says: the variables of the hub's own tools, with their meaning.

use qernel_core::error::{Error, Result};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

const HUB: &str = "https://huggingface.co";

/// A key of the hub. It is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// The header that shows it to the hub.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where models are, and who asks for them.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The address of the hub, without a slash at its end.
    pub endpoint: String,
    /// The folder that all tools of the hub share.
    pub cache: PathBuf,
    /// Shown to the hub, and to no other host.
    pub token: Option<Token>,
    /// What is in the cache is all there is.
    pub is_offline: bool,
    /// Certificates in PEM that are trusted instead of Mozilla's.
    pub certificates: Option<PathBuf>,
}

impl Environment {
    /// What this process's variables say.
    ///
    /// # Errors
    /// As [`Environment::new`].
    pub fn of_process() -> Result<Self> {
        Self::new(|name| std::env::var_os(name))
    }

    /// What `variable` says.
    ///
    /// # Errors
    /// [`Error::Request`] for an address that is none, a token that is no text, or where no variable says where the cache is.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().into_owned());
        let home = || {
            let parent = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
            path("HF_HOME").or_else(|| parent.map(|parent| parent.join("huggingface")))
        };
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| home().map(|home| home.join("hub")));
        let cache = cache.ok_or_else(|| {
            Error::Request(
                "nothing says where models are kept: set HF_HUB_CACHE to a folder, or HOME".to_owned(),
            )
        })?;
        let token = match text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN")) {
            Some(token) => Some(token),
            None => path("HF_TOKEN_PATH")
                .or_else(|| home().map(|home| home.join("token")))
                .and_then(|path| std::fs::read_to_string(path).ok()),
        };
        let is_true = |text: String| ["1", "ON", "YES", "TRUE"].contains(&&text.to_uppercase()[..]);
        Ok(Self {
            endpoint: endpoint(text("HF_ENDPOINT"))?,
            cache,
            token: token.map(|text| self::token(&text)).transpose()?.flatten(),
            is_offline: text("HF_HUB_OFFLINE").or_else(|| text("TRANSFORMERS_OFFLINE")).is_some_and(is_true),
            certificates: path("SSL_CERT_FILE"),
        })
    }
}

fn endpoint(text: Option<String>) -> Result<String> {
    let Some(text) = text else { return Ok(HUB.to_owned()) };
    let is_address = ["http://", "https://"].iter().any(|scheme| {
        text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
    });
    if !is_address || text.contains(['@', '?', '#', ' ']) {
        return Err(Error::Request(format!(
            "HF_ENDPOINT: expected an address such as {HUB}; found {text:?}"
        )));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// Without white space around it, as files have it; `None` where nothing is left.
fn token(text: &str) -> Result<Option<Token>> {
    let text = text.trim();
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Error::Request(
            "the token of HF_TOKEN, or of the file of HF_TOKEN_PATH, has characters that no token has: expected hf_ and \
             letters"
                .to_owned(),
        ));
    }
    Ok((!text.is_empty()).then(|| Token(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn environment(variables: &[(&str, &str)]) -> Result<Environment> {
        Environment::new(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn the_cache_is_where_the_hubs_tools_look_for_it() {
        for (variables, expected) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "/f")], "/f/hub"),
            (&[("HOME", "/h"), ("HF_HOME", "/f"), ("HUGGINGFACE_HUB_CACHE", "/o")], "/o"),
            (&[("HF_HUB_CACHE", "/c"), ("HUGGINGFACE_HUB_CACHE", "/o"), ("HF_HOME", "")], "/c"),
        ] {
            assert_eq!(environment(variables).unwrap().cache, Path::new(expected), "{variables:?}");
        }
        assert!(environment(&[]).unwrap_err().to_string().contains("HF_HUB_CACHE"));
    }

    #[test]
    fn addresses_lose_their_slash_and_must_be_addresses() {
        let of = |address| environment(&[("HOME", "/h"), ("HF_ENDPOINT", address)]);
        assert_eq!(of("").unwrap().endpoint, HUB);
        assert_eq!(of("http://127.0.0.1:80/").unwrap().endpoint, "http://127.0.0.1:80");
        assert_eq!(of("https://mirror.example/hf/").unwrap().endpoint, "https://mirror.example/hf");
        for bad in ["mirror.example", "ftp://a", "http://", "https:///x", "https://me:key@a"] {
            assert!(matches!(of(bad), Err(Error::Request(_))), "{bad}");
        }
    }

    #[test]
    fn offline_is_what_pythons_library_takes_for_true() {
        for (value, expected) in [
            ("1", true),
            ("true", true),
            ("Yes", true),
            ("on", true),
            ("0", false),
            ("", false),
            ("no", false),
        ] {
            let environment = environment(&[("HOME", "/h"), ("HF_HUB_OFFLINE", value)]).unwrap();
            assert_eq!(environment.is_offline, expected, "{value}");
        }
    }

    #[test]
    fn tokens_come_from_variables_before_files_and_are_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let (home, file) = (folder.path(), folder.path().join("elsewhere"));
        std::fs::write(home.join("token"), "hf_home\n").unwrap();
        std::fs::write(&file, " hf_file ").unwrap();
        let (home, file) = (home.to_str().unwrap(), file.to_str().unwrap());
        let token = |variables: &[(&str, &str)]| environment(variables).unwrap().token;
        let header = |variables: &[(&str, &str)]| token(variables).unwrap().header();
        assert_eq!(header(&[("HF_HOME", home)]), "Bearer hf_home");
        assert_eq!(header(&[("HF_HOME", home), ("HF_TOKEN_PATH", file)]), "Bearer hf_file");
        assert_eq!(header(&[("HF_HOME", home), ("HF_TOKEN", "hf_variable")]), "Bearer hf_variable");
        assert_eq!(token(&[("HF_HOME", "/absent"), ("HF_TOKEN", " \n")]), None);
        assert_eq!(token(&[("HF_HOME", "/absent")]), None);
        let shown = format!("{:?}", environment(&[("HF_HOME", home)]).unwrap());
        assert!(!shown.contains("hf_home") && shown.contains("Token(…)"), "{shown}");
        let error =
            environment(&[("HF_HOME", home), ("HF_TOKEN", "hf_a b\r\nX: y")]).unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN") && !error.contains("hf_a"), "{error}");
    }
}
