//! `sdxl generate`'s flags, one for each field of the request, and which flag a field has.

use super::parse::{crop, image_format, priority, scheduler_kind, size, timestep_spacing};
use crate::{
    connection::{EndpointArgs, TenantArgs, wire_priority},
    preview::Preview,
};
use clap::Args;
use sdxl_core::{CropCoords, ImageFormat, Priority, SchedulerKind, Size, TimestepSpacing};
use sdxl_proto::v1;
use sdxl_runtime::terms;
use std::{path::PathBuf, time::Duration};

const EXAMPLES: &str = "\
Examples:
  sdxl generate \"a photo of a cat\"
  sdxl generate \"a photo of a cat\" --negative-prompt blurry --steps 30 --seed 7 -o cat.png
  sdxl generate \"a lighthouse\" --width 1344 --height 768 -o lighthouse.jpg --quality 95
  sdxl generate \"a harbour\" --num-images 4 -o harbour.png    harbour-0.png to harbour-3.png
  sdxl generate \"a harbour\" --refiner-split 0.8              base, then refiner
  sdxl generate \"a harbour\" --trace                          where its time went
  sdxl generate --list-sizes                                 the sizes the model was trained at
  sdxl generate \"a photo of a cat\" --json | jq -r '.images[].file'

Exit codes: 0 done, 2 bad input, 130 Ctrl-C, which also stops the work in the cluster, 1 anything else.";

/// What `sdxl generate` is told.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) request: RequestArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
    #[command(flatten)]
    pub(crate) tenant: TenantArgs,

    /// Give up after this time
    #[arg(long, env = "SDXL_TIMEOUT", value_name = "SECONDS", value_parser = sdxl_runtime::args::seconds)]
    pub(crate) timeout: Option<Duration>,

    /// List the sizes that the cluster's model was trained at, and make no picture
    #[arg(long, env = "SDXL_LIST_SIZES")]
    pub(crate) list_sizes: bool,
}

/// Where pictures go and how the result is told.
#[derive(Args, Debug)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// File to write, replacing what was there; several pictures get -0, -1, … before its ending. Without it, new
    /// files `sdxl-SEED.png` in the current folder
    #[arg(short, long, env = "SDXL_OUTPUT", value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// How pictures are encoded: png, jpeg or webp; FILE's ending decides where this is not given
    #[arg(long, env = "SDXL_IMAGE_FORMAT", value_name = "FORMAT", value_parser = image_format())]
    pub(crate) image_format: Option<ImageFormat>,

    /// Quality of JPEG and WebP, 1 to 100 [default: 90]
    #[arg(long, env = "SDXL_QUALITY", value_name = "N")]
    pub(crate) quality: Option<u32>,

    /// How pictures are shown in the terminal
    #[arg(long, env = "SDXL_PREVIEW", value_name = "HOW", value_enum, default_value_t = Preview::Auto)]
    pub(crate) preview: Preview,

    /// Do not show pictures in the terminal
    #[arg(long, env = "SDXL_NO_PREVIEW")]
    pub(crate) no_preview: bool,

    /// Draw the request's timeline after the pictures: when each stage was at work on each, on which replica and in how
    /// many steps, what it waited for, and what was lost on the way. It goes to standard error; --json has its numbers
    #[arg(long, env = "SDXL_TRACE")]
    pub(crate) trace: bool,

    /// Print one JSON object: files, seeds, timings, warnings and trace_id
    #[arg(long, env = "SDXL_JSON")]
    pub(crate) json: bool,
}

/// The request's fields, under the names of diffusers' arguments. What is not given is left to the cluster.
#[derive(Args, Clone, Debug)]
pub(crate) struct RequestArgs {
    /// What to draw
    #[arg(required_unless_present_any = ["list_sizes", "named_prompt"])]
    pub(crate) prompt: Option<String>,

    /// The same under its name among the request's fields, which many try first.
    #[arg(
        long = "prompt",
        value_name = "TEXT",
        hide = true,
        conflicts_with = "prompt",
        allow_hyphen_values = true
    )]
    pub(crate) named_prompt: Option<String>,

    /// Prompt of the second text encoder [default: PROMPT]
    #[arg(long, env = "SDXL_PROMPT_2", value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt_2: Option<String>,

    /// What not to draw
    #[arg(long, env = "SDXL_NEGATIVE_PROMPT", value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) negative_prompt: Option<String>,

    /// Negative prompt of the second text encoder [default: --negative-prompt]
    #[arg(long, env = "SDXL_NEGATIVE_PROMPT_2", value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) negative_prompt_2: Option<String>,

    /// Pixels, a multiple of 8 [default: the model's]
    #[arg(long, env = "SDXL_WIDTH", value_name = "PIXELS")]
    pub(crate) width: Option<u32>,

    /// Pixels, a multiple of 8 [default: the model's]
    #[arg(long, env = "SDXL_HEIGHT", value_name = "PIXELS")]
    pub(crate) height: Option<u32>,

    /// Denoising steps [default: 50]
    #[arg(long, visible_alias = "steps", env = "SDXL_NUM_INFERENCE_STEPS", value_name = "N")]
    pub(crate) num_inference_steps: Option<u32>,

    /// Pictures, with seeds counted upwards [default: 1]
    #[arg(long, env = "SDXL_NUM_IMAGES", value_name = "N")]
    pub(crate) num_images: Option<u32>,

    /// How strongly the prompt is followed; guidance is on above 1 [default: 5]
    #[arg(long, env = "SDXL_GUIDANCE_SCALE", value_name = "F", allow_negative_numbers = true)]
    pub(crate) guidance_scale: Option<f32>,

    /// How far guided contrast is drawn back, 0 to 1 [default: 0]
    #[arg(long, env = "SDXL_GUIDANCE_RESCALE", value_name = "F", allow_negative_numbers = true)]
    pub(crate) guidance_rescale: Option<f32>,

    /// Seed of the first picture, as torch.Generator("cpu") takes it [default: drawn, and printed]
    #[arg(long, env = "SDXL_SEED", value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// A name under which the request is done once: asked again, the same request gets the same pictures
    #[arg(long, env = "SDXL_REQUEST_ID", value_name = "ID")]
    pub(crate) request_id: Option<String>,

    /// How much it hurries on a busy cluster, within its tenant [default: interactive]
    #[arg(long, env = "SDXL_PRIORITY", value_name = "NAME", value_parser = priority())]
    pub(crate) priority: Option<Priority>,

    /// Layers left out at the end of the text encoders
    #[arg(long, env = "SDXL_CLIP_SKIP", value_name = "N")]
    pub(crate) clip_skip: Option<u32>,

    #[command(flatten)]
    pub(crate) scheduler: SchedulerArgs,
    #[command(flatten)]
    pub(crate) conditioning: ConditioningArgs,
    #[command(flatten)]
    pub(crate) refiner: RefinerArgs,
    #[command(flatten)]
    pub(crate) approximation: ApproximationArgs,
}

/// What of the checkpoint's scheduler is replaced.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Scheduler [default: the checkpoint's]")]
pub(crate) struct SchedulerArgs {
    /// Which sampler walks the schedule
    #[arg(long, env = "SDXL_SCHEDULER", value_name = "NAME", value_parser = scheduler_kind())]
    pub(crate) scheduler: Option<SchedulerKind>,

    /// How the training timesteps are thinned out
    #[arg(long, env = "SDXL_TIMESTEP_SPACING", value_name = "NAME", value_parser = timestep_spacing())]
    pub(crate) timestep_spacing: Option<TimestepSpacing>,

    /// Karras sigmas, or not
    #[arg(
        long,
        env = "SDXL_USE_KARRAS_SIGMAS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(crate) use_karras_sigmas: Option<bool>,
}

/// Size and crop conditioning.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Size and crop conditioning (height first, as in diffusers)")]
pub(crate) struct ConditioningArgs {
    /// Of the training picture before it was scaled [default: the picture's size]
    #[arg(long, env = "SDXL_ORIGINAL_SIZE", value_name = "HxW", value_parser = size)]
    pub(crate) original_size: Option<Size>,

    /// Of the training picture as it was used [default: the picture's size]
    #[arg(long, env = "SDXL_TARGET_SIZE", value_name = "HxW", value_parser = size)]
    pub(crate) target_size: Option<Size>,

    /// Used by the base only together with --negative-target-size
    #[arg(long, env = "SDXL_NEGATIVE_ORIGINAL_SIZE", value_name = "HxW", value_parser = size)]
    pub(crate) negative_original_size: Option<Size>,

    /// Used by the base only together with --negative-original-size
    #[arg(long, env = "SDXL_NEGATIVE_TARGET_SIZE", value_name = "HxW", value_parser = size)]
    pub(crate) negative_target_size: Option<Size>,

    /// Pixels cut off the training picture [default: 0,0]
    #[arg(long, env = "SDXL_CROPS_COORDS_TOP_LEFT", value_name = "TOP,LEFT", value_parser = crop)]
    pub(crate) crops_coords_top_left: Option<CropCoords>,

    /// The same for the negative half [default: 0,0]
    #[arg(long, env = "SDXL_NEGATIVE_CROPS_COORDS_TOP_LEFT", value_name = "TOP,LEFT", value_parser = crop)]
    pub(crate) negative_crops_coords_top_left: Option<CropCoords>,
}

/// The second stage.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Refiner (one of --refiner-split and --refiner-strength asks for it)")]
pub(crate) struct RefinerArgs {
    #[command(flatten)]
    pub(crate) mode: RefinerModeArgs,

    /// Steps of the refiner's schedule [default: --num-inference-steps]
    #[arg(long, env = "SDXL_REFINER_STEPS", value_name = "N", requires = "refiner_mode")]
    pub(crate) refiner_steps: Option<u32>,

    /// Aesthetic score asked for [default: 6]
    #[arg(
        long,
        env = "SDXL_AESTHETIC_SCORE",
        value_name = "F",
        requires = "refiner_mode",
        allow_negative_numbers = true
    )]
    pub(crate) aesthetic_score: Option<f32>,

    /// Aesthetic score of the negative half [default: 2.5]
    #[arg(
        long,
        env = "SDXL_NEGATIVE_AESTHETIC_SCORE",
        value_name = "F",
        requires = "refiner_mode",
        allow_negative_numbers = true
    )]
    pub(crate) negative_aesthetic_score: Option<f32>,
}

/// How base and refiner share the work.
#[derive(Args, Clone, Debug)]
#[group(id = "refiner_mode", multiple = false)]
pub(crate) struct RefinerModeArgs {
    /// The base runs this part of the schedule, between 0 and 1, and the refiner the rest (denoising_end, denoising_start)
    #[arg(long, env = "SDXL_REFINER_SPLIT", value_name = "F", allow_negative_numbers = true)]
    pub(crate) refiner_split: Option<f32>,

    /// The refiner noises the base's finished picture by this much, between 0 and 1, and denoises it again (strength)
    #[arg(long, env = "SDXL_REFINER_STRENGTH", value_name = "F", allow_negative_numbers = true)]
    pub(crate) refiner_strength: Option<f32>,
}

/// What makes another picture of the same prompt, faster.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Approximations (faster, and another picture)")]
pub(crate) struct ApproximationArgs {
    /// Guidance is on from this part of the schedule, 0 to 1 [default: 0]
    #[arg(long, env = "SDXL_GUIDANCE_START", value_name = "F", allow_negative_numbers = true)]
    pub(crate) guidance_start: Option<f32>,

    /// Guidance is on up to this part of the schedule, 0 to 1 [default: 1]
    #[arg(long, env = "SDXL_GUIDANCE_STOP", value_name = "F", allow_negative_numbers = true)]
    pub(crate) guidance_stop: Option<f32>,

    /// Of so many steps, 2 to 20, one is computed whole; the others take up what its inner layers made (DeepCache)
    #[arg(
        long,
        env = "SDXL_CACHE_INTERVAL",
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(2..=20)
    )]
    pub(crate) cache_interval: Option<u32>,

    /// The skip connection within which nothing is computed anew, counted from the outermost [default: 0]
    #[arg(long, env = "SDXL_CACHE_BRANCH_ID", value_name = "N", requires = "cache_interval")]
    pub(crate) cache_branch_id: Option<u32>,
}

impl GenerateArgs {
    /// The request that the flags describe, in the wire's words.
    pub(crate) fn request(&self, image_format: ImageFormat) -> v1::GenerateRequest {
        let (request, conditioning) = (self.request.clone(), self.request.conditioning.clone());
        v1::GenerateRequest {
            prompt: request.prompt.or(request.named_prompt).unwrap_or_default(),
            prompt_2: request.prompt_2,
            negative_prompt: request.negative_prompt,
            negative_prompt_2: request.negative_prompt_2,
            width: request.width.unwrap_or_default(),
            height: request.height.unwrap_or_default(),
            num_inference_steps: request.num_inference_steps.unwrap_or_default(),
            num_images: request.num_images.unwrap_or_default(),
            guidance_scale: request.guidance_scale,
            guidance_rescale: request.guidance_rescale,
            seed: request.seed,
            clip_skip: request.clip_skip.unwrap_or_default(),
            scheduler: request.scheduler.message(),
            original_size: conditioning.original_size.map(Into::into),
            target_size: conditioning.target_size.map(Into::into),
            negative_original_size: conditioning.negative_original_size.map(Into::into),
            negative_target_size: conditioning.negative_target_size.map(Into::into),
            crops_coords_top_left: conditioning.crops_coords_top_left.map(Into::into),
            negative_crops_coords_top_left: conditioning.negative_crops_coords_top_left.map(Into::into),
            refiner: request.refiner.message(),
            image_format: v1::ImageFormat::from(image_format).into(),
            quality: self.output.quality.unwrap_or_default(),
            priority: request.priority.map_or(v1::Priority::Unspecified, wire_priority).into(),
            request_id: request.request_id,
            guidance_interval: request.approximation.guidance_interval(),
            deep_cache: request.approximation.deep_cache(),
        }
    }
}

impl ApproximationArgs {
    fn guidance_interval(&self) -> Option<v1::GuidanceInterval> {
        let interval = v1::GuidanceInterval { start: self.guidance_start, stop: self.guidance_stop };
        (interval != v1::GuidanceInterval::default()).then_some(interval)
    }

    fn deep_cache(&self) -> Option<v1::DeepCache> {
        let cache_branch_id = self.cache_branch_id.unwrap_or_default();
        self.cache_interval.map(|cache_interval| v1::DeepCache { cache_interval, cache_branch_id })
    }
}

impl SchedulerArgs {
    fn message(&self) -> Option<v1::Scheduler> {
        let scheduler = v1::Scheduler {
            kind: self.scheduler.map_or(v1::SchedulerKind::Unspecified, Into::into).into(),
            timestep_spacing: self.timestep_spacing.map(|s| v1::TimestepSpacing::from(s).into()),
            use_karras_sigmas: self.use_karras_sigmas,
        };
        (scheduler != v1::Scheduler::default()).then_some(scheduler)
    }
}

impl RefinerArgs {
    fn message(&self) -> Option<v1::Refiner> {
        let split = self.mode.refiner_split.map(v1::refiner::Mode::DenoisingSplit);
        let mode = split.or_else(|| self.mode.refiner_strength.map(v1::refiner::Mode::Strength))?;
        Some(v1::Refiner {
            mode: Some(mode),
            num_inference_steps: self.refiner_steps.unwrap_or_default(),
            aesthetic_score: self.aesthetic_score,
            negative_aesthetic_score: self.negative_aesthetic_score,
        })
    }
}

/// The flag for a field of `sdxl.v1.GenerateRequest`, given by its path as in `refiner.denoising_split`; the path
/// itself where there is none.
pub(crate) fn flag_of(field: &str) -> String {
    match field {
        "prompt" => "PROMPT".to_owned(),
        "refiner" | "refiner.mode" => "--refiner-split, --refiner-strength".to_owned(),
        "refiner.denoising_split" => "--refiner-split".to_owned(),
        "refiner.strength" => "--refiner-strength".to_owned(),
        "refiner.num_inference_steps" => "--refiner-steps".to_owned(),
        "scheduler.kind" => "--scheduler".to_owned(),
        "guidance_interval" => "--guidance-start, --guidance-stop".to_owned(),
        "guidance_interval.start" => "--guidance-start".to_owned(),
        "guidance_interval.stop" => "--guidance-stop".to_owned(),
        "deep_cache" => "--cache-interval".to_owned(),
        terms::TENANT => "--tenant".to_owned(),
        _ => {
            let (parent, child) = field.split_once('.').unwrap_or((field, ""));
            let is_message = matches!(parent, "refiner" | "scheduler" | "deep_cache");
            let name = if is_message && !child.is_empty() { child } else { parent };
            format!("--{}", name.replace('_', "-"))
        }
    }
}
