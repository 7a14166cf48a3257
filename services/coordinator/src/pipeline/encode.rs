//! Prompts to embeddings: each distinct text of a request once, all in one call.

use super::{
    Pipeline,
    error::GenerateError,
    hop::{self, Fault, Placing, Spent},
    reply,
};
use crate::placement::Lease;
use sdxl_core::{Conditioner, ConditionerInfo, DenoisePlan};
use sdxl_proto::{
    MAX_MESSAGE_BYTES,
    v1::{self, DType, text_encoder_service_client::TextEncoderServiceClient},
};
use tracing::{Instrument, field::Empty, info_span};

/// Embeddings in the order of the plan's texts, checked.
#[derive(Debug)]
pub(super) struct Texts(Vec<v1::TextEmbedding>);

impl Texts {
    /// The embeddings of a conditioning; none where it is zeros.
    pub(super) fn of(&self, text: Option<usize>) -> Option<&v1::TextEmbedding> {
        text.and_then(|index| self.0.get(index))
    }
}

impl Pipeline<'_> {
    pub(super) async fn encode(self) -> Result<(Texts, v1::StageTiming), GenerateError> {
        let fleet = &self.fleets.text_encoder;
        let texts = self.plan.texts.len();
        let span = info_span!("encode", otel.kind = "client", stage = %fleet.stage(), replica = Empty, texts);
        async {
            let mut placing = Placing::new(self, fleet, texts as u64, false);
            loop {
                let lease = placing.next().await?;
                let replica = lease.replica().address().to_string();
                self.events.progress(fleet.stage(), None, 0, replica);
                match self.encode_on(&lease).await {
                    Ok((encoded, spent)) => {
                        lease.replica().stepped(texts as u64, spent.on_device());
                        self.promise.done(fleet.stage(), texts as u64);
                        return Ok((encoded, placing.timing(None, &spent)));
                    }
                    Err(fault) => placing.failed(lease.replica(), fault, self.patience)?,
                }
            }
        }
        .instrument(span)
        .await
    }

    async fn encode_on(self, lease: &Lease) -> Result<(Texts, Spent), Fault> {
        let mut client = TextEncoderServiceClient::new(lease.replica().channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let inputs = self.plan.texts.iter().map(|text| v1::TextInput {
            conditioner: v1::Conditioner::from(text.conditioner).into(),
            prompt: text.prompt.clone(),
            prompt_2: text.prompt_2.clone(),
            clip_skip: text.clip_skip,
        });
        let request = v1::EncodeRequest { inputs: inputs.collect() };
        let request = hop::request(request, self.terms);
        let answer = hop::answer(lease.replica(), client.encode(request)).await?;
        let (queue_time, run_time) = (answer.queue_time, answer.run_time);
        let spent = Spent { queue_time, run_time, ..Spent::default() };
        Ok((self.checked(answer.embeddings).map_err(Fault::Reply)?, spent))
    }

    /// The embeddings, if they are as many and as wide as they should be.
    fn checked(self, embeddings: Vec<v1::TextEmbedding>) -> Result<Texts, String> {
        let texts = &self.plan.texts;
        if embeddings.len() != texts.len() {
            return Err(format!("{} embeddings for {} texts", embeddings.len(), texts.len()));
        }
        let checked = texts.iter().zip(embeddings).enumerate().map(|(i, (text, embedding))| {
            let info = self
                .conditioner(text.conditioner)
                .ok_or_else(|| format!("embeddings[{i}] is for a refiner that is not served"))?;
            check(i, info, embedding)
        });
        Ok(Texts(checked.collect::<Result<_, _>>()?))
    }

    fn conditioner(&self, which: Conditioner) -> Option<&ConditionerInfo> {
        match which {
            Conditioner::Base => Some(&self.model.base_conditioner),
            Conditioner::Refiner => self.model.refiner.as_ref().map(|(conditioner, _)| conditioner),
        }
    }

    /// What the caller may not have meant: each field's lost end once, and a size that was not trained.
    pub(super) fn warnings(self, texts: &Texts) -> Vec<v1::Warning> {
        let mut warnings: Vec<v1::Warning> = Vec::new();
        for (field, lost) in passes(self.plan).flat_map(|pass| truncated(pass, texts)) {
            if !lost.is_empty() && warnings.iter().all(|w| w.field != field) {
                warnings.push(v1::Warning {
                    code: v1::WarningCode::PromptTruncated.into(),
                    field: field.to_owned(),
                    message: format!(
                        "{field} does not fit into the text encoder's 77 tokens; what was cut off: {lost:?}"
                    ),
                    truncated_text: lost.to_owned(),
                    nearest_size: None,
                });
            }
        }
        warnings.extend(self.plan.nearest_bucket.map(|nearest| v1::Warning {
            code: v1::WarningCode::SizeOutsideBuckets.into(),
            field: "width".to_owned(),
            message: format!(
                "the model was not trained at {}; the nearest size that it was trained at is {nearest}",
                self.plan.size
            ),
            truncated_text: String::new(),
            nearest_size: Some(nearest.into()),
        }));
        warnings
    }
}

fn check(
    index: usize,
    info: &ConditionerInfo,
    mut embedding: v1::TextEmbedding,
) -> Result<v1::TextEmbedding, String> {
    const ANY: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
    let field = |name: &str| format!("embeddings[{index}].{name}");
    embedding.prompt_embeds = Some(reply::tensor(
        &field("prompt_embeds"),
        embedding.prompt_embeds.take(),
        &[None, Some(info.cross_attention_dim)],
        &ANY,
    )?);
    embedding.pooled_prompt_embeds = Some(reply::tensor(
        &field("pooled_prompt_embeds"),
        embedding.pooled_prompt_embeds.take(),
        &[Some(info.pooled_projection_dim)],
        &ANY,
    )?);
    Ok(embedding)
}

fn passes(plan: &sdxl_core::Plan) -> impl Iterator<Item = &DenoisePlan> {
    std::iter::once(&plan.base).chain(&plan.refiner)
}

/// The fields of the request that a pass is conditioned by, each with the end that did not fit. A negative prompt that
/// equals the prompt is encoded once but lost twice, so the fields follow from the half and not from the text.
fn truncated<'a>(pass: &DenoisePlan, texts: &'a Texts) -> Vec<(&'static str, &'a str)> {
    let positive = (Some(pass.positive), "prompt", "prompt_2");
    let negative = (pass.negative, "negative_prompt", "negative_prompt_2");
    let mut found = Vec::new();
    for (half, field, field_2) in [positive, negative] {
        if let Some(embedding) = half.and_then(|half| texts.of(half.text)) {
            found.push((field, embedding.prompt_truncated.as_str()));
            found.push((field_2, embedding.prompt_2_truncated.as_str()));
        }
    }
    found
}
