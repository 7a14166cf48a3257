//! The stages' gRPC services, over any engine that does their kind of job.

mod denoiser;
mod stage_info;
mod text_encoder;
mod vae;

pub use denoiser::DenoiserGrpc;
pub use stage_info::StageInfoGrpc;
pub use text_encoder::TextEncoderGrpc;
pub use vae::VaeGrpc;

use crate::{
    engine::Engine,
    error::StageError,
    info::StageInfo,
    worker::{Finished, RunEvent, WorkerHandle},
};
use sdxl_core::FieldViolation;
use sdxl_proto::{convert::WireError, status::status};
use sdxl_runtime::Terms;
use std::sync::{Arc, OnceLock};
use tonic::{Status, metadata::MetadataMap};

/// What a stage says of itself, as soon as it can.
#[derive(Clone, Debug, Default)]
pub struct InfoCell(Arc<OnceLock<StageInfo>>);

impl InfoCell {
    /// Says it, once.
    pub fn set(&self, info: StageInfo) {
        // A second time would be a mistake of ours without harm.
        let _ = self.0.set(info);
    }

    /// What is said.
    ///
    /// # Errors
    /// [`StageError::Loading`] until it is.
    pub fn get(&self) -> Result<&StageInfo, StageError> {
        self.0.get().ok_or(StageError::Loading)
    }
}

/// Runs a job of which only the end matters.
async fn finish<E: Engine>(
    worker: &WorkerHandle<E>,
    request: E::Request,
    metadata: &MetadataMap,
) -> Result<Finished<E::Output>, Status> {
    let submitted = terms(metadata).and_then(|terms| worker.submit(request, terms));
    let mut events = submitted.map_err(|error| status(&error))?;
    while let Some(event) = events.recv().await {
        if let RunEvent::Done(finished) = event.map_err(|error| status(&error))? {
            return Ok(finished);
        }
    }
    Err(status(&StageError::Stopped))
}

fn terms(metadata: &MetadataMap) -> Result<Terms, StageError> {
    let wrong = |FieldViolation { field, description }| WireError::new(&field, description);
    Ok(Terms::from_metadata(metadata).map_err(wrong)?)
}
