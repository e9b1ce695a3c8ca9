#!/usr/bin/env bash
# Installs the Debian package in a clean root and runs the program there as a stranger does, the server too; then removes it, and nothing is
# left. Checks the service's file and the manual pages where their checkers are installed.
#
#   packaging/check.sh [PACKAGE.deb]
#
# Needs root and mmdebstrap. SUITE names the release (bookworm, where nothing is said), MIRROR where it is fetched from.
set -euo pipefail
here=$(realpath "$(dirname "$0")")
# Without a name: the newest for this machine, beside which there may be one for another.
package=$(realpath "${1:-$(ls "$here"/../target/packages/qernel_*_"$(dpkg --print-architecture)".deb | sort -V | tail -1)}")
work=$(mktemp -d)
clean=$work/root
server=
end() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        cat "$work/log"
    fi
    rm -rf "$work"
}
trap end EXIT

# In the clean root, with an environment of its own.
inside() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$clean" "$@"
}

# All that there is in the root, but what the package manager notes.
inventory() {
    (cd "$clean" && find . -not -path './proc/*' -not -path './var/lib/dpkg/*' -not -path './var/log/*' | sort)
}

mmdebstrap --variant=minbase --quiet "${SUITE:-bookworm}" "$clean" ${MIRROR:+"$MIRROR"}
inventory >"$work/before"
cp "$package" "$clean/var/lib/dpkg/qernel.deb"
inside dpkg -i /var/lib/dpkg/qernel.deb
inside qernel --version
inside qernel generate --device cpu --temp 0 "Write a haiku about the sea with the word forty-two"
inside qernel config | grep '^file: /etc/qernel/qernel.toml'
inside qernel doctor

# As the service's line has it, as nobody, on another port.
line=$(sed -n 's/^ExecStart=//p' "$clean/usr/lib/systemd/system/qernel.service")
port=18095
sed -i "s/^# port = 8080$/port = $port/" "$clean/etc/qernel/qernel.toml"
# shellcheck disable=SC2086
env -i PATH=/usr/sbin:/usr/bin chroot --userspec=65534:65534 "$clean" $line 2>"$work/log" &
server=$!
answer=$(curl --silent --fail --retry 20 --retry-delay 1 --retry-all-errors "http://127.0.0.1:$port/v1/chat/completions" \
    --json '{"messages": [{"role": "user", "content": "Write a haiku about the sea with the word forty-two"}]}')
grep --quiet '"content"' <<<"$answer"
kill "$server"
wait "$server"
server=

inside dpkg --purge qernel
inventory >"$work/after"
diff "$work/before" "$work/after"
echo "nothing is left in the root"

dpkg-deb -x "$package" "$work/files"
if command -v systemd-analyze >/dev/null; then
    unit=$work/files/usr/lib/systemd/system/qernel.service
    # 20 is an exposure of 2.0.
    systemd-analyze security --offline=true --threshold=20 "$unit" | tail -1
    # The program of its line is to be there, which it is not on this machine.
    sed -i "s,^ExecStart=,&$work/files," "$unit"
    systemd-analyze verify --man=no "$unit"
fi
if command -v mandoc >/dev/null; then
    for page in "$work"/files/usr/share/man/man1/*.gz; do
        zcat "$page" | mandoc -T lint -W error >/dev/null
    done
fi
