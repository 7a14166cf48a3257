"""PyTorch's side: loads one part with diffusers or transformers and times it.

    torch_side.py PART FOLDER DTYPE RUNS THREADS INPUTS OUTPUTS
        -> {"times": [...], "peak_mib", "activations_mib", "ready_s", "versions"}

With 0 RUNS it ends when it is warm. Activations are what its memory grows by at most while it computes.
"""
import sys
import time

BEGAN = time.perf_counter()

import torch
from safetensors.torch import save_file

import measure
import networks


def main():
    part, folder, dtype, runs, threads, inputs, outputs = sys.argv[1:]
    torch.set_num_threads(int(threads))
    module = networks.load(part, folder, dtype)
    inputs = networks.read(part, folder, inputs)
    loaded = measure.memory_kib("VmRSS")
    peak = measure.memory_kib("VmHWM")
    measure.forget_peak()

    def step():
        with torch.inference_mode():
            return module(*inputs)

    if int(runs) == 0:
        step()
        measure.tell(ready_s=time.perf_counter() - BEGAN)
        return
    result, times = measure.timed(step, int(runs))
    busy = measure.memory_kib("VmHWM")
    result = result if isinstance(result, tuple) else (result,)
    names = networks.PARTS[part].outputs
    save_file({name: tensor.float().contiguous() for name, tensor in zip(names, result)}, outputs)
    measure.tell(times=times, peak_mib=max(peak, busy) / 1024, activations_mib=(busy - loaded) / 1024)


main()
