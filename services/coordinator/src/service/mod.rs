//! The public services.

mod generate;
mod identified;
mod jobs;
mod model;
mod record;
mod scaler;

pub(crate) use generate::{Generation, Settings};
pub(crate) use jobs::JobCalls;
pub(crate) use model::Model;
pub(crate) use record::{Arrival, Kind};
pub(crate) use scaler::Scaler;

use crate::{
    cluster::{Cluster, ModelState},
    pipeline::GenerateError,
};
use std::sync::Arc;
use tokio::sync::watch;

/// Of all pictures of one answer: what is beside them, timings and warnings, is small.
const MAX_PICTURES_BYTES: usize = sdxl_proto::MAX_MESSAGE_BYTES - 1024 * 1024;

/// The model, if it is known.
fn known(model: &watch::Receiver<ModelState>) -> Result<Arc<Cluster>, GenerateError> {
    match &*model.borrow() {
        ModelState::Known(cluster) => Ok(Arc::clone(cluster)),
        ModelState::Waiting(stages) => Err(GenerateError::Starting(stages.clone())),
        ModelState::Contradiction(line) => Err(GenerateError::Contradiction(line.clone())),
    }
}
