#!/usr/bin/env python3
"""The encoder's golden: a tiny AutoencoderKL and what diffusers makes of one picture, in float32 on the CPU.

    generate.py FOLDER [--channels 4 8 8 8] [--groups 2] [--layers 1] [--size HEIGHT WIDTH] [--decoder]

Writes config.json, as diffusers does, and diffusion_pytorch_model.safetensors with random weights and, beside them,
`golden.image`, `golden.mean` and `golden.logvar`. The decoder's weights, which the encoder's golden needs not, and
`golden.reconstruction` of the mean are written with --decoder only.

Made with torch 2.15.0 and diffusers 0.42.1.
"""
import argparse
import pathlib

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file


def autoencoder(channels, groups, layers):
    vae = AutoencoderKL(block_out_channels=channels, norm_num_groups=groups, layers_per_block=layers,
                        down_block_types=["DownEncoderBlock2D"] * len(channels),
                        up_block_types=["UpDecoderBlock2D"] * len(channels), scaling_factor=0.13025)
    with torch.no_grad():
        # diffusers begins normalizations at 1 and biases at 0 or near, which would hide a mistake in either.
        for name, value in vae.named_parameters():
            if value.ndim == 1:
                value.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
    return vae.eval()


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--channels", type=int, nargs="+", default=[4, 8, 8, 8])
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=2, default=[24, 16])
    parser.add_argument("--decoder", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    vae = autoencoder(args.channels, args.groups, args.layers)
    image = torch.rand(1, 3, *args.size) * 2 - 1
    posterior = vae.encode(image).latent_dist
    tensors = {k: v for k, v in vae.state_dict().items() if args.decoder or k.startswith(("encoder.", "quant_conv."))}
    tensors |= {"golden.image": image, "golden.mean": posterior.mean, "golden.logvar": posterior.logvar}
    if args.decoder:
        tensors["golden.reconstruction"] = vae.decode(posterior.mean).sample
    vae.save_config(args.folder)
    save_file({k: v.contiguous() for k, v in tensors.items()}, args.folder / "diffusion_pytorch_model.safetensors")


if __name__ == "__main__":
    main()
