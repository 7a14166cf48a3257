//! The loop around the steps of a stage: resume, step, log, save, stop.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::Instant,
};

use candle_core::Tensor;

use crate::{
    TrainError,
    checkpoint::{Checkpoints, Identity, Progress},
    gradients::{self, Batch, Shard},
    optimizer::{AdamW, Optimizer},
    progress::{Display, LossFile, Record, smoothed},
    stop::{Stop, StopReason},
    store::{ParameterStore, Snapshot},
    threads::Team,
};

/// Where, how long and how often.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The run's own folder; made if it is not there.
    pub folder: PathBuf,
    /// What is trained, by which recipe.
    pub identity: Identity,
    /// The last step.
    pub steps: u64,
    /// Steps from one checkpoint to the next.
    pub checkpoint_every: u64,
    /// Steps from one line in the log to the next.
    pub log_every: u64,
    /// When to stop before the last step.
    pub stop: Stop,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// It stopped before, with a checkpoint, and can go on from there.
    Stopped(StopReason),
}

/// A stage in training. All it does is saved in its folder.
#[derive(Debug)]
pub struct Run {
    settings: Settings,
    team: Team,
    store: ParameterStore,
    optimizer: Optimizer,
    checkpoints: Checkpoints,
    progress: Progress,
    /// The step of the latest checkpoint.
    saved: Option<u64>,
    /// Held as long as the run is.
    _lock: File,
}

impl Run {
    /// Takes up the run in its folder where the latest checkpoint left it, or begins it with the weights of `store`.
    ///
    /// # Errors
    /// The folder is in use, or holds a checkpoint that is damaged or another run's.
    pub fn new(
        settings: Settings,
        team: Team,
        store: ParameterStore,
        adamw: AdamW,
    ) -> Result<Self, TrainError> {
        let folder = &settings.folder;
        fs::create_dir_all(folder).map_err(TrainError::writing(folder))?;
        let lock = lock(folder)?;
        let mut optimizer = Optimizer::new(adamw, &store)?;
        let checkpoints = Checkpoints::new(folder, settings.identity.clone());
        let resumed = checkpoints.resume(&store, &mut optimizer)?;
        let saved = resumed.as_ref().map(|progress| progress.step);
        let progress = resumed.unwrap_or_default();
        Ok(Self { settings, team, store, optimizer, checkpoints, progress, saved, _lock: lock })
    }

    /// Steps done.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.progress.step
    }

    /// The loss of each step done.
    #[must_use]
    pub fn losses(&self) -> &[f32] {
        &self.progress.losses
    }

    /// The weights.
    #[must_use]
    pub fn store(&self) -> &ParameterStore {
        &self.store
    }

    /// The averaged weights.
    #[must_use]
    pub fn ema(&self) -> Snapshot {
        self.optimizer.ema(&self.store)
    }

    /// Trains to the last step, or until told to stop. `samples` says which samples the step of that number takes,
    /// `loss` is a shard's mean loss; both depend on nothing but their arguments, or a resumed run would go another
    /// way.
    ///
    /// # Errors
    /// Those of `loss`, a loss or gradient that is not finite, a file that cannot be written. The weights are then
    /// those of the step before, and the latest checkpoint is as it was.
    pub fn train<S, L>(&mut self, samples: S, loss: L) -> Result<Outcome, TrainError>
    where
        S: Fn(u64) -> Vec<usize>,
        L: Fn(&Shard<'_>) -> Result<Tensor, TrainError> + Sync,
    {
        let mut file = LossFile::open(&self.settings.folder, self.progress.step)?;
        let outcome = self.steps(&mut file, &samples, &loss);
        // The rows of a run that failed are worth most.
        let flushed = file.flush();
        let outcome = outcome?;
        flushed?;
        Ok(outcome)
    }

    fn steps<S, L>(&mut self, file: &mut LossFile, samples: &S, loss: &L) -> Result<Outcome, TrainError>
    where
        S: Fn(u64) -> Vec<usize>,
        L: Fn(&Shard<'_>) -> Result<Tensor, TrainError> + Sync,
    {
        let Settings { identity, steps, log_every, checkpoint_every, stop, .. } = self.settings.clone();
        let mut display = Display::new(identity.stage.name(), steps, self.progress.step, log_every);
        if self.progress.step > 0 {
            display.say(&format!("goes on after step {} of {steps}", self.progress.step));
        }
        while self.progress.step < steps {
            if let Some(reason) = stop.reason() {
                self.save(file)?;
                display.say(&format!("stopped after step {} of {steps}, and saved", self.progress.step));
                return Ok(Outcome::Stopped(reason));
            }
            let step = self.progress.step + 1;
            let record = self.advance(&Batch { step, samples: samples(step) }, loss)?;
            file.add(&record);
            display.show(&record, &self.progress.losses);
            if step.is_multiple_of(log_every) {
                file.flush()?;
            }
            if step.is_multiple_of(checkpoint_every) {
                self.save(file)?;
            }
        }
        self.save(file)?;
        display.say(&format!("done: loss {:.5}", smoothed(&self.progress.losses)));
        Ok(Outcome::Finished)
    }

    fn advance<L>(&mut self, batch: &Batch, loss: &L) -> Result<Record, TrainError>
    where
        L: Fn(&Shard<'_>) -> Result<Tensor, TrainError> + Sync,
    {
        let started = Instant::now();
        let (loss, gradients) = gradients::step(&self.team, &self.store, batch, loss)?;
        let applied = self.optimizer.step(&self.team, &self.store, &gradients)?;
        let seconds = started.elapsed().as_secs_f64();
        self.progress.step = batch.step;
        self.progress.seconds += seconds;
        self.progress.losses.push(loss);
        Ok(Record {
            step: batch.step,
            loss,
            learning_rate: applied.learning_rate,
            grad_norm: applied.grad_norm,
            samples: batch.samples.len(),
            seconds,
            total_seconds: self.progress.seconds,
        })
    }

    /// Rows go first: a run that goes on from this checkpoint finds those of all its steps.
    fn save(&mut self, file: &mut LossFile) -> Result<(), TrainError> {
        file.flush()?;
        if self.saved != Some(self.progress.step) {
            self.checkpoints.save(&self.store, &self.optimizer, &self.progress)?;
            self.saved = Some(self.progress.step);
        }
        Ok(())
    }
}

/// Two processes that train in one folder would spoil each other's checkpoints.
fn lock(folder: &Path) -> Result<File, TrainError> {
    let path = folder.join("lock");
    let file = File::create(&path).map_err(TrainError::writing(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TrainError::FolderInUse { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(TrainError::WriteFile { path, source }),
    }
}

#[cfg(test)]
mod tests;
