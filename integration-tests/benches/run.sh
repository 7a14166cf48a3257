#!/usr/bin/env bash
# `make bench`: installs the peer into a venv of its own, makes the weights once, and runs both sides in turn.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
venv="$root/.cache/bench-venv"
wanted="torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 accelerate safetensors"
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
    "$root/integration-tests/python/setup.sh" # installs python3-venv where it is missing
    python3 -m venv "$venv"
    # shellcheck disable=SC2086
    "$venv/bin/pip" install --quiet $wanted
    echo "$wanted" > "$venv/installed"
fi
cd "$root"
cargo build --release --bins
SDXL_BENCH_PYTHON="$venv/bin/python" cargo bench -p integration-tests --bench full_size -- "$@"
