//! The public request.

use crate::v1;
use sdxl_core::{
    DeepCacheRequest, GenerateRequest, GuidanceInterval, ImageFormat, Priority, RefinerMode, RefinerRequest,
    SchedulerKind, SchedulerRequest, TimestepSpacing, Violations,
};

/// The request in the domain's words. Unknown enum values are noted in `violations` and left at their defaults.
#[must_use]
pub fn generate_request(request: v1::GenerateRequest, violations: &mut Violations) -> GenerateRequest {
    GenerateRequest {
        scheduler: request.scheduler.map(|s| scheduler(s, violations)),
        image_format: image_format(request.image_format, violations),
        prompt: request.prompt,
        prompt_2: request.prompt_2,
        negative_prompt: request.negative_prompt,
        negative_prompt_2: request.negative_prompt_2,
        width: request.width,
        height: request.height,
        num_inference_steps: request.num_inference_steps,
        num_images: request.num_images,
        guidance_scale: request.guidance_scale,
        guidance_rescale: request.guidance_rescale,
        seed: request.seed,
        clip_skip: request.clip_skip,
        original_size: request.original_size.map(Into::into),
        target_size: request.target_size.map(Into::into),
        negative_original_size: request.negative_original_size.map(Into::into),
        negative_target_size: request.negative_target_size.map(Into::into),
        crops_coords_top_left: request.crops_coords_top_left.map(Into::into),
        negative_crops_coords_top_left: request.negative_crops_coords_top_left.map(Into::into),
        refiner: request.refiner.map(|r| RefinerRequest {
            mode: r.mode.map(|mode| match mode {
                v1::refiner::Mode::DenoisingSplit(split) => RefinerMode::DenoisingSplit(split),
                v1::refiner::Mode::Strength(strength) => RefinerMode::Strength(strength),
            }),
            num_inference_steps: r.num_inference_steps,
            aesthetic_score: r.aesthetic_score,
            negative_aesthetic_score: r.negative_aesthetic_score,
        }),
        quality: request.quality,
        priority: priority(request.priority, violations),
        request_id: request.request_id,
        guidance_interval: request
            .guidance_interval
            .map(|interval| GuidanceInterval { start: interval.start, stop: interval.stop }),
        deep_cache: request.deep_cache.map(|cache| DeepCacheRequest {
            cache_interval: cache.cache_interval,
            cache_branch_id: cache.cache_branch_id,
        }),
    }
}

fn priority(priority: i32, violations: &mut Violations) -> Priority {
    match v1::Priority::try_from(priority) {
        Ok(v1::Priority::Unspecified | v1::Priority::Interactive) => Priority::Interactive,
        Ok(v1::Priority::Batch) => Priority::Batch,
        Err(_) => {
            violations.add("priority", priority, "one of PRIORITY_INTERACTIVE, PRIORITY_BATCH");
            Priority::default()
        }
    }
}

fn scheduler(scheduler: v1::Scheduler, violations: &mut Violations) -> SchedulerRequest {
    let kind = v1::SchedulerKind::try_from(scheduler.kind);
    if kind.is_err() {
        let served = SchedulerKind::ALL.map(|kind| v1::SchedulerKind::from(kind).as_str_name()).join(", ");
        violations.add("scheduler.kind", scheduler.kind, format!("one of {served}"));
    }
    let spacing = scheduler.timestep_spacing.map(v1::TimestepSpacing::try_from);
    if let (Some(Err(_)), Some(value)) = (&spacing, scheduler.timestep_spacing) {
        let allowed = "one of TIMESTEP_SPACING_LEADING, TIMESTEP_SPACING_LINSPACE, TIMESTEP_SPACING_TRAILING";
        violations.add("scheduler.timestep_spacing", value, allowed);
    }
    SchedulerRequest {
        kind: kind.ok().and_then(|kind| SchedulerKind::try_from(kind).ok()),
        timestep_spacing: spacing
            .and_then(Result::ok)
            .and_then(|spacing| TimestepSpacing::try_from(spacing).ok()),
        use_karras_sigmas: scheduler.use_karras_sigmas,
    }
}

fn image_format(format: i32, violations: &mut Violations) -> ImageFormat {
    if let Ok(format) = v1::ImageFormat::try_from(format) {
        return super::image_format(format);
    }
    violations.add("image_format", format, "one of IMAGE_FORMAT_PNG, IMAGE_FORMAT_JPEG, IMAGE_FORMAT_WEBP");
    ImageFormat::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_enum_values_are_named_with_what_is_served() {
        let request = v1::GenerateRequest {
            scheduler: Some(v1::Scheduler { kind: 77, timestep_spacing: Some(9), use_karras_sigmas: None }),
            image_format: 5,
            priority: 3,
            ..Default::default()
        };
        let mut violations = Violations::default();
        let _ = generate_request(request, &mut violations);
        let texts: Vec<_> =
            violations.into_vec().into_iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
        assert_eq!(texts.len(), 4);
        assert!(texts.contains(&"priority: 3 is not one of PRIORITY_INTERACTIVE, PRIORITY_BATCH".to_owned()));
        assert!(texts.contains(
            &"scheduler.kind: 77 is not one of SCHEDULER_KIND_EULER, SCHEDULER_KIND_DDIM".to_owned()
        ));
    }

    #[test]
    fn every_wire_field_reaches_the_domain() {
        let request = v1::GenerateRequest {
            prompt: "p".into(),
            prompt_2: Some("p2".into()),
            negative_prompt: Some("n".into()),
            negative_prompt_2: Some("n2".into()),
            width: 1,
            height: 2,
            num_inference_steps: 3,
            num_images: 4,
            guidance_scale: Some(5.0),
            guidance_rescale: Some(6.0),
            seed: Some(7),
            clip_skip: 8,
            scheduler: Some(v1::Scheduler {
                kind: 2,
                timestep_spacing: Some(3),
                use_karras_sigmas: Some(true),
            }),
            original_size: Some(v1::Size { height: 9, width: 10 }),
            target_size: Some(v1::Size { height: 11, width: 12 }),
            negative_original_size: Some(v1::Size { height: 13, width: 14 }),
            negative_target_size: Some(v1::Size { height: 15, width: 16 }),
            crops_coords_top_left: Some(v1::CropCoords { top: 17, left: 18 }),
            negative_crops_coords_top_left: Some(v1::CropCoords { top: 19, left: 20 }),
            refiner: Some(v1::Refiner {
                num_inference_steps: 21,
                aesthetic_score: Some(22.0),
                negative_aesthetic_score: Some(23.0),
                mode: Some(v1::refiner::Mode::Strength(0.5)),
            }),
            image_format: 3,
            quality: 24,
            priority: 2,
            request_id: Some("r".into()),
            guidance_interval: Some(v1::GuidanceInterval { start: Some(0.25), stop: Some(0.75) }),
            deep_cache: Some(v1::DeepCache { cache_interval: 25, cache_branch_id: 26 }),
        };
        let mut violations = Violations::default();
        let ours = generate_request(request, &mut violations);
        assert!(violations.is_empty());
        let expected = GenerateRequest {
            prompt: "p".into(),
            prompt_2: Some("p2".into()),
            negative_prompt: Some("n".into()),
            negative_prompt_2: Some("n2".into()),
            width: 1,
            height: 2,
            num_inference_steps: 3,
            num_images: 4,
            guidance_scale: Some(5.0),
            guidance_rescale: Some(6.0),
            seed: Some(7),
            clip_skip: 8,
            scheduler: Some(SchedulerRequest {
                kind: Some(SchedulerKind::Ddim),
                timestep_spacing: Some(TimestepSpacing::Trailing),
                use_karras_sigmas: Some(true),
            }),
            original_size: Some(sdxl_core::Size::new(9, 10)),
            target_size: Some(sdxl_core::Size::new(11, 12)),
            negative_original_size: Some(sdxl_core::Size::new(13, 14)),
            negative_target_size: Some(sdxl_core::Size::new(15, 16)),
            crops_coords_top_left: Some(sdxl_core::CropCoords { top: 17, left: 18 }),
            negative_crops_coords_top_left: Some(sdxl_core::CropCoords { top: 19, left: 20 }),
            refiner: Some(RefinerRequest {
                mode: Some(RefinerMode::Strength(0.5)),
                num_inference_steps: 21,
                aesthetic_score: Some(22.0),
                negative_aesthetic_score: Some(23.0),
            }),
            image_format: ImageFormat::WebP,
            quality: 24,
            priority: Priority::Batch,
            request_id: Some("r".into()),
            guidance_interval: Some(GuidanceInterval { start: Some(0.25), stop: Some(0.75) }),
            deep_cache: Some(DeepCacheRequest { cache_interval: 25, cache_branch_id: 26 }),
        };
        assert_eq!(ours, expected);
    }
}
