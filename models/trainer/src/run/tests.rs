use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::{
    recipe::Stage,
    toy::{self, Toy},
};

const STEPS: u64 = 60;

fn identity(recipe: &str) -> Identity {
    Identity { stage: Stage::Base, fingerprint: recipe.to_owned() }
}

fn settings(folder: &Path) -> Settings {
    Settings {
        folder: folder.to_owned(),
        identity: identity("recipe"),
        steps: STEPS,
        checkpoint_every: 16,
        log_every: 1000,
        stop: Stop::default(),
    }
}

/// A run over the toy, its weights from `seed`.
fn run(settings: Settings, threads: usize, seed: u64) -> Result<(Run, Toy), TrainError> {
    let (store, toy) = Toy::new(seed);
    Ok((Run::new(settings, Team::new(threads).unwrap(), store, toy::adamw(STEPS))?, toy))
}

/// All that a run leaves behind.
fn result(run: &Run) -> (Vec<f32>, Snapshot, Snapshot) {
    (run.losses().to_vec(), run.store().frozen().unwrap(), run.ema())
}

fn uninterrupted(threads: usize) -> (Vec<f32>, Snapshot, Snapshot) {
    let folder = tempfile::tempdir().unwrap();
    let (mut run, toy) = run(settings(folder.path()), threads, 7).unwrap();
    assert_eq!(run.train(toy::batch, |shard| toy.loss(shard)).unwrap(), Outcome::Finished);
    result(&run)
}

/// Trains until the step of that number is over, and stops.
fn interrupted(folder: &Path, after: u64) {
    let settings = settings(folder);
    let stop = settings.stop.clone();
    // The weights of another seed show that a resumed run takes the checkpoint's.
    let seed = if folder.join("latest.safetensors").exists() { 8 } else { 7 };
    let (mut run, toy) = run(settings, 2, seed).unwrap();
    let loss = |shard: &Shard<'_>| {
        if shard.step == after {
            stop.ask();
        }
        toy.loss(shard)
    };
    assert_eq!(run.train(toy::batch, loss).unwrap(), Outcome::Stopped(StopReason::Asked));
    assert_eq!(run.step(), after);
}

#[test]
fn an_interrupted_run_gives_the_bits_of_one_that_was_not() {
    let whole = uninterrupted(2);
    assert!(smoothed(&whole.0[50..]) < 0.5 * smoothed(&whole.0[..10]), "it does not learn");
    let folder = tempfile::tempdir().unwrap();
    interrupted(folder.path(), 1);
    interrupted(folder.path(), 32);
    interrupted(folder.path(), 41);
    let (mut run, toy) = run(settings(folder.path()), 2, 8).unwrap();
    assert_eq!(run.step(), 41);
    assert_eq!(run.train(toy::batch, |shard| toy.loss(shard)).unwrap(), Outcome::Finished);
    assert_eq!(result(&run), whole);
    let rows = fs::read_to_string(folder.path().join("loss.csv")).unwrap();
    assert_eq!(rows.lines().count() as u64, 1 + STEPS);
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let whole = uninterrupted(2);
    let folder = tempfile::tempdir().unwrap();
    let (mut killed, toy) = run(settings(folder.path()), 2, 7).unwrap();
    let dies = |shard: &Shard<'_>| {
        if shard.step == 50 { Err(TrainError::FolderInUse { path: "died".into() }) } else { toy.loss(shard) }
    };
    killed.train(toy::batch, dies).unwrap_err();
    drop(killed);
    let rows = || fs::read_to_string(folder.path().join("loss.csv")).unwrap().lines().count();
    assert_eq!(rows(), 1 + 49);
    let (mut run, toy) = run(settings(folder.path()), 2, 8).unwrap();
    assert_eq!(run.step(), 48);
    run.train(toy::batch, |shard| toy.loss(shard)).unwrap();
    assert_eq!(rows(), 1 + 60);
    assert_eq!(result(&run), whole);
}

#[test]
fn two_runs_are_bit_identical_and_the_number_of_shards_hardly_matters() {
    let two = uninterrupted(2);
    assert_eq!(two, uninterrupted(2));
    let one = uninterrupted(1);
    for (one, two) in one.0.iter().zip(&two.0) {
        assert!((one - two).abs() < 1e-4 * (1.0 + one), "{one} {two}");
    }
}

#[test]
fn the_time_given_is_kept_to() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    settings.stop = Stop::default().within(Some(0.0));
    let (mut run, toy) = run(settings, 1, 7).unwrap();
    let outcome = run.train(toy::batch, |shard| toy.loss(shard)).unwrap();
    assert_eq!(outcome, Outcome::Stopped(StopReason::OutOfTime));
    assert!(folder.path().join("latest.safetensors").exists());
}

#[test]
fn another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    interrupted(folder.path(), 3);
    let other = Settings { identity: identity("another"), ..settings(folder.path()) };
    let error = run(other, 1, 7).err().unwrap().to_string();
    let expected = "latest.safetensors: its recipe is recipe, not another; choose another --out, or the recipe and the \
                    [pretrained] weights that made it";
    assert!(error.ends_with(expected), "{error}");
    let other = Identity { stage: Stage::Refiner, ..identity("recipe") };
    let error = run(Settings { identity: other, ..settings(folder.path()) }, 1, 7).err().unwrap().to_string();
    assert!(error.contains("its stage is base, not refiner"), "{error}");
    let mut more = settings(folder.path());
    (more.log_every, more.checkpoint_every) = (1, 1);
    assert_eq!(run(more, 1, 7).unwrap().0.step(), 3);
}

#[test]
fn one_process_at_a_time_trains_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let first = run(settings(folder.path()), 1, 7).unwrap();
    assert!(matches!(run(settings(folder.path()), 1, 7), Err(TrainError::FolderInUse { .. })));
    drop(first);
    run(settings(folder.path()), 1, 7).unwrap();
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let whole = uninterrupted(2);
    let folder = tempfile::tempdir().unwrap();
    let full = folder.path().join("latest.fresh.partial");
    {
        let (mut run, toy) = run(settings(folder.path()), 2, 7).unwrap();
        let disk_fills_up = |shard: &Shard<'_>| {
            if shard.step == 40 && shard.index == 0 {
                std::os::unix::fs::symlink("/dev/full", &full).unwrap();
            }
            toy.loss(shard)
        };
        let error = run.train(toy::batch, disk_fills_up).unwrap_err().to_string();
        assert!(error.contains("latest.safetensors: cannot be written: No space left on device"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
    assert!(!full.exists());
    let (mut run, toy) = run(settings(folder.path()), 2, 8).unwrap();
    assert_eq!(run.step(), 32);
    run.train(toy::batch, |shard| toy.loss(shard)).unwrap();
    assert_eq!(result(&run), whole);
}

#[test]
fn a_damaged_or_missing_checkpoint_is_replaced_by_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    interrupted(folder.path(), 40);
    let latest = folder.path().join("latest.safetensors");
    let bytes = fs::read(&latest).unwrap();
    // A write that a crash cut short never has the checkpoint's name.
    fs::write(folder.path().join("latest.fresh.partial"), &bytes[..100]).unwrap();
    assert_eq!(run(settings(folder.path()), 2, 8).unwrap().0.step(), 40);
    fs::write(&latest, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(run(settings(folder.path()), 2, 8).unwrap().0.step(), 32);
    // The damaged one does not take the sound one's place.
    interrupted(folder.path(), 33);
    assert_eq!(run(settings(folder.path()), 2, 8).unwrap().0.step(), 33);
    fs::remove_file(&latest).unwrap();
    assert_eq!(run(settings(folder.path()), 2, 8).unwrap().0.step(), 32);
    fs::write(folder.path().join("previous.safetensors"), "").unwrap();
    assert!(matches!(run(settings(folder.path()), 2, 8), Err(TrainError::DamagedFile { .. })));
}

#[test]
fn a_step_that_is_not_finite_ends_the_run_and_leaves_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let (mut run, toy) = run(settings(folder.path()), 2, 7).unwrap();
    let asked = AtomicU64::new(0);
    let poisoned = |shard: &Shard<'_>| {
        asked.fetch_max(shard.step, Ordering::Relaxed);
        let loss = toy.loss(shard)?;
        Ok(if shard.step == 17 { (loss / 0.0)? } else { loss })
    };
    let error = run.train(toy::batch, poisoned).unwrap_err();
    let TrainError::NotFinite { step, batch, .. } = &error else { panic!("{error}") };
    assert_eq!((*step, batch), (17, &toy::batch(17)));
    assert_eq!((run.step(), asked.into_inner()), (16, 17));
    let after = result(&run);
    drop(run);
    let (resumed, _) = self::run(settings(folder.path()), 2, 8).unwrap();
    assert_eq!(result(&resumed), after);
}
