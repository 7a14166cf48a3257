//! Which text and which numbers condition each half of the batch, as diffusers' two pipelines choose them.

use super::{ConditioningPlan, TextPlan};
use crate::{
    model::{Conditioner, ConditionerInfo, DenoiserInfo, ModelInfo},
    request::GenerateRequest,
    size::Size,
};

/// The refiner's defaults in diffusers.
const AESTHETIC_SCORE: f32 = 6.0;
const NEGATIVE_AESTHETIC_SCORE: f32 = 2.5;

#[derive(Clone, Copy)]
pub(super) struct Halves {
    pub positive: ConditioningPlan,
    pub negative: Option<ConditioningPlan>,
}

/// `StableDiffusionXLPipeline`: the negative sizes count only where both are given, and then with the negative crop.
pub(super) fn base(
    request: &GenerateRequest,
    model: &ModelInfo,
    size: Size,
    guided: bool,
    texts: &mut Vec<TextPlan>,
) -> Halves {
    let prompt = TextPlan {
        conditioner: Conditioner::Base,
        prompt: request.prompt.clone(),
        prompt_2: request.prompt_2.clone().unwrap_or_default(),
        clip_skip: request.clip_skip,
        fields: ("prompt", "prompt_2"),
    };
    let positive = ConditioningPlan {
        text: Some(index_of(prompt, texts)),
        original_size: request.original_size.unwrap_or(size),
        crops_coords_top_left: request.crops_coords_top_left.unwrap_or_default(),
        target_size: request.target_size.unwrap_or(size),
        aesthetic_score: None,
    };
    let negative = guided.then(|| {
        let text = negative_text(request, &model.base_conditioner, Conditioner::Base);
        let text = text.map(|text| index_of(text, texts));
        match (request.negative_original_size, request.negative_target_size) {
            (Some(original_size), Some(target_size)) => ConditioningPlan {
                text,
                original_size,
                crops_coords_top_left: request.negative_crops_coords_top_left.unwrap_or_default(),
                target_size,
                aesthetic_score: None,
            },
            _ => ConditioningPlan { text, ..positive },
        }
    });
    Halves { positive, negative }
}

/// `StableDiffusionXLImg2ImgPipeline`: the second prompts and `clip_skip` are the base's alone, and each negative
/// size has its own default. A denoiser without aesthetic scores takes the positive crop for both halves.
pub(super) fn refiner(
    request: &GenerateRequest,
    (conditioner, info): (&ConditionerInfo, &DenoiserInfo),
    size: Size,
    guided: bool,
    texts: &mut Vec<TextPlan>,
) -> Halves {
    let wanted = request.refiner.unwrap_or_default();
    let scored = info.requires_aesthetics_score;
    let prompt = TextPlan {
        conditioner: Conditioner::Refiner,
        prompt: request.prompt.clone(),
        prompt_2: String::new(),
        clip_skip: 0,
        fields: ("prompt", "prompt_2"),
    };
    let positive = ConditioningPlan {
        text: Some(index_of(prompt, texts)),
        original_size: request.original_size.unwrap_or(size),
        crops_coords_top_left: request.crops_coords_top_left.unwrap_or_default(),
        target_size: request.target_size.unwrap_or(size),
        aesthetic_score: scored.then(|| wanted.aesthetic_score.unwrap_or(AESTHETIC_SCORE)),
    };
    let negative = guided.then(|| ConditioningPlan {
        text: negative_text(request, conditioner, Conditioner::Refiner).map(|text| index_of(text, texts)),
        original_size: request.negative_original_size.unwrap_or(positive.original_size),
        crops_coords_top_left: if scored {
            request.negative_crops_coords_top_left.unwrap_or_default()
        } else {
            positive.crops_coords_top_left
        },
        target_size: request.negative_target_size.unwrap_or(positive.target_size),
        aesthetic_score: scored.then(|| wanted.negative_aesthetic_score.unwrap_or(NEGATIVE_AESTHETIC_SCORE)),
    });
    Halves { positive, negative }
}

/// `None` for zeros: no negative prompt, and a checkpoint that wants zeros then. `clip_skip` is the positives' alone.
fn negative_text(
    request: &GenerateRequest,
    info: &ConditionerInfo,
    conditioner: Conditioner,
) -> Option<TextPlan> {
    if request.negative_prompt.is_none() && info.force_zeros_for_empty_prompt {
        return None;
    }
    let second = match conditioner {
        Conditioner::Base => request.negative_prompt_2.clone().unwrap_or_default(),
        Conditioner::Refiner => String::new(),
    };
    Some(TextPlan {
        conditioner,
        prompt: request.negative_prompt.clone().unwrap_or_default(),
        prompt_2: second,
        clip_skip: 0,
        fields: ("negative_prompt", "negative_prompt_2"),
    })
}

/// The text's place in `texts`, where equal texts stand once.
fn index_of(text: TextPlan, texts: &mut Vec<TextPlan>) -> usize {
    let same = |t: &TextPlan| {
        (t.conditioner, &t.prompt, &t.prompt_2, t.clip_skip)
            == (text.conditioner, &text.prompt, &text.prompt_2, text.clip_skip)
    };
    texts.iter().position(same).unwrap_or_else(|| {
        texts.push(text);
        texts.len() - 1
    })
}
