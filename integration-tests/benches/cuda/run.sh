#!/usr/bin/env bash
# `make bench-cuda`: the UNet, the decoder and whole pictures at 1024 x 1024 on an NVIDIA GPU, diffusers' first and then the project's,
# on the same random weights of SDXL's full size. What is found is printed, a line of JSON from each.
set -euo pipefail
root="$(cd "$(dirname "$0")/../../.." && pwd)"
folder="$root/target/cuda/bench" venv="$root/.cache/cuda-venv"
"$root/integration-tests/python/venv.sh" "$venv" \
    torch==2.11.0 diffusers==0.42.1 transformers==5.17.0 accelerate==1.15.0 safetensors==0.8.0
cd "$root"
if [ ! -e "$folder/base/done" ]; then
    cargo build --release --workspace --bins
    mkdir -p "$folder"
    target/release/sdxl-checkpoint random --variant sdxl --seed 0 --dtype f16 --no-refiner --out "$folder"
    touch "$folder/base/done"
fi
"$venv/bin/python" integration-tests/benches/cuda/peer.py "$folder" --compile
toolkit="$root/.cache/cuda/nvidia"
LD_LIBRARY_PATH="$toolkit/cu13/lib:$toolkit/cudnn/lib" \
    "target/cuda/$(rustc -vV | sed -n 's/^host: //p')/release/examples/cuda" "$folder"
