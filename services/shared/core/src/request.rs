//! A request as a caller writes it: unchecked, with diffusers' argument names.

use crate::{
    scheduler::{SchedulerKind, TimestepSpacing},
    size::{CropCoords, Size},
    tenant::Priority,
};

/// The arguments of diffusers' `StableDiffusionXLPipeline`, and the refiner's. Zero or `None` stands for the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateRequest {
    /// What to draw.
    pub prompt: String,
    /// For the second text encoder.
    pub prompt_2: Option<String>,
    /// What not to draw. `None` and "" differ.
    pub negative_prompt: Option<String>,
    /// For the second text encoder.
    pub negative_prompt_2: Option<String>,
    /// Columns of pixels.
    pub width: u32,
    /// Rows of pixels.
    pub height: u32,
    /// Steps of the whole schedule.
    pub num_inference_steps: u32,
    /// Pictures, with seeds counted upwards.
    pub num_images: u32,
    /// Guidance is on above 1.
    pub guidance_scale: Option<f32>,
    /// How far the guided deviation is drawn to the conditional one's.
    pub guidance_rescale: Option<f32>,
    /// Of the first picture's noise.
    pub seed: Option<u64>,
    /// Text encoder layers left out at the end.
    pub clip_skip: u32,
    /// What of the checkpoint's scheduler is replaced.
    pub scheduler: Option<SchedulerRequest>,
    /// Size conditioning.
    pub original_size: Option<Size>,
    /// Size conditioning.
    pub target_size: Option<Size>,
    /// The same for the negative half.
    pub negative_original_size: Option<Size>,
    /// The same for the negative half.
    pub negative_target_size: Option<Size>,
    /// Crop conditioning.
    pub crops_coords_top_left: Option<CropCoords>,
    /// The same for the negative half.
    pub negative_crops_coords_top_left: Option<CropCoords>,
    /// The second stage.
    pub refiner: Option<RefinerRequest>,
    /// The pictures' encoding.
    pub image_format: ImageFormat,
    /// Of JPEG and WebP.
    pub quality: u32,
    /// How much it hurries.
    pub priority: Priority,
    /// What the caller calls it, so that it is done once.
    pub request_id: Option<String>,
    /// Where in the schedule guidance is on.
    pub guidance_interval: Option<GuidanceInterval>,
    /// Step caching.
    pub deep_cache: Option<DeepCacheRequest>,
}

/// The part of the schedule with guidance, as fractions of its steps, in the words of diffusers' `ClassifierFreeGuidance`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuidanceInterval {
    /// 0.0 where absent.
    pub start: Option<f32>,
    /// 1.0 where absent.
    pub stop: Option<f32>,
}

impl GuidanceInterval {
    /// Start and stop, or their defaults.
    #[must_use]
    pub fn ends(&self) -> [f32; 2] {
        [self.start.unwrap_or(0.0), self.stop.unwrap_or(1.0)]
    }

    /// Whether it is a part of the schedule, as it should be, and not the whole.
    #[must_use]
    pub fn is_part(&self) -> bool {
        let [start, stop] = self.ends();
        0.0 <= start && start < stop && stop <= 1.0 && (start > 0.0 || stop < 1.0)
    }
}

/// Step caching as `DeepCacheSDHelper.set_params` has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeepCacheRequest {
    /// 0 for 3.
    pub cache_interval: u32,
    /// The outermost where it is 0.
    pub cache_branch_id: u32,
}

/// What of the checkpoint's scheduler is replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SchedulerRequest {
    /// Another class.
    pub kind: Option<SchedulerKind>,
    /// Another spacing.
    pub timestep_spacing: Option<TimestepSpacing>,
    /// Karras sigmas or not.
    pub use_karras_sigmas: Option<bool>,
}

/// The second stage of the pipeline.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RefinerRequest {
    /// How base and refiner share the work; must be given.
    pub mode: Option<RefinerMode>,
    /// 0 for the request's.
    pub num_inference_steps: u32,
    /// 6.0 where absent.
    pub aesthetic_score: Option<f32>,
    /// 2.5 where absent.
    pub negative_aesthetic_score: Option<f32>,
}

/// How base and refiner share the work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RefinerMode {
    /// Ensemble of experts: the base runs this part of the schedule, the refiner the rest.
    DenoisingSplit(f32),
    /// SDEdit: the finished latents are noised by this much and denoised again.
    Strength(f32),
}

impl RefinerMode {
    /// Whether its number lies between 0 and 1, both excluded, as it must.
    #[must_use]
    pub fn is_fraction(&self) -> bool {
        let (Self::DenoisingSplit(fraction) | Self::Strength(fraction)) = *self;
        fraction > 0.0 && fraction < 1.0
    }
}

/// How pictures are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// Lossless.
    #[default]
    Png,
    /// Lossy.
    Jpeg,
    /// Lossy.
    WebP,
}

impl ImageFormat {
    /// The media type, as `image/png`.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::WebP => "image/webp",
        }
    }

    /// The usual ending of a file's name, without the dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::WebP => "webp",
        }
    }
}
