"""The networks that are compared, as diffusers and transformers have them: modules that take and give tensors alone.

A part is `unet`, `vae` or `text`. Its inputs come from a safetensors file, so that both sides are given the same.
"""
import pathlib

import torch
from safetensors import safe_open

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class Unet(torch.nn.Module):
    """A guided step's prediction: both halves of the batch, negative first, and what guidance makes of them."""

    inputs = ("sample", "timestep", "prompt_embeds", "pooled_prompt_embeds", "time_ids")
    outputs = ("noise_pred",)

    def __init__(self, folder, dtype):
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)

    def forward(self, sample, timestep, prompt_embeds, pooled_prompt_embeds, time_ids):
        dtype = self.unet.dtype  # a timestep stays in f32, as pipelines have it
        added = {"text_embeds": pooled_prompt_embeds.to(dtype), "time_ids": time_ids.to(dtype)}
        states = prompt_embeds.to(dtype)
        noise = self.unet(sample.to(dtype), timestep, states, added_cond_kwargs=added, return_dict=False)[0]
        negative, positive = noise.chunk(2)
        return negative + 5.0 * (positive - negative)


class Vae(torch.nn.Module):
    """Latents to a picture in 0..255, not rounded yet."""

    inputs = ("latents",)
    outputs = ("pixels",)

    def __init__(self, folder, dtype):
        super().__init__()
        from diffusers import AutoencoderKL

        self.vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype)
        self.vae.encoder = None
        self.scaling_factor = self.vae.config.scaling_factor

    def forward(self, latents):
        latents = latents.to(self.vae.dtype) / self.scaling_factor
        image = self.vae.decode(latents, return_dict=False)[0]
        return (image.float() / 2 + 0.5).clamp(0, 1) * 255


class Text(torch.nn.Module):
    """Both text encoders on the ids of all prompts in one batch."""

    inputs = ("input_ids", "input_ids_2")
    outputs = ("prompt_embeds", "pooled_prompt_embeds")

    def __init__(self, folder, dtype):
        super().__init__()
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        self.first = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype)
        self.second = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=dtype)

    def forward(self, input_ids, input_ids_2):
        first = self.first(input_ids, output_hidden_states=True)
        second = self.second(input_ids_2, output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


PARTS = {"unet": Unet, "vae": Vae, "text": Text}


def load(part, folder, dtype):
    """The part's module, ready to compute."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    return PARTS[part](pathlib.Path(folder), DTYPES[dtype]).eval()


def read(part, folder, file):
    """The part's inputs in the order of its arguments."""
    with safe_open(file, "pt") as tensors:
        if part == "text":
            return tokenize(folder, tensors.metadata()["prompts"].split("\n"))
        return [tensors.get_tensor(name) for name in PARTS[part].inputs]


def tokenize(folder, prompts):
    from transformers import CLIPTokenizer

    def ids(name):
        tokenizer = CLIPTokenizer.from_pretrained(pathlib.Path(folder) / name)
        return tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids

    return [ids("tokenizer"), ids("tokenizer_2")]
