//! Numbers of weights in the two bytes that they came in, which half the memory holds.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "vector intrinsics, asked for at run time"))]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::{
    f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};

use super::{
    element::{as_numbers, as_words, halves, halves_mut},
    wide::wide,
};
#[cfg(target_arch = "x86_64")]
use super::{isa, product::LANES};

/// Numbers converted at once where there are no vectors for it.
const BLOCK: usize = 256;

/// How a weight's numbers are kept between products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// As products take them.
    Words,
    /// As f16, all of which are f32: those of a row of a panel in half as many words.
    F16,
    /// As bf16, likewise.
    Bf16,
}

impl Kept {
    /// Words that `words` of a product take.
    pub(super) fn words(self, words: usize) -> usize {
        match self {
            Self::Words => words,
            Self::F16 | Self::Bf16 => words / 2,
        }
    }

    /// The bits of f32 in `words`, each of which is one of these, as they are kept: whole rows of a panel.
    pub(super) fn narrow(self, words: &[u32], out: &mut [u32]) {
        match self {
            Self::Words => out.copy_from_slice(words),
            Self::F16 => narrow_f16(words, halves_mut(out)),
            Self::Bf16 => narrow_bf16(words, halves_mut(out)),
        }
    }

    /// What [`Kept::narrow`] made of words.
    pub(super) fn widen(self, kept: &[u32], out: &mut [u32]) {
        match self {
            Self::Words => out.copy_from_slice(kept),
            Self::F16 => widen_f16(halves(kept), out),
            Self::Bf16 => widen_bf16(halves(kept), out),
        }
    }
}

fn narrow_f16(words: &[u32], out: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if isa::best() == isa::Isa::Avx512 {
        // SAFETY: `isa` has found the instructions.
        return unsafe { narrow_f16_avx512(words, out) };
    }
    out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(as_numbers(words));
}

fn widen_f16(kept: &[u16], out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if isa::best() == isa::Isa::Avx512 {
        // SAFETY: `isa` has found the instructions.
        return unsafe { widen_f16_avx512(kept, out) };
    }
    let mut numbers = [0.0; BLOCK];
    for (kept, out) in kept.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
        let numbers = &mut numbers[..kept.len()];
        kept.reinterpret_cast::<f16>().convert_to_f32_slice(numbers);
        out.copy_from_slice(as_words(numbers));
    }
}

wide! {
    fn narrow_bf16(words: &[u32], out: &mut [u16]) {
        out.iter_mut().zip(words).for_each(|(out, word)| *out = (word >> 16) as u16);
    }
}

wide! {
    fn widen_bf16(kept: &[u16], out: &mut [u32]) {
        out.iter_mut().zip(kept).for_each(|(out, kept)| *out = u32::from(*kept) << 16);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn narrow_f16_avx512(words: &[u32], out: &mut [u16]) {
    for (words, out) in words.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
        // SAFETY: both are as long as what is read and written.
        unsafe {
            let numbers = _mm512_loadu_ps(words.as_ptr().cast());
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(numbers);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), halves);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn widen_f16_avx512(kept: &[u16], out: &mut [u32]) {
    for (kept, out) in kept.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
        // SAFETY: both are as long as what is read and written.
        unsafe {
            let numbers = _mm512_cvtph_ps(_mm256_loadu_si256(kept.as_ptr().cast()));
            _mm512_storeu_ps(out.as_mut_ptr().cast(), numbers);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// Every number that has two bytes, but for the bits of what is none.
    #[test]
    fn what_is_narrowed_comes_back() {
        for (kept, of) in [
            (Kept::F16, (|bits| f16::from_bits(bits).to_f32()) as fn(u16) -> f32),
            (Kept::Bf16, |bits| bf16::from_bits(bits).to_f32()),
        ] {
            let words: Vec<u32> = (0..=u16::MAX).map(|bits| of(bits).to_bits()).collect();
            let mut narrow = vec![0; kept.words(words.len())];
            kept.narrow(&words, &mut narrow);
            let mut wide = vec![0; words.len()];
            kept.widen(&narrow, &mut wide);
            let same =
                |(a, b): (&u32, &u32)| a == b || f32::from_bits(*a).is_nan() && f32::from_bits(*b).is_nan();
            assert_eq!(words.iter().zip(&wide).position(|both| !same(both)), None, "{kept:?}");
        }
    }
}
