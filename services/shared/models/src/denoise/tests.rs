use std::path::Path;

use candle_core::Device;
use sdxl_core::{DeepCache, SchedulerConfig, SchedulerKind};

use super::*;
use crate::{seeded, unet::UnetConfig};

const SIZE: [usize; 2] = [6, 4];

fn tiny() -> Unet {
    let text = r#"{"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "attention_head_dim": 2,
        "block_out_channels": [8, 16], "cross_attention_dim": 6, "norm_num_groups": 4, "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "projection_class_embeddings_input_dim": 34,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}"#;
    let config = UnetConfig::from_json(text, Path::new("config.json")).unwrap();
    Unet::new(&seeded::weights(), &config).unwrap()
}

fn conditioning(seed: u64) -> Conditioning {
    let mut generator = TorchGenerator::new(seed);
    let mut draw = |shape: &[usize]| {
        Tensor::from_vec(generator.randn(shape.iter().product()), shape, &Device::Cpu).unwrap()
    };
    let size = Size::new(48, 32);
    Conditioning {
        prompt_embeds: draw(&[5, 6]),
        pooled_prompt_embeds: draw(&[10]),
        time_ids: TimeIds::base(size, CropCoords::default(), size),
    }
}

fn inputs(steps: Range<usize>, start: Start) -> DenoiseInputs {
    DenoiseInputs {
        schedule: Schedule::new(&SchedulerConfig::new(SchedulerKind::Euler), 4).unwrap(),
        steps,
        start,
        positive: conditioning(1),
        negative: Some(conditioning(2)),
        guidance: Guidance { scale: 5.0, rescale: 0.0 },
        kinds: StepKinds::plain(),
    }
}

fn noise() -> Start {
    Start::Noise { seed: 3, latent_size: SIZE }
}

fn finish(unet: &Unet, inputs: DenoiseInputs) -> Tensor {
    let mut run = DenoiseRun::new(unet, inputs).unwrap();
    while run.step(unet).unwrap().is_some() {}
    assert!(run.is_done());
    run.latents().unwrap()
}

/// The step that was done, of a run that waits for it.
fn done(stepped: Result<Stepped, ModelError>) -> Result<Option<usize>, String> {
    match stepped.map_err(|error| error.to_string())? {
        Stepped::Begun => panic!("it was waited for"),
        Stepped::Done { step, .. } => Ok(Some(step)),
        Stepped::Over => Ok(None),
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn two_slices_make_the_whole_bit_for_bit() {
    let unet = tiny();
    let whole = finish(&unet, inputs(0..4, noise()));
    assert_eq!(whole.dims(), [4, 6, 4]);
    let first = finish(&unet, inputs(0..3, noise()));
    let second = finish(&unet, inputs(3..4, Start::Latents(first.clone())));
    assert_ne!(values(&first), values(&whole));
    assert_eq!(values(&second), values(&whole));
}

#[test]
fn runs_in_one_batch_are_those_alone_bit_for_bit() {
    let unet = tiny();
    let wanted: [&dyn Fn() -> DenoiseInputs; 6] = [
        &|| inputs(0..4, noise()),
        &|| DenoiseInputs { negative: None, ..inputs(1..3, Start::Latents(ones())) },
        &|| {
            let guidance = Guidance { scale: 3.0, rescale: 0.5 };
            DenoiseInputs { guidance, positive: conditioning(9), ..inputs(0..4, noise()) }
        },
        &|| DenoiseInputs { kinds: cached(2, 0), ..inputs(0..4, noise()) },
        &|| DenoiseInputs { kinds: cached(3, 2), ..inputs(0..4, noise()) },
        &|| DenoiseInputs { kinds: StepKinds { guided: 1..3, ..cached(4, 2) }, ..inputs(0..4, noise()) },
    ];
    let alone = wanted.map(|inputs| values(&finish(&unet, inputs())));
    let mut runs = wanted.map(|inputs| DenoiseRun::new(&unet, inputs()).unwrap());
    // The third joins late, and the second leaves early.
    let [first, second, third, cached @ ..] = &mut runs;
    let told = step_together(&unet, &mut [first, second]).unwrap();
    assert_eq!(told.into_iter().map(done).collect::<Vec<_>>(), [Ok(Some(0)), Ok(Some(1))]);
    loop {
        let mut all: Vec<_> =
            [&mut *third, &mut *first, &mut *second].into_iter().chain(&mut *cached).collect();
        if step_together(&unet, &mut all).unwrap().into_iter().all(|stepped| done(stepped) == Ok(None)) {
            break;
        }
    }
    assert_eq!(runs.map(|run| values(&run.latents().unwrap())), alone);
}

#[test]
fn a_run_that_is_not_finite_ends_alone() {
    let unet = tiny();
    let mut poisoned = inputs(0..4, noise());
    poisoned.positive.pooled_prompt_embeds = (poisoned.positive.pooled_prompt_embeds * f64::NAN).unwrap();
    let [mut poisoned, mut right] =
        [poisoned, inputs(0..4, noise())].map(|i| DenoiseRun::new(&unet, i).unwrap());
    let told = step_together(&unet, &mut [&mut poisoned, &mut right]).unwrap();
    let told: Vec<_> = told.into_iter().map(done).collect();
    assert_eq!(told, [Err("latents is not finite after step 0".to_owned()), Ok(Some(0))]);
}

#[test]
fn a_step_ahead_is_the_same_and_told_of_one_call_later() {
    let unet = tiny();
    let alike: [&dyn Fn() -> DenoiseInputs; 3] = [
        &|| inputs(0..4, noise()),
        &|| DenoiseInputs { kinds: cached(3, 2), ..inputs(0..4, noise()) },
        &|| DenoiseInputs { negative: None, ..inputs(2..4, Start::Latents(ones())) },
    ];
    let resumable = |run: &DenoiseRun| {
        let (step, latents) = run.resumable().unwrap();
        (run.remaining(), run.is_done(), step, values(&latents))
    };
    let mut runs = alike.map(|inputs| DenoiseRun::new(&unet, inputs()).unwrap());
    let mut waited = alike.map(|inputs| DenoiseRun::new(&unet, inputs()).unwrap());
    let (mut ahead, mut told) = (Ahead::default(), Vec::new());
    while !runs.iter().all(DenoiseRun::is_done) {
        let stepped = ahead.step(&unet, &mut runs.iter_mut().collect::<Vec<_>>()).unwrap();
        for ((stepped, run), waited) in stepped.into_iter().zip(&runs).zip(&mut waited) {
            let stepped = stepped.unwrap();
            if let Stepped::Done { step, .. } = stepped {
                assert_eq!(waited.step(&unet).unwrap(), Some(step));
            }
            // What is known of a step that is only begun is what was before it.
            assert_eq!(resumable(run), resumable(waited));
            told.push(match stepped {
                Stepped::Begun => "begun".to_owned(),
                Stepped::Done { step, .. } => step.to_string(),
                Stepped::Over => "over".to_owned(),
            });
        }
    }
    let expected = [
        ["begun", "begun", "begun"],
        ["0", "0", "2"],
        ["1", "1", "3"],
        ["2", "2", "over"],
        ["3", "3", "over"],
    ];
    assert_eq!(told, expected.concat());
    assert_eq!(
        runs.map(|run| values(&run.latents().unwrap())),
        waited.map(|run| values(&run.latents().unwrap()))
    );
}

#[test]
fn a_run_that_is_not_finite_is_told_when_its_step_is() {
    let unet = tiny();
    let mut poisoned = inputs(0..4, noise());
    poisoned.positive.pooled_prompt_embeds = (poisoned.positive.pooled_prompt_embeds * f64::NAN).unwrap();
    let [mut poisoned, mut right] =
        [poisoned, inputs(0..4, noise())].map(|i| DenoiseRun::new(&unet, i).unwrap());
    let mut ahead = Ahead::default();
    let mut step = || ahead.step(&unet, &mut [&mut poisoned, &mut right]).unwrap();
    assert!(step().into_iter().all(|told| told.unwrap() == Stepped::Begun));
    let told: Vec<_> = step().into_iter().map(done).collect();
    assert_eq!(told, [Err("latents is not finite after step 0".to_owned()), Ok(Some(0))]);
}

fn ones() -> Tensor {
    Tensor::ones((4, 6, 4), DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn the_negative_half_counts() {
    let unet = tiny();
    let guided = finish(&unet, inputs(0..4, noise()));
    let alone = finish(&unet, DenoiseInputs { negative: None, ..inputs(0..4, noise()) });
    assert_ne!(values(&guided), values(&alone));
    let one = Guidance { scale: 1.0, rescale: 0.0 };
    let barely = finish(&unet, DenoiseInputs { guidance: one, ..inputs(0..4, noise()) });
    for (a, b) in values(&barely).into_iter().zip(values(&alone)) {
        assert!((a - b).abs() < 1e-3, "guidance of scale 1 is the positive half: {a} and {b}");
    }
}

#[test]
fn latents_are_noised_by_the_same_generators_next_draw() {
    let unet = tiny();
    let clean = Tensor::ones((4, 6, 4), DType::F32, &Device::Cpu).unwrap();
    let start = Start::NoisedLatents { latents: clean, seed: 3, draws_before: 1 };
    let inputs = inputs(2..4, start);
    let level = inputs.schedule.noise_level(2);
    let run = DenoiseRun::new(&unet, inputs).unwrap();
    let mut generator = TorchGenerator::new(3);
    let _ = generator.randn(96);
    let expected: Vec<_> = generator.randn(96).iter().map(|n| level.signal + n * level.noise).collect();
    assert_eq!(values(&run.latents().unwrap()), expected);
    assert_eq!(run.remaining(), 2..4);
}

#[test]
fn nan_is_told_with_its_step() {
    let unet = tiny();
    let mut inputs = inputs(1..3, Start::Latents(Tensor::ones((4, 6, 4), DType::F32, &Device::Cpu).unwrap()));
    inputs.positive.pooled_prompt_embeds = (inputs.positive.pooled_prompt_embeds * f64::NAN).unwrap();
    let error = DenoiseRun::new(&unet, inputs).unwrap().step(&unet).unwrap_err();
    assert_eq!(error.to_string(), "latents is not finite after step 1");
}

#[test]
fn what_does_not_fit_is_named() {
    let unet = tiny();
    let message = |inputs| DenoiseRun::new(&unet, inputs).unwrap_err().to_string();
    assert_eq!(message(inputs(2..5, noise())), "steps has shape [2, 5], expected steps within 0..4");
    let flat = Tensor::ones((4, 24), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(
        message(inputs(0..4, Start::Latents(flat))),
        "latents has shape [4, 24], expected [4, height, width]"
    );
    let mut uneven = inputs(0..4, noise());
    uneven.positive.prompt_embeds = uneven.positive.prompt_embeds.narrow(0, 0, 4).unwrap();
    assert_eq!(message(uneven), "prompt_embeds has shape [5, 6], expected the positive's [4, 6]");
}

#[test]
fn time_ids_stand_in_the_papers_order() {
    let (size, crop) = (Size::new(1, 2), CropCoords { top: 3, left: 4 });
    assert_eq!(TimeIds::base(size, crop, Size::new(5, 6)).as_slice(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(TimeIds::refiner(size, crop, 2.5).as_slice(), [1.0, 2.0, 3.0, 4.0, 2.5]);
}

fn cached(cache_interval: u32, cache_branch_id: u32) -> StepKinds {
    StepKinds { deep_cache: Some(DeepCache { cache_interval, cache_branch_id }), ..StepKinds::plain() }
}

#[test]
fn steps_outside_of_the_guidance_interval_see_the_prompt_alone() {
    let unet = tiny();
    let kinds = StepKinds { guided: 1..3, ..StepKinds::plain() };
    let got = finish(&unet, DenoiseInputs { kinds, ..inputs(0..4, noise()) });
    let alone = |steps, start| finish(&unet, DenoiseInputs { negative: None, ..inputs(steps, start) });
    let first = alone(0..1, noise());
    let guided = finish(&unet, inputs(1..3, Start::Latents(first)));
    assert_eq!(values(&got), values(&alone(3..4, Start::Latents(guided))));
}

#[test]
fn cached_steps_take_up_the_inner_layers_of_the_last_whole_one() {
    let unet = tiny();
    let all = values(&finish(&unet, inputs(0..4, noise())));
    // By hand: a whole step at 0 and at 2, the outer layers at 1 and 3.
    for branch in 0..unet.config().branches() {
        let kinds = cached(2, u32::try_from(branch).unwrap());
        let got = finish(&unet, DenoiseInputs { kinds, ..inputs(0..4, noise()) });
        let mut by_hand = DenoiseRun::new(&unet, inputs(0..4, noise())).unwrap();
        for i in 0..4 {
            let prompts: Vec<_> = by_hand.prompts(i).collect();
            let (sample, timesteps) = (by_hand.scaled(i).unwrap(), [by_hand.schedule.timestep(i); 2]);
            let predicted = if i % 2 == 0 {
                let (predicted, features) =
                    unet.forward_to(&sample, &timesteps, &prompts, &[branch]).unwrap();
                let latents = by_hand.latents.clone();
                by_hand.whole = Some(Whole { step: i, latents, features: features[0].clone() });
                predicted
            } else {
                let features = &by_hand.whole.as_ref().unwrap().features;
                unet.forward_outer(&sample, &timesteps, &prompts, (branch, features)).unwrap()
            };
            by_hand.take(i, &predicted).unwrap();
        }
        assert_eq!(values(&got), values(&by_hand.latents().unwrap()), "branch {branch}");
        assert_ne!(values(&got), all, "branch {branch}");
    }
}

#[test]
fn what_a_run_keeps_is_its_own_and_gone_when_it_is_done() {
    let unet = tiny();
    let mut runs = [cached(3, 0), StepKinds::plain(), cached(2, 2)]
        .map(|kinds| DenoiseRun::new(&unet, DenoiseInputs { kinds, ..inputs(0..4, noise()) }).unwrap());
    for left in (0..4).rev() {
        for told in step_together(&unet, &mut runs.each_mut()).unwrap() {
            told.unwrap();
        }
        let [first, plain, third] = &runs;
        assert!(plain.whole.is_none());
        for run in [first, third] {
            let Some(whole) = &run.whole else {
                assert_eq!(left, 0);
                continue;
            };
            let (storage, layout) = whole.features.storage_and_layout();
            let candle_core::Storage::Cpu(candle_core::CpuStorage::F32(values)) = &*storage else {
                panic!("f32 on the CPU")
            };
            assert_eq!((layout.dims()[0], values.len()), (2, whole.features.elem_count()));
        }
    }
}

#[test]
fn a_cached_run_goes_on_bit_for_bit_from_its_last_whole_step() {
    let unet = tiny();
    let of = |steps, start| DenoiseInputs { kinds: cached(3, 1), ..inputs(steps, start) };
    let whole = values(&finish(&unet, of(0..4, noise())));
    let mut run = DenoiseRun::new(&unet, of(0..4, noise())).unwrap();
    let mut places = Vec::new();
    while run.step(&unet).unwrap().is_some() {
        let (step, latents) = run.resumable().unwrap();
        places.push(step);
        let rest = match step {
            4 => latents,
            _ => finish(&unet, of(step..4, Start::Latents(latents))),
        };
        assert_eq!(values(&rest), whole, "from step {step}");
    }
    assert_eq!(places, [0, 0, 3, 4]);
    let error = DenoiseRun::new(&unet, of(1..4, Start::Latents(ones()))).unwrap_err();
    assert_eq!(error.to_string(), "steps has shape [1], expected a step that is computed whole");
}
