use sdxl_core::{Conditioner, Size, Violations};
use sdxl_models::{Text, TextConditioner};
use sdxl_stage::{
    Engine, EngineError, Step, StepOf, Work,
    jobs::{EncodeJob, TextEmbedding, TextJob},
};
use std::vec;

/// The most texts of a run that are encoded in one step: more together are hardly faster, and a step should be short.
const STEP: usize = 8;

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

    /// How many texts a step of this conditioner's encodes.
    fn step(&self, which: Conditioner) -> usize {
        if self.conditioner(which).is_some_and(TextConditioner::encodes_together) { STEP } else { 1 }
    }

    /// The texts of each step to come.
    fn steps<'a>(
        &self,
        inputs: &'a vec::IntoIter<TextJob>,
    ) -> impl Iterator<Item = &'a [TextJob]> + use<'a, '_> {
        let alike = inputs.as_slice().chunk_by(share_a_step);
        alike.flat_map(|texts| texts.chunks(texts.first().map_or(1, |text| self.step(text.conditioner))))
    }

    /// All of `inputs`, which are for one conditioner and leave out as many layers.
    fn encode(&self, inputs: &[TextJob]) -> Result<Vec<TextEmbedding>, EngineError> {
        let lost = || EngineError::failed("a run has lost its conditioner");
        let [TextJob { conditioner, clip_skip, .. }, ..] = inputs else { return Ok(Vec::new()) };
        let conditioner = self.conditioner(*conditioner).ok_or_else(lost)?;
        let texts: Vec<_> =
            inputs.iter().map(|input| Text { prompt: &input.prompt, prompt_2: &input.prompt_2 }).collect();
        let embeddings = conditioner.encode_all(&texts, *clip_skip as usize).map_err(EngineError::failed)?;
        let embedding = |embedding: sdxl_models::TextEmbedding| TextEmbedding {
            prompt_embeds: embedding.prompt_embeds,
            pooled_prompt_embeds: embedding.pooled_prompt_embeds,
            prompt_truncated: embedding.prompt_truncated,
            prompt_2_truncated: embedding.prompt_2_truncated,
        };
        Ok(embeddings.into_iter().map(embedding).collect())
    }
}

fn share_a_step(a: &TextJob, b: &TextJob) -> bool {
    (a.conditioner, a.clip_skip) == (b.conditioner, b.clip_skip)
}

impl Engine for TextEncoderEngine {
    type Request = EncodeJob;
    type Run = EncodeRun;
    /// Some texts have been encoded.
    type Event = ();
    type Output = Vec<TextEmbedding>;

    fn warm_up(&mut self) -> Result<(), EngineError> {
        for conditioner in [Conditioner::Base, Conditioner::Refiner] {
            if self.conditioner(conditioner).is_some() {
                let prompt = "a lighthouse".to_owned();
                let text = TextJob { conditioner, prompt, prompt_2: String::new(), clip_skip: 0 };
                self.encode(&[text])?;
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
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let next = self.steps(&run.inputs).next().map_or(0, <[_]>::len);
        let steps = self.steps(&run.inputs).count();
        Work::even(Size::new(0, 0), count(next), count(steps))
    }

    fn advance(&mut self, runs: &mut [&mut EncodeRun]) -> Vec<Result<StepOf<Self>, EngineError>> {
        let one = |run: &mut &mut EncodeRun| {
            let count = self.steps(&run.inputs).next().map_or(0, <[_]>::len);
            let texts: Vec<_> = run.inputs.by_ref().take(count).collect();
            run.embeddings.extend(self.encode(&texts)?);
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
