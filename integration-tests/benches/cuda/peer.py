"""diffusers' side of the comparison on a GPU: times SDXL's networks and keeps what they give.

    peer.py FOLDER [--compile] [--small] -> one line of JSON, which FOLDER/peer.json holds, too

FOLDER/base is a pipeline's folder. Where its UNet has no weights, all its networks are given random ones, in float16.
FOLDER/inputs.safetensors and FOLDER/outputs.safetensors get what the networks were given and gave. --compile times
the UNet under torch.compile as well. --small takes 16 x 16 latents instead of 128 x 128, and leaves out what the
device can do at most. The JSON has milliseconds of a UNet step by batch, of a VAE decode by precision and memory
format and of both text encoders on two prompts; seconds of whole pictures by steps, from embeddings to bytes; memory
in MiB; and seconds of making the weights, of loading the UNet and of compiling it. Without a GPU everything runs
once, to try the script. What is done is told on standard error.
"""
import argparse
import contextlib
import gc
import importlib.metadata
import json
import pathlib
import sys
import time
import warnings

BEGAN = time.perf_counter()

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = DEVICE == "cuda"
LAST, FIRST = torch.channels_last, torch.contiguous_format
BF16, F32 = torch.bfloat16, torch.float32
CALLS = {2: 10, 4: 8, 8: 5, 16: 3}  # of a round, by batch
ROUNDS = 3
GUIDANCE = 5.0
RESULT = {}


@contextlib.contextmanager
def part(name, folder):
    """Tells how long something took, and writes what is known by then, in case that what follows is cut off."""
    began = time.perf_counter()
    yield
    wait()
    now = time.perf_counter()
    print(f"{now - BEGAN:7.1f} s  {name}: {now - began:.1f} s", file=sys.stderr, flush=True)
    (folder / "peer.json").write_text(json.dumps(RESULT) + "\n")


def wait():
    if GPU:
        torch.cuda.synchronize()


def forget():
    """Gives freed memory back; all that held it must be out of scope."""
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()


def timed(step, calls, rounds=ROUNDS, warm=2):
    """Seconds of a call in the best round, after some calls that do not count."""
    if not GPU:
        calls, rounds, warm = 1, 1, 0
    for _ in range(warm):
        step()
    best = float("inf")
    for _ in range(rounds):
        wait()
        began = time.perf_counter()
        for _ in range(calls):
            step()
        wait()
        best = min(best, (time.perf_counter() - began) / calls)
    return best


def peak(name, step):
    """Notes the most memory that was held during the step, with what was held before it."""
    if GPU:
        wait()
        torch.cuda.reset_peak_memory_stats()
        step()
        wait()
        RESULT["memory_mib"][name] = round(torch.cuda.max_memory_allocated() / 2**20, 1)


def tf32(products, convolutions):
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions


def ms(seconds):
    return round(seconds * 1e3, 3)


def config(base, name):
    return json.loads((base / name / "config.json").read_text())


def weights(base):
    """Random weights for each network, the UNet's last: where they are, all are."""
    torch.manual_seed(0)
    for name, make in {
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig.from_pretrained(base / "text_encoder")),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(base / "text_encoder_2")),
        "vae": lambda: AutoencoderKL.from_config(config(base, "vae")),
        "unet": lambda: UNet2DConditionModel.from_config(config(base, "unet")),
    }.items():
        with torch.device(DEVICE):
            network = make()
        network.half()
        if name.startswith("text"):
            save_text(network, base / name / "model.safetensors")
        else:
            original = (base / name / "config.json").read_bytes()
            network.save_pretrained(base / name, safe_serialization=True, max_shard_size="20GB")
            (base / name / "config.json").write_bytes(original)
        del network
        forget()


def save_text(network, file):
    """As save_pretrained does it, but with the published names: some versions leave their beginning away."""
    def published(name):
        return name if name.startswith(("text_model.", "text_projection.")) else "text_model." + name
    tensors = {published(name): tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, file, metadata={"format": "pt"})


def make_inputs(base, side):
    unet = config(base, "unet")
    pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
    generator = torch.Generator("cpu").manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    pixels = float(8 * side)
    return {
        "sample": normal(1, 4, side, side).repeat(2, 1, 1, 1),
        "prompt_embeds": normal(2, 77, unet["cross_attention_dim"]),
        "pooled_prompt_embeds": normal(2, pooled),
        "time_ids": torch.tensor([[pixels, pixels, 0.0, 0.0, pixels, pixels]] * 2),
        "latents": normal(1, 4, side, side),
    }


def load_unet(base, dtype):
    return UNet2DConditionModel.from_pretrained(base / "unet", torch_dtype=dtype).to(DEVICE).eval()


def load_vae(base, dtype):
    """In f16 as in its file, until it is on the device."""
    return AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float16).to(DEVICE, dtype).eval()


def predictor(unet, dtype, inputs, batch, memory_format=LAST):
    """The UNet on some sample at some timestep: all else is on the device in its precision already."""
    def given(name):
        tensor = inputs[name].to(DEVICE, dtype)
        return tensor.repeat(batch // 2, *[1] * (tensor.dim() - 1))

    states = given("prompt_embeds")
    added = {"text_embeds": given("pooled_prompt_embeds"), "time_ids": given("time_ids")}

    def predict(sample, timestep):
        sample = sample.to(dtype=dtype, memory_format=memory_format)
        return unet(sample, timestep, states, added_cond_kwargs=added, return_dict=False)[0]
    return predict


def stepper(unet, inputs, batch):
    """A step without arguments, to be timed."""
    predict = predictor(unet, BF16, inputs, batch)
    sample = inputs["sample"].repeat(batch // 2, 1, 1, 1).to(DEVICE, BF16).to(memory_format=LAST)
    timestep = torch.tensor(500.0, device=DEVICE)
    return lambda: predict(sample, timestep)


def keep(outputs, name, dtype, result):
    """Keeps a result, and once both precisions are there notes how far one is from the other."""
    outputs[f"{name}_{dtype}"] = result.float().cpu().contiguous()
    exact = outputs[f"{name}_f32"]
    if not torch.isfinite(result).all() or exact.std() < 1e-3:
        RESULT.setdefault("no_use", []).append(f"{name}_{dtype}")  # the times still count
    if dtype != "f32":
        error = (outputs[f"{name}_{dtype}"] - exact).norm() / exact.norm()
        RESULT.setdefault("relative_error", {})[f"{name}_{dtype}"] = round(error.item(), 6)


def measure_vae(base, inputs, outputs):
    """Both precisions in both memory formats; what is kept is of the contiguous one."""
    times = RESULT["vae_ms"] = {}
    for dtype, name, loose in ((F32, "f32", False), (F32, "f32_tf32", True), (BF16, "bf16", False)):
        vae = load_vae(base, dtype)
        tf32(loose, loose)
        for memory_format, suffix in ((FIRST, ""), (LAST, "_channels_last")):
            vae.to(memory_format=memory_format)
            latents = (inputs["latents"].to(DEVICE) / vae.config.scaling_factor).to(dtype)
            latents = latents.to(memory_format=memory_format)

            def decode():
                return vae.decode(latents, return_dict=False)[0]
            if memory_format == FIRST and not loose:
                keep(outputs, "pixels", name, decode())
            times[name + suffix] = ms(timed(decode, 2 if dtype == F32 else 4, warm=1))
            if dtype == F32:
                peak(f"vae_{name}{suffix}_peak", decode)
        tf32(False, False)
        del vae, decode
        forget()


def measure_text(base):
    """Both encoders on two prompts of random tokens, one after the other."""
    encoders = [
        CLIPTextModel.from_pretrained(base / "text_encoder", dtype=BF16).to(DEVICE).eval(),
        CLIPTextModelWithProjection.from_pretrained(base / "text_encoder_2", dtype=BF16).to(DEVICE).eval(),
    ]
    ids = [torch.randint(encoder.config.vocab_size, (2, 77), device=DEVICE) for encoder in encoders]

    def encode():
        return [encoder(tokens, output_hidden_states=True) for encoder, tokens in zip(encoders, ids)]
    RESULT["text_ms"] = ms(timed(encode, 10))


def measure_pictures(base, unet, inputs):
    """Seconds of a picture by its steps, from embeddings to bytes: Euler's method with guidance, then the VAE in f32.

    Here torch's own settings hold: tf32 in convolutions, not in products. The VAE has the format that it is faster in.
    """
    tf32(False, True)
    vae = load_vae(base, F32)
    memory_format = LAST if RESULT["vae_ms"]["f32_tf32_channels_last"] < RESULT["vae_ms"]["f32_tf32"] else FIRST
    vae.to(memory_format=memory_format)
    scheduler = EulerDiscreteScheduler.from_pretrained(base / "scheduler")
    predict = predictor(unet, BF16, inputs, 2)
    noise = inputs["sample"][:1].to(DEVICE)

    def picture(steps):
        scheduler.set_timesteps(steps, device=DEVICE)
        sigmas, timesteps = scheduler.sigmas.tolist(), scheduler.timesteps.float()
        x = noise * float(scheduler.init_noise_sigma)
        for timestep, sigma, following in zip(timesteps, sigmas, sigmas[1:]):
            scaled = x / (sigma**2 + 1) ** 0.5
            negative, positive = predict(torch.cat([scaled, scaled]), timestep).float().chunk(2)
            x = x + (negative + GUIDANCE * (positive - negative)) * (following - sigma)
        latents = (x / vae.config.scaling_factor).to(memory_format=memory_format)
        image = vae.decode(latents, return_dict=False)[0]
        return ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

    picture(2)
    times = {str(steps): round(timed(lambda: picture(steps), 1, rounds=2, warm=0), 4) for steps in (20, 30)}
    tf32(False, False)
    return times


def measure_unet(base, folder, inputs, outputs):
    """The UNet in bf16; returns it, for what follows."""
    with part("load UNet", folder):
        before = torch.cuda.memory_allocated() if GPU else 0
        began = time.perf_counter()
        unet = load_unet(base, BF16)
        wait()
        RESULT["load_s"] = round(time.perf_counter() - began, 3)
        unet.to(memory_format=LAST)
        forget()
        if GPU:
            RESULT["memory_mib"]["unet_weights"] = round((torch.cuda.memory_allocated() - before) / 2**20, 1)
    RESULT["unet_ms"] = {}
    for batch, calls in CALLS.items():
        with part(f"UNet, batch {batch}", folder):
            step = stepper(unet, inputs, batch)
            if batch == 2:
                keep(outputs, "noise_pred", "bf16", step())
            RESULT["unet_ms"][str(batch)] = ms(timed(step, calls))
            if batch in (2, 16):
                peak(f"unet_{batch}_peak", step)
            del step
            forget()
    return unet


def measure_compiled(base, folder, unet, inputs):
    compiled = torch.compile(unet, fullgraph=True, dynamic=False)
    times, seconds = {}, {}
    RESULT.update(compiled_unet_ms=times, compile_s=seconds)
    for batch in (2, 8):
        with part(f"compiled UNet, batch {batch}", folder):
            step = stepper(compiled, inputs, batch)
            began = time.perf_counter()
            step()
            wait()
            seconds[str(batch)] = round(time.perf_counter() - began, 2)
            times[str(batch)] = ms(timed(step, CALLS[batch]))
        if batch == 2:
            with part("compiled pictures", folder):
                RESULT["compiled_end_to_end_s"] = measure_pictures(base, compiled, inputs)


def ceilings():
    """What the device can do at most: a product of 8192 x 8192 matrices, and a copy of 4 GiB."""
    side = 8192
    a, b = (torch.randn(side, side, device=DEVICE, dtype=BF16) for _ in range(2))
    product = torch.empty_like(a)
    seconds = timed(lambda: torch.mm(a, b, out=product), 5, rounds=10)
    RESULT["matrix_tflops"] = round(2 * side**3 / seconds / 1e12, 1)
    source = torch.ones(2**30, device=DEVICE)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), 5, rounds=10)
    RESULT["copy_tbs"] = round(2 * source.nbytes / seconds / 1e12, 3)


def versions():
    names = ("torch", "diffusers", "transformers")
    found = {name: importlib.metadata.version(name) for name in names}
    return {**found, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version() if GPU else None}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    folder, base = arguments.folder, arguments.folder / "base"
    warnings.filterwarnings("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    tf32(False, False)
    RESULT.update(device=torch.cuda.get_device_name() if GPU else "cpu", versions=versions(), memory_mib={})
    with part("start", folder):
        torch.zeros(1, device=DEVICE)
    if not (base / "unet" / "diffusion_pytorch_model.safetensors").exists():
        with part("weights", folder):
            began = time.perf_counter()
            weights(base)
            RESULT["weights_s"] = round(time.perf_counter() - began, 2)
    inputs, outputs = make_inputs(base, 16 if arguments.small else 128), {}
    save_file(inputs, folder / "inputs.safetensors")
    with torch.inference_mode():
        if not arguments.small:
            with part("ceilings", folder):
                ceilings()
            forget()
        with part("UNet in f32", folder):
            unet = load_unet(base, torch.float16).to(F32)
            predict = predictor(unet, F32, inputs, 2, FIRST)
            sample, timestep = inputs["sample"].to(DEVICE), torch.tensor(500.0, device=DEVICE)
            keep(outputs, "noise_pred", "f32", predict(sample, timestep))
            del unet, predict
            forget()
        with part("VAE", folder):
            measure_vae(base, inputs, outputs)
        with part("text encoders", folder):
            measure_text(base)
        forget()
        unet = measure_unet(base, folder, inputs, outputs)
        save_file(outputs, folder / "outputs.safetensors")
        with part("pictures", folder):
            RESULT["end_to_end_s"] = measure_pictures(base, unet, inputs)
        if arguments.compile:
            try:
                measure_compiled(base, folder, unet, inputs)
            except Exception as error:
                RESULT["compile_error"] = f"{type(error).__name__}: {error}"[:2000]
                print(RESULT["compile_error"], file=sys.stderr, flush=True)
    with part("all", folder):
        pass
    print(json.dumps(RESULT), flush=True)


main()
