//! A run's state on disk: all that the next step depends on, in one safetensors file.
//!
//! There are two: the latest, and the one before it until the next is whole. Nothing random is saved, as there is none:
//! see [`crate::random`].

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    TrainError,
    optimizer::{Optimizer, State},
    recipe::Stage,
    store::{Parameter, ParameterStore},
    tensor_file::{self, Entry, StoredType, TensorFile, Tensors},
};

/// The lists of numbers kept for each parameter, as their names begin.
const PARTS: [&str; 4] = ["weights", "ema", "first_moment", "second_moment"];
const LOSSES: &str = "losses";

/// Which run a checkpoint is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What is trained.
    pub stage: Stage,
    /// Of the recipe's part that matters to it: see [`crate::recipe::Recipe::fingerprint`].
    pub fingerprint: String,
}

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Seconds spent on them.
    pub seconds: f64,
    /// The loss of each.
    pub losses: Vec<f32>,
}

/// The checkpoints in a run's folder.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    latest: PathBuf,
    previous: PathBuf,
    identity: Identity,
    /// Whether the run goes on from the previous one, which must stay until there is another.
    latest_is_damaged: Arc<AtomicBool>,
}

impl Checkpoints {
    /// Those of that run in `folder`.
    #[must_use]
    pub fn new(folder: &Path, identity: Identity) -> Self {
        let [latest, previous] =
            ["latest", "previous"].map(|name| folder.join(format!("{name}.safetensors")));
        Self { latest, previous, identity, latest_is_damaged: Arc::default() }
    }

    /// Saves the run's state; the latest checkpoint becomes the previous one.
    ///
    /// # Errors
    /// It cannot be written, perhaps because the disk is full. The latest checkpoint is still there then.
    pub fn save(
        &self,
        store: &ParameterStore,
        optimizer: &Optimizer,
        progress: &Progress,
    ) -> Result<(), TrainError> {
        let weights = store.parameters().iter().map(Parameter::values);
        let weights = weights.collect::<candle_core::Result<Vec<_>>>()?;
        let length = [progress.losses.len()];
        let mut entries = vec![Entry { name: LOSSES.to_owned(), shape: &length, values: &progress.losses }];
        for ((parameter, weights), state) in store.parameters().iter().zip(&weights).zip(optimizer.states()) {
            let State { first_moment, second_moment, ema } = state;
            for (part, values) in PARTS.into_iter().zip([weights, ema, first_moment, second_moment]) {
                let name = format!("{part}.{}", parameter.name());
                entries.push(Entry { name, shape: parameter.var().dims(), values });
            }
        }
        let metadata = [
            ("stage", self.identity.stage.name().to_owned()),
            ("fingerprint", self.identity.fingerprint.clone()),
            ("step", progress.step.to_string()),
            ("seconds", progress.seconds.to_string()),
        ];
        let fresh = self.latest.with_extension("fresh");
        tensor_file::write(&fresh, &metadata, &entries, StoredType::F32).map_err(|error| match error {
            TrainError::WriteFile { source, .. } => {
                TrainError::WriteFile { path: self.latest.clone(), source }
            }
            other => other,
        })?;
        self.rotate(&fresh).map_err(TrainError::writing(&self.latest))
    }

    /// At every moment of it, either the latest or the previous checkpoint is there and whole.
    fn rotate(&self, fresh: &Path) -> io::Result<()> {
        if self.latest_is_damaged.swap(false, Ordering::Relaxed) {
            fs::rename(fresh, &self.latest)?;
            return tensor_file::sync_folder(&self.latest);
        }
        match fs::rename(&self.latest, &self.previous) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::rename(fresh, &self.latest)?,
        }
        tensor_file::sync_folder(&self.latest)
    }

    /// Puts the run where its latest checkpoint left it, or its previous one where the latest is missing or damaged.
    /// `None` where there is no checkpoint; nothing changes on an error.
    ///
    /// # Errors
    /// The checkpoint is another run's, does not fit the store, or is damaged and has no sound predecessor.
    pub fn resume(
        &self,
        store: &ParameterStore,
        optimizer: &mut Optimizer,
    ) -> Result<Option<Progress>, TrainError> {
        let mut damaged = None;
        for path in [&self.latest, &self.previous] {
            match self.load(path, store, optimizer) {
                Ok(progress) => {
                    self.latest_is_damaged.store(damaged.is_some(), Ordering::Relaxed);
                    return Ok(Some(progress));
                }
                Err(TrainError::ReadFile { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error @ TrainError::DamagedFile { .. }) => damaged = damaged.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        damaged.map_or(Ok(None), Err)
    }

    fn load(
        &self,
        path: &Path,
        store: &ParameterStore,
        optimizer: &mut Optimizer,
    ) -> Result<Progress, TrainError> {
        let file = TensorFile::open(path)?;
        let tensors = file.tensors()?;
        self.check(&tensors)?;
        let progress = Progress {
            step: number(&tensors, "step")?,
            seconds: number(&tensors, "seconds")?,
            losses: tensors.list(LOSSES)?,
        };
        let part = |part, parameter: &Parameter| {
            tensors.values(&format!("{part}.{}", parameter.name()), parameter.var().dims())
        };
        let [weights, ema, first, second] = PARTS;
        let state = |parameter| {
            Ok(State {
                ema: part(ema, parameter)?,
                first_moment: part(first, parameter)?,
                second_moment: part(second, parameter)?,
            })
        };
        let states = store.parameters().iter().map(state).collect::<Result<_, TrainError>>()?;
        let weights = store.parameters().iter().map(|p| part(weights, p)).collect::<Result<Vec<_>, _>>()?;
        store.set(&weights)?;
        optimizer.restore(states);
        Ok(progress)
    }

    fn check(&self, tensors: &Tensors<'_>) -> Result<(), TrainError> {
        let Identity { stage, fingerprint } = &self.identity;
        for (what, key, expected) in
            [("stage", "stage", stage.name()), ("recipe", "fingerprint", fingerprint)]
        {
            let found = tensors.metadata(key)?;
            if found != expected {
                let short = |text: &str| text.chars().take(12).collect();
                let (found, expected) = (short(found), short(expected));
                let path = tensors.path().to_owned();
                return Err(TrainError::ForeignCheckpoint { path, what, found, expected });
            }
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(tensors: &Tensors<'_>, key: &str) -> Result<T, TrainError> {
    let text = tensors.metadata(key)?;
    let damaged = |_| TrainError::DamagedFile {
        path: tensors.path().to_owned(),
        why: format!("its {key} is {text:?}, not a number"),
    };
    text.parse().map_err(damaged)
}
