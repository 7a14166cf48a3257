"""diffusers' side of the benchmark: loads a UNet folder in float32 and times guided steps at 512 x 512.

    peer.py UNET_FOLDER STEPS THREADS -> {"load_s": ..., "step_s": ..., "peak_mib": ..., "versions": ...}
"""
import json
import sys
import time

import torch


def main():
    folder, steps, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    began = time.perf_counter()
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
    sample = torch.randn(2, 4, 64, 64)
    context = torch.randn(2, 77, unet.config.cross_attention_dim)
    pooled = torch.randn(2, unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim)
    ids = torch.tensor([[512.0, 512.0, 0.0, 0.0, 512.0, 512.0]] * 2)

    def step():
        start = time.perf_counter()
        with torch.inference_mode():
            noise = unet(sample, 981.0, context, added_cond_kwargs=dict(text_embeds=pooled, time_ids=ids)).sample
            uncond, cond = noise.chunk(2)
            (uncond + 5.0 * (cond - uncond)).sum().item()
        return time.perf_counter() - start

    step()  # ready means warm, on both sides
    load = time.perf_counter() - began
    times = sorted(step() for _ in range(steps))
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps(dict(load_s=load, step_s=times[len(times) // 2], peak_mib=peak / 1024,
                          versions=f"diffusers {diffusers.__version__}, torch {torch.__version__}")))


main()
