//! The finished stages as one model.

use super::{base, context::Context, latents::LatentSet, refiner, vae};
use crate::{TrainError, export::Parts, recipe::Stage};

/// The averaged weights of all stages; without a refiner where its training has not begun.
///
/// # Errors
/// The autoencoder or the base is not finished, or the refiner is begun and not finished.
pub fn parts(context: &Context) -> Result<Parts, TrainError> {
    let (vae, _) = vae::finished(context)?;
    let base = base::finished(context)?;
    let has_refiner = context.folder(Stage::Refiner).join("latest.safetensors").is_file();
    Ok(Parts {
        text_encoder: base.part("text_encoder."),
        text_encoder_2: base.part("text_encoder_2."),
        unet: base.part("unet."),
        refiner: has_refiner.then(|| refiner::finished(context)).transpose()?,
        scaling_factor: LatentSet::load_or_make(context)?.scaling_factor,
        vae,
    })
}
