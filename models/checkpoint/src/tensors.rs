//! Names and shapes of each component's tensors, as the networks themselves ask for them.

use std::path::Path;

use sdxl_models::{
    ModelError, TensorRecorder, TensorSpec,
    text::{ClipTextConfig, ClipTextModel},
    unet::{Unet, UnetConfig},
    vae::{VaeConfig, VaeDecoder},
};

/// A text encoder's tensors, by the config in `folder`.
pub(crate) fn text_encoder(folder: &Path, with_projection: bool) -> Result<Vec<TensorSpec>, ModelError> {
    let recorder = TensorRecorder::default();
    ClipTextModel::new(&recorder.var_builder(), &ClipTextConfig::load(folder)?, with_projection)?;
    Ok(recorder.specs())
}

/// A denoiser's tensors.
pub(crate) fn unet(config: &Path) -> Result<Vec<TensorSpec>, ModelError> {
    let recorder = TensorRecorder::default();
    Unet::new(&recorder.var_builder(), &UnetConfig::open(config)?)?;
    let mut specs = recorder.specs();
    specs.sort_by_key(|spec| turn(&spec.name));
    Ok(specs)
}

/// When a denoiser's tensor is drawn: its part, which block of it and which kind of layer. The order is part of what a seed
/// stands for, whatever order the network loads in.
fn turn(name: &str) -> (usize, usize, usize) {
    const PARTS: [&str; 8] = [
        "time_embedding",
        "add_embedding",
        "conv_in",
        "down_blocks",
        "mid_block",
        "up_blocks",
        "conv_norm_out",
        "conv_out",
    ];
    const LAYERS: [&str; 4] = ["resnets", "attentions", "downsamplers", "upsamplers"];
    let place =
        |list: &[&str], name: &str| list.iter().position(|other| *other == name).unwrap_or(list.len());
    let mut names = name.split('.');
    let part = place(&PARTS, names.next().unwrap_or_default());
    let second = names.next().unwrap_or_default();
    match second.parse() {
        Ok(block) => (part, block, place(&LAYERS, names.next().unwrap_or_default())),
        Err(_) => (part, 0, place(&LAYERS, second)),
    }
}

/// An autoencoder's tensors: those of the decoder, and the encoder's, which we do not run and diffusers does.
pub(crate) fn vae(config: &Path) -> Result<Vec<TensorSpec>, ModelError> {
    let recorder = TensorRecorder::default();
    let config = VaeConfig::open(config)?;
    VaeDecoder::new(&recorder.var_builder(), &config)?;
    let mut specs = recorder.specs();
    specs.extend(vae_encoder(&config.block_out_channels, config.layers_per_block, config.latent_channels));
    Ok(specs)
}

/// The encoder of diffusers' `AutoencoderKL` with `quant_conv`.
fn vae_encoder(channels: &[usize], layers_per_block: usize, latent_channels: usize) -> Vec<TensorSpec> {
    let mut list = Encoder(Vec::new());
    let (first, last) = (channels.first().copied().unwrap_or(0), channels.last().copied().unwrap_or(0));
    list.conv("encoder.conv_in", [3, first], 3);
    let mut width = first;
    for (i, out) in channels.iter().enumerate() {
        for j in 0..layers_per_block {
            list.resnet(&format!("encoder.down_blocks.{i}.resnets.{j}"), [width, *out]);
            width = *out;
        }
        if i + 1 < channels.len() {
            list.conv(&format!("encoder.down_blocks.{i}.downsamplers.0.conv"), [width, width], 3);
        }
    }
    list.resnet("encoder.mid_block.resnets.0", [last, last]);
    let attention = "encoder.mid_block.attentions.0";
    list.layer(&format!("{attention}.group_norm"), &[last]);
    for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
        list.layer(&format!("{attention}.{projection}"), &[last, last]);
    }
    list.resnet("encoder.mid_block.resnets.1", [last, last]);
    list.layer("encoder.conv_norm_out", &[last]);
    list.conv("encoder.conv_out", [last, 2 * latent_channels], 3);
    list.conv("quant_conv", [2 * latent_channels, 2 * latent_channels], 1);
    list.0
}

struct Encoder(Vec<TensorSpec>);

impl Encoder {
    /// A weight of that shape and a bias of its first dimension.
    fn layer(&mut self, name: &str, weight: &[usize]) {
        self.0.push(TensorSpec { name: format!("{name}.weight"), shape: weight.to_vec() });
        self.0.push(TensorSpec { name: format!("{name}.bias"), shape: weight[..1].to_vec() });
    }

    fn conv(&mut self, name: &str, [from, to]: [usize; 2], kernel: usize) {
        self.layer(name, &[to, from, kernel, kernel]);
    }

    fn resnet(&mut self, name: &str, [from, to]: [usize; 2]) {
        self.layer(&format!("{name}.norm1"), &[from]);
        self.conv(&format!("{name}.conv1"), [from, to], 3);
        self.layer(&format!("{name}.norm2"), &[to]);
        self.conv(&format!("{name}.conv2"), [to, to], 3);
        if from != to {
            self.conv(&format!("{name}.conv_shortcut"), [from, to], 1);
        }
    }
}
