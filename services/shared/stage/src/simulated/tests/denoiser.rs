use super::{QUICK, bytes, quick, tensor};
use crate::{
    conformance::{self, Samples},
    engine::{Engine, Step, Work},
    jobs::{Checkpoint, DenoiseConditioning, DenoiseEvent, DenoiseJob, DenoiseStart, StepDone},
    simulated::{Profile, SimulatedDenoiser},
};
use candle_core::{DType, Tensor};
use sdxl_core::{CropCoords, DeepCache, Size, StageKind};
use std::time::{Duration, Instant};

fn denoiser(kind: StageKind) -> SimulatedDenoiser {
    SimulatedDenoiser::new(kind, &quick(), &[]).unwrap().0
}

/// A guided job of so many steps, for the base.
fn job(steps: u32, seed: u64) -> DenoiseJob {
    let size = Size::new(64, 72);
    let conditioning = |value| DenoiseConditioning {
        prompt_embeds: Some(tensor(value, &[77, 6])),
        pooled_prompt_embeds: Some(tensor(value, &[3])),
        original_size: size,
        crops_coords_top_left: CropCoords::default(),
        target_size: Some(size),
        aesthetic_score: None,
    };
    DenoiseJob {
        size,
        scheduler: quick().base_unet.info.scheduler,
        num_inference_steps: steps,
        begin_step: 0,
        end_step: steps,
        guidance_scale: 5.0,
        guidance_rescale: 0.0,
        conditioning: conditioning(1.0),
        negative_conditioning: Some(conditioning(-1.0)),
        start: DenoiseStart::Noise { seed },
        checkpoint_interval: 0,
        guidance_steps: None,
        deep_cache: None,
    }
}

fn run(engine: &mut SimulatedDenoiser, job: DenoiseJob) -> (Vec<StepDone>, Tensor) {
    let mut run = engine.begin(job).unwrap();
    let mut events = Vec::new();
    loop {
        match engine.advance(&mut [&mut run]).remove(0).unwrap() {
            Step::Begun => panic!("it is not ahead"),
            Step::Continue(DenoiseEvent::Step(done)) => events.push(done),
            Step::Continue(DenoiseEvent::Checkpoint(_)) => panic!("checkpoints come apart"),
            Step::Done(latents) => return (events, latents),
        }
    }
}

#[test]
fn the_denoisers_conform() {
    for kind in [StageKind::BaseUnet, StageKind::Refiner] {
        let sample = |seed| {
            let mut job = job(5, seed);
            if kind == StageKind::Refiner {
                let halves = [Some(&mut job.conditioning), job.negative_conditioning.as_mut()];
                for half in halves.into_iter().flatten() {
                    half.prompt_embeds = None;
                    half.aesthetic_score = Some(6.0);
                }
            }
            job
        };
        let samples = Samples {
            request: &|| sample(1),
            other: &|| sample(2),
            wrong: &[
                ("end_step", &|| DenoiseJob { end_step: 6, ..sample(1) }),
                ("negative_conditioning", &|| DenoiseJob { negative_conditioning: None, ..sample(1) }),
            ],
        };
        let mut engine = denoiser(kind);
        assert!(engine.max_batch(sample(1).size) > 1, "batches must be checked too");
        conformance::check(&mut engine, &samples, bytes).unwrap();
    }
}

#[test]
fn steps_and_latents_are_told_as_by_the_real_engine() {
    let mut engine = denoiser(StageKind::BaseUnet);
    let (events, latents) = run(&mut engine, job(4, 7));
    assert_eq!((latents.dims(), latents.dtype()), (&[4, 8, 9][..], DType::F32));
    assert_eq!(
        events.iter().map(|e| (e.step, e.batch_evaluations)).collect::<Vec<_>>(),
        [(0, 2), (1, 2), (2, 2), (3, 2)]
    );
    assert!(events.windows(2).all(|pair| pair[0].timestep > pair[1].timestep), "{events:?}");
    assert!(events.iter().all(|e| e.step_time >= Duration::from_micros(3)), "{events:?}");
    let whole = latents.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(whole.iter().all(|value| (-1.0..1.0).contains(value)));

    let unguided = DenoiseJob { guidance_scale: 1.0, ..job(4, 7) };
    let run = engine.begin(unguided).unwrap();
    assert_eq!(engine.work(&run), Work::even(Size::new(64, 72), 1, 4));
}

#[test]
fn every_checkpoint_leads_to_the_same_latents_bit_for_bit() {
    let mut engine = denoiser(StageKind::BaseUnet);
    let whole = DenoiseJob { checkpoint_interval: 1, ..job(7, 7) };
    let latents = bytes(&run(&mut engine, whole.clone()).1);
    let mut first = engine.begin(whole.clone()).unwrap();
    let mut checkpoints = Vec::new();
    while let Step::Continue(_) = engine.advance(&mut [&mut first]).remove(0).unwrap() {
        if let Some(DenoiseEvent::Checkpoint(checkpoint)) = engine.checkpoint(&first, false).unwrap() {
            checkpoints.push(checkpoint);
        }
    }
    assert_eq!(checkpoints.iter().map(|c| c.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    let Some(DenoiseEvent::Checkpoint(last)) = engine.checkpoint(&first, true).unwrap() else {
        panic!("the last chance")
    };
    checkpoints.push(last);
    // On another replica.
    let mut engine = denoiser(StageKind::BaseUnet);
    for checkpoint in checkpoints {
        let from = |checkpoint| DenoiseJob { start: DenoiseStart::Checkpoint(checkpoint), ..whole.clone() };
        let (events, resumed) = run(&mut engine, from(checkpoint.clone()));
        assert_eq!(events.len(), 7 - checkpoint.step as usize);
        assert_eq!(bytes(&resumed), latents, "from step {}", checkpoint.step);
        // A step done twice, or left out.
        for step in [checkpoint.step - 1, checkpoint.step + 1] {
            if step <= 7 {
                let wrong = Checkpoint { step, ..checkpoint.clone() };
                assert_ne!(bytes(&run(&mut engine, from(wrong)).1), latents, "from step {step}");
            }
        }
        let other = Checkpoint { revision: "other".to_owned(), ..checkpoint };
        assert!(engine.begin(from(other)).unwrap_err().to_string().starts_with("checkpoint.revision: "));
    }
    // Asked for none, it makes none, even at the last chance.
    let run = engine.begin(job(3, 1)).unwrap();
    assert!(engine.checkpoint(&run, true).unwrap().is_none());
}

#[test]
fn steps_outside_of_the_guidance_interval_and_from_the_cache_are_less_work() {
    let mut engine = denoiser(StageKind::BaseUnet);
    let deep_cache = Some(DeepCache { cache_interval: 2, cache_branch_id: 1 });
    let job = DenoiseJob { guidance_steps: Some(0..3), deep_cache, ..job(5, 7) };
    let begun = engine.begin(job.clone()).unwrap();
    let mean_evaluations = (2.0 + 1.0 + 2.0 + 1.0 + 1.0) / 5.0;
    let work = Work { evaluations: 2.0, mean_evaluations, ..Work::even(Size::new(64, 72), 2, 5) };
    assert_eq!(engine.work(&begun), work);
    let (events, _) = run(&mut engine, job);
    assert_eq!(events.iter().map(|e| e.batch_evaluations).collect::<Vec<_>>(), [2, 2, 2, 1, 1]);
    // The third is whole, and the fourth, where guidance ends, and the fifth.
    assert_eq!(events.iter().map(|e| e.batch_work).collect::<Vec<_>>(), [2.0, 1.0, 2.0, 1.0, 1.0]);
}

#[test]
fn cached_runs_are_gone_on_with_from_their_whole_steps() {
    let mut engine = denoiser(StageKind::BaseUnet);
    let deep_cache = Some(DeepCache { cache_interval: 3, cache_branch_id: 0 });
    let whole = DenoiseJob { checkpoint_interval: 2, deep_cache, ..job(8, 7) };
    let latents = bytes(&run(&mut engine, whole.clone()).1);
    let mut first = engine.begin(whole.clone()).unwrap();
    let (mut due, mut last) = (Vec::new(), Vec::new());
    while let Step::Continue(_) = engine.advance(&mut [&mut first]).remove(0).unwrap() {
        for (now, checkpoints) in [(false, &mut due), (true, &mut last)] {
            if let Some(DenoiseEvent::Checkpoint(checkpoint)) = engine.checkpoint(&first, now).unwrap() {
                checkpoints.push(checkpoint);
            }
        }
    }
    let steps = |made: &[Checkpoint]| made.iter().map(|c| c.step).collect::<Vec<_>>();
    assert_eq!(steps(&due), [3, 6]);
    assert_eq!(steps(&last), [0, 0, 3, 3, 3, 6, 6, 8]);
    for checkpoint in due.into_iter().chain(last) {
        let resumed = DenoiseJob { start: DenoiseStart::Checkpoint(checkpoint), ..whole.clone() };
        assert_eq!(bytes(&run(&mut engine, resumed).1), latents);
    }
}

#[test]
fn a_schedule_in_two_parts_is_the_schedule() {
    let mut engine = denoiser(StageKind::BaseUnet);
    let (_, latents) = run(&mut engine, job(4, 7));
    let (_, half) = run(&mut engine, DenoiseJob { end_step: 2, ..job(4, 7) });
    let rest = DenoiseJob { begin_step: 2, start: DenoiseStart::Latents(half), ..job(4, 7) };
    assert_eq!(bytes(&run(&mut engine, rest).1), bytes(&latents));
}

#[test]
fn all_that_is_asked_for_counts() {
    let noised = |seed, draws_before| DenoiseStart::NoisedLatents {
        latents: tensor(0.5, &[4, 8, 9]),
        seed,
        draws_before,
    };
    type Change<'a> = &'a dyn Fn(&mut DenoiseJob);
    let changes: [Change<'_>; 15] = [
        &|_| {},
        &|job| job.start = DenoiseStart::Noise { seed: 2 },
        &|job| job.start = DenoiseStart::Latents(tensor(0.5, &[4, 8, 9])),
        &|job| job.start = noised(1, 0),
        &|job| job.start = noised(1, 1),
        &|job| job.guidance_scale = 4.0,
        &|job| job.guidance_rescale = 0.5,
        &|job| job.conditioning.prompt_embeds = None,
        &|job| job.negative_conditioning = Some(job.conditioning.clone()),
        &|job| job.conditioning.crops_coords_top_left.left = 8,
        &|job| job.conditioning.original_size = Size::new(72, 64),
        &|job| (job.num_inference_steps, job.end_step) = (9, 3),
        &|job| job.guidance_steps = Some(0..2),
        &|job| job.deep_cache = Some(DeepCache { cache_interval: 2, cache_branch_id: 0 }),
        &|job| job.deep_cache = Some(DeepCache { cache_interval: 2, cache_branch_id: 1 }),
    ];
    let mut engine = denoiser(StageKind::BaseUnet);
    let mut seen = Vec::new();
    for (i, change) in changes.into_iter().enumerate() {
        let mut changed = job(3, 1);
        change(&mut changed);
        let latents = bytes(&run(&mut engine, changed).1);
        assert!(!seen.contains(&latents), "change {i} makes no difference");
        seen.push(latents);
    }
    let mut zeros = job(3, 1);
    zeros.conditioning.prompt_embeds = Some(tensor(0.0, &[77, 6]));
    assert_eq!(bytes(&run(&mut engine, zeros).1), seen[7], "absent embeddings are zeros");
}

#[test]
fn nan_names_the_step() {
    let mut engine = denoiser(StageKind::BaseUnet);
    let start = DenoiseStart::Latents(tensor(f32::NAN, &[4, 8, 9]));
    let error = engine.begin(DenoiseJob { begin_step: 2, start, ..job(4, 1) }).unwrap_err();
    assert_eq!(error.to_string(), "latents is not finite before step 2");
}

#[test]
fn a_batch_takes_the_profiles_time_once() {
    let slow = QUICK.replacen("per_evaluation_seconds = 1e-6", "per_evaluation_seconds = 0.005", 1);
    let profile = Profile::parse(&slow).unwrap();
    let (mut engine, _) = SimulatedDenoiser::new(StageKind::BaseUnet, &profile, &[]).unwrap();
    let mut runs = [engine.begin(job(2, 1)).unwrap(), engine.begin(job(2, 2)).unwrap()];
    let started = Instant::now();
    for _ in 0..2 {
        for result in engine.advance(&mut runs.iter_mut().collect::<Vec<_>>()) {
            let Step::Continue(DenoiseEvent::Step(done)) = result.unwrap() else { panic!("not done yet") };
            assert_eq!(done.batch_evaluations, 4);
            assert!(done.step_time >= Duration::from_millis(20), "{done:?}");
        }
    }
    assert!(started.elapsed() >= Duration::from_millis(40));
}

#[test]
fn what_a_stage_is_told_about_batches_comes_before_the_profile() {
    let given = ["3".parse().unwrap(), "64x64=7".parse().unwrap()];
    let (engine, _) = SimulatedDenoiser::new(StageKind::BaseUnet, &quick(), &given).unwrap();
    assert_eq!((engine.max_batch(Size::new(64, 64)), engine.max_batch(Size::new(64, 72))), (7, 3));
    let (engine, _) = SimulatedDenoiser::new(StageKind::BaseUnet, &quick(), &given[1..]).unwrap();
    assert_eq!((engine.max_batch(Size::new(64, 64)), engine.max_batch(Size::new(64, 72))), (7, 4));
}
