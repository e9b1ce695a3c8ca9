//! File descriptors: every connection takes one, and without any left nobody is answered.

/// What the program needs besides connections: the model, the log, the device, runtimes.
const OTHERS: u64 = 64;

/// As many connections as there are file descriptors for, at most those that are requested. Raises the limit where the system lets
/// it.
pub fn bound(connections: usize) -> usize {
    let requested = (connections as u64).saturating_add(OTHERS);
    let limit = raise(requested);
    if limit >= requested {
        return connections;
    }
    let bound = limit.saturating_sub(OTHERS).max(1) as usize;
    tracing::warn!(
        "--max-connections is {bound} instead of {connections}: the system allows this program {limit} open files (ulimit -Hn), of \
         which {OTHERS} are for other things"
    );
    bound
}

/// Open files that are allowed, after trying for `requested`.
#[cfg(unix)]
fn raise(requested: u64) -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= requested {
        return current;
    }
    let raised = requested.min(limit.maximum.unwrap_or(u64::MAX));
    limit.current = Some(raised);
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => raised,
        Err(_) => current,
    }
}

/// Elsewhere sockets are no files.
#[cfg(not(unix))]
fn raise(_: u64) -> u64 {
    u64::MAX
}
