//! Getting a device toolchain over the network, without root and without changing the system.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{cache, process, toolchain};

/// The cache folder's entry for Debian's packages: the unpacked root.
const DEBIAN: &str = "toolchains/debian";

/// The root of the packages that an earlier build unpacked into `cache`.
pub(crate) fn unpacked(cache: &Path) -> Option<PathBuf> {
    Some(cache.join(DEBIAN)).filter(|root| root.is_dir())
}

/// Adds the source to the rustup toolchain that cargo runs with. Answers its rustc.
pub(crate) fn rust_src(cargo_rustc: Option<&Path>) -> Result<PathBuf, String> {
    let rustc = cargo_rustc.ok_or("cargo's compiler is not known")?;
    let sysroot = toolchain::sysroot(rustc)?;
    // rustup's proxies name the toolchain; without them, it is a folder of that name among rustup's toolchains.
    let managed = sysroot.parent().and_then(Path::file_name).is_some_and(|folder| folder == "toolchains");
    let folder = sysroot.file_name().filter(|_| managed).and_then(|name| name.to_str());
    let Some(name) = std::env::var("RUSTUP_TOOLCHAIN").ok().or_else(|| folder.map(str::to_string)) else {
        return Err(format!("{} is not a toolchain of rustup", sysroot.display()));
    };
    announce(&format!("adding rust-src to the rustup toolchain {name}, to compile the GPU kernels"));
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", "rust-src", "--toolchain", &name]);
    // Without a network, rustup would wait for long before it says so.
    rustup.env("RUSTUP_MAX_RETRIES", "1").env("RUST_BACKTRACE", "0");
    process::stdout(&mut rustup)?;
    Ok(sysroot.join("bin/rustc"))
}

/// Downloads Debian's matched pair of compiler and source and unpacks it into `cache`. Answers its rustc.
///
/// apt-get works with lists of its own, so that it needs neither root nor fresh lists on the machine; nothing is
/// installed.
pub(crate) fn debian(cache: &Path) -> Result<PathBuf, String> {
    let root = cache::entry(cache, DEBIAN, debian_into)?;
    Ok(root.join("usr/bin/rustc"))
}

fn debian_into(root: &Path) -> Result<(), String> {
    let status = Path::new("/var/lib/dpkg/status");
    if !status.is_file() {
        return Err("this is no Debian system".into());
    }
    announce("downloading rustc-web and rust-web-src (140 MB) from Debian, to compile the GPU kernels");
    let work = root.join("apt");
    let debs = work.join("debs");
    for folder in ["state/lists/partial", "cache/archives/partial", "debs"] {
        let folder = work.join(folder);
        fs::create_dir_all(&folder)
            .map_err(|error| format!("could not create {}: {error}", folder.display()))?;
    }
    let apt = |program: &str| {
        let mut command = Command::new(program);
        for (option, path) in [
            ("Dir::State", work.join("state")),
            ("Dir::State::Lists", work.join("state/lists")),
            ("Dir::Cache", work.join("cache")),
            ("Dir::State::status", status.to_path_buf()),
        ] {
            command.arg("-o").arg(format!("{option}={}", path.display()));
        }
        command.args(["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]);
        command.env("LC_ALL", "C");
        command
    };
    process::stdout(apt("apt-get").args(["-q", "update"]))?;
    let packages = packages(&|package| process::stdout(apt("apt-cache").args(["depends", package])))?;
    process::stdout(apt("apt-get").args(["-q", "download"]).args(&packages).current_dir(&debs))?;
    for entry in fs::read_dir(&debs).map_err(|error| error.to_string())?.flatten() {
        process::stdout(Command::new("dpkg").arg("-x").arg(entry.path()).arg(root))?;
    }
    fs::remove_dir_all(&work).map_err(|error| error.to_string())?;
    // Said here rather than after the rename, so that a pair which does not run is never kept.
    toolchain::inspect(&root.join("usr/bin/rustc")).map(drop)
}

/// The packages of a working compiler with its source. Those with a version in their name are asked for.
fn packages(depends: &dyn Fn(&str) -> Result<String, String>) -> Result<Vec<String>, String> {
    let dependency = |package: &str, prefix: &str| {
        let listed = depends(package).map_err(|error| {
            format!("Debian's lists have no {package}, or could not be downloaded ({error})")
        })?;
        let mut names = listed.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        names
            .find(|name| name.starts_with(prefix))
            .map(str::to_string)
            .ok_or_else(|| format!("Debian's {package} depends on no {prefix}*"))
    };
    let library = dependency("libstd-rust-web-dev", "libstd-rust-web-")?;
    let version = library.trim_start_matches("libstd-rust-web-");
    if toolchain::parse_version(&format!("rustc {version}"))
        .is_some_and(|version| version < toolchain::MINIMUM)
    {
        let (major, minor) = toolchain::MINIMUM;
        return Err(format!("Debian's rustc-web is {version}; {major}.{minor} or later is needed"));
    }
    // The compiler proper is a library in that package, and links LLVM.
    let llvm = dependency(&library, "libllvm")?;
    Ok(["rustc-web", "libstd-rust-web-dev", "rust-web-src"]
        .map(str::to_string)
        .into_iter()
        .chain([library, llvm])
        .collect())
}

/// A line for the user: something is about to be downloaded.
fn announce(what: &str) {
    println!("cargo:warning={what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `apt-cache depends` answers, cut to the lines that matter.
    fn depends(package: &str) -> Result<String, String> {
        Ok(match package {
            "libstd-rust-web-dev" => "libstd-rust-web-dev\n  Depends: libstd-rust-web-1.96\n  Conflicts: libstd-rust-dev\n",
            "libstd-rust-web-1.96" => {
                "libstd-rust-web-1.96\n  Depends: libc6\n  Depends: libgcc-s1\n  Depends: libllvm22\n  Depends: zlib1g\n"
            }
            _ => "",
        }
        .to_string())
    }

    #[test]
    fn versions_in_package_names_are_asked_for() {
        assert_eq!(
            packages(&depends).unwrap(),
            ["rustc-web", "libstd-rust-web-dev", "rust-web-src", "libstd-rust-web-1.96", "libllvm22"]
        );
    }

    #[test]
    fn an_old_pair_is_not_downloaded() {
        let old = |_: &str| Ok("libstd-rust-web-dev\n  Depends: libstd-rust-web-1.85\n".to_string());
        assert_eq!(packages(&old).unwrap_err(), "Debian's rustc-web is 1.85; 1.95 or later is needed");
    }

    #[test]
    fn a_debian_without_the_pair_is_an_error_that_names_the_package() {
        let error = packages(&|_| Ok(String::new())).unwrap_err();
        assert_eq!(error, "Debian's libstd-rust-web-dev depends on no libstd-rust-web-*");
    }
}
