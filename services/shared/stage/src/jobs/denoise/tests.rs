use super::*;
use candle_core::{DType, Device};
use sdxl_core::{Classify, SchedulerKind};

fn denoiser(requires_aesthetics_score: bool) -> DenoiserInfo {
    DenoiserInfo {
        latent_channels: 4,
        sample_size: 8,
        requires_aesthetics_score,
        cross_attention_dim: 6,
        pooled_projection_dim: 3,
        scheduler: SchedulerConfig::new(SchedulerKind::Euler),
        training_buckets: Vec::new(),
        cache_branch_costs: vec![0.5, 0.75],
        guidance_steps: true,
    }
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

fn conditioning() -> DenoiseConditioning {
    DenoiseConditioning {
        prompt_embeds: Some(zeros(&[77, 6])),
        pooled_prompt_embeds: None,
        original_size: Size::new(64, 128),
        crops_coords_top_left: CropCoords::default(),
        target_size: Some(Size::new(64, 128)),
        aesthetic_score: Some(6.0),
    }
}

fn job() -> DenoiseJob {
    DenoiseJob {
        size: Size::new(64, 128),
        scheduler: SchedulerConfig::new(SchedulerKind::Euler),
        num_inference_steps: 10,
        begin_step: 0,
        end_step: 10,
        guidance_scale: 5.0,
        guidance_rescale: 0.0,
        conditioning: conditioning(),
        negative_conditioning: Some(conditioning()),
        start: DenoiseStart::Noise { seed: 1 },
        checkpoint_interval: 0,
        guidance_steps: None,
        deep_cache: None,
    }
}

fn cache(cache_interval: u32, cache_branch_id: u32) -> DeepCache {
    DeepCache { cache_interval, cache_branch_id }
}

/// The fields that `change` makes wrong.
fn wrong(requires_aesthetics_score: bool, change: impl FnOnce(&mut DenoiseJob)) -> Vec<String> {
    let mut job = job();
    change(&mut job);
    match job.check(&denoiser(requires_aesthetics_score), "r") {
        Ok(_) => Vec::new(),
        Err(error) => error.violations().iter().map(|v| v.field.clone()).collect(),
    }
}

#[test]
fn a_right_job_passes() {
    assert_eq!(wrong(false, |_| {}), [""; 0]);
    assert_eq!(wrong(true, |job| job.conditioning.target_size = None), [""; 0]);
    assert_eq!(job().check(&denoiser(false), "r").unwrap().len(), 10);
}

#[test]
fn each_wrong_field_is_named() {
    type Change = fn(&mut DenoiseJob);
    let cases: [(&str, Change); 20] = [
        ("size.height", |j| j.size.height = 60),
        ("size.width", |j| j.size.width = 4096),
        ("num_inference_steps", |j| j.num_inference_steps = 0),
        ("num_inference_steps", |j| j.num_inference_steps = 1001),
        ("end_step", |j| j.end_step = 11),
        ("begin_step", |j| (j.begin_step, j.start) = (11, DenoiseStart::Latents(zeros(&[4, 8, 16])))),
        ("noise", |j| j.begin_step = 3),
        ("guidance_scale", |j| j.guidance_scale = f32::NAN),
        ("guidance_rescale", |j| j.guidance_rescale = -0.1),
        ("negative_conditioning", |j| j.negative_conditioning = None),
        ("conditioning.prompt_embeds.shape", |j| j.conditioning.prompt_embeds = Some(zeros(&[77, 5]))),
        ("conditioning.pooled_prompt_embeds.shape", |j| {
            j.conditioning.pooled_prompt_embeds = Some(zeros(&[1, 3]));
        }),
        ("conditioning.target_size", |j| j.conditioning.target_size = None),
        ("latents.shape", |j| j.start = DenoiseStart::Latents(zeros(&[4, 16, 8]))),
        ("noised_latents.noise.draws_before", |j| {
            j.start = DenoiseStart::NoisedLatents { latents: zeros(&[4, 8, 16]), seed: 0, draws_before: 99 };
        }),
        ("guidance_steps.end", |j| j.guidance_steps = Some(2..11)),
        ("guidance_steps.begin", |j| j.guidance_steps = Some(Range { start: 6, end: 5 })),
        ("deep_cache.cache_interval", |j| j.deep_cache = Some(cache(1, 0))),
        ("deep_cache.cache_branch_id", |j| j.deep_cache = Some(cache(20, 2))),
        ("checkpoint.step", |j| {
            j.deep_cache = Some(cache(3, 1));
            let latents = zeros(&[4, 8, 16]);
            j.start = DenoiseStart::Checkpoint(Checkpoint { revision: "r".to_owned(), step: 4, latents });
        }),
    ];
    for (field, change) in cases {
        let fields = wrong(false, |job| {
            change(job);
            if field.starts_with("size") {
                job.start = DenoiseStart::Noise { seed: 1 };
            }
        });
        assert_eq!(fields, [field]);
    }
    assert_eq!(wrong(true, |j| j.conditioning.aesthetic_score = None), ["conditioning.aesthetic_score"]);
    let score = |j: &mut DenoiseJob| j.conditioning.aesthetic_score = Some(f32::INFINITY);
    assert_eq!(wrong(true, score), ["conditioning.aesthetic_score"]);
}

#[test]
fn without_guidance_no_negative_half_is_needed() {
    let change = |j: &mut DenoiseJob| (j.guidance_scale, j.negative_conditioning) = (1.0, None);
    assert_eq!(wrong(false, change), [""; 0]);
    // Guided steps are the other stage's.
    let change = |j: &mut DenoiseJob| {
        (j.end_step, j.guidance_steps, j.negative_conditioning) = (8, Some(8..10), None);
    };
    assert_eq!(wrong(false, change), [""; 0]);
}

#[test]
fn a_checkpoint_is_gone_on_from_where_a_step_is_whole_or_none_is_left() {
    for step in [0, 3, 9, 10] {
        let change = |j: &mut DenoiseJob| {
            j.deep_cache = Some(cache(3, 1));
            let latents = zeros(&[4, 8, 16]);
            j.start = DenoiseStart::Checkpoint(Checkpoint { revision: "r".to_owned(), step, latents });
        };
        assert_eq!(wrong(false, change), [""; 0], "step {step}");
    }
}

#[test]
fn all_wrong_fields_come_at_once() {
    let fields = wrong(false, |j| (j.size.width, j.guidance_scale, j.end_step) = (1, -1.0, 99));
    assert_eq!(fields, ["size.width", "end_step", "guidance_scale"]);
}
