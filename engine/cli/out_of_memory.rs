//! Where the system refuses memory that nobody asked for in a way that could be refused, such as a few bytes deep within a library:
//! the program ends as it does for want of memory everywhere, with its exit status and the numbers.
//!
//! Rust ends such a program by `abort`, and leaves no other way on a stable compiler. So the allocator remembers what was refused, and
//! the signal of that `abort` is caught.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// `Error::Memory`'s exit status.
const EXIT_STATUS: i32 = 5;
/// What is this large can be refused while there is memory for finding out what is free.
const LARGE: usize = 1 << 20;

thread_local! {
    /// Bytes that this thread was refused last; 0 if it never was. Between that and `abort` Rust may print a stack, which takes memory.
    static REFUSED: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which remembers what it refused.
pub struct Allocator;

impl Allocator {
    fn noted(bytes: usize, pointer: *mut u8) -> *mut u8 {
        if pointer.is_null() {
            // A thread that is ending has no such value any more.
            let _ = REFUSED.try_with(|refused| refused.set(bytes));
        }
        pointer
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`.
        Self::noted(layout.size(), unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        Self::noted(layout.size(), unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `realloc`.
        Self::noted(size, unsafe { System.realloc(pointer, layout, size) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Catches the signal of `abort`.
pub fn install() {
    let handler: extern "C" fn(libc::c_int) = on_abort;
    // SAFETY: the handler does what a handler may where it was not called by `abort` for want of memory: nothing.
    unsafe { libc::signal(libc::SIGABRT, handler as libc::sighandler_t) };
}

/// On the thread that called `abort`. Having returned, it ends the program as ever.
extern "C" fn on_abort(_: libc::c_int) {
    static ENTERED: AtomicBool = AtomicBool::new(false);
    let refused = REFUSED.try_with(Cell::get).unwrap_or(0);
    let again = ENTERED.swap(true, Ordering::SeqCst);
    // The C library has an `abort` of its own for want of memory; what it was refused is not known then.
    let starved = refused > 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOMEM);
    if !starved && !again {
        return;
    }
    // The text takes no memory that could be refused once more.
    let mut text = [0; 160];
    let mut rest = &mut text[..];
    let _ = write!(rest, "qernel: not enough memory");
    if refused > 0 {
        let _ = write!(rest, ": the system refused {refused} bytes");
    }
    let free = (refused >= LARGE && !again).then(crate::host_memory::available).flatten();
    if let Some(free) = free {
        let _ = write!(rest, "; {free} are free");
    }
    let _ = writeln!(rest);
    let len = 160 - rest.len();
    // SAFETY: the text is as long; `_exit` ends the program without anything else.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), len);
        libc::_exit(EXIT_STATUS);
    }
}
