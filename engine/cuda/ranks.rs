//! Ranks: devices that compute a model together, each on a thread of its own, and where they write what they tell each other.

mod group;
mod stage;

pub use group::Group;
pub use stage::Stage;
pub(super) use stage::{OP as HAND_OVER, VARIANTS as HAND_OVER_VARIANTS};

use super::device::Device;
use super::memory::{DeviceBuffer, PinnedBuffer};
use crate::config::Config;
use crate::error::Result;
use cuda_std::launch::{DevicePtr, DevicePtrMut, LaunchConfig};
use gpu_kernels::exchange::{BLOCK_SIZE, CHUNK, CONTROL_WORDS, rank_words};
use group::Place;
use qernel_core::batch::BatchLimits;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// From so many values on numbers of their own cost less in chunks: 256 KiB.
pub(super) const MANY: usize = 1 << 16;

/// Words of a slot at most. What is more is told in several exchanges, as are chunks.
const MOST_WORDS: usize = 1 << 18;

/// Values that the chunks of a rank have at most, those of all slots together: 256 MiB.
const MOST_VALUES: usize = 64 << 20;

/// What a slot has room for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub words: usize,
    /// Of [`CHUNK`] values.
    pub chunks: usize,
}

impl Room {
    /// For the steps of this model: a word for each value of a step of few, and chunks for those of many.
    fn of(config: &Config, limits: &BatchLimits) -> Self {
        let of_step = limits.max_num_tokens.saturating_mul(config.hidden_size);
        let of_logits = limits.max_num_logits.saturating_mul(config.head_rows());
        let most = MOST_VALUES / (2 * config.tensor_parallel_size * CHUNK as usize);
        let chunks = if of_step < MANY { 0 } else { of_step.div_ceil(CHUNK as usize).min(most) };
        Self { words: of_step.min(MANY).max(of_logits).clamp(1, MOST_WORDS), chunks }
    }

    /// Words of a rank's memory.
    fn rank_words(self, num_ranks: usize) -> usize {
        rank_words(num_ranks, self.words, self.chunks)
    }
}

/// Bytes that a rank takes for what others tell it.
pub fn ranks_bytes(config: &Config, limits: &BatchLimits) -> usize {
    match config.tensor_parallel_size {
        1 => 0,
        ranks => Room::of(config, limits).rank_words(ranks) * size_of::<u64>(),
    }
}

/// The word that says a wait was given up, in host memory that all devices reach.
enum Word {
    Pinned(PinnedBuffer),
    /// Memory of an emulated device is the host's.
    Emulated(DeviceBuffer<u32>),
}

impl Word {
    fn new(device: &Rc<Device>) -> Result<Self> {
        if device.is_emulated() {
            return Ok(Self::Emulated(DeviceBuffer::zeroed(device, 1)?));
        }
        let mut buffer = PinnedBuffer::new(device, size_of::<u32>())?;
        buffer.wait()?.fill(0);
        Ok(Self::Pinned(buffer))
    }

    fn address(&mut self) -> Result<u64> {
        match self {
            // A device reaches locked memory of the host by the host's address.
            Self::Pinned(buffer) => Ok(buffer.wait()?.as_ptr() as u64),
            Self::Emulated(buffer) => Ok(buffer.ptr().as_raw()),
        }
    }
}

/// What a device knows of the ranks: its own slots, and where those of the others are.
pub struct Ranks {
    num_ranks: usize,
    first_rank: usize,
    /// Ranks on this device: 1, or all.
    of_launch: usize,
    room: Room,
    limit: Duration,
    given_up: u64,
    control: DeviceBuffer<u32>,
    peers: DeviceBuffer<u64>,
    /// Freed, with `word`, once no other rank writes there.
    slots: Option<DeviceBuffer<u64>>,
    word: Option<Word>,
    group: Option<Arc<Group>>,
    device: Rc<Device>,
}

impl Ranks {
    /// Rank `rank` of `group`, once all others are here.
    ///
    /// # Errors
    /// [`Error::Device`](crate::error::Error::Device) if one of them failed or does not come, or devices do not reach each other's memory; [`Error::Memory`](crate::error::Error::Memory).
    pub fn join(
        device: &Rc<Device>,
        group: &Arc<Group>,
        rank: usize,
        config: &Config,
        limits: &BatchLimits,
    ) -> Result<Self> {
        let mut ranks = Self::new(device, group.num_ranks(), 1, Room::of(config, limits), group.limit())?;
        ranks.first_rank = rank;
        if rank == 0 {
            ranks.given_up = ranks.word.insert(Word::new(device)?).address()?;
        }
        // Nobody writes to slots before they are zero.
        device.synchronize()?;
        let slots = ranks.slots.as_ref().map_or((0, 0), |slots| (slots.ptr().as_raw(), slots.size()));
        let ordinal = device.info().ordinal;
        ranks.group = Some(group.clone());
        let places = group.join(rank, Place { ordinal, slots, given_up: ranks.given_up })?;
        ranks.given_up = places[0].given_up;
        for place in places.iter().enumerate().filter(|(other, _)| *other != rank).map(|(_, place)| place) {
            // SAFETY: a rank frees its buffers when all have left the group.
            unsafe { device.reach(place.ordinal, &[place.slots, (place.given_up, size_of::<u32>())])? };
        }
        let addresses: Vec<u64> = places.iter().map(|place| place.slots.0).collect();
        ranks.peers.write(0, &addresses)?;
        Ok(ranks)
    }

    /// `num_ranks` ranks that are all on this device, whose launches are of all of them: for checking what they tell each other.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::error::Error::Memory), [`Error::Device`](crate::error::Error::Device).
    pub fn on_one_device(device: &Rc<Device>, num_ranks: usize, room: Room, limit: Duration) -> Result<Self> {
        let mut ranks = Self::new(device, num_ranks, num_ranks, room, limit)?;
        ranks.given_up = ranks.word.insert(Word::new(device)?).address()?;
        let first = ranks.slots().as_raw();
        let bytes = (room.rank_words(num_ranks) * size_of::<u64>()) as u64;
        let addresses: Vec<u64> = (0..num_ranks as u64).map(|rank| first + rank * bytes).collect();
        ranks.peers.write(0, &addresses)?;
        Ok(ranks)
    }

    fn new(
        device: &Rc<Device>,
        num_ranks: usize,
        of_launch: usize,
        room: Room,
        limit: Duration,
    ) -> Result<Self> {
        let words = CONTROL_WORDS as usize;
        let control: Vec<u32> = (0..of_launch * words).map(|i| u32::from(i % words == 0)).collect();
        Ok(Self {
            num_ranks,
            first_rank: 0,
            of_launch,
            room,
            limit,
            given_up: 0,
            control: DeviceBuffer::from_slice(device, &control)?,
            peers: DeviceBuffer::zeroed(device, num_ranks)?,
            slots: Some(DeviceBuffer::zeroed(device, of_launch * room.rank_words(num_ranks))?),
            word: None,
            group: None,
            device: device.clone(),
        })
    }

    /// Says so if a wait was given up: what was computed since means nothing.
    ///
    /// # Errors
    /// [`Error::Device`](crate::error::Error::Device) that says who waited for whom.
    pub fn expect_all(&self) -> Result<()> {
        // SAFETY: the word is there until all ranks have left the group.
        match unsafe { group::load(self.given_up) } {
            0 => Ok(()),
            who => Err(group::given_up(who, self.num_ranks, self.limit)),
        }
    }

    /// The grid for `count` values, `of_block` at a time a block: one that the device runs at once, for blocks wait for those of other
    /// ranks. Of the kernel a multiprocessor has room for `resident` blocks, if for as many threads.
    pub(super) fn config(&self, device: &Device, count: usize, of_block: u32, resident: u32) -> LaunchConfig {
        let info = device.info();
        let resident = resident.min(info.threads_per_multiprocessor / BLOCK_SIZE);
        let most = (resident * info.multiprocessors) as usize / self.of_launch;
        let blocks = count.div_ceil(of_block as usize).clamp(1, most.max(1));
        LaunchConfig {
            grid: [blocks as u32, self.of_launch as u32, 1],
            block: [BLOCK_SIZE, 1, 1],
            shared_bytes: 0,
        }
    }

    pub(super) fn num_ranks(&self) -> u32 {
        self.num_ranks as u32
    }

    pub(super) fn first_rank(&self) -> u32 {
        self.first_rank as u32
    }

    /// On this device.
    pub(super) fn of_launch(&self) -> usize {
        self.of_launch
    }

    pub(super) fn room(&self) -> Room {
        self.room
    }

    /// Nanoseconds.
    pub(super) fn limit(&self) -> u64 {
        self.limit.as_nanos().try_into().unwrap_or(u64::MAX)
    }

    pub(super) fn peers(&self) -> DevicePtr<u64> {
        self.peers.ptr()
    }

    pub(super) fn slots(&mut self) -> DevicePtrMut<u64> {
        self.slots.as_mut().map_or(DevicePtrMut::from_raw(0), DeviceBuffer::ptr_mut)
    }

    pub(super) fn control(&mut self) -> DevicePtrMut<u32> {
        self.control.ptr_mut()
    }

    pub(super) fn given_up(&self) -> DevicePtrMut<u32> {
        DevicePtrMut::from_raw(self.given_up)
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        // A failure leaves nothing to do.
        drop(self.device.synchronize());
        let Some(group) = self.group.take() else { return };
        if !group.leave() {
            // Somebody may still write there.
            std::mem::forget(self.slots.take());
            std::mem::forget(self.word.take());
        }
    }
}
