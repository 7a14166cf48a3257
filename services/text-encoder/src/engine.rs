use sdxl_core::{Conditioner, Size, Violations};
use sdxl_models::TextConditioner;
use sdxl_stage::{
    Engine, EngineError, Step, StepOf, Work,
    jobs::{EncodeJob, TextEmbedding, TextJob},
};
use std::vec;

/// The text encoders of a base and perhaps of a refiner.
#[derive(Debug)]
pub(crate) struct TextEncoderEngine {
    base: TextConditioner,
    refiner: Option<TextConditioner>,
}

/// Texts to come, and those encoded.
#[derive(Debug)]
pub(crate) struct EncodeRun {
    inputs: vec::IntoIter<TextJob>,
    embeddings: Vec<TextEmbedding>,
}

impl TextEncoderEngine {
    pub(crate) fn new(base: TextConditioner, refiner: Option<TextConditioner>) -> Self {
        Self { base, refiner }
    }

    fn conditioner(&self, which: Conditioner) -> Option<&TextConditioner> {
        match which {
            Conditioner::Base => Some(&self.base),
            Conditioner::Refiner => self.refiner.as_ref(),
        }
    }

    fn check(&self, i: usize, input: &TextJob, wrong: &mut Violations) {
        let Some(conditioner) = self.conditioner(input.conditioner) else {
            let description = "this text encoder serves no refiner: it was started without --refiner";
            return wrong.push(&format!("inputs[{i}].conditioner"), description);
        };
        let max = conditioner.num_hidden_layers().saturating_sub(1);
        if input.clip_skip as usize > max {
            let allowed = format!("in 0..={max}, the text encoders' depth");
            wrong.add(&format!("inputs[{i}].clip_skip"), input.clip_skip, allowed);
        }
    }

    fn encode(&self, input: &TextJob) -> Result<TextEmbedding, EngineError> {
        let conditioner = self
            .conditioner(input.conditioner)
            .ok_or_else(|| EngineError::failed("a run has lost its conditioner"))?;
        let embedding = conditioner
            .encode(&input.prompt, &input.prompt_2, input.clip_skip as usize)
            .map_err(EngineError::failed)?;
        Ok(TextEmbedding {
            prompt_embeds: embedding.prompt_embeds,
            pooled_prompt_embeds: embedding.pooled_prompt_embeds,
            prompt_truncated: embedding.prompt_truncated,
            prompt_2_truncated: embedding.prompt_2_truncated,
        })
    }
}

impl Engine for TextEncoderEngine {
    type Request = EncodeJob;
    type Run = EncodeRun;
    /// A text has been encoded.
    type Event = ();
    type Output = Vec<TextEmbedding>;

    fn warm_up(&mut self) -> Result<(), EngineError> {
        for conditioner in [Conditioner::Base, Conditioner::Refiner] {
            if self.conditioner(conditioner).is_some() {
                let prompt = "a lighthouse".to_owned();
                self.encode(&TextJob { conditioner, prompt, prompt_2: String::new(), clip_skip: 0 })?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, request: EncodeJob) -> Result<EncodeRun, EngineError> {
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
        Ok(EncodeRun {
            embeddings: Vec::with_capacity(request.inputs.len()),
            inputs: request.inputs.into_iter(),
        })
    }

    fn work(&self, run: &EncodeRun) -> Work {
        let steps = u32::try_from(run.inputs.len()).unwrap_or(u32::MAX);
        Work { size: Size::new(0, 0), evaluations: 1, steps }
    }

    fn advance(&mut self, runs: &mut [&mut EncodeRun]) -> Vec<Result<StepOf<Self>, EngineError>> {
        let one = |run: &mut &mut EncodeRun| {
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

#[cfg(test)]
mod tests;
