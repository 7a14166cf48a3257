//! Prompts to embeddings: each distinct text of a request once, those that the cache does not have in one call.

use super::{
    Pipeline,
    error::GenerateError,
    hop::{self, Fault, Placing, Spent},
    reply,
};
use crate::{
    cache::{self, Key},
    placement::Lease,
};
use sdxl_core::{Conditioner, ConditionerInfo, DenoisePlan};
use sdxl_proto::{
    MAX_MESSAGE_BYTES,
    v1::{self, DType, text_encoder_service_client::TextEncoderServiceClient},
};
use std::sync::Arc;
use tracing::{Instrument, Span, field::Empty, info_span};

/// Embeddings in the order of the plan's texts, checked.
#[derive(Debug, Default)]
pub(super) struct Texts(Vec<v1::TextEmbedding>);

impl Texts {
    /// The embeddings of a conditioning; none where it is zeros.
    pub(super) fn of(&self, text: Option<usize>) -> Option<&v1::TextEmbedding> {
        text.and_then(|index| self.0.get(index))
    }
}

/// What the cache knew of a request's texts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lookups {
    /// Texts that it had, or that another request had just encoded.
    pub(crate) hits: usize,
    /// Texts that were encoded for this request.
    pub(crate) misses: usize,
}

/// A request's texts, and how they were come by.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    pub(super) texts: Texts,
    /// Of each call; none where the cache had all.
    pub(super) timings: Vec<v1::StageTiming>,
    pub(super) cache: Lookups,
}

impl Pipeline<'_> {
    pub(super) async fn encode(self) -> Result<Encoded, GenerateError> {
        let texts = self.plan.texts.len();
        let span = info_span!("encode", texts, cache.hits = Empty, cache.misses = Empty, replica = Empty);
        self.encode_texts().instrument(span).await
    }

    async fn encode_texts(self) -> Result<Encoded, GenerateError> {
        let fleet = &self.fleets.text_encoder;
        let info = fleet.status().borrow().info.clone();
        let info = info.ok_or(GenerateError::NoReplica { stage: fleet.stage() })?;
        let mut left: Vec<(usize, Key)> =
            self.plan.texts.iter().map(|text| cache::key(&info, text)).enumerate().collect();
        let mut found = vec![v1::TextEmbedding::default(); left.len()];
        let mut encoded = Encoded::default();
        // More than once only where another request failed to encode what it was waited for.
        while !left.is_empty() {
            let lookup = self.cache.look_up(&left, &|index, kept| self.checked(index, kept)).await;
            for (index, embedding) in lookup.found {
                found[index] = embedding;
                left.retain(|(other, _)| *other != index);
            }
            let (indices, flights): (Vec<_>, Vec<_>) = lookup.missing.into_iter().unzip();
            if !indices.is_empty() {
                let (embeddings, revision, timing) = self.encode_all(&indices).await?;
                encoded.timings.push(timing);
                encoded.cache.misses += indices.len();
                for ((index, flight), embedding) in indices.iter().zip(flights).zip(embeddings) {
                    found[*index] = embedding.clone();
                    // The key is of the revision that was there when it was made.
                    if *revision == *info.revision {
                        flight.land(embedding, true);
                    }
                }
                left.retain(|(index, _)| !indices.contains(index));
            }
            for (index, mut flight) in lookup.awaited {
                let Ok(landed) = flight.wait_for(Option::is_some).await else { continue };
                found[index] = landed.clone().unwrap_or_default();
                left.retain(|(other, _)| *other != index);
            }
        }
        self.promise.done(fleet.stage(), found.len() as u64);
        encoded.cache.hits = found.len().saturating_sub(encoded.cache.misses);
        let span = Span::current();
        span.record("cache.hits", encoded.cache.hits);
        span.record("cache.misses", encoded.cache.misses);
        encoded.texts = Texts(found);
        Ok(encoded)
    }

    /// Has the texts of `indices` encoded; with the revision that did it.
    async fn encode_all(
        self,
        indices: &[usize],
    ) -> Result<(Vec<v1::TextEmbedding>, Arc<str>, v1::StageTiming), GenerateError> {
        let fleet = &self.fleets.text_encoder;
        let texts = indices.len();
        let mut placing = Placing::new(self, fleet, texts as u64, false);
        loop {
            let lease = placing.next().await?;
            self.events.progress(fleet.stage(), None, 0, Some(lease.replica().address()));
            let call = self.encode_on(&lease, indices);
            match placing.call("sdxl.v1.TextEncoderService/Encode", lease.replica(), call).await {
                Ok((embeddings, spent)) => {
                    lease.replica().stepped(texts as u64, texts as u64, texts as u64, spent.on_device());
                    return Ok((embeddings, lease.revision().into(), placing.timing(None, &spent)));
                }
                Err(fault) => placing.failed(lease.replica(), fault, self.patience)?,
            }
        }
    }

    async fn encode_on(
        self,
        lease: &Lease,
        indices: &[usize],
    ) -> Result<(Vec<v1::TextEmbedding>, Spent), Fault> {
        let mut client = TextEncoderServiceClient::new(lease.replica().channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let inputs = indices.iter().map(|index| &self.plan.texts[*index]).map(|text| v1::TextInput {
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
        let embeddings = answer.embeddings;
        if embeddings.len() != indices.len() {
            let problem = format!("{} embeddings for {} texts", embeddings.len(), indices.len());
            return Err(Fault::Reply(problem));
        }
        let checked = indices.iter().zip(embeddings).map(|(index, e)| self.checked(*index, e));
        Ok((checked.collect::<Result<_, _>>().map_err(Fault::Reply)?, spent))
    }

    /// The embedding of a text of the plan, if it is as wide as it should be.
    fn checked(self, index: usize, embedding: v1::TextEmbedding) -> Result<v1::TextEmbedding, String> {
        let text = self.plan.texts.get(index).and_then(|text| self.conditioner(text.conditioner));
        let info = text.ok_or_else(|| format!("embeddings[{index}] is for a refiner that is not served"))?;
        check(index, info, embedding)
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
