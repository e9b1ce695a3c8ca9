#!/usr/bin/env bash
# Makes a Debian package and an archive of the program, with manual pages, completions and the service, and says which glibc they need.
#
#   packaging/make.sh [OUT]
#
# Takes the program that QERNEL names, or builds it (`cargo build --profile dist` makes a smaller one, in three times the time). Needs
# binutils and dpkg. MACHINE=aarch64 makes them for another machine than this: it needs that one's `rustup target`, gcc-aarch64-linux-gnu,
# libc6-dev-arm64-cross and qemu-user-static, by which the program is asked for its manual pages. The files are the same for the same program: their times are SOURCE_DATE_EPOCH, or that of the last commit.
set -euo pipefail
root=$(realpath "$(dirname "$0")/..")
source "$root/tests/environment.sh"
out=$(realpath -m "${1:-$root/target/packages}")
machine=${MACHINE:-$(uname -m)}
# How a program for that machine is run here, and what the names of its binutils begin with.
run=() tools=
if [ "$machine" != "$(uname -m)" ]; then
    run=("qemu-$machine-static" -L "/usr/$machine-linux-gnu") tools=$machine-linux-gnu-
    if [ -z "${QERNEL:-}" ]; then
        target=$machine-unknown-linux-gnu linker=CARGO_TARGET_${machine^^}_UNKNOWN_LINUX_GNU_LINKER
        env "$linker=${tools}gcc" cargo build --release --locked --quiet --target "$target" --manifest-path "$root/Cargo.toml"
        QERNEL=$root/target/$target/release/qernel
    fi
fi
program=$(program "$root")
maintainer=${QERNEL_MAINTAINER:-The qernel developers <developers@qernel.invalid>}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

# No option of whoever makes the package comes into it.
for variable in $(compgen -e QERNEL_); do unset "$variable"; done
export QERNEL_CONFIG=/dev/null
qernel() { "${run[@]}" "$program" "$@"; }
version=$(qernel --version | cut -d ' ' -f 2)
case $machine in
    x86_64) debian=amd64 ;;
    aarch64) debian=arm64 ;;
    *) echo "expected x86_64 or aarch64, found $machine" >&2; exit 1 ;;
esac

# The newest version of glibc's symbols that the program asks for.
glibc() {
    "${tools}objdump" -T "$1" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1 | cut -d _ -f 2
}

# What the package and the archive have in common, below the folder $1.
files() {
    local to=$1
    install -D "$program" "$to/bin/qernel"
    "${tools}strip" "$to/bin/qernel"
    install -d "$to/share/man/man1" "$to/share/bash-completion/completions" "$to/share/zsh/vendor-completions" \
        "$to/share/fish/vendor_completions.d" "$to/share/doc/qernel"
    qernel man "$to/share/man/man1"
    gzip -9n "$to"/share/man/man1/*.1
    qernel completions bash >"$to/share/bash-completion/completions/qernel"
    qernel completions zsh >"$to/share/zsh/vendor-completions/_qernel"
    qernel completions fish >"$to/share/fish/vendor_completions.d/qernel.fish"
    install -Dm 644 "$root/packaging/qernel.service" "$to/lib/systemd/system/qernel.service"
    install -m 644 "$root/README.md" "$to/share/doc/qernel/"
    gzip -9nc "$root/CHANGELOG.md" >"$to/share/doc/qernel/CHANGELOG.md.gz"
}

package() {
    local tree=$work/package script
    files "$tree/usr"
    install -d "$tree/etc/qernel" "$tree/DEBIAN"
    qernel config --toml >"$tree/etc/qernel/qernel.toml"
    echo /etc/qernel/qernel.toml >"$tree/DEBIAN/conffiles"
    # The licence's text as the file has to have it: with a space before each line, and a dot on empty ones.
    sed 's/^$/./; s/^/ /' "$root/LICENSE-MIT" >"$work/mit"
    sed -e "/@MIT@/{r $work/mit" -e 'd}' "$root/packaging/debian/copyright" >"$tree/usr/share/doc/qernel/copyright"
    # In the form that Debian's tools read.
    printf 'qernel (%s) unstable; urgency=medium\n\n  * %s\n\n -- %s  %s\n' "$version" "CHANGELOG.md.gz says what changed." \
        "$maintainer" "$(LC_ALL=C date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")" |
        gzip -9n >"$tree/usr/share/doc/qernel/changelog.gz"
    for script in postinst prerm postrm; do
        install "$root/packaging/debian/$script" "$tree/DEBIAN/$script"
    done
    sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$debian/" -e "s/@MAINTAINER@/$maintainer/" \
        -e "s/@SIZE@/$(du -k -s --apparent-size "$tree" | cut -f 1)/" \
        -e "s/@DEPENDS@/libc6 (>= $floor), libgcc-s1/" "$root/packaging/debian/control" >"$tree/DEBIAN/control"
    (cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
    dpkg-deb --root-owner-group -Zxz --build "$tree" "$out/qernel_${version}_$debian.deb" >/dev/null
}

archive() {
    local name=qernel-$version-linux-$machine-glibc$floor
    files "$work/$name"
    install -m 644 "$root"/LICENSE-* "$work/$name/share/doc/qernel/"
    tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C "$work" "$name" |
        gzip -9n >"$out/$name.tar.gz"
}

mkdir -p "$out"
floor=$(glibc "$program")
package
archive
echo "glibc $floor or newer"
ls -l "$out" | tail -n +2
