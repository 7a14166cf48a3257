//! What all stages are run with.

use std::path::PathBuf;

use candle_core::Device;

pub use crate::run::Outcome;
use crate::{
    TrainError,
    checkpoint::{Checkpoints, Identity},
    optimizer::{AdamW, Optimizer},
    recipe::{Recipe, Stage},
    run::{Run, Settings},
    stop::Stop,
    store::{ParameterStore, Snapshot},
    threads::Team,
};

/// A recipe, and the folder of its runs.
#[derive(Clone, Debug)]
pub struct Context {
    /// The model's recipe.
    pub recipe: Recipe,
    /// Each stage has a folder of its own in it.
    pub out: PathBuf,
    /// When to stop before the end.
    pub stop: Stop,
    /// Whether to go on from stages that are not finished.
    pub unfinished: bool,
    /// Where losses and their gradients are computed. Weights, their averages and what is drawn stay on the CPU.
    pub device: Device,
}

impl Context {
    /// A stage's folder.
    #[must_use]
    pub fn folder(&self, stage: Stage) -> PathBuf {
        self.out.join(stage.name())
    }

    /// The averaged weights of a stage that has done all its `steps`; `store` is one of its networks, and is changed.
    ///
    /// # Errors
    /// The stage is not finished, or its checkpoint is damaged or another recipe's.
    pub fn average(
        &self,
        stage: Stage,
        steps: u64,
        store: &ParameterStore,
        adamw: AdamW,
    ) -> Result<Snapshot, TrainError> {
        let mut optimizer = Optimizer::new(adamw, store)?;
        let checkpoints = Checkpoints::new(&self.folder(stage), self.identity(stage));
        let done = checkpoints.resume(store, &mut optimizer)?.map_or(0, |progress| progress.step);
        if done < steps && !self.unfinished {
            return Err(TrainError::Unfinished { path: self.folder(stage), stage: stage.name() });
        }
        Ok(optimizer.ema(store))
    }

    fn identity(&self, stage: Stage) -> Identity {
        Identity { stage, fingerprint: self.recipe.fingerprint(stage) }
    }

    /// Takes up a stage, or begins it.
    ///
    /// # Errors
    /// Those of [`Run::new`].
    pub fn run(
        &self,
        stage: Stage,
        steps: u64,
        store: ParameterStore,
        adamw: AdamW,
    ) -> Result<Run, TrainError> {
        let settings = Settings {
            folder: self.folder(stage),
            identity: self.identity(stage),
            steps,
            checkpoint_every: self.recipe.training.checkpoint_every,
            log_every: self.recipe.training.log_every,
            stop: self.stop.clone(),
        };
        Run::new(settings, Team::new(self.recipe.training.shards)?, store, adamw)
    }
}
