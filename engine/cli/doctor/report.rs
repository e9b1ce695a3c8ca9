//! What an issue needs to know of a machine, without what is personal: no names of users, hosts, folders or files, no keys.

use super::Check;
use std::path::Path;

/// The report: versions, the machine, limits, findings, and options that somebody set.
pub fn report(root: &Path, checks: &[Check], options: &[String]) -> String {
    let laboratory = if cfg!(feature = "lab") { "with" } else { "without" };
    let mut lines = vec![
        format!("qernel {}, {laboratory} the laboratory", env!("CARGO_PKG_VERSION")),
        format!("system: {}", system(root)),
    ];
    lines.extend(driver(root).map(|version| format!("driver: {version}")));
    lines.extend(limits(root));
    for check in checks {
        let mark = check.state.word();
        lines.push(format!("{mark}: {}: {}", check.name, without_folders(&check.found)));
    }
    match options {
        [] => lines.push("options: none are set in a file or in the environment".to_owned()),
        options => lines.extend(options.iter().map(|option| format!("option: {option}"))),
    }
    lines.join("\n") + "\n"
}

fn read(root: &Path, path: &str) -> Option<String> {
    std::fs::read_to_string(root.join(path)).ok()
}

/// The distribution, the kernel, the processor's kind, and whether this is a container.
fn system(root: &Path) -> String {
    let release = read(root, "etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = name.map_or("unknown distribution", |name| name.trim_matches('"')).to_owned();
    let kernel = read(root, "proc/sys/kernel/osrelease");
    let kernel = kernel.map_or("unknown kernel".to_owned(), |version| format!("Linux {}", version.trim()));
    let is_container = [".dockerenv", "run/.containerenv"].iter().any(|mark| root.join(mark).exists());
    let container = if is_container { ", in a container" } else { "" };
    format!("{name}, {kernel}, {}{container}", std::env::consts::ARCH)
}

/// The version of the driver's kernel module.
fn driver(root: &Path) -> Option<String> {
    let text = read(root, "proc/driver/nvidia/version")?;
    let words = text.lines().next()?.split_whitespace();
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    Some(format!("NVIDIA {}", words.into_iter().find(is_version)?))
}

/// The limits of this process that runs have failed of.
fn limits(root: &Path) -> Vec<String> {
    const LIMITS: [&str; 3] = ["Max address space", "Max locked memory", "Max open files"];
    let text = read(root, "proc/self/limits").unwrap_or_default();
    let soft = |name: &&str| {
        let line = text.lines().find_map(|line| line.strip_prefix(*name))?;
        Some(format!("limit: {}: {}", name.trim_start_matches("Max "), line.split_whitespace().next()?))
    };
    LIMITS.iter().filter_map(soft).collect()
}

/// A text whose paths have lost their folders: `/home/me/lib/libx.so` is `…/libx.so`.
fn without_folders(text: &str) -> String {
    let word = |word: &str| {
        let start = word.find(['/', '~']).filter(|&start| {
            let before = word[..start].chars().next_back();
            before.is_none_or(|c| !c.is_alphanumeric())
        });
        match (start, word.rfind('/')) {
            (Some(start), Some(end)) => format!("{}…{}", &word[..start], &word[end..]),
            _ => word.to_owned(),
        }
    };
    text.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    #[test]
    fn a_report_has_what_an_issue_needs_and_nothing_personal() {
        let root = tree(&[
            ("etc/os-release", "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            ("etc/hostname", "box-of-somebody\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
            ("proc/sys/kernel/hostname", "box-of-somebody\n"),
            (
                "proc/driver/nvidia/version",
                "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12\n",
            ),
            (
                "proc/self/limits",
                "Limit   Soft Limit   Hard Limit   Units\nMax open files            1024    4096    files\n",
            ),
            ("run/.containerenv", ""),
        ]);
        let checks = [
            Check::found("cuBLAS", "12.4.5 (/home/somebody/lib/libcublas.so.12)"),
            Check::slow("CPUs", "2 of 16 CPUs", "…"),
        ];
        let text = report(root.path(), &checks, &["[serve] port = 8000 (file)".to_owned()]);
        for line in [
            "system: Debian GNU/Linux 12 (bookworm), Linux 6.1.0-18-amd64, ",
            ", in a container\n",
            "\ndriver: NVIDIA 535.104.05\n",
            "\nlimit: open files: 1024\n",
            "\nfound: cuBLAS: 12.4.5 (…/libcublas.so.12)\n",
            "\nslow: CPUs: 2 of 16 CPUs\n",
            "\noption: [serve] port = 8000 (file)\n",
        ] {
            assert!(text.contains(line), "{line:?} in {text}");
        }
        assert!(!text.contains("somebody") && !text.contains("/home"), "{text}");
        assert!(report(tree(&[]).path(), &[], &[]).contains("options: none"));
    }

    #[test]
    fn paths_lose_their_folders_and_fractions_stay() {
        for (text, expected) in [
            (
                "none of libcuda.so.1, /usr/lib/wsl/lib/libcuda.so.1 could",
                "none of libcuda.so.1, …/libcuda.so.1 could",
            ),
            ("~/x/y \"/a/b\"", "…/y \"…/b\""),
            ("32.0 GT/s, 3/4", "32.0 GT/s, 3/4"),
        ] {
            assert_eq!(without_folders(text), expected);
        }
    }
}
