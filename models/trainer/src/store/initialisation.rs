//! What a weight is before the first step.

use candle_core::Shape;
use candle_nn::Init;

use crate::random;

/// Weights as torch starts them, each from seed and name alone: matrices and convolutions uniform within
/// `1 / sqrt(fan_in)`, embeddings normal with deviation 0.02, normalizations one, biases zero.
#[derive(Clone, Copy, Debug)]
pub struct Initialisation {
    /// The seed of all.
    pub seed: u64,
    /// Whether the tensor of that name starts at zero: a branch's last layer does, so that the branch starts silent.
    pub is_zero: fn(&str) -> bool,
}

impl Initialisation {
    /// No tensor starts at zero but biases.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, is_zero: |_| false }
    }

    /// The tensor's numbers. `hint` counts for vectors that are neither weight nor bias.
    pub(super) fn values(&self, name: &str, shape: &Shape, hint: Init) -> Vec<f32> {
        let count = shape.elem_count();
        if (self.is_zero)(name) {
            return vec![0.0; count];
        }
        let mut rng = random::stream(self.seed, name, 0, 0);
        match *shape.dims() {
            [] | [_] if name.ends_with("weight") => vec![1.0; count],
            [] | [_] => match hint {
                Init::Const(value) if !name.ends_with("bias") => vec![value as f32; count],
                _ => vec![0.0; count],
            },
            _ if name.ends_with("embedding.weight") => {
                random::normal(&mut rng, count).into_iter().map(|value| 0.02 * value).collect()
            }
            [out, ..] => {
                let fan_in = count / out.max(1);
                random::uniform(&mut rng, (fan_in.max(1) as f32).sqrt().recip(), count)
            }
        }
    }
}
