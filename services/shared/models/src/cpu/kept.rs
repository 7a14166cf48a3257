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
        assert_eq!(out.len(), self.words(words.len()));
        match self {
            Self::Words => out.copy_from_slice(words),
            Self::F16 => narrow_f16(words, halves_mut(out)),
            Self::Bf16 => narrow_bf16(words, halves_mut(out)),
        }
    }

    /// What [`Kept::narrow`] made of words.
    pub(super) fn widen(self, kept: &[u32], out: &mut [u32]) {
        assert_eq!(kept.len(), self.words(out.len()));
        match self {
            Self::Words => out.copy_from_slice(kept),
            Self::F16 => widen_f16(halves(kept), out),
            Self::Bf16 => widen_bf16(halves(kept), out),
        }
    }

    /// The first of `parts`, all of which were narrowed, taken from the next, and that from the next: bits of f32.
    pub(super) fn differences(self, parts: &[&[u32]], out: &mut [u32]) {
        assert!(parts.iter().all(|part| part.len() == self.words(out.len())));
        #[cfg(target_arch = "x86_64")]
        if self == Self::F16 && isa::best() == isa::Isa::Avx512 {
            // SAFETY: `isa` has found the instructions.
            unsafe {
                match *parts {
                    [a, b] => return differences_f16_avx512([a, b].map(halves), out),
                    [a, b, c] => return differences_f16_avx512([a, b, c].map(halves), out),
                    [a, b, c, d] => return differences_f16_avx512([a, b, c, d].map(halves), out),
                    _ => {}
                }
            }
        }
        self.differences_plain(parts, out);
    }

    fn differences_plain(self, parts: &[&[u32]], out: &mut [u32]) {
        let mut next = [0; BLOCK];
        for (at, out) in out.chunks_mut(BLOCK).enumerate() {
            let of = |part: &[u32], out: &mut [u32]| {
                self.widen(&part[self.words(at * BLOCK)..][..self.words(out.len())], out);
            };
            let next = &mut next[..out.len()];
            for (i, part) in parts.iter().enumerate() {
                if i == 0 {
                    of(part, out);
                } else {
                    of(part, next);
                    take_from(next, out);
                }
            }
        }
    }
}

wide! {
    fn take_from(numbers: &[u32], out: &mut [u32]) {
        let difference = |a: u32, b: u32| (f32::from_bits(a) - f32::from_bits(b)).to_bits();
        out.iter_mut().zip(numbers).for_each(|(out, number)| *out = difference(*number, *out));
    }
}

fn narrow_f16(words: &[u32], out: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if isa::best() == isa::Isa::Avx512 {
        // SAFETY: `isa` has found the instructions.
        return unsafe { narrow_f16_avx512(words, out) };
    }
    narrow_f16_plain(words, out);
}

fn narrow_f16_plain(words: &[u32], out: &mut [u16]) {
    out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(as_numbers(words));
}

fn widen_f16(kept: &[u16], out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if isa::best() == isa::Isa::Avx512 {
        // SAFETY: `isa` has found the instructions.
        return unsafe { widen_f16_avx512(kept, out) };
    }
    widen_f16_plain(kept, out);
}

fn widen_f16_plain(kept: &[u16], out: &mut [u32]) {
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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn differences_f16_avx512<const PARTS: usize>(parts: [&[u16]; PARTS], out: &mut [u32]) {
    let parts = parts.map(|part| part.as_chunks::<LANES>().0);
    for (at, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        // SAFETY: all are as long as what is read and written.
        unsafe {
            let number = |part: usize| _mm512_cvtph_ps(_mm256_loadu_si256(parts[part][at].as_ptr().cast()));
            let mut sum = number(0);
            let mut part = 1;
            while part < PARTS {
                sum = _mm512_sub_ps(number(part), sum);
                part += 1;
            }
            _mm512_storeu_ps(out.as_mut_ptr().cast(), sum);
        }
    }
}

/// Words of sixteen columns, two halves in each, to rows of all first halves and of all second ones.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn split(words: &[u32], out: &mut [u32]) {
    let order: [u16; 2 * LANES] = std::array::from_fn(|i| (i % LANES * 2 + i / LANES) as u16);
    // SAFETY: all three are as long as what is read and written.
    unsafe {
        let order = _mm512_loadu_si512(order.as_ptr().cast());
        for (words, out) in words.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
            let words = _mm512_loadu_si512(words.as_ptr().cast());
            _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_permutexvar_epi16(order, words));
        }
    }
}

/// Words of two f16 each to those of the same numbers rounded to bf16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn round_pairs(words: &[u32], out: &mut [u32]) {
    let apart: [u16; 2 * LANES] = std::array::from_fn(|i| (i % LANES * 2 + i / LANES) as u16);
    let paired: [u16; 2 * LANES] = std::array::from_fn(|i| (i % 2 * LANES + i / 2) as u16);
    // SAFETY: all four are as long as what is read and written.
    unsafe {
        let [apart, paired] = [apart, paired].map(|order| _mm512_loadu_si512(order.as_ptr().cast()));
        for (words, out) in words.as_chunks::<LANES>().0.iter().zip(out.as_chunks_mut::<LANES>().0) {
            let halves = _mm512_permutexvar_epi16(apart, _mm512_loadu_si512(words.as_ptr().cast()));
            let first = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
            let second = _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(halves));
            let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(second, first));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_permutexvar_epi16(paired, rounded));
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    /// To the last bit, by vectors and by loops, over more than a block of them.
    #[test]
    fn differences_are_those_of_what_was_narrowed() {
        let numbers: Vec<Vec<u32>> = (0..4_u16)
            .map(|part| {
                let of = |i: u16| f16::from_bits(i.wrapping_mul(4001 + 2 * part) & 0x3bff | i << 15).to_f32();
                (0..48 * 16).map(|i| of(i).to_bits()).collect()
            })
            .collect();
        for kept in [Kept::Words, Kept::F16] {
            let narrowed: Vec<Vec<u32>> = numbers
                .iter()
                .map(|words| {
                    let mut out = vec![0; kept.words(words.len())];
                    kept.narrow(words, &mut out);
                    out
                })
                .collect();
            for parts in 1..=4 {
                let narrowed: Vec<&[u32]> = narrowed[..parts].iter().map(Vec::as_slice).collect();
                let expected: Vec<u32> = (0..48 * 16)
                    .map(|i| {
                        let number = |part: usize| f32::from_bits(numbers[part][i]);
                        (1..parts).fold(number(0), |sum, part| number(part) - sum).to_bits()
                    })
                    .collect();
                let [mut out, mut plain] = [vec![0; 48 * 16], vec![0; 48 * 16]];
                kept.differences(&narrowed, &mut out);
                kept.differences_plain(&narrowed, &mut plain);
                assert!(out == expected && plain == expected, "{parts} parts as {kept:?}");
            }
        }
    }

    type Narrow = fn(&[u32], &mut [u16]);
    type Widen = fn(&[u16], &mut [u32]);

    /// Every number that has two bytes, but for the bits of what is none.
    #[test]
    fn what_is_narrowed_comes_back() {
        let f16s = |bits| f16::from_bits(bits).to_f32();
        let bf16s = |bits| bf16::from_bits(bits).to_f32();
        for (of, narrow, widen) in [
            (f16s as fn(u16) -> f32, narrow_f16 as Narrow, widen_f16 as Widen),
            (f16s, narrow_f16_plain, widen_f16_plain),
            (bf16s, narrow_bf16, widen_bf16),
        ] {
            let words: Vec<u32> = (0..=u16::MAX).map(|bits| of(bits).to_bits()).collect();
            let (mut kept, mut wide) = (vec![0; words.len()], vec![0; words.len()]);
            narrow(&words, &mut kept);
            widen(&kept, &mut wide);
            for (bits, (word, back)) in words.iter().zip(&wide).enumerate() {
                let none = [word, back].iter().all(|word| f32::from_bits(**word).is_nan());
                assert!(word == back || none, "{bits:#x}: {word:#x} came back as {back:#x}");
            }
        }
    }
}
