#!/usr/bin/env bash
# `build.sh FOLDER PROGRAM...`: makes libraries in FOLDER with which PROGRAMs, built with CUDA, run without a GPU: what they take of the
# driver, cuBLAS, cuDNN and cuRAND is emulated on the processor. For tests of what is launched and what it computes, not of speed.
set -euo pipefail
folder="$1"
shift
here="$(cd "$(dirname "$0")" && pwd)"
mkdir -p "$folder"
# Kernels look at memory as other types than it was written by.
flags="-std=c++20 -O2 -march=x86-64-v3 -fPIC -fno-strict-aliasing -Wall -Wno-unknown-pragmas -Wno-maybe-uninitialized"
for type in F16 Bf16; do
    for head in 16 32 64 128; do
        name="attention_${head}_$(tr '[:upper:]' '[:lower:]' <<< "$type")"
        # shellcheck disable=SC2086
        c++ $flags -DTYPE=$type -DHEAD=$head -DNAME="$name" -c "$here/attention.cpp" -o "$folder/$name.o" &
    done
    wait
done
for part in kernels device driver; do
    # shellcheck disable=SC2086
    c++ $flags -c "$here/$part.cpp" -o "$folder/$part.o" &
done
wait
# What else the programs name must be there for them to be loaded.
wanted="$(nm -D --undefined-only "$@" | awk 'NF == 2 {print $2}' | sed 's/@.*//' | grep -E '^(cu[A-Z]|cudnn|cublas|curand)' | sort -u)"
defined="$(nm --defined-only "$folder"/driver.o | awk '{print $3}' | sort -u)"
comm -23 <(echo "$wanted") <(echo "$defined") | sed 's/.*/int &(void) { return 1; }/' > "$folder/rest.c"
cc -fPIC -c "$folder/rest.c" -o "$folder/rest.o"
c++ -shared -o "$folder/libemulated.so" "$folder"/*.o
for library in libcuda.so.1 libcurand.so.10 libcublas.so.13 libcublasLt.so.13 libcudnn.so.9; do
    ln -sf libemulated.so "$folder/$library"
done
