#!/usr/bin/env bash
# `venv.sh FOLDER PACKAGE...`: a virtual environment with these packages and versions, made anew where it has others.
set -euo pipefail
folder="$1"
shift
if [ "$(cat "$folder/installed" 2>/dev/null)" != "$*" ]; then
    "$(dirname "$0")/setup.sh" # installs python3-venv where it is missing
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet "$@"
    echo "$*" > "$folder/installed"
fi
