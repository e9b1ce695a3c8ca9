//! By which files are known and checked: SHA-256 of large ones, of small ones what git calls them.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fmt::{self, Write};

/// A hash as the hub writes it, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hash(String);

const SHA256_DIGITS: usize = 64;
const SHA1_DIGITS: usize = 40;

impl Hash {
    /// Takes an entity tag, or a hash by itself; `None` for what is neither of the two kinds.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let is_hash = [SHA256_DIGITS, SHA1_DIGITS].contains(&text.len());
        (is_hash && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(Self(text))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Computes a hash of this kind, of a file of `size` bytes.
    pub(crate) fn hasher(&self, size: u64) -> Hasher {
        if self.0.len() == SHA256_DIGITS {
            return Hasher::Sha256(Sha256::new());
        }
        Hasher::Blob(Sha1::new_with_prefix(format!("blob {size}\0")))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.0.len() == SHA256_DIGITS { "SHA-256" } else { "git blob" };
        write!(f, "{kind} {}", self.0)
    }
}

/// A hash that is being computed.
pub(crate) enum Hasher {
    Sha256(Sha256),
    /// Git's, of a blob: SHA-1 of a header and the bytes.
    Blob(Sha1),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Blob(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Hash {
        match self {
            Self::Sha256(hasher) => Hash(hex(&hasher.finalize())),
            Self::Blob(hasher) => Hash(hex(&hasher.finalize())),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("texts grow");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf 'hello\n' | sha256sum`, and `git hash-object`.
    const HELLO: [&str; 2] = [
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        "ce013625030ba8dba906f756967f9e9ca394464a",
    ];

    #[test]
    fn both_kinds_are_computed() {
        for text in HELLO {
            let hash = Hash::parse(text).unwrap();
            let mut hasher = hash.hasher(6);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            assert_eq!(hasher.finish(), hash);
        }
    }

    #[test]
    fn entity_tags_lose_their_quotes_and_others_are_refused() {
        let text = HELLO[1];
        for tag in [text.to_owned(), format!("\"{text}\""), format!("W/\"{text}\""), text.to_uppercase()] {
            assert_eq!(Hash::parse(&tag).unwrap().as_str(), text, "{tag}");
        }
        for bad in
            ["", "\"\"", "abc", &text[1..], "../../../../../../../../../../../etc/pass", &"g".repeat(64)]
        {
            assert_eq!(Hash::parse(bad), None, "{bad}");
        }
    }
}
