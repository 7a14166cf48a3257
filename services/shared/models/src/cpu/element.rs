//! Numbers that go into products, and how they lie in words of four bytes.
#![expect(unsafe_code, reason = "instructions asked for at run time, and numbers seen as words")]

#[cfg(target_arch = "x86_64")]
use super::amx;

/// The type of a product's factors. Words hold one f32, or two bf16 that follow each other along the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    /// Only where [`super::isa::multiplies_bf16`].
    Bf16,
}

impl Element {
    /// Numbers in a word.
    pub(super) fn each(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
        }
    }

    /// Words of a row of `n` numbers, padded to what products take.
    pub(super) fn words(self, n: usize) -> usize {
        match self {
            Self::F32 => n,
            // The depth of one tile of the matrix unit.
            Self::Bf16 => n.next_multiple_of(32) / 2,
        }
    }

    /// What `make` gives for a row, rounded into `out` as [`Element::round`] does; made in `line` where it cannot be in place.
    #[inline]
    pub(super) fn made(self, line: &mut [f32], out: &mut [u32], make: impl FnOnce(&mut [f32])) {
        match self {
            Self::F32 => make(&mut as_numbers_mut(out)[..line.len()]),
            Self::Bf16 => {
                make(line);
                self.round(line, out);
            }
        }
    }

    /// Rounds `row` into `out`, which has at least as many words as [`Element::words`] says; what is beyond is zero.
    pub(super) fn round(self, row: &[f32], out: &mut [u32]) {
        match self {
            Self::F32 => {
                let (whole, rest) = out.split_at_mut(row.len());
                whole.copy_from_slice(as_words(row));
                rest.fill(0);
            }
            Self::Bf16 => {
                #[cfg(target_arch = "x86_64")]
                {
                    let halves = halves_mut(out);
                    // SAFETY: this element is only made where the instructions are.
                    unsafe { amx::round(row, halves) };
                    halves[row.len()..].fill(0);
                }
            }
        }
    }
}

/// The bits of f32.
pub(super) fn as_words(numbers: &[f32]) -> &[u32] {
    // SAFETY: of one size and alignment, and all bits are words.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), numbers.len()) }
}

/// Bits as f32.
pub(super) fn as_numbers(words: &[u32]) -> &[f32] {
    // SAFETY: of one size and alignment, and all bits are f32.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
}

/// The same, to be written.
pub(super) fn as_numbers_mut(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: as in `as_numbers`; all f32 are bits.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

/// Words as the halves that they are made of, in memory's order.
pub(crate) fn halves(words: &[u32]) -> &[u16] {
    // SAFETY: a word is two halves, aligned for them, and halves have no invalid values.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), 2 * words.len()) }
}

/// The same, to be written.
pub(crate) fn halves_mut(words: &mut [u32]) -> &mut [u16] {
    // SAFETY: as in `halves`; nor have words.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), 2 * words.len()) }
}
