//! How far a request has come, for whoever may have to go on with it.

use sdxl_core::StageKind;
use sdxl_proto::v1::{DenoiseCheckpoint, Image};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// What a piece of work is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part {
    /// The base's latents of a picture.
    Base(u32),
    /// The refiner's.
    Refiner(u32),
    /// The picture itself.
    Image(u32),
}

impl Part {
    /// Latents of a denoiser.
    fn latents(stage: StageKind, image_index: u32) -> Self {
        if stage == StageKind::Refiner { Self::Refiner(image_index) } else { Self::Base(image_index) }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(index) => write!(f, "{index}:base"),
            Self::Refiner(index) => write!(f, "{index}:refiner"),
            Self::Image(index) => write!(f, "{index}:image"),
        }
    }
}

impl FromStr for Part {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        let (index, kind) = name.split_once(':').ok_or(())?;
        let index = index.parse().map_err(|_| ())?;
        match kind {
            "base" => Ok(Self::Base(index)),
            "refiner" => Ok(Self::Refiner(index)),
            "image" => Ok(Self::Image(index)),
            _ => Err(()),
        }
    }
}

/// A piece of work, and the revision of the cluster that did it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Piece {
    #[prost(string, tag = "1")]
    pub(crate) revision: String,
    /// Finished latents are a checkpoint at the last step's end.
    #[prost(message, optional, tag = "2")]
    pub(crate) checkpoint: Option<DenoiseCheckpoint>,
    #[prost(message, optional, tag = "3")]
    pub(crate) image: Option<Image>,
}

/// The pieces of a request, with those that are still to be saved.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    revision: String,
    pieces: HashMap<Part, Piece>,
    unsaved: BTreeSet<Part>,
    /// Latents of pictures that are done by now.
    useless: BTreeSet<Part>,
    /// Of each picture.
    steps: BTreeMap<u32, u32>,
}

/// What is to be saved.
#[derive(Debug, Default)]
pub(crate) struct Unsaved {
    pub(crate) pieces: Vec<(Part, Piece)>,
    pub(crate) useless: Vec<Part>,
    pub(crate) steps_done: u32,
    pub(crate) images_done: usize,
}

impl Kept {
    /// What was saved before.
    pub(crate) fn new(pieces: HashMap<Part, Piece>) -> Self {
        Self { state: Mutex::new(State { pieces, ..State::default() }), changed: Notify::new() }
    }

    /// Begins, or begins anew, on a cluster of `revision`. What another made is of no use to it; says how much that is.
    pub(crate) fn begin(&self, revision: &str) -> usize {
        let mut state = self.lock();
        revision.clone_into(&mut state.revision);
        let before = state.pieces.len();
        state.pieces.retain(|_, piece| piece.revision == revision);
        let pieces = &state.pieces;
        let kept = state.unsaved.iter().filter(|part| pieces.contains_key(part)).copied().collect();
        state.unsaved = kept;
        before - state.pieces.len()
    }

    /// The last checkpoint of a stage's work on a picture.
    pub(super) fn checkpoint(&self, stage: StageKind, image_index: u32) -> Option<DenoiseCheckpoint> {
        self.lock().pieces.get(&Part::latents(stage, image_index))?.checkpoint.clone()
    }

    pub(super) fn image(&self, image_index: u32) -> Option<Image> {
        self.lock().pieces.get(&Part::Image(image_index))?.image.clone()
    }

    pub(super) fn keep_checkpoint(&self, stage: StageKind, image_index: u32, checkpoint: DenoiseCheckpoint) {
        self.keep(Part::latents(stage, image_index), Some(checkpoint), None);
    }

    pub(super) fn keep_image(&self, image_index: u32, image: Image) {
        self.keep(Part::Image(image_index), None, Some(image));
        let mut state = self.lock();
        for part in [Part::Base(image_index), Part::Refiner(image_index)] {
            if state.pieces.remove(&part).is_some() {
                state.unsaved.remove(&part);
                state.useless.insert(part);
            }
        }
    }

    fn keep(&self, part: Part, checkpoint: Option<DenoiseCheckpoint>, image: Option<Image>) {
        let mut state = self.lock();
        let revision = state.revision.clone();
        state.pieces.insert(part, Piece { revision, checkpoint, image });
        state.unsaved.insert(part);
        self.changed.notify_one();
    }

    /// So many steps of a picture are done.
    pub(crate) fn steps(&self, image_index: u32, done: u32) {
        self.lock().steps.insert(image_index, done);
    }

    /// What would not have to be done again: pictures that are done, and steps up to the last checkpoints of the others.
    pub(crate) fn progress(&self) -> (usize, u32) {
        let state = self.lock();
        let images = state.pieces.keys().filter(|part| matches!(part, Part::Image(_))).count();
        let step = |piece: &Piece| piece.checkpoint.as_ref().map(|checkpoint| checkpoint.step);
        (images, state.pieces.values().filter_map(step).sum())
    }

    /// Waits for something to save.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What is to be saved now.
    pub(crate) fn unsaved(&self) -> Unsaved {
        let state = self.lock();
        let pieces = state.unsaved.iter().filter_map(|part| Some((*part, state.pieces.get(part)?.clone())));
        Unsaved {
            pieces: pieces.collect(),
            useless: state.useless.iter().copied().collect(),
            steps_done: state.steps.values().sum(),
            images_done: state.pieces.keys().filter(|part| matches!(part, Part::Image(_))).count(),
        }
    }

    /// It is saved now; what has come since is not.
    pub(crate) fn saved(&self, saved: &Unsaved) {
        let mut state = self.lock();
        for (part, piece) in &saved.pieces {
            let step = |piece: &Piece| piece.checkpoint.as_ref().map(|checkpoint| checkpoint.step);
            if state.pieces.get(part).is_none_or(|now| step(now) == step(piece)) {
                state.unsaved.remove(part);
            }
        }
        state.useless.retain(|part| !saved.useless.contains(part));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(step: u32) -> DenoiseCheckpoint {
        DenoiseCheckpoint { step, ..Default::default() }
    }

    fn parts(kept: &Kept) -> Vec<String> {
        kept.unsaved().pieces.iter().map(|(part, _)| part.to_string()).collect()
    }

    #[test]
    fn parts_have_names() {
        for part in [Part::Base(0), Part::Refiner(7), Part::Image(15)] {
            assert_eq!(part.to_string().parse(), Ok(part));
        }
        for wrong in ["", "1", "x:base", "1:vae", "-1:image"] {
            assert_eq!(wrong.parse::<Part>(), Err(()));
        }
    }

    #[test]
    fn what_comes_while_it_is_saved_is_saved_next() {
        let kept = Kept::default();
        kept.begin("r");
        kept.keep_checkpoint(StageKind::BaseUnet, 0, at(5));
        let unsaved = kept.unsaved();
        kept.keep_checkpoint(StageKind::BaseUnet, 0, at(10));
        kept.saved(&unsaved);
        assert_eq!(parts(&kept), ["0:base"]);
        kept.saved(&kept.unsaved());
        assert!(parts(&kept).is_empty());
    }

    #[test]
    fn a_picture_makes_its_latents_useless() {
        let kept = Kept::default();
        kept.begin("r");
        kept.keep_checkpoint(StageKind::BaseUnet, 1, at(5));
        kept.keep_checkpoint(StageKind::Refiner, 1, at(6));
        kept.keep_image(1, Image::default());
        let unsaved = kept.unsaved();
        assert_eq!(
            (parts(&kept), unsaved.useless),
            (vec!["1:image".to_owned()], vec![Part::Base(1), Part::Refiner(1)])
        );
        assert!(kept.checkpoint(StageKind::Refiner, 1).is_none() && kept.image(1).is_some());
    }

    #[test]
    fn what_another_revision_made_is_of_no_use() {
        let kept = Kept::default();
        kept.begin("one");
        kept.keep_checkpoint(StageKind::BaseUnet, 0, at(5));
        assert_eq!(kept.begin("one"), 0);
        assert_eq!(kept.begin("other"), 1);
        assert!(kept.checkpoint(StageKind::BaseUnet, 0).is_none() && parts(&kept).is_empty());
    }
}
