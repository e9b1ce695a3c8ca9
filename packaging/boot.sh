#!/usr/bin/env bash
# Boots a clean root with systemd in a container, installs the Debian package there and has the service as people do: started, asked over HTTP,
# killed, whereupon it comes back, stopped, and purged, whereupon nothing of it is left.
#
#   packaging/boot.sh [PACKAGE.deb]
#
# Needs root, mmdebstrap and systemd-nspawn (Debian's systemd-container). SUITE names the release (bookworm, where nothing is said), MIRROR where
# it is fetched from.
set -euo pipefail
here=$(realpath "$(dirname "$0")")
# Without a name: the newest for this machine, beside which there may be one for another.
package=$(realpath "${1:-$(ls "$here"/../target/packages/qernel_*_"$(dpkg --print-architecture)".deb | sort -V | tail -1)}")
work=$(mktemp -d)
clean=$work/root
container=
end() {
    if [ -n "$container" ]; then
        kill -KILL "$leader" 2>/dev/null || true
        wait "$container" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap end EXIT

mmdebstrap --variant=minbase --include=systemd-sysv,dbus,curl --quiet "${SUITE:-bookworm}" "$clean" ${MIRROR:+"$MIRROR"}
cp "$package" "$clean/var/lib/dpkg/qernel.deb"
# Neither a manager of the machine nor its network is asked for.
systemd-nspawn --quiet --register=no --keep-unit --private-network --console=pipe --directory "$clean" --boot >"$work/console" 2>&1 &
container=$!
leader=
for _ in $(seq 100); do
    leader=$(pgrep --parent $container --oldest || true)
    if [ -n "$leader" ] && nsenter --target "$leader" --all true 2>/dev/null; then break; fi
    sleep 0.1
done

# In the container, with an environment of its own.
inside() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin nsenter --target "$leader" --all -- "$@"
}

# What a property of the service is.
is() {
    local found
    found=$(inside systemctl show --property "$1" --value qernel)
    [ "$found" = "$2" ] || { echo "$1 of the service: expected $2, found $found" >&2; inside journalctl --no-pager -u qernel >&2; exit 1; }
}

ask() {
    inside curl --silent --fail --retry 40 --retry-delay 1 --retry-all-errors http://127.0.0.1:8080/v1/chat/completions \
        --json '{"messages": [{"role": "user", "content": "Write a haiku about the sea with the word forty-two"}]}' |
        grep --only-matching '"content":"[^"]*"'
}

# `degraded` where a unit of the release itself does not run in a container.
for _ in $(seq 100); do
    state=$(inside systemctl is-system-running 2>/dev/null || true)
    case $state in running | degraded) break ;; esac
    sleep 0.2
done
echo "systemd is $state"
inside dpkg -i /var/lib/dpkg/qernel.deb
is ActiveState inactive
inside sed -i 's,^# prompt-cache =.*,prompt-cache = "/var/cache/qernel/prompts",' /etc/qernel/qernel.toml
inside systemctl enable --now qernel
ask
is ActiveState active
pid=$(inside systemctl show --property MainPID --value qernel)
inside stat --format 'the service runs as user %u' "/proc/$pid"
[ "$(inside stat --format %u "/proc/$pid")" != 0 ]
# One that is killed comes back.
inside systemctl kill --signal=KILL qernel
ask
is NRestarts 1
inside systemctl stop qernel
is ActiveState inactive
is Result success
inside journalctl --no-pager --output cat -u qernel | grep -o 'prompts are kept in [^ ]*'
inside test -s /var/cache/private/qernel/prompts/haiku.prompts
inside dpkg --purge qernel
for left in /etc/qernel /var/cache/qernel /var/cache/private/qernel /usr/bin/qernel; do
    ! inside test -e "$left" || { echo "$left is left" >&2 && exit 1; }
done
[ "$(inside systemctl show --property LoadState --value qernel)" = not-found ]
echo "nothing is left in the container"
