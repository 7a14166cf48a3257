use super::{
    device::{Device, Present},
    digest::{Digest, Draws},
    info,
    profile::{ConditionerProfile, Profile, TextEncoderProfile},
};
use crate::{
    Details, Engine, EngineError, StageInfo, Step, StepOf, Work,
    jobs::{EncodeJob, NUM_TOKENS, TextEmbedding, TextJob},
};
use candle_core::{DType, Device as Memory, Tensor};
use sdxl_core::{Conditioner, Size, StageKind, Violations};
use std::{path::Path, thread, vec};

/// A text encoder that takes its time.
#[derive(Debug)]
pub struct SimulatedTextEncoder {
    profile: TextEncoderProfile,
    dtype: DType,
    device: Device,
}

/// Texts to come, and those encoded.
#[derive(Debug)]
pub struct SimulatedEncodeRun {
    inputs: vec::IntoIter<TextJob>,
    embeddings: Vec<TextEmbedding>,
    _present: Present,
}

impl SimulatedTextEncoder {
    /// A text encoder by the profile in `path`, for the refiner too if the profile has one.
    ///
    /// # Errors
    /// Where the profile cannot be read; one line.
    pub fn load(path: &Path) -> anyhow::Result<(Self, StageInfo)> {
        Ok(Self::new(&Profile::open(path)?))
    }

    /// A text encoder by `profile`.
    #[must_use]
    pub fn new(profile: &Profile) -> (Self, StageInfo) {
        let own = profile.text_encoder.clone();
        let described = [Conditioner::Base, Conditioner::Refiner]
            .into_iter()
            .filter_map(|which| Some((which, own.conditioner(which)?.info.clone())))
            .collect();
        let info = info(StageKind::TextEncoder, profile, Details::TextEncoder(described));
        (Self { profile: own, dtype: profile.dtype, device: Device::new() }, info)
    }

    fn check(&self, i: usize, input: &TextJob, wrong: &mut Violations) {
        let Some(conditioner) = self.profile.conditioner(input.conditioner) else {
            let description = "this text encoder serves no refiner: its profile has none";
            return wrong.push(&format!("inputs[{i}].conditioner"), description);
        };
        let max = conditioner.info.max_clip_skip();
        if input.clip_skip > max {
            let allowed = format!("in 0..={max}, the text encoders' depth");
            wrong.add(&format!("inputs[{i}].clip_skip"), input.clip_skip, allowed);
        }
    }

    fn encode(&mut self, input: &TextJob) -> Result<TextEmbedding, EngineError> {
        let conditioner = self.profile.conditioner(input.conditioner);
        let conditioner = conditioner.ok_or_else(|| EngineError::failed("a run has lost its conditioner"))?;
        self.device.work(conditioner.per_text);
        embed(conditioner, input, self.dtype).map_err(EngineError::failed)
    }
}

/// Drawn from a hash of the text: one token's features, which all tokens have alike, and the pooled ones. Nothing is
/// ever cut off, as nothing is counted.
fn embed(
    conditioner: &ConditionerProfile,
    input: &TextJob,
    dtype: DType,
) -> candle_core::Result<TextEmbedding> {
    let prompt_2 = match (input.conditioner, input.prompt_2.as_str()) {
        (Conditioner::Refiner, _) | (Conditioner::Base, "") => &input.prompt,
        (Conditioner::Base, own) => own,
    };
    let which = match input.conditioner {
        Conditioner::Base => "base",
        Conditioner::Refiner => "refiner",
    };
    let hash = Digest::of(which).text(&input.prompt).text(prompt_2).number(input.clip_skip.into());
    let mut draws = Draws::new(hash.finish());
    let mut features = |count: u32| {
        let values: Vec<f32> = (0..count).map(|_| draws.value()).collect();
        Tensor::new(values, &Memory::Cpu)?.to_dtype(dtype)
    };
    let token = features(conditioner.info.cross_attention_dim)?;
    Ok(TextEmbedding {
        // Laid out here, once: whoever reads a broadcast tensor walks it value by value.
        prompt_embeds: Tensor::cat(&vec![token.unsqueeze(0)?; NUM_TOKENS], 0)?,
        pooled_prompt_embeds: features(conditioner.info.pooled_projection_dim)?,
        prompt_truncated: None,
        prompt_2_truncated: None,
    })
}

impl Engine for SimulatedTextEncoder {
    type Request = EncodeJob;
    type Run = SimulatedEncodeRun;
    /// A text has been encoded.
    type Event = ();
    type Output = Vec<TextEmbedding>;

    fn warm_up(&mut self) -> Result<(), EngineError> {
        thread::sleep(self.profile.warm_up);
        Ok(())
    }

    fn begin(&mut self, request: EncodeJob) -> Result<SimulatedEncodeRun, EngineError> {
        let mut wrong = Violations::default();
        if request.inputs.is_empty() {
            wrong.push("inputs", "empty; at least one text is needed");
        }
        for (i, input) in request.inputs.iter().enumerate() {
            self.check(i, input, &mut wrong);
        }
        if !wrong.is_empty() {
            return Err(EngineError::Invalid(wrong.into_vec()));
        }
        Ok(SimulatedEncodeRun {
            embeddings: Vec::with_capacity(request.inputs.len()),
            inputs: request.inputs.into_iter(),
            _present: self.device.enter(),
        })
    }

    fn work(&self, run: &SimulatedEncodeRun) -> Work {
        let steps = u32::try_from(run.inputs.len()).unwrap_or(u32::MAX);
        Work::even(Size::new(0, 0), 1, steps)
    }

    fn advance(&mut self, runs: &mut [&mut SimulatedEncodeRun]) -> Vec<Result<StepOf<Self>, EngineError>> {
        let one = |run: &mut &mut SimulatedEncodeRun| {
            if let Some(input) = run.inputs.next() {
                run.embeddings.push(self.encode(&input)?);
            }
            if run.inputs.len() > 0 {
                return Ok(Step::Continue(()));
            }
            Ok(Step::Done(std::mem::take(&mut run.embeddings)))
        };
        runs.iter_mut().map(one).collect()
    }
}
