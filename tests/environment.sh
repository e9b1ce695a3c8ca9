# What scripts that try the program out with others' software share; to be sourced, with `set -euo pipefail`.

# Makes the Python environment FOLDER of exactly the versions in the file REQUIREMENTS, where they have changed.
environment() {
    local requirements=$1 folder=$2
    if ! cmp --silent "$requirements" "$folder/requirements.txt"; then
        python3 -m venv --clear "$folder"
        "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps --requirement "$requirements" >&2
        cp "$requirements" "$folder/requirements.txt"
    fi
}

# The program's path: QERNEL, or else it is built from the repository at ROOT.
program() {
    if [ -z "${QERNEL:-}" ]; then
        cargo build --release --locked --quiet --manifest-path "$1/Cargo.toml" >&2
        QERNEL=$(realpath "$1/target/release/qernel")
    fi
    echo "$QERNEL"
}
