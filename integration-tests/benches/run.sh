#!/usr/bin/env bash
# `make bench`: installs the peers into a venv of their own, makes the weights once, and runs all sides in turn.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
venv="$root/.cache/bench-venv"
"$root/integration-tests/python/venv.sh" "$venv" \
    torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 openvino==2026.4.1 accelerate==1.15.0 safetensors==0.8.0
cd "$root"
cargo build --release --workspace --bins
SDXL_BENCH_PYTHON="$venv/bin/python" cargo bench --workspace --bench full_size -- "$@"
