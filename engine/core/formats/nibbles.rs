//! What formats of four and five bits share: byte `j` of a group holds value `j` in its low half and, as far behind as the group has bytes, another in its high one.

/// The values of a group from their places and their four bits.
#[inline(always)]
pub(super) fn decode(bytes: &[u8], values: &mut [f32], value: impl Fn(usize, u8) -> f32) {
    let count = bytes.len();
    let (low, high) = values.split_at_mut(count);
    for (j, ((byte, low), high)) in bytes.iter().zip(low).zip(high).enumerate() {
        *low = value(j, byte & 15);
        *high = value(j + count, byte >> 4);
    }
}

/// The bytes of a group; `quantum` gives four bits.
#[inline(always)]
pub(super) fn encode(values: &[f32], bytes: &mut [u8], quantum: impl Fn(f32) -> u8) {
    let (low, high) = values.split_at(bytes.len());
    for ((byte, &low), &high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = quantum(low) | quantum(high) << 4;
    }
}

/// As [`decode`] for 32 values whose fifth bits are the first four bytes, in the order of the values.
#[inline(always)]
pub(super) fn decode_five(bytes: &[u8], values: &mut [f32], value: impl Fn(u8) -> f32) {
    let (high, low) = bytes.split_at(4);
    let high = u32::from_le_bytes(high.try_into().expect("four bytes"));
    decode(low, values, |j, low| value(low | ((high >> j & 1) << 4) as u8));
}

/// As [`encode`] for 32 values; `quantum` gives five bits.
#[inline(always)]
pub(super) fn encode_five(values: &[f32], bytes: &mut [u8], quantum: impl Fn(f32) -> u8) {
    let (high, low) = bytes.split_at_mut(4);
    let fifth = values.iter().enumerate().map(|(j, &value)| u32::from(quantum(value) >> 4) << j);
    high.copy_from_slice(&fifth.fold(0, |bits, bit| bits | bit).to_le_bytes());
    encode(values, low, |value| quantum(value) & 15);
}
