#!/usr/bin/env bash
# `make cuda`: builds the stages for NVIDIA GPUs into target/cuda, on a machine that need not have one. The compiler and the
# libraries are NVIDIA's wheels, installed into .cache/cuda. COMPUTE_CAP is the GPU's compute capability: 80 for A100, 89 for
# L4 and RTX 4090, 90 for H100 and H200; by default that of the GPU that is there, or 90. `cuda.sh test` runs the layers' tests and the
# trainer's, on a GPU or an emulated one.
set -euo pipefail
root="$(cd "$(dirname "$0")/../../.." && pwd)"
cache="$root/.cache/cuda"
toolkit="$cache/nvidia/cu13"
# One line of versions: what nvcc makes, its own runtime loads.
wheels="nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
    nvidia-cuda-runtime==13.0.96 nvidia-cublas==13.0.2.14 nvidia-cuda-nvrtc==13.0.88 nvidia-curand==10.4.0.35
    nvidia-cudnn-cu13==9.14.0.64"
if [ "$(cat "$cache/installed" 2>/dev/null)" != "$wheels" ]; then
    "$root/integration-tests/python/setup.sh" # installs python3-venv where it is missing
    rm -rf "$cache"
    # shellcheck disable=SC2086
    "$root/.venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$cache" $wheels
    # The linker wants names without versions.
    for library in "$toolkit"/lib/lib*.so.* "$cache"/nvidia/cudnn/lib/lib*.so.*; do
        ln -sf "$(basename "$library")" "${library%%.so.*}.so"
    done
    echo "$wheels" > "$cache/installed"
fi
own="$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .)" || own=""
export CUDA_HOME="$toolkit" CUDA_PATH="$toolkit" CUDA_COMPUTE_CAP="${COMPUTE_CAP:-${own:-90}}" CARGO_TARGET_DIR="$root/target/cuda"
export PATH="$toolkit/bin:$PATH" NVCC_PREPEND_FLAGS="-I$toolkit/include/cccl"
libraries="$toolkit/lib:$cache/nvidia/cudnn/lib"
export LIBRARY_PATH="$libraries:$cache/stub"
export CUDNN_LIB="$cache/nvidia/cudnn/lib" CUDNN_PATH="$cache/nvidia/cudnn"
flags="-C target-cpu=x86-64-v3 -L$toolkit/lib -L$cache/nvidia/cudnn/lib -L$cache/stub"
# libcuda comes with the driver. This one is linked against, and the real one is loaded; it answers to everything that there is no
# device.
cd "$root"
cargo fetch --quiet
bindings="$(ls -d "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/cudarc-"$(sed -n '/^name = "cudarc"/{n;s/version = "\(.*\)"/\1/p}' Cargo.lock)"/src/driver/sys/mod.rs)"
mkdir -p "$cache/stub"
grep -oE '\bfn cu[A-Z][A-Za-z0-9_]*' "$bindings" | sort -u | sed 's/^fn \(.*\)/int \1(void) { return 100; }/' > "$cache/stub/libcuda.c"
cc -shared -O1 -Wl,-soname,libcuda.so.1 -o "$cache/stub/libcuda.so" "$cache/stub/libcuda.c"
ln -sf libcuda.so "$cache/stub/libcuda.so.1"
# With a target named, what runs while building is not linked so. Always all packages: with others, others of their needs' features
# are on, and candle's kernels are compiled anew.
target="$(rustc -vV | sed -n 's/^host: //p')"
packages="-p sdxl-models -p sdxl-trainer -p sdxl-text-encoder -p sdxl-base-unet -p sdxl-refiner -p sdxl-vae"
release="$CARGO_TARGET_DIR/$target/release"
case "${1:-build}" in
build)
    # The kernels of ours are compiled where they run: here is seen that they can be.
    sources="$root/services/shared/models/src/cuda"
    cat "$sources/instructions.cu" "$sources/kernels.cu" > "$cache/kernels.cu"
    cat "$sources/instructions.cu" "$sources/attention.cu" > "$cache/attention.cu"
    "$toolkit/bin/nvcc" -ptx -arch="sm_$CUDA_COMPUTE_CAP" -o "$cache/kernels.ptx" "$cache/kernels.cu"
    "$toolkit/bin/nvcc" -ptx -arch="sm_$CUDA_COMPUTE_CAP" -DTYPE=Bf16 -DHEAD=64 -DNAME=attention -o "$cache/attention.ptx" \
        "$cache/attention.cu"
    # shellcheck disable=SC2086
    RUSTFLAGS="$flags" cargo build --release --target "$target" --features cuda --bins --example cuda $packages
    for stage in text-encoder base-unet refiner vae; do
        LD_LIBRARY_PATH="$libraries:$cache/stub" "$release/sdxl-$stage" --version
    done
    echo "Where they run, with the driver's libcuda: LD_LIBRARY_PATH=$libraries"
    ;;
test)
    # shellcheck disable=SC2086
    programs="$(RUSTFLAGS="$flags" cargo test --no-run --release --target "$target" --features cuda --lib --test training $packages \
        --message-format json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')"
    layers="$(grep /sdxl_models- <<< "$programs" | tail -1)" training="$(grep /training- <<< "$programs" | tail -1)"
    if nvidia-smi > /dev/null 2>&1; then
        echo "on $(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)"
    else
        echo "on an emulated device: there is no NVIDIA GPU"
        "$root/services/shared/models/emulated/build.sh" "$CARGO_TARGET_DIR/emulated" "$layers" "$release/sdxl-train"
        libraries="$CARGO_TARGET_DIR/emulated:$libraries"
    fi
    export NVIDIA_TF32_OVERRIDE=0 # single precision is meant
    LD_LIBRARY_PATH="$libraries" "$layers" --ignored cuda:: --test-threads=1
    LD_LIBRARY_PATH="$libraries" "$training" --ignored a_gpu --nocapture
    ;;
esac
