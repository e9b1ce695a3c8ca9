//! The prefix cache, kept over a restart: what is known of pages, with their K and V and the copies of states behind them, as a file.
//!
//! ```text
//! header   magic, version, digest of the fingerprint and of what the bytes of pages mean
//! records  1: adapters that sequences begin with (u32 count, then number u32 and scale f32 each)
//!          2: a page (u32 what is before it, u32 tokens, u32 [PAGE_SIZE], its bytes)
//!          3: a copy of states (u32 what it stands behind, its bytes)
//!          0: the end
//! ```
//!
//! What is before a page is a number: 0 for nothing, then one for each record 1 and each full page, in their order. Numbers are little-endian.
//! Behind each record stands the SHA-256 of it and of all before it. What was used last comes first, and no page before those that it follows:
//! whoever has no room for all takes as many as there is room for.

use super::Engine;
use crate::batch::{AdapterScale, AdapterSet};
use crate::checkpoints::Checkpoints;
use crate::error::{Error, Result};
use crate::kv_cache::PagePool;
use crate::kv_layout::PAGE_SIZE;
use crate::model::{Kept, KeptLayout, Runner};
use crate::prefix_cache::{Known, Prefix, PrefixCache};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};

const MAGIC: [u8; 8] = *b"QERNELPC";
const VERSION: u32 = 1;
const END: u8 = 0;
const ADAPTERS: u8 = 1;
const PAGE: u8 = 2;
const STATE: u8 = 3;
const DIGEST: usize = 32;
/// Bytes of a page's record before those of the page.
const PAGE_HEAD: usize = 8 + 4 * PAGE_SIZE;

/// What a model and the way it is computed are known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; DIGEST]);

impl Fingerprint {
    /// Of all that makes a difference, in this order.
    pub fn of<B: AsRef<[u8]>>(parts: impl IntoIterator<Item = B>) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update((part.as_ref().len() as u64).to_le_bytes());
            digest.update(part);
        }
        Self(digest.finalize().into())
    }
}

/// How much of a prefix cache was written or read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptPrompts {
    /// Tokens whose K and V are on its pages.
    pub tokens: usize,
    /// Copies of states.
    pub states: usize,
    /// Of the file, as far as it was needed.
    pub bytes: u64,
}

/// The digest of all that was written or read so far.
struct Chain {
    digest: [u8; DIGEST],
    bytes: u64,
}

impl Chain {
    /// Begins a file with its header.
    fn new(of: &Fingerprint, layout: &KeptLayout) -> (Self, Vec<u8>) {
        let digest = Fingerprint::of([&of.0[..], layout.meaning.as_bytes()]).0;
        let header = [&MAGIC[..], &VERSION.to_le_bytes(), &digest].concat();
        (Self { digest, bytes: header.len() as u64 }, header)
    }

    /// The digest behind one more record.
    fn add(&mut self, kind: u8, parts: &[&[u8]]) -> &[u8; DIGEST] {
        let mut digest = Sha256::new_with_prefix(self.digest);
        digest.update([kind]);
        parts.iter().for_each(|part| digest.update(part));
        self.digest = digest.finalize().into();
        self.bytes += record_bytes(parts.iter().map(|part| part.len()).sum());
        &self.digest
    }
}

/// Bytes of a record of so many beside its kind and digest.
fn record_bytes(bytes: usize) -> u64 {
    (1 + bytes + DIGEST) as u64
}

/// Where a copy of a state is.
#[derive(Clone, Copy)]
enum StateIn<'a> {
    Place(u32),
    Host(&'a [u8]),
}

/// A page that is worth writing, with those before it, and the state behind it.
type Target<'a> = (u32, Option<StateIn<'a>>);

/// What is worth writing, what was used last first. Where a model has states a page without one behind it is never found again.
fn targets<'a>(
    pool: &PagePool,
    checkpoints: Option<&'a Checkpoints>,
    pages: &HashMap<Prefix, u32>,
) -> Vec<Target<'a>> {
    let Some(checkpoints) = checkpoints else {
        return pool.prefixes().newest_first().map(|page| (page, None)).collect();
    };
    let in_places =
        checkpoints.newest_first().into_iter().map(|(prefix, place)| (prefix, StateIn::Place(place)));
    let on_host = checkpoints.host().newest_first().map(|(prefix, state)| (prefix, StateIn::Host(state)));
    let with_page = |(prefix, state)| Some((*pages.get(&prefix)?, Some(state)));
    in_places.chain(on_host).filter_map(with_page).collect()
}

/// What is to be written before something can follow it.
struct Missing<'a> {
    /// Pages, the last first.
    pages: Vec<(u32, Known<'a>)>,
    /// What the first of them begins with, where that has no number yet.
    root: Option<Prefix>,
}

/// Writes one file.
struct Writer<'a> {
    runner: &'a mut dyn Runner,
    layout: KeptLayout,
    out: &'a mut dyn Write,
    chain: Chain,
    /// What was written, by its number.
    numbers: HashMap<Prefix, u32>,
    kept: KeptPrompts,
}

impl Writer<'_> {
    fn put(&mut self, kind: u8, parts: &[&[u8]]) -> Result<()> {
        let digest = self.chain.add(kind, parts);
        let kind = [kind];
        let mut all = [&kind[..]].into_iter().chain(parts.iter().copied()).chain([&digest[..]]);
        all.try_for_each(|part| self.out.write_all(part)).map_err(|error| failed(&error))
    }

    /// What is to be written before a page can be, and it.
    fn missing<'p>(
        &self,
        prefixes: &'p PrefixCache,
        pages: &HashMap<Prefix, u32>,
        page: u32,
    ) -> Option<Missing<'p>> {
        let (mut missing, mut at) = (Vec::new(), page);
        loop {
            let known = prefixes.known(at)?;
            if known.prefix.is_some_and(|prefix| self.numbers.contains_key(&prefix)) {
                return Some(Missing { pages: missing, root: None });
            }
            missing.push((at, known));
            if self.numbers.contains_key(&known.before) {
                return Some(Missing { pages: missing, root: None });
            }
            let Some(&before) = pages.get(&known.before) else {
                return Some(Missing { pages: missing, root: Some(known.before) });
            };
            at = before;
        }
    }

    fn name(&mut self, prefix: Prefix) {
        self.numbers.insert(prefix, self.numbers.len() as u32);
    }

    fn adapters(&mut self, prefix: Prefix, set: &AdapterSet) -> Result<()> {
        let scale = |of: &AdapterScale| [of.adapter.to_le_bytes(), of.scale.to_le_bytes()].concat();
        let scales: Vec<u8> = set.adapters().iter().flat_map(scale).collect();
        self.put(ADAPTERS, &[&(set.adapters().len() as u32).to_le_bytes(), &scales])?;
        self.name(prefix);
        Ok(())
    }

    fn page(&mut self, page: u32, known: &Known) -> Result<()> {
        let mut head =
            [self.numbers[&known.before], known.tokens.len() as u32].map(u32::to_le_bytes).concat();
        head.extend(known.tokens.iter().flat_map(|token| token.to_le_bytes()));
        head.resize(PAGE_HEAD, 0);
        let bytes = self.runner.read_kept(Kept::Page(page))?;
        self.put(PAGE, &[&head, &bytes])?;
        known.prefix.into_iter().for_each(|prefix| self.name(prefix));
        self.kept.tokens += known.tokens.len();
        Ok(())
    }

    fn state(&mut self, prefix: Prefix, state: StateIn) -> Result<()> {
        let bytes = match state {
            StateIn::Place(place) => &*self.runner.read_kept(Kept::State(place))?,
            StateIn::Host(bytes) => bytes,
        };
        self.put(STATE, &[&self.numbers[&prefix].to_le_bytes(), bytes])?;
        self.kept.states += 1;
        Ok(())
    }
}

/// What was read and is not known yet.
enum Taken {
    Adapters(AdapterSet),
    Page {
        page: u32,
        before: usize,
        tokens: Vec<u32>,
    },
    State {
        place: u32,
        behind: usize,
    },
    /// For host memory, as there is no place left.
    HostState {
        state: Vec<u8>,
        behind: usize,
    },
}

/// Where it is taken to.
struct Room<'a> {
    pool: &'a mut PagePool,
    checkpoints: Option<&'a mut Checkpoints>,
    taken: Vec<Taken>,
}

impl Room<'_> {
    /// Makes known what was taken, or gives it back.
    fn settle(mut self, is_whole: bool) -> KeptPrompts {
        let (mut kept, mut prefixes) = (KeptPrompts::default(), vec![Prefix::default()]);
        for record in self.taken.iter().filter(|_| is_whole) {
            match record {
                Taken::Adapters(set) => prefixes.push(self.pool.root(set)),
                Taken::Page { page, before, tokens } => {
                    prefixes.extend(self.pool.make_known(*page, prefixes[*before], tokens));
                    kept.tokens += tokens.len();
                }
                Taken::State { .. } | Taken::HostState { .. } => kept.states += 1,
            }
        }
        // What comes later was used longer ago, and follows what comes before.
        for record in self.taken.into_iter().rev() {
            match (record, &mut self.checkpoints) {
                (Taken::Page { page, .. }, _) => self.pool.release(page),
                (Taken::State { place, behind }, Some(checkpoints)) if is_whole => {
                    checkpoints.set(place, prefixes[behind]);
                }
                (Taken::State { place, .. }, Some(checkpoints)) => checkpoints.release(place),
                (Taken::HostState { state, behind }, Some(checkpoints)) if is_whole => {
                    checkpoints.host_mut().keep(prefixes[behind], state);
                }
                _ => {}
            }
        }
        kept
    }
}

/// Reads one file.
struct Reader<'a> {
    from: &'a mut dyn Read,
    chain: Chain,
    /// Numbers that were given.
    num_prefixes: usize,
}

impl Reader<'_> {
    fn bytes(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.from.read_exact(bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::Request("it is cut short".into()),
            _ => failed(&error),
        })
    }

    fn number(&mut self) -> Result<[u8; 4]> {
        let mut number = [0; 4];
        self.bytes(&mut number)?;
        Ok(number)
    }

    /// Reads the digest behind a record.
    fn check(&mut self, kind: u8, parts: &[&[u8]]) -> Result<()> {
        let mut found = [0; DIGEST];
        self.bytes(&mut found)?;
        let at = self.chain.bytes;
        match found == *self.chain.add(kind, parts) {
            true => Ok(()),
            false => Err(Error::Request(format!("the record at byte {at} is damaged"))),
        }
    }

    /// One of the numbers that were given.
    fn prefix(&self, number: u32) -> Result<usize> {
        let number = number as usize;
        if number < self.num_prefixes { Ok(number) } else { Err(malformed("a page follows none")) }
    }

    /// Takes the next record, whose bytes `buffer` has room for. `false` behind the last one, or where there is no room for another.
    fn record(
        &mut self,
        num_adapters: usize,
        layout: &KeptLayout,
        buffer: &mut [u8],
        runner: &mut dyn Runner,
        room: &mut Room,
    ) -> Result<bool> {
        let mut kind = [0];
        self.bytes(&mut kind)?;
        match kind[0] {
            END => self.check(END, &[]).map(|()| false),
            ADAPTERS => {
                let count = self.number()?;
                let n = u32::from_le_bytes(count) as usize;
                if n > num_adapters {
                    return Err(malformed("there are more adapters than the model has"));
                }
                let mut scales = vec![0; 8 * n];
                self.bytes(&mut scales)?;
                self.check(ADAPTERS, &[&count, &scales])?;
                let scale = |[adapter, scale]: &[[u8; 4]; 2]| AdapterScale {
                    adapter: u32::from_le_bytes(*adapter),
                    scale: f32::from_le_bytes(*scale),
                };
                let scales: Vec<_> = scales.as_chunks().0.as_chunks().0.iter().map(scale).collect();
                let fits = |of: &AdapterScale| (of.adapter as usize) < num_adapters && of.is_in_range();
                if !scales.iter().all(fits) {
                    return Err(malformed("an adapter is not one of the model's"));
                }
                self.num_prefixes += 1;
                room.taken.push(Taken::Adapters(AdapterSet::new(&scales)));
                Ok(true)
            }
            PAGE => {
                let (mut head, bytes) = ([0; PAGE_HEAD], &mut buffer[..layout.page_bytes]);
                self.bytes(&mut head)?;
                self.bytes(bytes)?;
                self.check(PAGE, &[&head, bytes])?;
                let numbers: Vec<u32> = head.as_chunks().0.iter().map(|&n| u32::from_le_bytes(n)).collect();
                let (before, len) = (self.prefix(numbers[0])?, numbers[1] as usize);
                let tokens = numbers[2..].get(..len).filter(|tokens| !tokens.is_empty());
                let tokens =
                    tokens.ok_or_else(|| malformed("a page has no tokens, or more than it holds"))?.to_vec();
                self.num_prefixes += usize::from(len == PAGE_SIZE);
                let Some(page) = room.pool.take_unknown() else { return Ok(false) };
                room.taken.push(Taken::Page { page, before, tokens });
                runner.write_kept(Kept::Page(page), bytes).map(|()| true)
            }
            STATE => {
                let (behind, bytes) = (self.number()?, &mut buffer[..layout.state_bytes]);
                self.bytes(bytes)?;
                self.check(STATE, &[&behind, bytes])?;
                let behind = self.prefix(u32::from_le_bytes(behind))?;
                let Some(checkpoints) = &mut room.checkpoints else { return Ok(false) };
                if let Some(place) = checkpoints.take() {
                    room.taken.push(Taken::State { place, behind });
                    return runner.write_kept(Kept::State(place), bytes).map(|()| true);
                }
                let is_on_host = |taken: &&Taken| matches!(taken, Taken::HostState { .. });
                let is_left = room.taken.iter().filter(is_on_host).count() < checkpoints.host().capacity();
                if is_left {
                    room.taken.push(Taken::HostState { state: bytes.to_vec(), behind });
                }
                Ok(is_left)
            }
            other => Err(malformed(&format!("there are no records {other}"))),
        }
    }
}

fn failed(error: &std::io::Error) -> Error {
    Error::Request(error.to_string())
}

fn malformed(what: &str) -> Error {
    Error::Request(format!("it is not well-formed: {what}"))
}

impl Engine {
    /// Whether [`Engine::keep_prompts`] can be done: beginnings are shared, and the device gives pages out.
    pub fn can_keep_prompts(&self) -> bool {
        self.pool().keeps() && self.runner.kept_layout().is_some()
    }

    /// Writes what the prefix cache knows, in at most `max_bytes`: what was used longest ago is left out.
    ///
    /// # Errors
    /// [`Error::Request`] if `out` fails or the cache is not [kept](Engine::can_keep_prompts); [`Error::Device`] if the device fails.
    pub fn keep_prompts(
        &mut self,
        of: &Fingerprint,
        max_bytes: u64,
        out: &mut dyn Write,
    ) -> Result<KeptPrompts> {
        let layout = self.expect_kept_layout()?;
        let (pool, checkpoints) = (self.scheduler.pool(), self.scheduler.checkpoints());
        let (pages, adapters) = (pool.prefixes().pages(), pool.prefixes().adapters());
        let (chain, header) = Chain::new(of, &layout);
        out.write_all(&header).map_err(|error| failed(&error))?;
        let numbers = HashMap::from([(Prefix::default(), 0)]);
        let kept = KeptPrompts::default();
        let mut writer = Writer { runner: &mut *self.runner, layout, out, chain, numbers, kept };
        for (page, state) in targets(pool, checkpoints, &pages) {
            let Some(Missing { pages: missing, root }) = writer.missing(pool.prefixes(), &pages, page) else {
                continue;
            };
            let root = root.map(|root| Some((root, adapters.get(&root)?)));
            // What begins with adapters that came too long ago is found no more.
            let Some(root) = root.map_or(Some(None), |known| known.map(Some)) else { continue };
            let of_root = root.map_or(0, |(_, set)| record_bytes(4 + 8 * set.adapters().len()));
            let of_pages = missing.len() as u64 * record_bytes(PAGE_HEAD + writer.layout.page_bytes);
            let of_state = state.map_or(0, |_| record_bytes(4 + writer.layout.state_bytes));
            if writer.chain.bytes + of_root + of_pages + of_state + record_bytes(0) > max_bytes {
                break;
            }
            root.map_or(Ok(()), |(root, set)| writer.adapters(root, set))?;
            missing.iter().rev().try_for_each(|(page, known)| writer.page(*page, known))?;
            let prefix = pool.prefixes().known(page).and_then(|known| known.prefix);
            state.zip(prefix).map_or(Ok(()), |(state, prefix)| writer.state(prefix, state))?;
        }
        writer.put(END, &[])?;
        Ok(KeptPrompts { bytes: writer.chain.bytes, ..writer.kept })
    }

    /// Takes what [`Engine::keep_prompts`] has written, as far as there are pages of which nothing is known. Where it fails, nothing was taken.
    ///
    /// # Errors
    /// [`Error::Request`] if `from` fails, or is not what was written of this model; [`Error::Device`] if the device fails.
    pub fn take_prompts(&mut self, of: &Fingerprint, from: &mut dyn Read) -> Result<KeptPrompts> {
        let layout = self.expect_kept_layout()?;
        let (chain, header) = Chain::new(of, &layout);
        let mut reader = Reader { from, chain, num_prefixes: 1 };
        let mut found = vec![0; header.len()];
        reader.bytes(&mut found)?;
        if found != header {
            return Err(Error::Request(
                match (found[..8] == MAGIC, found[8..12] == VERSION.to_le_bytes()) {
                    (false, _) => "it is none",
                    (true, false) => "another version of the program wrote it",
                    (true, true) => {
                        "it is of another model, or of other options, adapters or versions of the program"
                    }
                }
                .into(),
            ));
        }
        let num_adapters = self.runner.adapters().len();
        let (runner, (pool, checkpoints)) = (&mut *self.runner, self.scheduler.kept_mut());
        let mut room = Room { pool, checkpoints, taken: Vec::new() };
        let mut bytes = vec![0; layout.page_bytes.max(layout.state_bytes)];
        let mut read = || -> Result<()> {
            while reader.record(num_adapters, &layout, &mut bytes, runner, &mut room)? {}
            Ok(())
        };
        let read = read();
        let bytes = reader.chain.bytes;
        let kept = room.settle(read.is_ok());
        read.map(|()| KeptPrompts { bytes, ..kept })
    }

    fn expect_kept_layout(&self) -> Result<KeptLayout> {
        let layout = self.runner.kept_layout().filter(|_| self.pool().keeps());
        layout.ok_or_else(|| Error::Request("this model's prefix cache cannot be kept".into()))
    }
}
