//! Time on the device's stream, by the device's clock.

use super::device::Device;
use super::driver::Answer;
use crate::error::{Error, Result};
use cust::event::{Event, EventFlags};
use std::rc::Rc;

/// Stop-watches for stretches of the device's stream: several may be queued before the first is read.
pub struct Timer {
    device: Rc<Device>,
    /// Start and end of each lap.
    laps: Vec<[Event; 2]>,
}

impl Timer {
    /// A timer of so many laps.
    ///
    /// # Errors
    /// [`Error::Device`](qernel_core::Error::Device).
    pub fn new(device: &Rc<Device>, laps: usize) -> Result<Self> {
        if device.is_emulated() {
            return Err(Error::Device("the device is emulated: its speed means nothing".into()));
        }
        let event = || Event::new(EventFlags::DEFAULT).doing("creating an event");
        let laps = (0..laps).map(|_| Ok([event()?, event()?])).collect::<Result<_>>()?;
        Ok(Self { device: device.clone(), laps })
    }

    /// How many laps it has.
    pub fn laps(&self) -> usize {
        self.laps.len()
    }

    /// Queues the start of a lap.
    ///
    /// # Errors
    /// [`Error::Device`](qernel_core::Error::Device).
    ///
    /// # Panics
    /// If there is no such lap.
    pub fn start(&mut self, lap: usize) -> Result<()> {
        self.device.record(&self.laps[lap][0])
    }

    /// Queues the end of a lap.
    ///
    /// # Errors
    /// [`Error::Device`](qernel_core::Error::Device).
    ///
    /// # Panics
    /// If there is no such lap.
    pub fn stop(&mut self, lap: usize) -> Result<()> {
        self.device.record(&self.laps[lap][1])
    }

    /// Waits for the end of a lap, and answers its seconds.
    ///
    /// # Errors
    /// [`Error::Device`](qernel_core::Error::Device) if what was timed failed.
    ///
    /// # Panics
    /// If there is no such lap.
    pub fn seconds(&mut self, lap: usize) -> Result<f64> {
        let [from, to] = &self.laps[lap];
        to.synchronize().doing("waiting for the device")?;
        let milliseconds = to.elapsed_time_f32(from).doing("reading the time")?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}
