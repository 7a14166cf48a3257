use super::finish;
use crate::{
    engine::Engine,
    error::StageError,
    jobs::{DecodeJob, EncodedPicture},
    tensor,
    worker::WorkerHandle,
};
use sdxl_proto::{
    convert::{self, WireError, duration},
    status::status,
    v1,
};
use std::fmt;
use tonic::{Request, Response, Status};

/// `quality` where a request has none.
const DEFAULT_QUALITY: u8 = 90;

/// `VaeService` over an engine.
pub struct VaeGrpc<E: Engine> {
    worker: WorkerHandle<E>,
}

impl<E: Engine> VaeGrpc<E> {
    /// Serves the engine of `worker`.
    #[must_use]
    pub fn new(worker: WorkerHandle<E>) -> Self {
        Self { worker }
    }
}

impl<E: Engine> fmt::Debug for VaeGrpc<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaeGrpc").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl<E> v1::vae_service_server::VaeService for VaeGrpc<E>
where
    E: Engine<Request = DecodeJob, Output = EncodedPicture> + 'static,
{
    async fn decode(
        &self,
        request: Request<v1::DecodeRequest>,
    ) -> Result<Response<v1::DecodeResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let job = job(&message).map_err(|error| status(&error))?;
        let finished = finish(&self.worker, job, &metadata).await?;
        let EncodedPicture { data, media_type, width, height } = finished.output;
        Ok(Response::new(v1::DecodeResponse {
            data,
            media_type: media_type.to_owned(),
            width,
            height,
            queue_time: Some(duration(finished.queue_time)),
            run_time: Some(duration(finished.run_time)),
        }))
    }
}

fn job(message: &v1::DecodeRequest) -> Result<DecodeJob, StageError> {
    let latents = message.latents.as_ref().ok_or_else(|| WireError::missing("latents"))?;
    let image_format = v1::ImageFormat::try_from(message.image_format)
        .map_err(|_| WireError::unknown_enum("image_format", message.image_format))?;
    let quality = match u8::try_from(message.quality) {
        Ok(0) => DEFAULT_QUALITY,
        Ok(quality @ 1..=100) => quality,
        _ => return Err(WireError::new("quality", format!("{} is not in 0..=100", message.quality)).into()),
    };
    Ok(DecodeJob {
        latents: tensor::from_wire("latents", latents)?,
        image_format: convert::image_format(image_format),
        quality,
    })
}
