//! Ctrl-C: during a generation the first ends it cleanly; at any other time, or a second time, it ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit status of a program that an interrupt ended: 128 + SIGINT.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Ends the program without the C library's handlers: that of a GPU's driver takes down what another thread, which loads a model, is using, and the program would
/// end with a segmentation fault.
pub fn end_at_once(status: u8) -> ! {
    // SAFETY: ends the program without anything else.
    unsafe { libc::_exit(status.into()) }
}

/// The handler of Ctrl-C and SIGTERM.
pub struct Interrupt {
    /// A generation is under way that can end cleanly.
    generating: Arc<AtomicBool>,
    requested: Arc<AtomicBool>,
}

impl Interrupt {
    /// Installs the handler. Where none can be installed, Ctrl-C keeps its usual meaning.
    pub fn install() -> Self {
        let (generating, requested) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (in_handler, flag) = (Arc::clone(&generating), Arc::clone(&requested));
        let installed = ctrlc::set_handler(move || {
            if !in_handler.load(Ordering::SeqCst) || flag.swap(true, Ordering::SeqCst) {
                end_at_once(EXIT_INTERRUPTED);
            }
        });
        if let Err(error) = installed {
            tracing::warn!("Ctrl-C ends the program at once: {error}");
        }
        Self { generating, requested }
    }

    /// Runs `work` with a flag that the first Ctrl-C sets.
    pub fn catch<T>(&self, work: impl FnOnce(&AtomicBool) -> T) -> T {
        self.requested.store(false, Ordering::SeqCst);
        self.generating.store(true, Ordering::SeqCst);
        let result = work(&self.requested);
        self.generating.store(false, Ordering::SeqCst);
        result
    }
}
