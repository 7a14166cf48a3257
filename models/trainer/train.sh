#!/usr/bin/env bash
# Trains a model by its recipe, stage by stage, and writes it.
#   models/trainer/train.sh RECIPE RUNS MODEL
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
train="${CARGO_TARGET_DIR:-$root/target}/release/sdxl-train"
for stage in vae base refiner; do
    "$train" "$stage" --recipe "$1" --out "$2"
done
"$train" export --recipe "$1" --out "$2" --model "$3"
