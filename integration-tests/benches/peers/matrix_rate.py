"""What the machine can do at most, and how much a guided step takes.

    matrix_rate.py FOLDER SIDE THREADS -> {"bf16": FLOP/s, "f32": FLOP/s, "step": FLOP, "versions"}

The rates are of torch.mm of two 4096 x 4096 matrices, the best of many. A step's operations are those of its products,
convolutions and attention at SIDE x SIDE latents, counted by torch on tensors without values.
"""
import json
import pathlib
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

import measure

SIDE = 4096
SECONDS = 8.0


def rate(dtype):
    a, b = torch.randn(SIDE, SIDE).to(dtype), torch.randn(SIDE, SIDE).to(dtype)
    torch.mm(a, b)
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * SIDE**3 / best


def operations(folder, side):
    from diffusers import UNet2DConditionModel

    config = json.loads((pathlib.Path(folder) / "unet" / "config.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        added = {"text_embeds": torch.empty(2, pooled), "time_ids": torch.empty(2, 6)}
        context = torch.empty(2, 77, config["cross_attention_dim"])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(torch.empty(2, 4, side, side), torch.empty(()), context, added_cond_kwargs=added)
    return counter.get_total_flops()


def main():
    folder, side, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    measure.tell(bf16=rate(torch.bfloat16), f32=rate(torch.float32), step=operations(folder, int(side)))


main()
