#!/usr/bin/env python3
"""Expected text embeddings, by diffusers' own encode_prompt in float32.

    sdxl-checkpoint random --out DIR --variant pico --seed 5 --dtype f32
    text.py DIR OUT.safetensors

Made with diffusers 0.42.1, transformers 5.23.0 and torch 2.15. The requests are listed in ../text_parity.rs too.
"""
import sys

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

REQUESTS = [  # prompt, prompt_2, clip_skip
    ("a photo of a cat", None, None),
    ("Wow!!! it's 3.14 <|endoftext|> more", "a dog on a hill", None),
    ("日本の城 😀 naïve café", None, 1),
    ("", None, None),
    (" ".join(["word"] * 100), "!", None),
]

pipe = StableDiffusionXLPipeline.from_pretrained(f"{sys.argv[1]}/base", torch_dtype=torch.float32)
tensors = {}
with torch.inference_mode():
    for i, (prompt, prompt_2, clip_skip) in enumerate(REQUESTS):
        embeds, _, pooled, _ = pipe.encode_prompt(
            prompt, prompt_2, do_classifier_free_guidance=False, clip_skip=clip_skip)
        tensors[f"{i}.prompt_embeds"], tensors[f"{i}.pooled_prompt_embeds"] = embeds[0].clone(), pooled[0].clone()
save_file(tensors, sys.argv[2])
