//! A mapped file that is cut short has pages without bytes: whoever reads one gets SIGBUS, which ends a program without a word. Here it
//! is told which file it was, and the status is that of a model file which cannot be used.

use std::path::Path;

/// Makes a fault in a mapped model file name the file on standard error and end the program with status 3. Any other SIGBUS does what
/// it did before. For programs, not for libraries: a handler of signals belongs to the whole process.
pub fn end_on_fault() {
    #[cfg(unix)]
    handler::install();
}

/// A place in the table of maps that [`end_on_fault`] looks through, given back on drop.
pub(super) struct Named {
    #[cfg(unix)]
    slot: Option<&'static handler::Slot>,
}

impl Named {
    /// Enters a map. Where the table is full, a fault in this one ends the program without a word.
    #[cfg(unix)]
    pub(super) fn new(map: &[u8], path: &Path) -> Self {
        let message = format!(
            "qernel: {}: the model file was cut short, or could not be read, while it was in use; load a copy that nobody changes, or \
             use --no-mmap\n",
            path.display()
        );
        Self { slot: handler::enter(map.as_ptr_range(), message) }
    }

    #[cfg(not(unix))]
    pub(super) fn new(_: &[u8], _: &Path) -> Self {
        Self {}
    }
}

#[cfg(unix)]
impl Drop for Named {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            handler::leave(slot);
        }
    }
}

#[cfg(unix)]
mod handler {
    use std::ops::Range;
    use std::ptr::null_mut;
    use std::sync::Once;
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

    /// Maps that can be told apart at a time.
    const MOST: usize = 64;

    /// Exit status for a model file that cannot be used.
    const STATUS: i32 = 3;

    /// One map. A handler may read a slot at any time: those that are in no map of theirs have `end` 0.
    pub(super) struct Slot {
        taken: AtomicBool,
        start: AtomicUsize,
        end: AtomicUsize,
        message: AtomicPtr<u8>,
        length: AtomicUsize,
    }

    static SLOTS: [Slot; MOST] = [const {
        Slot {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            message: AtomicPtr::new(null_mut()),
            length: AtomicUsize::new(0),
        }
    }; MOST];

    /// What SIGBUS did before.
    static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());

    pub(super) fn enter(map: Range<*const u8>, message: String) -> Option<&'static Slot> {
        let slot = SLOTS.iter().find(|slot| !slot.taken.swap(true, Ordering::AcqRel))?;
        // Written as it is: a file's name may hold what a terminal takes for commands.
        let message: String =
            message.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect();
        let message = Box::leak(message.into_bytes().into_boxed_slice());
        slot.length.store(message.len(), Ordering::Relaxed);
        slot.message.store(message.as_mut_ptr(), Ordering::Relaxed);
        slot.start.store(map.start as usize, Ordering::Relaxed);
        slot.end.store(map.end as usize, Ordering::Release);
        Some(slot)
    }

    pub(super) fn leave(slot: &'static Slot) {
        slot.end.store(0, Ordering::Release);
        let message = slot.message.swap(null_mut(), Ordering::AcqRel);
        let message = std::ptr::slice_from_raw_parts_mut(message, slot.length.load(Ordering::Relaxed));
        // SAFETY: `enter` leaked this box, and the swap makes this its only owner. A handler that reads it runs for a fault in the
        // map; whoever makes one holds the map, which is left before it is dropped and so after the last reader.
        drop(unsafe { Box::from_raw(message) });
        slot.taken.store(false, Ordering::Release);
    }

    pub(super) fn install() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: zero is a value of every field of the struct.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: as above.
            let before = Box::leak(Box::new(unsafe { std::mem::zeroed::<libc::sigaction>() }));
            // SAFETY: both structs are whole, and the handler keeps to what signal-safety(7) allows.
            unsafe {
                libc::sigaction(libc::SIGBUS, std::ptr::null(), before);
                BEFORE.store(before, Ordering::Release);
                libc::sigaction(libc::SIGBUS, &raw const action, null_mut());
            }
        });
    }

    /// Only loads of atomics, poll, write, _exit and sigaction, all of which a handler may call.
    extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel hands a handler with SA_SIGINFO a valid struct; SIGBUS sets the address.
        let address = unsafe { (*info).si_addr() } as usize;
        for slot in &SLOTS {
            let end = slot.end.load(Ordering::Acquire);
            if (slot.start.load(Ordering::Relaxed)..end).contains(&address) {
                let (message, length) =
                    (slot.message.load(Ordering::Relaxed), slot.length.load(Ordering::Relaxed));
                let mut ready = libc::pollfd { fd: 2, events: libc::POLLOUT, revents: 0 };
                // SAFETY: the message belongs to a map that the faulting thread holds (see `leave`). A pipe that nobody reads is not
                // waited for: one that can be written to has room for the message.
                unsafe {
                    if libc::poll(&raw mut ready, 1, 100) == 1 {
                        libc::write(2, message.cast(), length);
                    }
                    libc::_exit(STATUS);
                }
            }
        }
        // Of no file: the instruction runs again and faults for whoever handled it before.
        // SAFETY: the struct was filled in before this handler was there, and is never freed.
        unsafe { libc::sigaction(signal, BEFORE.load(Ordering::Acquire), null_mut()) };
    }
}
