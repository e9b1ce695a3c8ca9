//! What this machine, or this container, has for a run on the CPU, and what makes one slow. All is read below a root folder.

use super::Check;
use crate::host_memory::{self, Version};
use std::path::Path;

const GIB: f64 = (1 << 30) as f64;

/// All readings; what the system does not tell is left out.
pub fn readings(root: &Path) -> Vec<Check> {
    let all: [fn(&Path) -> Option<Check>; 5] = [processor, cpus, governor, huge_pages, memory];
    all.iter().filter_map(|reading| reading(root)).collect()
}

fn read(root: &Path, path: &str) -> Option<String> {
    std::fs::read_to_string(root.join(path)).ok()
}

/// The processor's name, and whether it has the vector instructions that products are fast with.
fn processor(root: &Path) -> Option<Check> {
    let text = read(root, "proc/cpuinfo")?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        line.split_once(':').map(|(_, value)| value.trim())
    };
    let name = field("model name")?;
    let flags: Vec<&str> = field("flags").unwrap_or_default().split_whitespace().collect();
    let has = |flag: &str| flags.contains(&flag);
    let set = match () {
        () if !flags.is_empty() && !has("avx2") => {
            return Some(Check::slow(
                "processor",
                format!("{name}, no AVX2"),
                "products run without vector instructions; a virtual machine may hide them (QEMU: -cpu host)",
            ));
        }
        () if has("avx512_vnni") => ", AVX-512 with VNNI",
        () if has("avx512f") => ", AVX-512",
        () if has("avx2") => ", AVX2, no AVX-512",
        () => "",
    };
    Some(Check::found("processor", format!("{name}{set}")))
}

/// How many CPUs this program may use, of how many the machine has.
fn cpus(root: &Path) -> Option<Check> {
    let online = count(&read(root, "sys/devices/system/cpu/online")?)?;
    let status = read(root, "proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).and_then(count);
    let quota = host_memory::groups_below(root, "cpu")
        .iter()
        .filter_map(|(folder, version)| quota(folder, *version))
        .min_by(f64::total_cmp);
    let fewer = allowed.filter(|&allowed| allowed < online);
    let quota = quota.filter(|&quota| quota < fewer.unwrap_or(online) as f64);
    let of = format!("of {online} CPUs");
    Some(match (quota, fewer) {
        (Some(quota), _) => Check::slow(
            "CPUs",
            format!("the time of {quota:.1} {of}, by a control group"),
            "threads that outrun the quota stand still until its next period; ask for more, or set RAYON_NUM_THREADS to it",
        ),
        (None, Some(allowed)) => Check::slow(
            "CPUs",
            format!("{allowed} {of}"),
            "taskset, a scheduler or a container allows no more",
        ),
        (None, None) => Check::found("CPUs", format!("all {of}")),
    })
}

/// How many numbers a list such as `0-3,8` has.
fn count(list: &str) -> Option<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let [first, last] = [first, last].map(|end| end.trim().parse::<usize>().ok());
        last?.checked_sub(first?)?.checked_add(1)
    };
    list.trim().split(',').map(range).try_fold(0_usize, |sum, count| sum.checked_add(count?))
}

/// The CPUs whose time a control group allows, if it has a limit.
fn quota(folder: &Path, version: Version) -> Option<f64> {
    let (quota, period) = match version {
        Version::V1 => (read(folder, "cpu.cfs_quota_us")?, read(folder, "cpu.cfs_period_us")?),
        Version::V2 => {
            let text = read(folder, "cpu.max")?;
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.to_owned(), period.to_owned())
        }
    };
    // `max`, or -1, where there is no limit.
    let [quota, period] = [quota, period].map(|text| text.trim().parse::<u64>().ok());
    Some(quota? as f64 / period.filter(|&period| period > 0)? as f64)
}

/// What chooses the processor's frequency. Drivers whose hardware chooses it call that `powersave` and are fast all the same.
fn governor(root: &Path) -> Option<Check> {
    const FOLDER: &str = "sys/devices/system/cpu/cpu0/cpufreq";
    let governor = read(root, &format!("{FOLDER}/scaling_governor"))?;
    let driver = read(root, &format!("{FOLDER}/scaling_driver")).unwrap_or_default();
    let (governor, driver) = (governor.trim(), driver.trim());
    let found = format!("{governor} ({driver})");
    let is_by_hardware = ["intel_pstate", "amd-pstate-epp"].contains(&driver);
    Some(match governor {
        "powersave" if !is_by_hardware => Check::slow(
            "CPU frequency",
            found,
            "the processor stays at its lowest frequency: cpupower frequency-set -g performance",
        ),
        _ => Check::found("CPU frequency", found),
    })
}

/// Whether the system gives memory in huge pages by itself: the choice between brackets.
fn huge_pages(root: &Path) -> Option<Check> {
    let text = read(root, "sys/kernel/mm/transparent_hugepage/enabled")?;
    let (_, rest) = text.split_once('[')?;
    let (choice, _) = rest.split_once(']')?;
    Some(Check::found("huge pages", choice))
}

/// Memory that is free, of what the machine has, and a limit below that.
fn memory(root: &Path) -> Option<Check> {
    let total = host_memory::total_below(root)?;
    let free = host_memory::available_below(root)?;
    let gib = |bytes: usize| bytes as f64 / GIB;
    let found = format!("{:.1} GiB free of {:.1}", gib(free), gib(total));
    Some(match host_memory::limit_below(root).filter(|&limit| limit < total) {
        Some(limit) => Check::slow(
            "memory",
            format!("{found}; a control group allows {:.1}", gib(limit)),
            "a mapped model that is larger than the limit is read from the disk again and again",
        ),
        None => Check::found("memory", found),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    fn one(reading: fn(&Path) -> Option<Check>, files: &[(&str, &str)]) -> Option<(bool, String)> {
        reading(tree(files).path()).map(|check| (check.ok, check.found))
    }

    #[test]
    fn a_processor_without_avx2_is_slow() {
        let info = |flags: &str| {
            let text = format!("processor\t: 0\nmodel name\t: A Processor\nflags\t\t: fpu {flags}\n");
            one(processor, &[("proc/cpuinfo", &text)]).unwrap()
        };
        assert_eq!(info("sse2"), (false, "A Processor, no AVX2".into()));
        assert_eq!(info("avx2"), (true, "A Processor, AVX2, no AVX-512".into()));
        assert_eq!(info("avx2 avx512f"), (true, "A Processor, AVX-512".into()));
        assert_eq!(info("avx2 avx512f avx512_vnni"), (true, "A Processor, AVX-512 with VNNI".into()));
        assert_eq!(one(processor, &[]), None);
    }

    #[test]
    fn fewer_cpus_than_the_machine_has_are_told() {
        let online = ("sys/devices/system/cpu/online", "0-15\n");
        let group = ("proc/self/cgroup", "0::/a/b\n");
        assert_eq!(one(cpus, &[online]), Some((true, "all of 16 CPUs".into())));
        let allowed = ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-3,8\n");
        assert_eq!(one(cpus, &[online, allowed]), Some((false, "5 of 16 CPUs".into())));
        let quota =
            [("sys/fs/cgroup/a/cpu.max", "250000 100000\n"), ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n")];
        let by_group = Some((false, "the time of 2.5 of 16 CPUs, by a control group".into()));
        assert_eq!(one(cpus, &[online, group, quota[0], quota[1]]), by_group);
        assert_eq!(one(cpus, &[online, allowed, group, quota[0]]), by_group);
        let first = [
            ("proc/self/cgroup", "3:cpu,cpuacct:/box\n"),
            ("sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "250000\n"),
            ("sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(one(cpus, &[&[online], &first[..]].concat()), by_group);
        for nonsense in ["", "many", "3-1", "0-18446744073709551615,0-18446744073709551615"] {
            assert_eq!(one(cpus, &[("sys/devices/system/cpu/online", nonsense)]), None, "{nonsense}");
        }
        let zero = ("sys/fs/cgroup/a/b/cpu.max", "1 0\n");
        assert_eq!(one(cpus, &[online, group, zero]), Some((true, "all of 16 CPUs".into())));
    }

    #[test]
    fn a_governor_that_saves_power_is_slow_where_it_means_it() {
        let of = |governor: &str, driver: &str| {
            let folder = "sys/devices/system/cpu/cpu0/cpufreq";
            let files = [("scaling_governor", governor), ("scaling_driver", driver)];
            let files = files.map(|(name, text)| (format!("{folder}/{name}"), text));
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (&path[..], *text)).collect();
            one(governor_reading(), &files).unwrap()
        };
        assert_eq!(of("powersave\n", "acpi-cpufreq\n"), (false, "powersave (acpi-cpufreq)".into()));
        assert_eq!(of("powersave\n", "intel_pstate\n"), (true, "powersave (intel_pstate)".into()));
        assert!(of("performance\n", "acpi-cpufreq\n").0 && of("schedutil\n", "acpi-cpufreq\n").0);
    }

    fn governor_reading() -> fn(&Path) -> Option<Check> {
        governor
    }

    #[test]
    fn memory_and_huge_pages_are_told() {
        let info = ("proc/meminfo", "MemTotal: 67108864 kB\nMemAvailable: 33554432 kB\n");
        assert_eq!(one(memory, &[info]), Some((true, "32.0 GiB free of 64.0".into())));
        let limit = [("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/memory.max", "4294967296\n")];
        let found = Some((false, "4.0 GiB free of 64.0; a control group allows 4.0".into()));
        assert_eq!(one(memory, &[info, limit[0], limit[1]]), found);
        let pages = |text| one(huge_pages, &[("sys/kernel/mm/transparent_hugepage/enabled", text)]);
        assert_eq!(pages("always [madvise] never\n"), Some((true, "madvise".into())));
        assert_eq!((pages("always"), pages("[always")), (None, None));
    }
}
