#!/usr/bin/env bash
# Table 2 of the paper in small: three models of one budget, trained on large originals only, on all originals, and on
# all while told their sizes. `sdxl-train evaluate --compare` measures them.
#   models/trainer/sizes.sh RUNS COMPARISON    RUNS has the shipped model's autoencoder and latents
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
train="${CARGO_TARGET_DIR:-$root/target}/release/sdxl-train"
runs="$(cd "$1" && pwd)"
mkdir -p "$2"
for kind in "large originals only" "without size conditioning" "with size conditioning"; do
    out="$2/runs/$kind"
    mkdir -p "$out"
    for part in "$runs"/vae "$runs"/vae_decoder "$runs"/latents-*; do
        ln -sfn "$part" "$out/$(basename "$part")"
    done
    case "$kind" in
        large*) change='s/^only_large_originals = false/only_large_originals = true/' ;;
        without*) change='s/^size_conditioning = true/size_conditioning = false/' ;;
        *) change='' ;;
    esac
    sed "$change" "$root/models/recipes/sizes.toml" > "$out/recipe.toml"
    "$train" base --recipe "$out/recipe.toml" --out "$out"
    "$train" export --recipe "$out/recipe.toml" --out "$out" --model "$2/$kind"
done
