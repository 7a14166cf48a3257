//! What all stages are run with.

use std::path::PathBuf;

pub use crate::run::Outcome;
use crate::{
    TrainError,
    checkpoint::Identity,
    optimizer::AdamW,
    recipe::{Recipe, Stage},
    run::{Run, Settings},
    stop::Stop,
    store::ParameterStore,
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
}

impl Context {
    /// A stage's folder.
    #[must_use]
    pub fn folder(&self, stage: Stage) -> PathBuf {
        self.out.join(stage.name())
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
        let identity = Identity { stage, fingerprint: self.recipe.fingerprint(stage) };
        let settings = Settings {
            folder: self.folder(stage),
            identity,
            steps,
            checkpoint_every: self.recipe.training.checkpoint_every,
            log_every: self.recipe.training.log_every,
            stop: self.stop.clone(),
        };
        Run::new(settings, Team::of_all_processors()?, store, adamw)
    }
}
