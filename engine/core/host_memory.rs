//! How much main memory this program may still take, and asking for it in a way that can be refused.
//!
//! A machine has what `/proc/meminfo` calls available; a container has less, by the limits of its control groups; a shell may set
//! a limit of addresses (`ulimit -v`). What is free is the least of them.

use crate::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const MIB: f64 = 1024.0 * 1024.0;

/// Bytes of main memory that this program may take without swapping and without being killed; `None` where the system says
/// nothing.
pub fn available() -> Option<usize> {
    available_below(Path::new("/"))
}

/// The error of `bytes` that the system refused; `what` they were for.
pub fn refused(what: &str, bytes: usize) -> Error {
    let free = available().map_or(String::new(), |free| format!("; {:.1} MiB are free", free as f64 / MIB));
    Error::Memory(format!("{what}: the system refused {:.1} MiB{free}", bytes as f64 / MIB))
}

/// The error of threads that the system did not start, mostly for want of memory for their stacks; `what` they were for.
pub fn no_thread(what: &str, why: impl std::fmt::Display) -> Error {
    Error::Memory(format!("{what}: no thread could be started: {why}"))
}

/// Whether the system starts so many threads at once, for who would wait without end for those before one that it does not start. The memory of their
/// stacks is kept for the next.
///
/// # Errors
/// [`Error::Memory`] if it does not; `what` they were for.
pub fn try_threads(what: &str, count: usize) -> Result<(), Error> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        // None ends before all were started.
        let closed = gate.lock();
        let started = (0..count).try_for_each(|_| {
            std::thread::Builder::new().spawn_scoped(scope, || drop(gate.lock())).map(drop)
        });
        drop(closed);
        started.map_err(|error| no_thread(what, error))
    })
}

/// Makes room for `more` values behind those of `values`; `what` they are for.
///
/// # Errors
/// [`Error::Memory`] if the system refuses.
pub fn reserve<T>(what: &str, values: &mut Vec<T>, more: usize) -> Result<(), Error> {
    values.try_reserve(more).map_err(|_| refused(what, more.saturating_mul(size_of::<T>())))
}

/// As [`available`], by the files below `root`: the least of all limits.
pub fn available_below(root: &Path) -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    // What can be had without swapping, as Linux estimates it.
    let machine = meminfo(root, "MemAvailable:");
    let addresses = read("proc/self/limits").zip(read("proc/self/status"));
    let addresses = addresses.and_then(|(limits, status)| free_addresses(&limits, &status));
    let groups = groups_below(root, "memory");
    let in_groups = groups.iter().flat_map(|(folder, version)| free_in_group(folder, *version));
    machine.into_iter().chain(addresses).chain(in_groups).min()
}

/// Bytes of main memory of the machine, by the files below `root`.
pub fn total_below(root: &Path) -> Option<usize> {
    meminfo(root, "MemTotal:")
}

/// Bytes that control groups allow this program and all others in them, by the files below `root`; `None` without a limit.
pub fn limit_below(root: &Path) -> Option<usize> {
    groups_below(root, "memory").iter().filter_map(|(folder, version)| limit(folder, *version)).min()
}

/// A line of `/proc/meminfo`.
fn meminfo(root: &Path, name: &str) -> Option<usize> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    kib(text.lines().find_map(|line| line.strip_prefix(name))?)
}

/// As `20000 kB`.
fn kib(text: &str) -> Option<usize> {
    text.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// What is left below the limit of addresses, if there is one.
fn free_addresses(limits: &str, status: &str) -> Option<usize> {
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: usize = limit.split_whitespace().next()?.parse().ok()?;
    let used = kib(status.lines().find_map(|line| line.strip_prefix("VmSize:"))?)?;
    Some(limit.saturating_sub(used))
}

/// The versions of control groups, which name their files differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// The folders below `root` of the groups in which a controller (`memory`, `cpu`) limits this program, from its own up to the root: a limit of
/// any of them counts. In a container without a view of its own the innermost ones do not exist, and the root is the container's.
pub fn groups_below(root: &Path, controller: &str) -> Vec<(PathBuf, Version)> {
    let text = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut folders = Vec::new();
    for line in text.lines() {
        // Source: cgroups(7), "hierarchy-ID:controller-list:cgroup-path".
        let mut parts = line.splitn(3, ':');
        let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (mount, version) = if id == "0" && controllers.is_empty() {
            ("sys/fs/cgroup".to_owned(), Version::V2)
        } else if controllers.split(',').any(|name| name == controller) {
            (format!("sys/fs/cgroup/{controller}"), Version::V1)
        } else {
            continue;
        };
        let path = Path::new(path.trim_start_matches('/'));
        folders.extend(path.ancestors().map(|group| (root.join(&mount).join(group), version)));
    }
    folders
}

/// The number in a file of a group. `max`, where there is no limit, is none.
fn number(folder: &Path, name: &str) -> Option<usize> {
    std::fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
}

/// A group's limit of memory.
fn limit(folder: &Path, version: Version) -> Option<usize> {
    match version {
        Version::V1 => number(folder, "memory.limit_in_bytes"),
        Version::V2 => number(folder, "memory.max").into_iter().chain(number(folder, "memory.high")).min(),
    }
}

/// What a group's limits leave beside what it uses. Cached pages of files count as used there and are given up when memory is
/// short, so they are free.
fn free_in_group(folder: &Path, version: Version) -> Option<usize> {
    let (used, cached) = match version {
        Version::V1 => {
            (number(folder, "memory.usage_in_bytes"), ["total_inactive_file", "total_active_file"])
        }
        Version::V2 => (number(folder, "memory.current"), ["inactive_file", "active_file"]),
    };
    let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let value = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    let cached: usize = cached.iter().filter_map(|name| value(name)).fold(0, usize::saturating_add);
    Some(limit(folder, version)?.saturating_sub(used.unwrap_or(0).saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_tried_and_end() {
        try_threads("a test", 3).unwrap();
    }

    /// A root folder with these files.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn with(files: &[(&str, &str)]) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            for (path, text) in files {
                let path = machine.0.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            machine
        }

        fn available(&self) -> Option<usize> {
            available_below(self.0.path())
        }
    }

    const MEMINFO: (&str, &str) =
        ("proc/meminfo", "MemTotal:       24000 kB\nMemFree:        1 kB\nMemAvailable:   20000 kB\n");

    #[test]
    fn a_machine_has_what_is_available_in_kib() {
        assert_eq!(Machine::with(&[MEMINFO]).available(), Some(20_000 * 1024));
        for text in ["MemTotal: 1 kB\n", "MemAvailable: many kB\n", "MemAvailable: 1 MB\n", ""] {
            assert_eq!(Machine::with(&[("proc/meminfo", text)]).available(), None, "{text:?}");
        }
        assert_eq!(Machine::with(&[]).available(), None);
    }

    #[test]
    fn the_least_limit_of_nested_groups_of_version_2_counts() {
        let stat = "anon 100000\nfile 50000\ninactive_file 30000\nactive_file 10000\n";
        let unlimited = [
            MEMINFO,
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("sys/fs/cgroup/memory.stat", stat),
            ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
            ("sys/fs/cgroup/outer/inner/memory.high", "max\n"),
            ("sys/fs/cgroup/outer/inner/memory.current", "150000\n"),
            ("sys/fs/cgroup/outer/inner/memory.stat", stat),
            ("sys/fs/cgroup/outer/memory.current", "150000\n"),
            ("sys/fs/cgroup/outer/memory.stat", stat),
        ];
        assert_eq!(Machine::with(&unlimited).available(), Some(20_000 * 1024));
        let limit = |group: &str, file: &str, bytes: &str| {
            let path = format!("sys/fs/cgroup/{group}/{file}");
            Machine::with(&[&unlimited[..], &[(&path, bytes)]].concat()).available()
        };
        // 150,000 are used, of which 40,000 are cached files.
        assert_eq!(limit("outer/inner", "memory.max", "200000\n"), Some(90_000));
        assert_eq!(limit("outer/inner", "memory.high", "180000\n"), Some(70_000));
        assert_eq!(limit("outer", "memory.max", "130000\n"), Some(20_000));
        assert_eq!(limit("outer", "memory.max", "90000\n"), Some(0));
    }

    #[test]
    fn limits_of_version_1_count_too() {
        let machine = |path: &str, limit: &str| {
            let group = format!("7:blkio:/x\n4:cpu,memory:{path}\n1:name=systemd:/y\n0::/\n");
            Machine::with(&[
                MEMINFO,
                ("proc/self/cgroup", &group),
                ("sys/fs/cgroup/memory/box/memory.limit_in_bytes", limit),
                ("sys/fs/cgroup/memory/box/memory.usage_in_bytes", "1000000\n"),
                (
                    "sys/fs/cgroup/memory/box/memory.stat",
                    "inactive_file 1\ntotal_inactive_file 300000\ntotal_active_file 100000\n",
                ),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ])
            .available()
        };
        assert_eq!(machine("/box", "2000000\n"), Some(1_400_000));
        assert_eq!(machine("/box/inner", "2000000\n"), Some(1_400_000), "limits of outer groups count");
        assert_eq!(machine("/box", "9223372036854771712\n"), Some(20_000 * 1024), "that is no limit");
        assert_eq!(machine("/elsewhere", "2000000\n"), Some(20_000 * 1024));
    }

    /// Its own path is that of the host, which it does not see; its root is the group itself.
    #[test]
    fn a_container_that_sees_its_own_group_as_the_root_is_limited_by_it() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "4:memory:/docker/0123\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000000"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000"),
        ];
        assert_eq!(Machine::with(&files).available(), Some(2_000_000));
    }

    #[test]
    fn a_limit_of_addresses_counts() {
        let machine = |limit: &str| {
            let limits = format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max cpu time              unlimited            unlimited            seconds   \n\
                 Max address space         {limit}            unlimited            bytes     \n"
            );
            let status = ("proc/self/status", "Name:\tqernel\nVmPeak:\t   9000 kB\nVmSize:\t   1000 kB\n");
            Machine::with(&[MEMINFO, status, ("proc/self/limits", &limits)]).available()
        };
        assert_eq!(machine("2048000"), Some(1_024_000));
        assert_eq!(machine("1000"), Some(0));
        assert_eq!(machine("unlimited"), Some(20_000 * 1024));
    }

    #[test]
    fn what_is_refused_is_said_with_its_numbers() {
        let error = reserve("a table", &mut Vec::<u64>::new(), usize::MAX >> 5).unwrap_err();
        let Error::Memory(text) = &error else { panic!("{error}") };
        assert!(text.starts_with("a table: the system refused 4398046511104.0 MiB"), "{text}");
    }
}
