//! File descriptors: every connection takes one, and without any left nobody is answered.

/// What the program needs besides connections: the model, the log, the device, runtimes.
const OTHERS: u64 = 64;

/// As many connections as there are file descriptors for, at most those that are wanted. Raises the limit where the system lets
/// it.
pub fn bound(connections: usize) -> usize {
    let wanted = (connections as u64).saturating_add(OTHERS);
    let limit = raise(wanted);
    if limit >= wanted {
        return connections;
    }
    let bound = limit.saturating_sub(OTHERS).max(1) as usize;
    tracing::warn!(
        "--max-connections is {bound} instead of {connections}: the system allows this program {limit} open files (ulimit -Hn), of \
         which {OTHERS} are for other things"
    );
    bound
}

/// Open files that are allowed, after trying for `wanted`.
#[cfg(unix)]
fn raise(wanted: u64) -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= wanted {
        return current;
    }
    let raised = wanted.min(limit.maximum.unwrap_or(u64::MAX));
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
