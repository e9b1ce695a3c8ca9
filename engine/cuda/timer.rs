//! Time on the device's stream, by the device's clock.

use super::device::Device;
use super::driver::{self, check};
use crate::error::{Error, Result};
use std::rc::Rc;

/// Stop-watches for stretches of the device's stream: several may be queued before the first is read.
pub struct Timer {
    device: Rc<Device>,
    /// Start and end of each lap.
    laps: Vec<[driver::CUevent; 2]>,
}

impl Timer {
    /// A timer of so many laps.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    pub fn new(device: &Rc<Device>, laps: usize) -> Result<Self> {
        if device.is_emulated() {
            return Err(Error::Device("the device is emulated: its speed means nothing".into()));
        }
        let mut timer = Self { device: device.clone(), laps: Vec::new() };
        for _ in 0..laps {
            timer.laps.push([std::ptr::null_mut(); 2]);
            for event in timer.laps.last_mut().into_iter().flatten() {
                // SAFETY: writes one handle; drop destroys those that were made.
                check(unsafe { driver::cuEventCreate(event, 0) }, "creating an event")?;
            }
        }
        Ok(timer)
    }

    /// How many laps it has.
    pub fn laps(&self) -> usize {
        self.laps.len()
    }

    /// Queues the start of a lap.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    ///
    /// # Panics
    /// If there is no such lap.
    pub fn start(&mut self, lap: usize) -> Result<()> {
        self.record(self.laps[lap][0])
    }

    /// Queues the end of a lap.
    ///
    /// # Errors
    /// [`crate::Error::Device`].
    ///
    /// # Panics
    /// If there is no such lap.
    pub fn stop(&mut self, lap: usize) -> Result<()> {
        self.record(self.laps[lap][1])
    }

    /// Waits for the end of a lap, and answers its seconds.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if what was timed failed.
    ///
    /// # Panics
    /// If there is no such lap.
    pub fn seconds(&mut self, lap: usize) -> Result<f64> {
        let [from, to] = self.laps[lap];
        let mut milliseconds = 0.0f32;
        // SAFETY: both events are alive; the last call writes one float.
        unsafe {
            check(driver::cuEventSynchronize(to), "waiting for the device")?;
            check(driver::cuEventElapsedTime(&mut milliseconds, from, to), "reading the time")?;
        }
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn record(&self, event: driver::CUevent) -> Result<()> {
        // SAFETY: event and stream are alive.
        check(unsafe { driver::cuEventRecord(event, self.device.stream()) }, "recording an event")
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        for &event in self.laps.iter().flatten().filter(|event| !event.is_null()) {
            // SAFETY: the event is this timer's own.
            unsafe { driver::cuEventDestroy_v2(event) };
        }
    }
}
