//! A panic of a kernel becomes a report with its line.

use std::any::Any;
use std::borrow::ToOwned;
use std::boxed::Box;
use std::cell::RefCell;
use std::panic::{PanicHookInfo, set_hook, take_hook};
use std::string::String;
use std::sync::Once;

use super::thread::current_or_none;
use crate::launch::Kernel;

std::thread_local! {
    /// Where the last panic of an emulated thread was.
    static PLACE: RefCell<Option<(&'static str, u32)>> = const { RefCell::new(None) };
}

/// Keeps panics of kernels off the standard error, and remembers their lines; all others go the way they went.
pub fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info: &PanicHookInfo| {
            if current_or_none().is_none() {
                return before(info);
            }
            // A report ends a launch, so this leaks a file name now and then.
            let place = info.location().map(|place| (&*place.file().to_owned().leak(), place.line()));
            PLACE.set(place);
        }));
    });
}

/// File, line and message of the panic that was just caught.
pub fn take(payload: Box<dyn Any + Send>, kernel: &Kernel) -> (&'static str, u32, String) {
    let message = match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast_ref::<&str>().map_or("a panic", |text| text).to_owned(),
    };
    let (file, line) = PLACE.take().unwrap_or((kernel.file, kernel.line));
    (file, line, message)
}
