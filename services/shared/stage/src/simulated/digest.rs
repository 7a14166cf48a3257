//! Fast hashing and drawing. Nothing here withstands an adversary, and nothing needs to: equal input must give equal
//! numbers, and different input almost surely others.

use candle_core::{DType, Tensor};
use half::{bf16, f16};

/// Mixes every bit into every other (the finaliser of splitmix64).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// splitmix64's increment.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash of what it is fed, in that order.
#[derive(Clone, Debug)]
pub(super) struct Digest(u64);

impl Digest {
    /// One for each use, so that equal input hashes differently in different places.
    pub(super) fn of(what: &str) -> Self {
        Self(0).text(what)
    }

    pub(super) fn number(self, number: u64) -> Self {
        Self(mix(self.0.wrapping_add(STEP) ^ number))
    }

    pub(super) fn text(self, text: &str) -> Self {
        let bytes = text.as_bytes();
        bytes.chunks(8).fold(self.number(bytes.len() as u64), |digest, chunk| {
            let word = chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
            digest.number(word)
        })
    }

    /// The values of a tensor; an absent one counts as zeros, as it does to the real engines.
    pub(super) fn tensor(self, tensor: Option<&Tensor>) -> candle_core::Result<Self> {
        let Some(tensor) = tensor else { return Ok(self.number(0)) };
        let flat = tensor.flatten_all()?;
        let words = match flat.dtype() {
            DType::F16 => packed(&flat.to_vec1::<f16>()?, |value| value.to_bits().into()),
            DType::BF16 => packed(&flat.to_vec1::<bf16>()?, |value| value.to_bits().into()),
            _ => packed(&flat.to_dtype(DType::F32)?.to_vec1::<f32>()?, |value| value.to_bits().into()),
        };
        if words.iter().all(|word| *word == 0) {
            return Ok(self.number(0));
        }
        Ok(words.into_iter().fold(self.number(1), Self::number))
    }

    pub(super) fn finish(self) -> u64 {
        self.0
    }
}

/// Values side by side in words: what is slow is hashing a word.
fn packed<T: Copy>(values: &[T], bits: impl Fn(T) -> u64) -> Vec<u64> {
    let word = |word: &[T]| word.iter().fold(0, |word, value| word << (8 * size_of::<T>()) | bits(*value));
    values.chunks(8 / size_of::<T>()).map(word).collect()
}

/// Numbers drawn from a seed (splitmix64).
#[derive(Clone, Debug)]
pub(super) struct Draws(u64);

impl Draws {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// From -1 to 1, evenly: as wide as latents are, roughly, and cheap.
    pub(super) fn value(&mut self) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "24 bits are all that f32 holds, and it holds them")]
        let unit = (self.number() >> 40) as f32 / (1u32 << 23) as f32;
        unit - 1.0
    }
}

/// Values with a sum of hashes over them that follows each change of one value, so that what depends on all of them
/// costs no walk over all of them.
#[derive(Clone, Debug)]
pub(super) struct Summed {
    values: Vec<f32>,
    sum: u64,
}

impl Summed {
    pub(super) fn new(values: Vec<f32>) -> Self {
        let hashes = values.iter().enumerate().map(|(place, value)| hash(place, *value));
        let sum = hashes.fold(0, u64::wrapping_add);
        Self { values, sum }
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }

    /// Depends on every value and on its place.
    pub(super) fn sum(&self) -> u64 {
        self.sum
    }

    /// Puts `value` at `place`, counted round the end.
    pub(super) fn set(&mut self, place: u64, value: f32) {
        let place = usize::try_from(place % (self.values.len() as u64).max(1)).unwrap_or(0);
        if let Some(old) = self.values.get_mut(place) {
            self.sum = self.sum.wrapping_sub(hash(place, *old)).wrapping_add(hash(place, value));
            *old = value;
        }
    }
}

fn hash(place: usize, value: f32) -> u64 {
    mix(((place as u64) << 32 | u64::from(value.to_bits())).wrapping_add(STEP))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_sum_that_followed_changes_is_that_of_the_values_as_they_are() {
        let mut draws = Draws::new(7);
        let mut summed = Summed::new((0..100).map(|_| draws.value()).collect());
        let first = summed.sum();
        for _ in 0..1000 {
            summed.set(draws.number(), draws.value());
        }
        assert_eq!(summed.sum(), Summed::new(summed.values().to_vec()).sum());
        assert_ne!(summed.sum(), first);
        assert!(summed.values().iter().all(|value| (-1.0..1.0).contains(value)));
    }

    #[test]
    fn every_value_and_its_place_count() {
        let sum = |values: &[f32]| Summed::new(values.to_vec()).sum();
        let sums = [sum(&[1.0, 2.0]), sum(&[2.0, 1.0]), sum(&[1.0, 2.0, 0.0]), sum(&[1.0, 2.5])];
        for (i, one) in sums.iter().enumerate() {
            assert!(!sums[..i].contains(one), "{sums:?}");
        }
        let text = |text: &str| Digest::of("x").text(text).finish();
        assert_ne!(text("a fox"), text("a fix"));
        assert_ne!(text("eight by"), text("eight by "));
    }

    #[test]
    fn absent_tensors_are_zeros_and_others_are_not() {
        let digest = |tensor: Option<&Tensor>| Digest::of("x").tensor(tensor).unwrap().finish();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let zeros = Tensor::zeros((77, 6), dtype, &Device::Cpu).unwrap();
            assert_eq!(digest(None), digest(Some(&zeros)), "{dtype:?}");
            let ones = Tensor::ones((77, 6), dtype, &Device::Cpu).unwrap();
            assert_ne!(digest(None), digest(Some(&ones)), "{dtype:?}");
        }
    }
}
