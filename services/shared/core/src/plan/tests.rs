use super::*;
use crate::{
    model::{ConditionerInfo, DenoiserInfo, VaeInfo},
    request::{DeepCacheRequest, GuidanceInterval, RefinerRequest},
    scheduler::{BetaSchedule, SchedulerKind, TimestepSpacing},
};

fn model() -> ModelInfo {
    let conditioner = ConditionerInfo {
        num_hidden_layers: 12,
        cross_attention_dim: 2048,
        pooled_projection_dim: 1280,
        force_zeros_for_empty_prompt: true,
    };
    let scheduler = SchedulerConfig {
        beta_start: Some(0.00085),
        beta_end: Some(0.012),
        beta_schedule: Some(BetaSchedule::ScaledLinear),
        timestep_spacing: Some(TimestepSpacing::Leading),
        steps_offset: Some(1),
        ..SchedulerConfig::new(SchedulerKind::Euler)
    };
    let base = DenoiserInfo {
        latent_channels: 4,
        sample_size: 128,
        requires_aesthetics_score: false,
        cross_attention_dim: 2048,
        pooled_projection_dim: 1280,
        scheduler,
        training_buckets: Vec::new(),
        cache_branch_costs: vec![0.25, 0.5, 0.75],
        guidance_steps: true,
    };
    let refiner = DenoiserInfo { requires_aesthetics_score: true, cross_attention_dim: 1280, ..base.clone() };
    let second =
        ConditionerInfo { force_zeros_for_empty_prompt: false, num_hidden_layers: 32, ..conditioner.clone() };
    ModelInfo {
        base_conditioner: conditioner,
        base,
        refiner: Some((second, refiner)),
        vae: VaeInfo { latent_channels: 4, vae_scale_factor: 8 },
    }
}

fn cat() -> GenerateRequest {
    GenerateRequest { prompt: "a cat".into(), seed: Some(7), ..GenerateRequest::default() }
}

fn plan(request: &GenerateRequest) -> Result<Plan, PlanError> {
    Plan::new(request, &model(), Violations::default(), || 99)
}

fn fields(request: &GenerateRequest) -> Vec<String> {
    match plan(request) {
        Err(PlanError::Invalid(violations)) => violations.into_iter().map(|v| v.field).collect(),
        other => panic!("{other:?}"),
    }
}

fn refine(mode: RefinerMode) -> GenerateRequest {
    GenerateRequest { refiner: Some(RefinerRequest { mode: Some(mode), ..Default::default() }), ..cat() }
}

#[test]
fn defaults_are_diffusers_own() {
    let plan = plan(&cat()).unwrap();
    assert_eq!(plan.size, Size::new(1024, 1024));
    assert_eq!((plan.base.begin_step, plan.base.end_step), (0, 50));
    assert_eq!((plan.base.guidance_scale, plan.seeds.as_slice()), (5.0, [7].as_slice()));
    assert_eq!(plan.texts.len(), 1, "the negative half is zeros");
    assert_eq!(plan.base.negative.unwrap().text, None);
    assert_eq!(plan.nearest_bucket, None);
}

#[test]
fn an_empty_negative_prompt_is_encoded_and_an_absent_one_is_not() {
    let empty = plan(&GenerateRequest { negative_prompt: Some(String::new()), ..cat() }).unwrap();
    assert_eq!(empty.base.negative.unwrap().text, Some(1));
    let second_only = plan(&GenerateRequest { negative_prompt_2: Some("dog".into()), ..cat() }).unwrap();
    assert_eq!(second_only.base.negative.unwrap().text, None);
}

#[test]
fn without_guidance_there_is_no_negative_half() {
    let plan = plan(&GenerateRequest { guidance_scale: Some(1.0), ..cat() }).unwrap();
    assert_eq!((plan.base.negative, plan.base.whole_work(10)), (None, 500));
}

#[test]
fn negative_sizes_count_in_the_base_only_where_both_are_given() {
    let small = Size::new(256, 256);
    let one = plan(&GenerateRequest { negative_original_size: Some(small), ..cat() }).unwrap();
    assert_eq!(one.base.negative.unwrap().original_size, Size::new(1024, 1024));
    let request =
        GenerateRequest { negative_original_size: Some(small), negative_target_size: Some(small), ..cat() };
    assert_eq!(plan(&request).unwrap().base.negative.unwrap().original_size, small);
}

#[test]
fn experts_share_the_schedule() {
    let plan = plan(&refine(RefinerMode::DenoisingSplit(0.8))).unwrap();
    let refiner = plan.refiner.as_ref().unwrap();
    assert_eq!((plan.base.begin_step, plan.base.end_step), (0, 40));
    assert_eq!((refiner.begin_step, refiner.end_step, refiner.start), (40, 50, Start::Latents));
    assert_eq!(refiner.positive.aesthetic_score, Some(6.0));
    assert_eq!(refiner.negative.unwrap().aesthetic_score, Some(2.5));
    assert_eq!(plan.texts.len(), 3, "the refiner encodes an absent negative prompt as an empty one");
    assert_eq!(plan.steps(), 50);
}

#[test]
fn strength_runs_the_last_steps() {
    let plan = plan(&refine(RefinerMode::Strength(0.3))).unwrap();
    let refiner = plan.refiner.unwrap();
    assert_eq!((plan.base.end_step, refiner.begin_step, refiner.end_step), (50, 35, 50));
    assert_eq!(refiner.start, Start::NoisedLatents);
}

#[test]
fn fractions_are_taken_as_written() {
    let mut request = refine(RefinerMode::Strength(0.7));
    request.num_inference_steps = 10;
    assert_eq!(plan(&request).unwrap().refiner.unwrap().steps(), 7);
}

#[test]
fn every_wrong_field_is_named_at_once() {
    let request = GenerateRequest {
        width: 100,
        height: 4096,
        num_inference_steps: 1001,
        num_images: 17,
        guidance_scale: Some(f32::NAN),
        guidance_rescale: Some(-0.1),
        clip_skip: 12,
        quality: 101,
        original_size: Some(Size::new(0, 5)),
        crops_coords_top_left: Some(CropCoords { top: 1, left: 70_000 }),
        ..refine(RefinerMode::Strength(1.0))
    };
    let expected = [
        "width",
        "height",
        "num_inference_steps",
        "num_images",
        "guidance_scale",
        "guidance_rescale",
        "clip_skip",
        "quality",
        "original_size.height",
        "crops_coords_top_left.left",
        "refiner.strength",
    ];
    assert_eq!(fields(&request), expected);
}

#[test]
fn descriptions_hold_value_and_range() {
    let error = plan(&GenerateRequest { width: 100, ..cat() }).unwrap_err();
    assert_eq!(error.to_string(), "width: 100 is not a multiple of 8 in 64..=2048");
}

#[test]
fn a_split_may_leave_a_stage_without_steps_as_in_diffusers() {
    let plan_of = |split| plan(&refine(RefinerMode::DenoisingSplit(split))).unwrap();
    let (early, late) = (plan_of(0.001), plan_of(0.9999));
    assert_eq!((early.base.steps(), early.refiner.unwrap().steps()), (0, 50));
    assert_eq!((late.base.steps(), late.refiner.unwrap().steps()), (50, 0));
}

#[test]
fn a_strength_of_less_than_a_step_is_refused() {
    let mut request = refine(RefinerMode::Strength(0.05));
    request.num_inference_steps = 10;
    assert_eq!(fields(&request), ["refiner.strength"]);
    request.refiner = Some(RefinerRequest::default());
    assert_eq!(fields(&request), ["refiner.mode"]);
}

#[test]
fn a_mode_outside_its_range_is_named_once() {
    for fraction in [0.0, 1.0, -0.25, f32::NAN] {
        assert_eq!(fields(&refine(RefinerMode::DenoisingSplit(fraction))), ["refiner.denoising_split"]);
        assert_eq!(fields(&refine(RefinerMode::Strength(fraction))), ["refiner.strength"]);
    }
}

#[test]
fn a_refiner_that_is_not_there_is_a_failed_precondition() {
    let model = ModelInfo { refiner: None, ..model() };
    let request = refine(RefinerMode::Strength(0.3));
    let error = Plan::new(&request, &model, Violations::default(), || 0).unwrap_err();
    assert_eq!(error.class(), ErrorClass::FailedPrecondition);
}

#[test]
fn a_size_outside_the_buckets_is_served_and_named() {
    let plan = plan(&GenerateRequest { width: 1024, height: 576, ..cat() }).unwrap();
    assert_eq!(plan.nearest_bucket, Some(Size::new(768, 1344)));
}

#[test]
fn seeds_count_upwards_and_an_absent_one_is_drawn() {
    let request = GenerateRequest { seed: None, num_images: 3, ..cat() };
    assert_eq!(plan(&request).unwrap().seeds, [99, 100, 101]);
    let request = GenerateRequest { seed: Some(u64::MAX), num_images: 2, ..cat() };
    assert_eq!(plan(&request).unwrap().seeds, [u64::MAX, 0]);
}

fn interval(start: Option<f32>, stop: Option<f32>) -> GenerateRequest {
    GenerateRequest { guidance_interval: Some(GuidanceInterval { start, stop }), ..cat() }
}

fn cached(cache_interval: u32, cache_branch_id: u32) -> GenerateRequest {
    GenerateRequest { deep_cache: Some(DeepCacheRequest { cache_interval, cache_branch_id }), ..cat() }
}

#[test]
fn a_guidance_interval_is_cut_to_steps_as_written() {
    // int(0.7 * 10) of doubles is 7; the nearest f32 would be cut to 6.
    let steps = |start, stop| {
        let request = GenerateRequest { num_inference_steps: 10, ..interval(start, stop) };
        plan(&request).unwrap().base.guidance_steps.unwrap()
    };
    assert_eq!(
        [steps(Some(0.25), Some(0.7)), steps(None, Some(0.15)), steps(Some(0.99), None)],
        [2..7, 0..1, 9..10]
    );
    for whole in [cat(), interval(None, None), interval(Some(0.0), Some(1.0))] {
        assert_eq!(plan(&whole).unwrap().base.guidance_steps, None);
    }
}

#[test]
fn steps_outside_the_guidance_interval_are_half_the_work() {
    let base = plan(&interval(Some(0.2), Some(0.6))).unwrap().base;
    assert_eq!((base.work(0..10, 8), base.work(10..30, 8), base.whole_work(8)), (80, 320, 560));
}

#[test]
fn a_stage_without_a_guided_step_has_no_negative_half() {
    let request = |start, stop| GenerateRequest {
        negative_prompt: Some("dog".into()),
        guidance_interval: Some(GuidanceInterval { start, stop }),
        ..refine(RefinerMode::DenoisingSplit(0.8))
    };
    let halves = |start, stop| {
        let plan = plan(&request(start, stop)).unwrap();
        (plan.base.negative.is_some(), plan.refiner.unwrap().negative.is_some(), plan.texts.len())
    };
    assert_eq!(halves(None, Some(0.8)), (true, false, 3));
    assert_eq!(halves(Some(0.8), None), (false, true, 3));
    assert_eq!(halves(Some(0.7), Some(0.9)), (true, true, 4));
}

#[test]
fn steps_from_the_cache_cost_what_their_branch_costs() {
    let base = |request| plan(&request).unwrap().base;
    let default = base(cached(0, 0));
    assert_eq!(default.deep_cache, Some((DeepCache { cache_interval: 3, cache_branch_id: 0 }, 0.25)));
    // 17 of 50 are whole.
    assert_eq!(default.whole_work(2), 17 * 4 + 33);
    assert_eq!(default.work(0..3, 2) + default.work(3..50, 2), default.whole_work(2));
    assert_eq!(base(cached(5, 2)).whole_work(2), 10 * 4 + 40 * 3);
}

#[test]
fn wrong_approximations_are_named_with_what_is_right() {
    let named = |request: &GenerateRequest| plan(request).unwrap_err().to_string();
    for (request, expected) in [
        (interval(Some(-0.1), None), "guidance_interval.start: -0.1 is not in 0..=1"),
        (interval(None, Some(1.5)), "guidance_interval.stop: 1.5 is not in 0..=1"),
        (interval(Some(f32::NAN), None), "guidance_interval.start: NaN is not in 0..=1"),
        (interval(Some(0.6), Some(0.5)), "guidance_interval: start 0.6 is not below stop 0.5"),
        (interval(Some(0.51), Some(0.515)), "guidance_interval: 0.51..0.515 of 50 steps holds no step"),
        (cached(1, 0), "deep_cache.cache_interval: 1 is not in 2..=20"),
        (cached(21, 0), "deep_cache.cache_interval: 21 is not in 2..=20"),
        (cached(3, 3), "deep_cache.cache_branch_id: 3 is not in 0..=2, the network's skip connections"),
    ] {
        assert_eq!(named(&request), expected);
    }
    let mut model = model();
    (model.base.guidance_steps, model.base.cache_branch_costs) = (false, Vec::new());
    let error = Plan::new(&cached(3, 0), &model, Violations::default(), || 0).unwrap_err();
    assert!(error.to_string().starts_with("deep_cache: this model's denoiser keeps nothing"), "{error}");
    let error = Plan::new(&interval(None, Some(0.5)), &model, Violations::default(), || 0).unwrap_err();
    assert!(error.to_string().starts_with("guidance_interval: this model's denoiser guides all"), "{error}");
}
