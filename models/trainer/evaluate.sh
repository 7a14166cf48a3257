#!/usr/bin/env bash
# Measures a model that train.sh made, beside the three of sizes.sh, which it trains.
#   models/trainer/evaluate.sh RECIPE RUNS MODEL DOCS
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
train="${CARGO_TARGET_DIR:-$here/../../target}/release/sdxl-train"
"$here/sizes.sh" "$2" "$2/sizes"
compare=()
for kind in "large originals only" "without size conditioning" "with size conditioning"; do
    compare+=(--compare "$2/sizes/$kind")
done
"$train" evaluate --recipe "$1" --out "$2" --model "$3" --docs "$4" "${compare[@]}"
