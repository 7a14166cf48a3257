//! The checks of single fields. Each names the field, its value and what is allowed.

use super::{MAX_CACHE_INTERVAL, MAX_IMAGES, MAX_PROMPT_BYTES, MAX_REQUEST_ID_BYTES, MAX_STEPS};
use crate::{
    error::Violations,
    model::{DenoiserInfo, ModelInfo},
    request::{DeepCacheRequest, GenerateRequest, GuidanceInterval, RefinerMode, RefinerRequest},
    size::{CropCoords, MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE, Size},
};

/// The greatest side or offset in size and crop conditioning, in pixels.
const MAX_CONDITIONING: u32 = 65_535;

/// Whether a request may be called so.
fn is_request_id(id: &str) -> bool {
    (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.bytes().all(|b| (b' '..=b'~').contains(&b))
}

pub(super) fn fields(request: &GenerateRequest, model: &ModelInfo, violations: &mut Violations) {
    prompts(request, violations);
    let multiple = SIDE_MULTIPLE.max(model.vae.vae_scale_factor);
    for (field, side) in [("width", request.width), ("height", request.height)] {
        if side != 0 && (!(MIN_SIDE..=MAX_SIDE).contains(&side) || side % multiple != 0) {
            violations.add(field, side, format!("a multiple of {multiple} in {MIN_SIDE}..={MAX_SIDE}"));
        }
    }
    if request.num_inference_steps > MAX_STEPS {
        violations.add("num_inference_steps", request.num_inference_steps, format!("in 1..={MAX_STEPS}"));
    }
    if request.num_images > MAX_IMAGES {
        violations.add("num_images", request.num_images, format!("in 1..={MAX_IMAGES}"));
    }
    not_negative("guidance_scale", request.guidance_scale, violations);
    not_negative("guidance_rescale", request.guidance_rescale, violations);
    if let Some(interval) = request.guidance_interval {
        guidance_interval(interval, request, model, violations);
    }
    if let Some(cache) = request.deep_cache {
        deep_cache(cache, request, model, violations);
    }
    let max_clip_skip = model.base_conditioner.max_clip_skip();
    if request.clip_skip > max_clip_skip {
        violations.add(
            "clip_skip",
            request.clip_skip,
            format!("in 0..={max_clip_skip}, the text encoders' depth"),
        );
    }
    if request.quality > 100 {
        violations.add("quality", request.quality, "in 0..=100");
    }
    if let Some(id) = request.request_id.as_deref().filter(|id| !is_request_id(id)) {
        let shown: String = id.chars().take(2 * MAX_REQUEST_ID_BYTES).collect();
        violations.add(
            "request_id",
            format!("{shown:?}"),
            format!("1 to {MAX_REQUEST_ID_BYTES} printable ASCII characters"),
        );
    }
    micro_conditioning(request, violations);
    if let Some(refiner) = &request.refiner {
        refiner_fields(refiner, violations);
    }
}

fn prompts(request: &GenerateRequest, violations: &mut Violations) {
    let texts = [
        ("prompt", Some(&request.prompt)),
        ("prompt_2", request.prompt_2.as_ref()),
        ("negative_prompt", request.negative_prompt.as_ref()),
        ("negative_prompt_2", request.negative_prompt_2.as_ref()),
    ];
    for (field, text) in texts {
        if let Some(text) = text.filter(|t| t.len() > MAX_PROMPT_BYTES) {
            violations
                .push(field, format!("{} bytes long; at most {MAX_PROMPT_BYTES} are allowed", text.len()));
        }
    }
}

fn not_negative(field: &str, value: Option<f32>, violations: &mut Violations) {
    if let Some(value) = value.filter(|v| !(v.is_finite() && *v >= 0.0)) {
        violations.add(field, value, "a finite number of at least 0");
    }
}

/// The denoisers that a request is for.
fn denoisers<'a>(
    request: &GenerateRequest,
    model: &'a ModelInfo,
) -> impl Iterator<Item = &'a DenoiserInfo> + use<'a> {
    let refiner = model.refiner.as_ref().filter(|_| request.refiner.is_some());
    [&model.base].into_iter().chain(refiner.map(|(_, refiner)| refiner))
}

fn guidance_interval(
    interval: GuidanceInterval,
    request: &GenerateRequest,
    model: &ModelInfo,
    violations: &mut Violations,
) {
    if !denoisers(request, model).all(|denoiser| denoiser.guidance_steps) {
        violations.push("guidance_interval", "this model's denoiser guides all steps or none; leave it out");
        return;
    }
    let [start, stop] = interval.ends();
    let is_fraction = |value: f32| (0.0..=1.0).contains(&value);
    for (field, value) in [("guidance_interval.start", start), ("guidance_interval.stop", stop)] {
        if !is_fraction(value) {
            violations.add(field, value, "in 0..=1");
        }
    }
    if is_fraction(start) && is_fraction(stop) && start >= stop {
        violations.push("guidance_interval", format!("start {start} is not below stop {stop}"));
    }
}

fn deep_cache(
    cache: DeepCacheRequest,
    request: &GenerateRequest,
    model: &ModelInfo,
    violations: &mut Violations,
) {
    let interval = cache.cache_interval;
    if interval != 0 && !(2..=MAX_CACHE_INTERVAL).contains(&interval) {
        violations.add("deep_cache.cache_interval", interval, format!("in 2..={MAX_CACHE_INTERVAL}"));
    }
    let branches = denoisers(request, model).map(|info| info.cache_branch_costs.len()).min().unwrap_or(0);
    if branches == 0 {
        violations.push("deep_cache", "this model's denoiser keeps nothing from step to step; leave it out");
    } else if cache.cache_branch_id as usize >= branches {
        let allowed = format!("in 0..={}, the network's skip connections", branches - 1);
        violations.add("deep_cache.cache_branch_id", cache.cache_branch_id, allowed);
    }
}

fn micro_conditioning(request: &GenerateRequest, violations: &mut Violations) {
    let sizes = [
        ("original_size", request.original_size),
        ("target_size", request.target_size),
        ("negative_original_size", request.negative_original_size),
        ("negative_target_size", request.negative_target_size),
    ];
    for (field, size) in sizes {
        let Some(Size { height, width }) = size else { continue };
        for (part, side) in [("height", height), ("width", width)] {
            if !(1..=MAX_CONDITIONING).contains(&side) {
                violations.add(&format!("{field}.{part}"), side, format!("in 1..={MAX_CONDITIONING}"));
            }
        }
    }
    let crops = [
        ("crops_coords_top_left", request.crops_coords_top_left),
        ("negative_crops_coords_top_left", request.negative_crops_coords_top_left),
    ];
    for (field, crop) in crops {
        let Some(CropCoords { top, left }) = crop else { continue };
        for (part, offset) in [("top", top), ("left", left)] {
            if offset > MAX_CONDITIONING {
                violations.add(&format!("{field}.{part}"), offset, format!("in 0..={MAX_CONDITIONING}"));
            }
        }
    }
}

fn refiner_fields(refiner: &RefinerRequest, violations: &mut Violations) {
    let Some(mode) = refiner.mode else {
        violations.push("refiner.mode", "nothing is set; one of denoising_split and strength is needed");
        return;
    };
    if !mode.is_fraction() {
        let (field, fraction) = match mode {
            RefinerMode::DenoisingSplit(split) => ("refiner.denoising_split", split),
            RefinerMode::Strength(strength) => ("refiner.strength", strength),
        };
        violations.add(field, fraction, "between 0 and 1, both excluded");
    }
    if refiner.num_inference_steps > MAX_STEPS {
        violations.add(
            "refiner.num_inference_steps",
            refiner.num_inference_steps,
            format!("in 1..={MAX_STEPS}"),
        );
    }
    for (field, score) in [
        ("refiner.aesthetic_score", refiner.aesthetic_score),
        ("refiner.negative_aesthetic_score", refiner.negative_aesthetic_score),
    ] {
        if let Some(score) = score.filter(|s| !s.is_finite()) {
            violations.add(field, score, "a finite number");
        }
    }
}
