"""diffusers' side of a whole picture: one process with the pipeline in f32, prompts to PNG.

    picture.py FOLDER STEPS THREADS PICTURES PROMPT... -> {"times": [...], "peak_mib", "versions"}

Picture i has seed i and is written to PICTURES/i.png.
"""
import io
import pathlib
import sys
import time
import warnings

import torch

import measure


def main():
    folder, steps, threads, pictures, *prompts = sys.argv[1:]
    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(threads))
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)

    def picture(i):
        generator = torch.Generator("cpu").manual_seed(i)
        image = pipe(prompts[i], num_inference_steps=int(steps), generator=generator).images[0]
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    picture(0)
    times = []
    for i in range(len(prompts)):
        began = time.perf_counter()
        png = picture(i)
        times.append(time.perf_counter() - began)
        (pathlib.Path(pictures) / f"{i}.png").write_bytes(png)
    measure.tell(times=times, peak_mib=measure.memory_kib("VmHWM") / 1024)


main()
