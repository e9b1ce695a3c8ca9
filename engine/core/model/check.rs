//! What a batch must satisfy before a device may follow its indices.

use crate::batch::{AdapterScale, AdapterSet, Batch, BatchLimits};
use crate::error::{Error, Result};
use crate::kv_layout::{KvLayout, PAGE_SIZE};

/// Checks that `batch` is within `limits`, that its arrays agree with each other, and that every token, position,
/// slot, page and row in it exists. Afterwards operations follow its indices unchecked, on a GPU too.
///
/// # Errors
/// [`Error::Request`] that names the array, the index and both values.
pub fn check_batch(
    batch: &Batch,
    limits: &BatchLimits,
    layout: &KvLayout,
    vocab_size: usize,
    max_model_len: usize,
    num_adapters: usize,
) -> Result<()> {
    let n = batch.num_tokens();
    let sequences = batch.num_sequences();
    at_most("rows", n, limits.max_num_tokens)?;
    at_most("sequences", sequences, limits.max_num_sequences)?;
    at_most("logit rows", batch.num_logits(), limits.max_num_logits)?;
    at_most("block table columns", batch.max_blocks, limits.max_blocks)?;
    if n == 0 {
        return bad("it has no rows".into());
    }
    length("sampled_rows", batch.sampled_rows.len(), n)?;
    length("positions", batch.positions.len(), n)?;
    length("sequence_of_token", batch.sequence_of_token.len(), n)?;
    length("slots", batch.slots.len(), n)?;
    length("query_start", batch.query_start.len(), sequences + 1)?;
    length("block_table", batch.block_table.len(), sequences * batch.max_blocks)?;
    length("state_slots", batch.state_slots.len(), sequences)?;

    all_below("tokens", &batch.tokens, vocab_size)?;
    all_below("positions", &batch.positions, max_model_len)?;
    all_below("slots", &batch.slots, layout.num_pages * PAGE_SIZE)?;
    all_below("block_table", &batch.block_table, layout.num_pages)?;
    all_below("logit_rows", &batch.logit_rows, n)?;
    all_below("state_slots", &batch.state_slots, limits.max_num_sequences)?;
    if !batch.adapters.is_empty() {
        length("adapters", batch.adapters.len(), sequences)?;
    }
    for adapter in batch.adapters.iter().flat_map(AdapterSet::adapters) {
        if adapter.adapter as usize >= num_adapters || !adapter.is_in_range() {
            return bad(format!(
                "{adapter:?} of {num_adapters} adapters, with scales up to {}",
                AdapterScale::MAX
            ));
        }
    }
    let mut slots = batch.state_slots.clone();
    slots.sort_unstable();
    if slots.windows(2).any(|pair| pair[0] == pair[1]) {
        return bad("two sequences share a slot".into());
    }
    if !batch.logit_rows.is_sorted_by(|a, b| a < b) {
        return bad("logit_rows is not ascending".into());
    }
    if batch.query_start[0] != 0 || batch.query_start[sequences] as usize != n {
        return bad(format!("query_start does not run from 0 to {n}"));
    }
    for s in 0..sequences {
        let (start, end) = (batch.query_start[s] as usize, batch.query_start[s + 1] as usize);
        let kv_len = batch.kv_len[s] as usize;
        if end < start || end > n || kv_len < end - start {
            return bad(format!("sequence {s} has rows {start}..{end} and kv_len {kv_len}"));
        }
        if kv_len > batch.max_blocks * PAGE_SIZE {
            return bad(format!("sequence {s} has kv_len {kv_len} on {} pages", batch.max_blocks));
        }
        let pages = &batch.block_table[s * batch.max_blocks..];
        for row in start..end {
            let position = kv_len - (end - row);
            let slot = pages[position / PAGE_SIZE] as usize * PAGE_SIZE + position % PAGE_SIZE;
            let found = (batch.sequence_of_token[row], batch.positions[row], batch.slots[row]);
            let expected = (s as u32, position as u32, slot as u32);
            if found != expected {
                return bad(format!(
                    "row {row} must have (sequence, position, slot) = {expected:?}, not {found:?}"
                ));
            }
        }
    }
    Ok(())
}

fn bad(what: String) -> Result<()> {
    Err(Error::Request(format!("malformed batch: {what}")))
}

fn at_most(what: &str, found: usize, limit: usize) -> Result<()> {
    if found > limit { bad(format!("{found} {what}, the limit is {limit}")) } else { Ok(()) }
}

fn length(what: &str, found: usize, expected: usize) -> Result<()> {
    if found != expected { bad(format!("{what} has {found} entries instead of {expected}")) } else { Ok(()) }
}

fn all_below(what: &str, values: &[u32], limit: usize) -> Result<()> {
    match values.iter().position(|&value| value as usize >= limit) {
        Some(i) => bad(format!("{what}[{i}] is {}, it must be below {limit}", values[i])),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::GIVEN;
    use crate::dtype::Dtype;
    use crate::kv_format::{KvFormat, KvFormats};

    const LIMITS: BatchLimits =
        BatchLimits { max_num_tokens: 8, max_num_sequences: 2, max_num_logits: 2, max_blocks: 2 };
    const LAYOUT: KvLayout = KvLayout {
        formats: KvFormats::both(KvFormat::Float(Dtype::F32)),
        num_layers: 1,
        num_pages: 4,
        num_key_value_heads: 1,
        head_dim: 4,
    };

    fn adapter(adapter: u32, scale: f32) -> AdapterSet {
        AdapterSet::new(&[AdapterScale { adapter, scale }])
    }

    /// A decode row at position 33 on pages 3 and 1, then a prefill of two rows on page 2.
    fn batch() -> Batch {
        Batch {
            tokens: vec![5, 6, 7],
            sampled_rows: vec![GIVEN; 3],
            positions: vec![33, 0, 1],
            sequence_of_token: vec![0, 1, 1],
            slots: vec![33, 64, 65],
            query_start: vec![0, 1, 3],
            kv_len: vec![34, 2],
            block_table: vec![3, 1, 2, 0],
            max_blocks: 2,
            state_slots: vec![1, 0],
            adapters: vec![AdapterSet::default(), adapter(1, 0.5)],
            logit_rows: vec![0, 2],
            drafts: false,
        }
    }

    fn check(batch: &Batch) -> Result<()> {
        check_batch(batch, &LIMITS, &LAYOUT, 10, 64, 2)
    }

    #[test]
    fn a_consistent_batch_passes() {
        check(&batch()).unwrap();
    }

    #[test]
    fn every_wrong_array_is_refused() {
        let broken: [fn(&mut Batch); 22] = [
            |b| b.adapters[1] = adapter(0, 101.0),
            |b| b.adapters.truncate(1),
            |b| b.adapters[0] = adapter(2, 1.0),
            |b| b.adapters[1] = adapter(0, f32::NAN),
            |b| b.tokens[0] = 10,
            |b| b.tokens.clear(),
            |b| b.state_slots.clear(),
            |b| b.state_slots[0] = 2,
            |b| b.state_slots[0] = 0,
            |b| b.sampled_rows.clear(),
            |b| b.positions[1] = 1,
            |b| b.positions[0] = u32::MAX,
            |b| b.sequence_of_token[2] = 0,
            |b| b.slots[0] = 32,
            |b| b.query_start[1] = 7,
            |b| b.query_start[2] = 2,
            |b| b.kv_len[0] = 65,
            |b| b.kv_len[1] = 1,
            |b| b.block_table[1] = 4,
            |b| b.max_blocks = 3,
            |b| b.logit_rows = vec![2, 0],
            |b| b.logit_rows = vec![3],
        ];
        for (i, change) in broken.iter().enumerate() {
            let mut batch = batch();
            change(&mut batch);
            assert!(matches!(check(&batch), Err(Error::Request(_))), "change {i} was not noticed");
        }
    }
}
