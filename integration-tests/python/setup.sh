#!/bin/sh
# Makes .venv at the repository's root with what client.py needs, and does nothing where it is up to date.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=$(cd "$here/../.." && pwd)/.venv
if cmp -s "$here/requirements.txt" "$venv/installed.txt" && "$venv/bin/python" -c "" 2>/dev/null; then
    exit 0
fi
# Debian ships Python without what `python3 -m venv` needs.
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ]; then
        sudo=
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo=sudo
    else
        echo "setup.sh: python3 with its venv module is missing: install python3-venv as root, then run this again" >&2
        exit 1
    fi
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq python3 python3-venv >/dev/null
fi
rm -rf "$venv"
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
cp "$here/requirements.txt" "$venv/installed.txt"
