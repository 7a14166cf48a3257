use super::*;
use sdxl_checkpoint::{RandomCheckpoint, Variant};
use sdxl_core::{DeepCache, StageKind};
use sdxl_stage::conformance::{self, Samples};
use std::{fs, path::Path};

fn checkpoint() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    RandomCheckpoint::new(Variant::Pico, 3).write(folder.path(), &mut |_| {}).unwrap();
    folder
}

fn load(kind: StageKind, path: &Path) -> anyhow::Result<DenoiserEngine> {
    DenoiserEngine::load(kind, path, (DType::F32, &Device::Cpu), &["4".parse().unwrap()])
        .map(|(engine, _)| engine)
}

/// A job of so many steps at a size that is no multiple of 64.
fn job(engine: &DenoiserEngine, steps: u32, seed: u64) -> DenoiseJob {
    let size = Size::new(64, 72);
    let mut job = engine.warm_up_job(size, steps);
    job.start = DenoiseStart::Noise { seed };
    job
}

fn bytes(latents: &Tensor) -> Vec<u8> {
    latents.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().flat_map(f32::to_le_bytes).collect()
}

fn run(engine: &mut DenoiserEngine, job: DenoiseJob) -> (Vec<StepDone>, Tensor) {
    let mut run = engine.begin(job).unwrap();
    let mut events = Vec::new();
    loop {
        match engine.advance(&mut [&mut run]).remove(0).unwrap() {
            Step::Begun => assert!(engine.ahead.is_some() && events.is_empty()),
            Step::Continue(DenoiseEvent::Step(done)) => events.push(done),
            Step::Continue(DenoiseEvent::Checkpoint(_)) => panic!("checkpoints come apart"),
            Step::Done(latents) => return (events, latents),
        }
    }
}

#[test]
fn the_base_engine_conforms() {
    let folder = checkpoint();
    let engine = load(StageKind::BaseUnet, &folder.path().join("base")).unwrap();
    let sample = job(&engine, 3, 1);
    let with = |change: &dyn Fn(&mut DenoiseJob)| {
        let mut job = sample.clone();
        change(&mut job);
        job
    };
    let samples = Samples {
        request: &|| sample.clone(),
        other: &|| with(&|job| job.start = DenoiseStart::Noise { seed: 2 }),
        wrong: &[
            ("end_step", &|| with(&|job| job.end_step = 4)),
            ("negative_conditioning", &|| with(&|job| job.negative_conditioning = None)),
        ],
    };
    for_both(engine, |engine| conformance::check(engine, &samples, bytes).unwrap());
}

#[test]
fn a_schedule_in_two_parts_is_the_schedule() {
    let folder = checkpoint();
    let mut engine = load(StageKind::BaseUnet, &folder.path().join("base")).unwrap();
    let whole = job(&engine, 4, 7);
    let (events, latents) = run(&mut engine, whole.clone());
    assert_eq!(latents.dims(), [4, 8, 9]);
    assert_eq!(events.iter().map(|e| e.step).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(events.windows(2).all(|pair| pair[0].timestep > pair[1].timestep), "{events:?}");

    let (_, half) = run(&mut engine, DenoiseJob { end_step: 2, ..whole.clone() });
    let rest = DenoiseJob { begin_step: 2, start: DenoiseStart::Latents(half), ..whole };
    assert_eq!(bytes(&run(&mut engine, rest).1), bytes(&latents));
}

#[test]
fn a_checkpoint_leads_to_the_same_latents_bit_for_bit() {
    let folder = checkpoint();
    let engine = load(StageKind::BaseUnet, &folder.path().join("base")).unwrap();
    for_both(engine, checkpoints_lead_to_the_same_latents);
}

/// Waiting for each step, and a step ahead.
fn for_both(mut engine: DenoiserEngine, check: impl Fn(&mut DenoiserEngine)) {
    for ahead in [None, Some(Ahead::default())] {
        engine.ahead = ahead;
        check(&mut engine);
    }
}

fn checkpoints_lead_to_the_same_latents(engine: &mut DenoiserEngine) {
    let whole = DenoiseJob { checkpoint_interval: 2, ..job(engine, 5, 7) };
    let latents = bytes(&run(engine, whole.clone()).1);
    let mut first = engine.begin(whole.clone()).unwrap();
    let mut checkpoints = Vec::new();
    loop {
        match engine.advance(&mut [&mut first]).remove(0).unwrap() {
            Step::Begun => continue,
            Step::Continue(_) => {}
            Step::Done(_) => break,
        }
        if let Some(DenoiseEvent::Checkpoint(checkpoint)) = engine.checkpoint(&first, false).unwrap() {
            checkpoints.push(checkpoint);
        }
    }
    assert_eq!(checkpoints.iter().map(|c| c.step).collect::<Vec<_>>(), [2, 4]);
    for checkpoint in checkpoints {
        let resumed = DenoiseJob { start: DenoiseStart::Checkpoint(checkpoint.clone()), ..whole.clone() };
        let (events, resumed) = run(engine, resumed);
        assert_eq!((events[0].step, bytes(&resumed)), (checkpoint.step, latents.clone()));
        let other = Checkpoint { revision: "other".to_owned(), ..checkpoint };
        let refused = DenoiseJob { start: DenoiseStart::Checkpoint(other), ..whole.clone() };
        assert!(engine.begin(refused).unwrap_err().to_string().starts_with("checkpoint.revision: "));
    }
    // Asked for none, it makes none, even at the last chance.
    let run = engine.begin(DenoiseJob { checkpoint_interval: 0, ..whole }).unwrap();
    assert!(engine.checkpoint(&run, true).unwrap().is_none());
}

#[test]
fn a_cached_run_is_gone_on_with_from_its_whole_steps_bit_for_bit() {
    let folder = checkpoint();
    let engine = load(StageKind::BaseUnet, &folder.path().join("base")).unwrap();
    for_both(engine, cached_runs_are_gone_on_with);
}

fn cached_runs_are_gone_on_with(engine: &mut DenoiserEngine) {
    let deep_cache = Some(DeepCache { cache_interval: 3, cache_branch_id: 1 });
    let whole =
        DenoiseJob { checkpoint_interval: 2, deep_cache, guidance_steps: Some(0..4), ..job(engine, 8, 7) };
    let (events, latents) = run(engine, whole.clone());
    let latents = bytes(&latents);
    assert_eq!(events.iter().map(|e| e.batch_evaluations).collect::<Vec<_>>(), [2, 2, 2, 2, 1, 1, 1, 1]);
    let cached = f64::from(engine.info.cache_branch_costs[1]);
    assert!(0.0 < cached && cached < 1.0, "{cached}");
    let work = [2.0, 2.0 * cached, 2.0 * cached, 2.0, 1.0, cached, 1.0, cached];
    assert_eq!(events.iter().map(|e| e.batch_work).collect::<Vec<_>>(), work);
    let mut first = engine.begin(whole.clone()).unwrap();
    let (mut due, mut last) = (Vec::new(), Vec::new());
    loop {
        match engine.advance(&mut [&mut first]).remove(0).unwrap() {
            Step::Begun => continue,
            Step::Continue(_) => {}
            Step::Done(_) => break,
        }
        for (now, checkpoints) in [(false, &mut due), (true, &mut last)] {
            if let Some(DenoiseEvent::Checkpoint(checkpoint)) = engine.checkpoint(&first, now).unwrap() {
                checkpoints.push(checkpoint);
            }
        }
    }
    let steps = |made: &[Checkpoint]| made.iter().map(|c| c.step).collect::<Vec<_>>();
    assert_eq!((steps(&due), steps(&last)), (vec![3, 4, 6], vec![0, 0, 3, 4, 4, 6, 6, 8]));
    for checkpoint in due.into_iter().chain(last) {
        let resumed = DenoiseJob { start: DenoiseStart::Checkpoint(checkpoint), ..whole.clone() };
        assert_eq!(bytes(&run(engine, resumed).1), latents);
    }
}

#[test]
fn absent_embeddings_are_zeros() {
    let folder = checkpoint();
    let mut engine = load(StageKind::BaseUnet, &folder.path().join("base")).unwrap();
    let absent = job(&engine, 2, 1);
    let mut zeros = absent.clone();
    let width = engine.info.cross_attention_dim as usize;
    zeros.conditioning.prompt_embeds = Some(Tensor::zeros((77, width), DType::F16, &Device::Cpu).unwrap());
    let latents = bytes(&run(&mut engine, absent).1);
    assert_eq!(bytes(&run(&mut engine, zeros).1), latents);
}

#[test]
fn nan_names_the_step() {
    let folder = checkpoint();
    let mut engine = load(StageKind::BaseUnet, &folder.path().join("base")).unwrap();
    let nan = |shape: &[usize]| Tensor::full(f32::NAN, shape, &Device::Cpu).unwrap();
    let mut poisoned = job(&engine, 4, 1);
    (poisoned.begin_step, poisoned.start) = (2, DenoiseStart::Latents(nan(&[4, 8, 9])));
    let error = engine.begin(poisoned).unwrap_err();
    assert_eq!(error.to_string(), "latents is not finite before step 2");

    let mut poisoned = job(&engine, 4, 1);
    let width = engine.info.cross_attention_dim as usize;
    poisoned.conditioning.prompt_embeds = Some(nan(&[77, width]));
    let mut run = engine.begin(poisoned).unwrap();
    assert_eq!(
        engine.advance(&mut [&mut run]).remove(0).unwrap_err().to_string(),
        "latents is not finite after step 0"
    );
}

#[test]
fn the_refiner_needs_an_aesthetic_score() {
    let folder = checkpoint();
    let mut engine = load(StageKind::Refiner, &folder.path().join("refiner")).unwrap();
    engine.warm_up().unwrap();
    let mut request = job(&engine, 2, 1);
    let (_, six) = run(&mut engine, request.clone());
    request.conditioning.aesthetic_score = Some(2.0);
    let (_, two) = run(&mut engine, request.clone());
    assert_ne!(bytes(&six), bytes(&two), "the score must count");
    request.conditioning.aesthetic_score = None;
    let error = engine.begin(request).unwrap_err().to_string();
    assert_eq!(error, "conditioning.aesthetic_score: absent; this denoiser requires one");
}

#[test]
fn checkpoints_in_the_wrong_place_are_told() {
    let folder = checkpoint();
    let (base, refiner) = (folder.path().join("base"), folder.path().join("refiner"));
    let error = load(StageKind::BaseUnet, &refiner).unwrap_err().to_string();
    assert!(error.ends_with("this is a refiner; serve it with refiner"), "{error}");
    let error = load(StageKind::Refiner, &base).unwrap_err().to_string();
    assert!(error.ends_with("this is no refiner; serve it with base-unet"), "{error}");

    // A refiner's UNet under a base's index.
    fs::remove_dir_all(base.join("unet")).unwrap();
    fs::rename(refiner.join("unet"), base.join("unet")).unwrap();
    let error = load(StageKind::BaseUnet, &base).unwrap_err().to_string();
    assert!(error.contains("unet/config.json: projection_class_embeddings_input_dim"), "{error}");
}
