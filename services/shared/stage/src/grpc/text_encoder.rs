use super::finish;
use crate::{
    engine::{Engine, EngineError},
    error::StageError,
    jobs::{EncodeJob, TextEmbedding, TextJob},
    tensor,
    worker::WorkerHandle,
};
use sdxl_core::plan::MAX_PROMPT_BYTES;
use sdxl_proto::{
    convert::{self, WireError, duration},
    status::status,
    v1,
};
use std::fmt;
use tonic::{Request, Response, Status};

/// The most texts in one call: a request for 16 pictures has four at most.
const MAX_INPUTS: usize = 64;

/// `TextEncoderService` over an engine.
pub struct TextEncoderGrpc<E: Engine> {
    worker: WorkerHandle<E>,
}

impl<E: Engine> TextEncoderGrpc<E> {
    /// Serves the engine of `worker`.
    #[must_use]
    pub fn new(worker: WorkerHandle<E>) -> Self {
        Self { worker }
    }
}

impl<E: Engine> fmt::Debug for TextEncoderGrpc<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextEncoderGrpc").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl<E> v1::text_encoder_service_server::TextEncoderService for TextEncoderGrpc<E>
where
    E: Engine<Request = EncodeJob, Output = Vec<TextEmbedding>> + 'static,
{
    async fn encode(
        &self,
        request: Request<v1::EncodeRequest>,
    ) -> Result<Response<v1::EncodeResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let job = job(message).map_err(|error| status(&error))?;
        let finished = finish(&self.worker, job, &metadata).await?;
        let embeddings = finished.output.iter().map(embedding).collect::<candle_core::Result<_>>();
        let embeddings = embeddings.map_err(|e| status(&StageError::from(EngineError::failed(e))))?;
        Ok(Response::new(v1::EncodeResponse {
            embeddings,
            queue_time: Some(duration(finished.queue_time)),
            run_time: Some(duration(finished.run_time)),
        }))
    }
}

fn job(message: v1::EncodeRequest) -> Result<EncodeJob, StageError> {
    if message.inputs.is_empty() || message.inputs.len() > MAX_INPUTS {
        let description = format!("{} texts are not in 1..={MAX_INPUTS}", message.inputs.len());
        return Err(WireError::new("inputs", description).into());
    }
    let inputs = message.inputs.into_iter().enumerate().map(|(i, input)| text(i, input));
    Ok(EncodeJob { inputs: inputs.collect::<Result<_, _>>()? })
}

fn text(i: usize, input: v1::TextInput) -> Result<TextJob, StageError> {
    let conditioner = v1::Conditioner::try_from(input.conditioner).ok().and_then(convert::conditioner);
    let field = format!("inputs[{i}]");
    for (name, text) in [("prompt", &input.prompt), ("prompt_2", &input.prompt_2)] {
        if text.len() > MAX_PROMPT_BYTES {
            let description = format!("{} bytes long; at most {MAX_PROMPT_BYTES} are allowed", text.len());
            return Err(WireError::new(&format!("{field}.{name}"), description).into());
        }
    }
    Ok(TextJob {
        conditioner: conditioner
            .ok_or_else(|| WireError::unknown_enum(&format!("{field}.conditioner"), input.conditioner))?,
        prompt: input.prompt,
        prompt_2: input.prompt_2,
        clip_skip: input.clip_skip,
    })
}

fn embedding(embedding: &TextEmbedding) -> candle_core::Result<v1::TextEmbedding> {
    Ok(v1::TextEmbedding {
        prompt_embeds: Some(tensor::to_wire(&embedding.prompt_embeds)?),
        pooled_prompt_embeds: Some(tensor::to_wire(&embedding.pooled_prompt_embeds)?),
        prompt_truncated: embedding.prompt_truncated.clone().unwrap_or_default(),
        prompt_2_truncated: embedding.prompt_2_truncated.clone().unwrap_or_default(),
    })
}
