#!/usr/bin/env python3
"""Expected results of the golden tests: what diffusers makes of the same checkpoint, requests and seeds.

    generate.py CHECKPOINT FOLDER [--only NAME] [--trace]

CHECKPOINT holds `base/` and `refiner/` as `sdxl-checkpoint` writes them. FOLDER holds `requests.json`, an object of
requests by name. A request's keys are the arguments of diffusers' pipelines, and beside them

    seed         of torch.Generator("cpu"); picture i of num_images is a run of its own with seed + i
    num_images   1 where absent
    scheduler    {"name": class, ...config overrides}; the checkpoint's own where absent
    refiner      {"denoising_split" | "strength": fraction, "num_inference_steps", "aesthetic_score",
                  "negative_aesthetic_score"}; the base alone where absent
    guidance_interval  {"start", "stop"} as fractions of the steps; outside of it guidance_scale is 1
    deep_cache   {"cache_interval", "cache_branch_id"}, by DeepCache's own DeepCacheSDHelper

FOLDER's `scheduler_config.json` stands in for the checkpoint's own, in both pipelines.

What is written beside them: NAME-I.png for each picture, parts.safetensors with results of the single networks,
checkpoint.sha256 with the hashes of the weights, and versions.txt. Everything is computed in float32 on the CPU.
--trace also writes NAME-I.safetensors with the latents after every step, for finding where a deviation begins.
"""
import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import pathlib
import warnings

import diffusers
import torch
import transformers
from DeepCache import DeepCacheSDHelper
from safetensors.torch import save_file

# What both pipelines take. The refiner has one encoder, and diffusers' example gives it neither the second prompts nor
# clip_skip.
SHARED = ("prompt", "negative_prompt", "guidance_scale", "guidance_rescale", "num_inference_steps", "original_size",
          "crops_coords_top_left", "target_size", "negative_original_size", "negative_crops_coords_top_left",
          "negative_target_size")
BASE = SHARED + ("prompt_2", "negative_prompt_2", "clip_skip", "height", "width")
OURS = ("seed", "num_images", "scheduler", "refiner", "guidance_interval", "deep_cache")


class Guided:
    """A pipeline whose guidance_scale is 1 outside of the steps `guided`; both halves are evaluated all the same."""

    guided = None

    @property
    def guidance_scale(self):
        # The step is the number of those that the scheduler has done; None before the first.
        outside = self.guided is not None and (self.scheduler.step_index or 0) not in self.guided
        return 1.0 if outside else self._guidance_scale


class Base(Guided, diffusers.StableDiffusionXLPipeline):
    pass


class Refiner(Guided, diffusers.StableDiffusionXLImg2ImgPipeline):
    pass


class Checkpoint:
    def __init__(self, root, folder):
        self.root = root
        config = json.loads((folder / "scheduler_config.json").read_text())
        self.scheduler = getattr(diffusers, config["_class_name"]).from_pretrained(str(folder))
        self.base = self.load(Base, "base")
        self.refiner = self.load(Refiner, "refiner")

    def load(self, cls, name):
        pipe = cls.from_pretrained(str(self.root / name), torch_dtype=torch.float32, add_watermarker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def picture(self, request, seed, trace):
        """One picture of a request, and the latents that led to it."""
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in request.items()}
        unknown = set(arguments) - set(BASE) - set(OURS)
        assert not unknown, f"unknown keys {unknown}"
        refiner = arguments.get("refiner")
        for pipe in (self.base, self.refiner):
            pipe.scheduler = scheduler(self.scheduler, arguments.get("scheduler"))
        generator = torch.Generator("cpu").manual_seed(seed)
        kw = {k: arguments[k] for k in BASE if k in arguments}
        if refiner and "denoising_split" in refiner:
            kw["denoising_end"] = refiner["denoising_split"]
        with approximated(self.base, arguments):
            latents = self.base(**kw, generator=generator, output_type="latent",
                                callback_on_step_end=keep("base", trace)).images
        if refiner:
            kw = {k: arguments[k] for k in SHARED if k in arguments}
            kw |= {k: v for k, v in refiner.items() if k != "denoising_split"}
            if "denoising_split" in refiner:
                kw["denoising_start"] = refiner["denoising_split"]
            with approximated(self.refiner, arguments):
                latents = self.refiner(**kw, image=latents, generator=generator, output_type="latent",
                                       callback_on_step_end=keep("refiner", trace)).images
        return self.decode(latents)

    def decode(self, latents):
        with torch.inference_mode():
            image = self.base.vae.decode(latents / self.base.vae.config.scaling_factor).sample
            assert image.isfinite().all(), "the picture is not finite"
            return self.base.image_processor.postprocess(image, output_type="pil")[0]

    def parts(self, folder):
        """Each network by itself, on inputs that are stored with the results."""
        out = {}
        with torch.inference_mode():
            for name, pipe, prompts in (("base", self.base, ("a photo of a cat!", "oil on canvas")),
                                        ("refiner", self.refiner, ("a photo of a cat!", None))):
                embeds, _, pooled, _ = pipe.encode_prompt(*prompts, do_classifier_free_guidance=False)
                out[f"{name}.prompt_embeds"], out[f"{name}.pooled_prompt_embeds"] = embeds[0], pooled[0]
                last = 6.0 if name == "refiner" else [88.0, 72.0]
                time_ids = torch.tensor([[88.0, 72.0, 3.0, 5.0] + (last if isinstance(last, list) else [last])])
                latents = torch.randn((1, 4, 11, 9), generator=torch.Generator("cpu").manual_seed(11))
                pipe.scheduler = scheduler(self.scheduler, None)
                pipe.scheduler.set_timesteps(10)
                t = pipe.scheduler.timesteps[3]
                noise_pred = pipe.unet(pipe.scheduler.scale_model_input(latents, t), t, encoder_hidden_states=embeds,
                                       added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}).sample
                out[f"{name}.latents"] = latents[0]
                out[f"{name}.next_latents"] = pipe.scheduler.step(noise_pred, t, latents).prev_sample[0]
            latents = torch.randn((1, 4, 9, 12), generator=torch.Generator("cpu").manual_seed(12))
            out["vae.latents"] = latents[0]
            self.decode(latents).save(folder / "vae.png")
        save_file({k: v.contiguous() for k, v in out.items()}, str(folder / "parts.safetensors"))


@contextlib.contextmanager
def approximated(pipe, arguments):
    steps, interval = arguments["num_inference_steps"], arguments.get("guidance_interval")
    if interval:  # as diffusers' guiders count
        pipe.guided = range(int(interval["start"] * steps), int(interval["stop"] * steps))
    cache = arguments.get("deep_cache")
    if cache:
        # The helper counts skip connections for blocks with two layers; these are the block and the layer of any.
        block, branch = 0, cache["cache_branch_id"]
        while branch > len(pipe.unet.down_blocks[block].resnets):
            branch -= len(pipe.unet.down_blocks[block].resnets) + 1
            block += 1
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=cache["cache_interval"])
        helper.params |= {"cache_block_id": block, "cache_layer_id": branch}
        helper.enable()
    yield
    if cache:
        helper.disable()
    pipe.guided = None


def scheduler(own, wanted):
    if not wanted:
        return type(own).from_config(own.config)
    overrides = {k: v for k, v in wanted.items() if k != "name"}
    return getattr(diffusers, wanted["name"]).from_config(own.config, **overrides)


def keep(stage, trace):
    def on_step(_pipe, i, t, tensors):
        trace[f"{stage}.latents.{i:03d}"] = tensors["latents"].clone()
        trace[f"{stage}.timestep.{i:03d}"] = torch.tensor([float(t)])
        return {}
    return on_step


def main():
    warnings.filterwarnings("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--only")
    parser.add_argument("--trace", action="store_true")
    a = parser.parse_args()
    requests = json.loads((a.folder / "requests.json").read_text())
    checkpoint = Checkpoint(a.checkpoint, a.folder)
    for name, request in requests.items():
        if a.only in (None, name):
            for i in range(request.get("num_images", 1)):
                trace = {}
                checkpoint.picture(request, request["seed"] + i, trace).save(a.folder / f"{name}-{i}.png", optimize=True)
                if a.trace:
                    save_file({k: v.contiguous() for k, v in trace.items()}, str(a.folder / f"{name}-{i}.safetensors"))
            print(name)
    checkpoint.parts(a.folder)
    hashes = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(a.checkpoint)}"
              for p in sorted(a.checkpoint.rglob("*.safetensors"))]
    (a.folder / "checkpoint.sha256").write_text("\n".join(hashes) + "\n")
    versions = (f"DeepCache {importlib.metadata.version('DeepCache')}", f"diffusers {diffusers.__version__}",
                f"torch {torch.__version__}", f"transformers {transformers.__version__}")
    (a.folder / "versions.txt").write_text("\n".join(versions) + "\n")


if __name__ == "__main__":
    main()
