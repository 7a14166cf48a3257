//! What a prompt comes to inside the network whatever the step, so that it is computed once for all steps.

use std::{cell::RefCell, collections::HashMap, sync::Arc};

use candle_core::{IndexOp, Result, Tensor, TensorId};

use crate::{attention::Attention, cpu::Keys};

/// Keys and values of one layer.
#[derive(Clone, Debug)]
enum Kept {
    /// Each `[N, T, C]`.
    Tensors([Tensor; 2]),
    Packed(Arc<Keys>),
}

/// A prompt's tokens with their keys and values in each cross-attention, and the added embedding: what of the network's
/// inputs is the same at all steps. Made by [`Unet::prompt`](super::Unet::prompt).
#[derive(Clone, Debug)]
pub struct Prompt {
    /// `encoder_hidden_states` `[N, T, D]` in the network's type.
    states: Tensor,
    /// What the added conditioning adds to the time embedding, `[N, E]`.
    added: Tensor,
    /// By the layer's weight; filled in the first step.
    keys: RefCell<HashMap<TensorId, Kept>>,
}

impl Prompt {
    pub(super) fn new(states: Tensor, added: Tensor) -> Self {
        Self { states, added, keys: RefCell::default() }
    }

    /// How many items it is: one, or two with a negative prompt.
    pub(super) fn items(&self) -> Result<usize> {
        self.states.dim(0)
    }

    pub(super) fn states(&self) -> &Tensor {
        &self.states
    }

    pub(super) fn added(&self) -> &Tensor {
        &self.added
    }

    fn keys(&self, attention: &Attention) -> Result<Kept> {
        let layer = attention.weight().id();
        if let Some(kept) = self.keys.borrow().get(&layer) {
            return Ok(kept.clone());
        }
        let made = match attention.element() {
            Some(_) => Kept::Packed(Arc::new(attention.packed_keys(&self.states)?)),
            None => Kept::Tensors(attention.keys(&self.states)?),
        };
        self.keys.borrow_mut().insert(layer, made.clone());
        Ok(made)
    }
}

/// The tokens of all, `[B, T, D]`.
pub(super) fn joined(prompts: &[&Prompt]) -> Result<Tensor> {
    match prompts {
        [only] => Ok(only.states.clone()),
        _ => Tensor::cat(&prompts.iter().map(|prompt| &prompt.states).collect::<Vec<_>>(), 0),
    }
}

/// Keys and values of each item for this layer, `[T, C]`.
pub(super) fn keys(prompts: &[&Prompt], attention: &Attention) -> Result<Vec<[Tensor; 2]>> {
    let mut items = Vec::new();
    for prompt in prompts {
        let Kept::Tensors([keys, values]) = prompt.keys(attention)? else {
            candle_core::bail!("keys of a packed layer are asked for as tensors")
        };
        for item in 0..prompt.items()? {
            items.push([keys.i(item)?, values.i(item)?]);
        }
    }
    Ok(items)
}

/// Keys and values of each prompt for this layer, which was packed.
pub(super) fn packed_keys(prompts: &[&Prompt], attention: &Attention) -> Result<Vec<Arc<Keys>>> {
    let of = |prompt: &&Prompt| match prompt.keys(attention)? {
        Kept::Packed(keys) => Ok(keys),
        Kept::Tensors(_) => candle_core::bail!("tensors of a layer are asked for as packed keys"),
    };
    prompts.iter().map(of).collect()
}
