//! The network: an autoencoder's encoder, which has all that is wanted, under linear heads on each of its cells.

use candle_core::{D, Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear};
use sdxl_models::{
    ModelError,
    vae::{VaeConfig, VaeEncoder},
};
use sdxl_scenes::{Colour, Shape};

/// Pixels along a side of a cell.
pub(super) const CELL: usize = 8;
/// Features of a cell.
const FEATURES: usize = 32;
/// Every object's colour, and none.
pub(super) const COLOURS: usize = Colour::OF_OBJECTS.len() + 1;
/// Every shape, and none.
pub(super) const SHAPES: usize = Shape::ALL.len() + 1;
/// The colours of backgrounds.
const BACKGROUNDS: usize = Colour::OF_BACKGROUNDS.len();

/// Small, as it is trained in minutes: it sees the picture at half its size, and quarters that. Its lowest level attends
/// to the whole picture.
fn trunk() -> VaeConfig {
    VaeConfig {
        latent_channels: FEATURES,
        block_out_channels: vec![24, 48, 64],
        layers_per_block: 1,
        norm_num_groups: 8,
        scaling_factor: 1.0,
        latents_mean: None,
        latents_std: None,
        force_upcast: false,
        use_quant_conv: false,
        use_post_quant_conv: false,
        mid_block_add_attention: true,
    }
}

/// What fills each cell of a picture, and what lies behind.
#[derive(Clone, Debug)]
pub(super) struct Network {
    trunk: VaeEncoder,
    colours: Linear,
    /// Asked in training only, so that the features know shapes.
    shapes: Linear,
    background: Linear,
}

/// Logits of a batch of pictures with `N` cells each, row by row.
pub(super) struct Logits {
    /// `[B, N, COLOURS]`, the last for none.
    pub(super) colours: Tensor,
    /// `[B, N, SHAPES]`, the last for none.
    pub(super) shapes: Tensor,
    /// `[B, BACKGROUNDS]`.
    pub(super) background: Tensor,
    /// Mean and deviation over the cells of each feature, `[B, 2 * FEATURES]`.
    pub(super) features: Tensor,
}

impl Network {
    pub(super) fn new(vb: &VarBuilder<'_>) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            trunk: VaeEncoder::new(&vb.pp("trunk"), &trunk())?,
            colours: linear(FEATURES, COLOURS, vb.pp("colours"))?,
            shapes: linear(FEATURES, SHAPES, vb.pp("shapes"))?,
            background: linear(FEATURES, BACKGROUNDS, vb.pp("background"))?,
        })
    }

    /// What a batch of pictures `[B, 3, H, W]` in -1..=1 shows.
    pub(super) fn forward(&self, pictures: &Tensor) -> std::result::Result<Logits, ModelError> {
        let cells = self.trunk.encode(&pictures.avg_pool2d(2)?)?.mean;
        Ok(self.read(&cells)?)
    }

    fn read(&self, cells: &Tensor) -> Result<Logits> {
        let cells = cells.flatten_from(2)?.transpose(1, 2)?.contiguous()?.silu()?;
        let mean = cells.mean(1)?;
        let deviation = cells.broadcast_sub(&mean.unsqueeze(1)?)?.sqr()?.mean(1)?.sqrt()?;
        Ok(Logits {
            colours: self.colours.forward(&cells)?,
            shapes: self.shapes.forward(&cells)?,
            background: self.background.forward(&mean)?,
            features: Tensor::cat(&[mean, deviation], D::Minus1)?,
        })
    }
}
