#!/usr/bin/env bash
# Table 2 of the paper in small: three models from nothing with one budget, on large originals only, on all originals, and
# on all while told their sizes, which are then measured beside each other.
#   models/trainer/sizes.sh RUNS DOCS    RUNS is made; the figures go to DOCS/model.md
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
train="${CARGO_TARGET_DIR:-$root/target}/release/sdxl-train"
mkdir -p "$1/runs" "$2"
runs="$(cd "$1" && pwd)"
ln -sfn "$root/models/shapes" "$runs/runs/shapes" # where the recipe looks for it
models=()
latents=
for kind in "large originals only" "without size conditioning" "with size conditioning"; do
    out="$runs/runs/$kind"
    mkdir -p "$out"
    if [ -n "$latents" ]; then # all three have the same
        for set in "$latents"/latents-*; do
            ln -sfn "$set" "$out/$(basename "$set")"
        done
    else
        latents="$out"
    fi
    case "$kind" in
        large*) change='s/^only_large_originals = false/only_large_originals = true/' ;;
        without*) change='s/^size_conditioning = true/size_conditioning = false/' ;;
        *) change='' ;;
    esac
    sed "$change" "$root/models/recipes/sizes.toml" > "$out/recipe.toml"
    "$train" base --recipe "$out/recipe.toml" --out "$out"
    "$train" export --recipe "$out/recipe.toml" --out "$out" --model "$runs/$kind"
    models+=("$runs/$kind")
done
"$train" compare --recipe "$root/models/recipes/shapes.toml" --out "$runs" --docs "$2" "${models[@]}"
