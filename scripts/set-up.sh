#!/bin/sh
# Make .venv ready: `set-up.sh run` for using the package, `set-up.sh test` for testing it too.
#
# This part only finds a Python that can do the rest, which is set_up.py. PYTHON=… chooses one. Without it
# the environment's own comes first, so that what is there is kept; then the newest, where one that can make
# environments goes before one that cannot yet.
set -eu

cd "$(dirname "$0")/.."

CANDIDATES="python3.13 python3.12 python3.11 python3"

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1
}

makes_environments() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1
}

how_to_get_python() {
    if command -v apt-get >/dev/null; then
        echo "apt-get install python3 python3-venv"
    elif command -v dnf >/dev/null; then
        echo "dnf install python3"
    elif command -v zypper >/dev/null; then
        echo "zypper install python311"
    elif command -v pacman >/dev/null; then
        echo "pacman -S python"
    elif command -v apk >/dev/null; then
        echo "apk add python3"
    else
        echo "your system's package manager"
    fi
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        if ! is_new_enough "$PYTHON"; then
            echo "PYTHON=$PYTHON is no Python 3.11 or newer that runs here." >&2
            return 1
        fi
        echo "$PYTHON"
        return
    fi
    if is_new_enough .venv/bin/python; then
        echo .venv/bin/python
        return
    fi
    for suits in makes_environments is_new_enough; do
        for candidate in $CANDIDATES; do
            if "$suits" "$candidate"; then
                echo "$candidate"
                return
            fi
        done
    done
    {
        echo "No Python 3.11 or newer found (looked for $CANDIDATES)."
        echo "Get one with: $(how_to_get_python)"
        echo "or name the one to use: make … PYTHON=/path/to/python3"
    } >&2
    return 1
}

python=$(find_python)
exec "$python" scripts/set_up.py "$@"
