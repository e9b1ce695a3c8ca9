//! A step of the model as a CUDA graph: its launches are queued once and then replayed as one.

use super::device::Device;
use super::driver::Answer;
use crate::error::Result;
use cust::sys::{self, CUgraph, CUgraphExec, CUstreamCaptureMode};
use std::collections::HashMap;
use std::hash::Hash;
use std::ptr;
use std::rc::Rc;

/// How a step is queued: replayed as a graph `ahead` of the tokens of the step before, which stay on the device; as a `graph`
/// once those are known; or then as `launches` one by one.
pub(super) const OP: &str = "step";
pub(super) const AHEAD: &str = "ahead";
pub(super) const GRAPH: &str = "graph";
pub(super) const VARIANTS: [&str; 3] = [AHEAD, GRAPH, "launches"];

/// Graphs that are kept at most; the one that was not used for longest makes room for another. A few shapes of batches make up
/// nearly all steps.
const MAX_GRAPHS: usize = 128;

/// Shapes that are not recorded yet and are remembered; when there are more, all are forgotten.
const MAX_SEEN: usize = 1024;

/// Which time that its shape comes a decode step is recorded. The first time libraries and kernels initialise themselves.
pub(super) const RECORD_DECODE_AT: u32 = 2;
/// The same for a step of prompts alone. A recording takes about 2 ms; a replay saves 0.2 ms of hundreds of launches whose kernels are
/// long enough to hide most of the rest, where it saves more than half of a decode step. What comes a third time is a full chunk, or
/// prompts of one length. Steps with prompts and decoding hardly ever come again, and are never recorded.
pub(super) const RECORD_PREFILL_AT: u32 = 3;

/// The graphs of one device, by everything that their launches depend on but memory contents. A shape is queued launch by launch
/// until it has come often enough to be recorded.
pub(super) struct Graphs<K> {
    recorded: HashMap<K, Entry>,
    /// How often shapes came that are not recorded.
    seen: HashMap<K, u32>,
    /// Launches of graphs so far.
    clock: u64,
    device: Rc<Device>,
}

struct Entry {
    graph: Graph,
    last_used: u64,
}

impl<K: Clone + Eq + Hash> Graphs<K> {
    pub(super) fn new(device: &Rc<Device>) -> Self {
        Self { recorded: HashMap::new(), seen: HashMap::new(), clock: 0, device: device.clone() }
    }

    /// Forgets all graphs: addresses in them may be out of date.
    pub(super) fn clear(&mut self) {
        self.recorded.clear();
        self.seen.clear();
    }

    /// Launches of graphs so far.
    pub(super) fn num_launches(&self) -> u64 {
        self.clock
    }

    /// Queues the graph of `key`, if one was recorded; answers whether.
    pub(super) fn launch(&mut self, key: &K) -> Result<bool> {
        let Some(entry) = self.recorded.get_mut(key) else { return Ok(false) };
        self.clock += 1;
        entry.last_used = self.clock;
        entry.graph.launch().map(|()| true)
    }

    /// Counts that `key` comes, and says which time it is.
    pub(super) fn count(&mut self, key: &K) -> u32 {
        if self.seen.len() >= MAX_SEEN {
            self.seen.clear();
        }
        let count = self.seen.entry(key.clone()).or_insert(0);
        *count += 1;
        *count
    }

    /// Starts to record what is queued from now on, instead of running it.
    pub(super) fn begin(&self) -> Result<()> {
        begin_recording(&self.device)
    }

    /// Ends recording and keeps the graph under `key`; after an error of the recording itself nothing is kept.
    pub(super) fn end(&mut self, key: K, recorded: Result<()>) -> Result<()> {
        let recording = end_recording(&self.device);
        recorded?;
        let graph = recording?.graph(&self.device)?;
        if let Some(oldest) = oldest(&self.recorded, |entry| entry.last_used) {
            self.recorded.remove(&oldest);
        }
        self.seen.remove(&key);
        self.recorded.insert(key, Entry { graph, last_used: self.clock });
        Ok(())
    }
}

/// Starts to record what is queued on the device from now on, instead of running it; other calls are allowed meanwhile.
pub(super) fn begin_recording(device: &Device) -> Result<()> {
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the stream is the device's.
    unsafe { sys::cuStreamBeginCapture_v2(device.stream(), mode) }.doing("starting to record a graph")?;
    device.gpu().inspect(|gpu| gpu.set_recording(true));
    Ok(())
}

/// Ends what [`begin_recording`] started.
pub(super) fn end_recording(device: &Device) -> Result<Recording> {
    let mut recording = Recording(ptr::null_mut());
    device.gpu().inspect(|gpu| gpu.set_recording(false));
    // SAFETY: the stream is the device's; the call writes one handle.
    unsafe { sys::cuStreamEndCapture(device.stream(), &mut recording.0) }.doing("recording a graph")?;
    Ok(recording)
}

/// Launches that were recorded; only needed until they are made a graph to launch.
pub(super) struct Recording(CUgraph);

impl Recording {
    fn graph(self, device: &Rc<Device>) -> Result<Graph> {
        let mut exec = ptr::null_mut();
        // SAFETY: the recording is alive; the call writes one handle.
        unsafe { sys::cuGraphInstantiateWithFlags(&mut exec, self.0, 0) }.doing("making a graph")?;
        Ok(Graph { exec, device: device.clone() })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the handle is this value's own.
            unsafe { sys::cuGraphDestroy(self.0) };
        }
    }
}

/// What to give up before another graph is kept: the one that was not used for longest, if there is no room.
fn oldest<K: Clone, E>(entries: &HashMap<K, E>, last_used: impl Fn(&E) -> u64) -> Option<K> {
    if entries.len() < MAX_GRAPHS {
        return None;
    }
    entries.iter().min_by_key(|(_, entry)| last_used(entry)).map(|(key, _)| key.clone())
}

/// Launches that are queued together.
pub struct Graph {
    exec: CUgraphExec,
    device: Rc<Device>,
}

impl Graph {
    /// What `queue` queues on the device, instead of running it.
    ///
    /// # Errors
    /// Those of `queue`, or [`Error::Device`](crate::error::Error::Device) with the driver's reason.
    pub fn record(device: &Rc<Device>, queue: impl FnOnce() -> Result<()>) -> Result<Self> {
        begin_recording(device)?;
        let queued = queue();
        let recording = end_recording(device);
        queued?;
        recording?.graph(device)
    }

    /// Queues them.
    ///
    /// # Errors
    /// [`Error::Device`](crate::error::Error::Device) with the driver's reason.
    pub fn launch(&self) -> Result<()> {
        // SAFETY: graph and stream are alive.
        unsafe { sys::cuGraphLaunch(self.exec, self.device.stream()) }.doing("launching a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Lets its last launch end; a failure leaves nothing to do.
        drop(self.device.synchronize());
        // SAFETY: the handle is this value's own.
        unsafe { sys::cuGraphExecDestroy(self.exec) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_graph_that_was_not_used_for_longest_makes_room() {
        let mut entries: HashMap<usize, u64> = (0..MAX_GRAPHS - 1).map(|i| (i, 1000 - i as u64)).collect();
        assert_eq!(oldest(&entries, |&used| used), None);
        entries.insert(MAX_GRAPHS, 5);
        assert_eq!(oldest(&entries, |&used| used), Some(MAX_GRAPHS));
    }
}
