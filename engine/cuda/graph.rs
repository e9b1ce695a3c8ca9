//! A step of the model as a CUDA graph: its launches are queued once and then replayed as one.

use super::device::Device;
use super::driver::{self, CUgraphExec, check};
use crate::error::Result;
use std::collections::HashMap;
use std::hash::Hash;
use std::ptr;
use std::rc::Rc;

/// How a decode step is queued: replayed as a `graph`, or as `launches` one by one.
pub(super) const OP: &str = "step";
pub(super) const GRAPH: &str = "graph";
pub(super) const VARIANTS: [&str; 2] = [GRAPH, "launches"];

/// Graphs that are kept at most; when there are more, all are given up. A few shapes of batches make up nearly all steps.
const MAX_GRAPHS: usize = 64;

/// What was queued for a shape of batch.
enum Entry {
    /// Seen once: queued launch by launch, which also lets libraries and kernels initialise themselves.
    Seen,
    Recorded(Graph),
}

/// The graphs of one device, by everything that their launches depend on but memory contents.
pub(super) struct Graphs<K> {
    entries: HashMap<K, Entry>,
    device: Rc<Device>,
}

impl<K: Eq + Hash> Graphs<K> {
    pub(super) fn new(device: &Rc<Device>) -> Self {
        Self { entries: HashMap::new(), device: device.clone() }
    }

    /// Forgets all graphs: addresses in them may be out of date.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    /// The graph of `key`, if one was recorded.
    pub(super) fn get(&self, key: &K) -> Option<&Graph> {
        match self.entries.get(key) {
            Some(Entry::Recorded(graph)) => Some(graph),
            _ => None,
        }
    }

    /// Whether `key` was seen before; notes that it was.
    pub(super) fn seen(&mut self, key: K) -> bool {
        if self.entries.len() >= MAX_GRAPHS {
            self.entries.clear();
        }
        self.entries.insert(key, Entry::Seen).is_some()
    }

    /// Starts to record what is queued from now on, instead of running it.
    pub(super) fn begin(&self) -> Result<()> {
        // SAFETY: the stream is the device's.
        check(
            unsafe { driver::cuStreamBeginCapture_v2(self.device.stream(), driver::CAPTURE_RELAXED) },
            "starting to record a graph",
        )
    }

    /// Ends recording and keeps the graph under `key`; after an error of the recording itself nothing is kept.
    pub(super) fn end(&mut self, key: K, recorded: Result<()>) -> Result<()> {
        let mut graph = ptr::null_mut();
        let mut exec = ptr::null_mut();
        // SAFETY: recording was started on this stream; each call writes one handle. The graph is only needed until
        // it is instantiated.
        unsafe {
            let status = driver::cuStreamEndCapture(self.device.stream(), &mut graph);
            recorded?;
            check(status, "recording a graph")?;
            let status = driver::cuGraphInstantiateWithFlags(&mut exec, graph, 0);
            driver::cuGraphDestroy(graph);
            check(status, "making a graph")?;
        }
        let graph = Graph { exec, device: self.device.clone() };
        self.entries.insert(key, Entry::Recorded(graph));
        Ok(())
    }
}

/// Launches that are queued together.
pub(super) struct Graph {
    exec: CUgraphExec,
    device: Rc<Device>,
}

impl Graph {
    /// Queues them.
    pub(super) fn launch(&self) -> Result<()> {
        // SAFETY: graph and stream are alive.
        check(unsafe { driver::cuGraphLaunch(self.exec, self.device.stream()) }, "launching a graph")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the handle is this value's own; the wait lets its last launch end.
        unsafe {
            driver::cuStreamSynchronize(self.device.stream());
            driver::cuGraphExecDestroy(self.exec);
        }
    }
}
