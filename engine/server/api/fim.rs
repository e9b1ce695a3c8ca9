//! Prompts that ask for what stands between two texts, in the form of Qwen2.5-Coder (arXiv:2409.12186).

use crate::error::ApiError;
use qernel_core::tokenizer::{FimTokens, Tokenizer};

/// The model's tokens for that.
///
/// # Errors
/// 400 for the field `param` where it has none.
pub fn tokens(tokenizer: &Tokenizer, param: &str) -> Result<FimTokens, ApiError> {
    tokenizer.fim().ok_or_else(|| {
        let message = format!(
            "{param}: this model cannot fill in the middle of a text: its vocabulary has no tokens for that, such as \
             <|fim_prefix|>; leave it out, or take a model that was made for code"
        );
        ApiError::field(param, message)
    })
}

/// Asks for what stands between `before` and `behind`.
pub fn between(fim: &FimTokens, before: &[u32], behind: &[u32]) -> Vec<u32> {
    [&[fim.prefix], before, &[fim.suffix], behind, &[fim.middle]].concat()
}

/// A file beside the one that is written in.
pub struct File {
    /// The tokens of its name and a line break.
    pub name: Vec<u32>,
    pub text: Vec<u32>,
}

/// What is known around a place in a file.
pub struct Surroundings {
    pub before: Vec<u32>,
    pub behind: Vec<u32>,
    /// Other files, the most important last.
    pub files: Vec<File>,
    /// What stands for the names of the repository and of the file: both, and a line break.
    pub repository_name: Vec<u32>,
    pub file_name: Vec<u32>,
}

/// Asks for what stands at the place, in at most `room` tokens, of which a quarter is for what comes behind it if it is needed: what is
/// far from the place is left out, other files first. Whether something of the file itself was.
pub fn infill(fim: &FimTokens, around: &Surroundings, room: usize) -> (Vec<u32>, bool) {
    let Surroundings { before, behind, .. } = around;
    let room = room.saturating_sub(between(fim, &[], &[]).len());
    let most_behind = (room / 4).max(room.saturating_sub(before.len()));
    let behind = &behind[..behind.len().min(most_behind)];
    let before = &before[before.len() - before.len().min(room - behind.len())..];
    let is_cut = before.len() < around.before.len() || behind.len() < around.behind.len();
    let files = files(fim, around, room - before.len() - behind.len());
    ([files, between(fim, before, behind)].concat(), is_cut)
}

/// The other files that have room, under their repository's name.
fn files(fim: &FimTokens, around: &Surroundings, room: usize) -> Vec<u32> {
    let (Some(repository), Some(separator)) = (fim.repository, fim.file) else { return Vec::new() };
    let head = [&[repository], &around.repository_name[..]].concat();
    let tail = [&[separator], &around.file_name[..]].concat();
    let mut room = room.saturating_sub(head.len() + tail.len());
    let mut kept: Vec<&File> = Vec::new();
    for file in around.files.iter().rev() {
        let len = 1 + file.name.len() + file.text.len();
        if len > room {
            break;
        }
        room -= len;
        kept.push(file);
    }
    if kept.is_empty() {
        return Vec::new();
    }
    kept.reverse();
    let texts = kept.into_iter().flat_map(|file| [&[separator], &file.name[..], &file.text[..]].concat());
    head.into_iter().chain(texts).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIM: FimTokens =
        FimTokens { prefix: 100, suffix: 101, middle: 102, repository: Some(103), file: Some(104) };

    fn around(files: &[&[u32]]) -> Surroundings {
        let file = |text: &&[u32]| File { name: vec![50], text: text.to_vec() };
        Surroundings {
            before: vec![1, 2, 3, 4, 5, 6],
            behind: vec![7, 8, 9],
            files: files.iter().map(file).collect(),
            repository_name: vec![60],
            file_name: vec![61],
        }
    }

    #[test]
    fn a_place_stands_between_what_is_around_it() {
        let alone = [100, 1, 2, 3, 4, 5, 6, 101, 7, 8, 9, 102];
        assert_eq!(infill(&FIM, &around(&[]), 12), (alone.to_vec(), false));
        let all = [&[103, 60, 104, 50, 20, 104, 50, 21, 22, 104, 61][..], &alone].concat();
        assert_eq!(infill(&FIM, &around(&[&[20], &[21, 22]]), all.len()), (all, false));
    }

    #[test]
    fn what_is_far_is_left_out() {
        let files: [&[u32]; 2] = [&[20], &[21, 22]];
        let (prompt, is_cut) = infill(&FIM, &around(&files), 22);
        assert_eq!((&prompt[..8], is_cut), (&[103, 60, 104, 50, 21, 22, 104, 61][..], false));
        // A quarter of what is left for the text is behind the place.
        assert_eq!(infill(&FIM, &around(&files), 11), (vec![100, 1, 2, 3, 4, 5, 6, 101, 7, 8, 102], true));
        assert_eq!(infill(&FIM, &around(&[]), 7), (vec![100, 4, 5, 6, 101, 7, 102], true));
        assert_eq!(infill(&FIM, &around(&[]), 0), (vec![100, 101, 102], true));
        // A vocabulary that knows of one file only.
        let plain = FimTokens { repository: None, ..FIM };
        assert_eq!(infill(&plain, &around(&files), 99).0.len(), 12);
    }
}
