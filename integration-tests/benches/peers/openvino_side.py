"""OpenVINO's side, on a model that was converted from the very module that PyTorch's side times.

    openvino_side.py convert PART FOLDER INPUTS MODEL.xml
    openvino_side.py run MODEL.xml DTYPE RUNS THREADS INPUTS OUTPUTS PART FOLDER
        -> {"times": [...], "peak_mib", "compile_s", "versions"}

DTYPE is OpenVINO's INFERENCE_PRECISION_HINT.
"""
import pathlib
import sys
import time

import measure


def convert(part, folder, inputs, model):
    import openvino
    import torch

    import networks

    # In f32 the UNet and its copy would not fit into 24 GB; in f16 its weights are the same, and some sums are rounded.
    dtype = "f16" if part == "unet" else "f32"
    module = networks.load(part, folder, dtype)
    example = networks.read(part, folder, inputs)
    shapes = [list(tensor.shape) for tensor in example]
    if part == "unet":  # what a trace records is the same at any size, and products of f16 are slow on most processors
        example[0] = example[0][..., :8, :8]
    with torch.inference_mode():
        converted = openvino.convert_model(module, example_input=tuple(example), input=shapes)
    unfinished = pathlib.Path(model).with_suffix(".unfinished.xml")
    openvino.save_model(converted, unfinished, compress_to_fp16=False)  # it would round what is not weights, too
    unfinished.with_suffix(".bin").rename(pathlib.Path(model).with_suffix(".bin"))
    unfinished.rename(model)
    measure.tell()


def run(model, dtype, runs, threads, inputs, outputs, part, folder):
    import numpy
    import openvino
    from safetensors.numpy import save_file

    import networks

    example = [tensor.numpy() for tensor in networks.read(part, folder, inputs)]
    began = time.perf_counter()
    compiled = openvino.Core().compile_model(model, "CPU", {
        "INFERENCE_PRECISION_HINT": dtype,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_HYPER_THREADING": True,
    })
    compile_s = time.perf_counter() - began
    request = compiled.create_infer_request()

    def step():
        request.infer(example, share_inputs=True)
        return [output.data for output in request.output_tensors]

    result, times = measure.timed(step, int(runs))
    names = networks.PARTS[part].outputs
    save_file({name: numpy.array(data, dtype=numpy.float32) for name, data in zip(names, result)}, outputs)
    measure.tell(times=times, peak_mib=measure.memory_kib("VmHWM") / 1024, compile_s=compile_s)


{"convert": convert, "run": run}[sys.argv[1]](*sys.argv[2:])
