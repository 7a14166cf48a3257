//! Products of bf16 matrices summed in f32 on the processor's matrix unit (Intel AMX), and the layouts that it takes.
//!
//! A left operand lies row by row, `[M, K]`. A right operand lies in pairs of rows, `[K / 2, N, 2]`, which is the order
//! in which the unit multiplies. Both are padded with zeros, K to a multiple of 32, M and N to multiples of 16.
#![expect(unsafe_code, reason = "inline assembly and vector intrinsics; see each function")]

use std::{
    arch::{asm, x86_64::*},
    cell::Cell,
    sync::OnceLock,
};

pub(crate) use super::element::{halves, halves_mut};

/// Rows and columns of one tile of the result.
pub(crate) const TILE: usize = 16;
/// Depth of one tile product.
pub(crate) const DEPTH: usize = 32;

/// Whether this process may use the matrix unit: the processor has it, with the vector instructions used beside it, and
/// the kernel grants the memory for its registers.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| processor_has_it() && kernel_permits())
}

fn processor_has_it() -> bool {
    let vectors = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16");
    let leaf = __cpuid_count(7, 0);
    let (bf16, tile) = (leaf.edx >> 22 & 1, leaf.edx >> 24 & 1);
    vectors && bf16 == 1 && tile == 1
}

/// Linux hands out the 8 KB of tile registers on request, to a process as a whole.
#[cfg(target_os = "linux")]
fn kernel_permits() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let answer: i64;
    // SAFETY: this system call takes two numbers and touches no memory of ours; rcx and r11 are what `syscall` clobbers.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => answer, in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn kernel_permits() -> bool {
    false
}

#[repr(C, align(64))]
struct TileConfig([u8; 64]);

/// Sets all eight tiles to 16 rows of 64 bytes, once a thread; nothing else here ever changes them.
fn configure() {
    thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
    if DONE.get() {
        return;
    }
    let mut config = TileConfig([0; 64]);
    config.0[0] = 1;
    for tile in 0..8 {
        config.0[16 + 2 * tile] = 64;
        config.0[48 + tile] = 16;
    }
    // SAFETY: callers have asked `available`; the operand is 64 bytes that live through the instruction.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
    DONE.set(true);
}

/// Where one part of a sum of products finds its operands, in elements from their starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// Of the left operand, in u16.
    pub(crate) a: usize,
    /// Of the right operand, in pairs.
    pub(crate) b: usize,
}

/// A left operand: `[.., stride]` in bf16.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) data: &'a [u16],
    /// Elements from row to row.
    pub(crate) stride: usize,
}

/// A right operand: pairs of bf16, in panels of 16 columns.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    pub(crate) data: &'a [u32],
    /// Pairs from one pair of rows to the next.
    pub(crate) stride: usize,
    /// Pairs from one panel of columns to the next: 16 where rows lie whole.
    pub(crate) panel: usize,
}

/// Where a block of tiles goes: `[rows, stride]` in f32, from `at`.
pub(crate) struct Block<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) at: usize,
    pub(crate) stride: usize,
    /// Whether the product is added to what is there.
    pub(crate) accumulate: bool,
}

/// One or two tiles high (`ROWS`) and wide (`COLUMNS`): the sum over `segments` of products `depth` deep, a multiple of
/// [`DEPTH`], written to `out`.
pub(crate) fn block<const ROWS: usize, const COLUMNS: usize>(
    a: Left<'_>,
    b: Right<'_>,
    segments: &[Segment],
    depth: usize,
    out: &mut Block<'_>,
) {
    assert!(
        available() && depth.is_multiple_of(DEPTH) && (1..=2).contains(&ROWS) && (1..=2).contains(&COLUMNS)
    );
    let (rows, columns) = (ROWS * TILE, COLUMNS * TILE);
    for s in segments {
        assert!(s.a + (rows - 1) * a.stride + depth <= a.data.len());
        assert!(s.b + (depth / 2 - 1) * b.stride + (COLUMNS - 1) * b.panel + TILE <= b.data.len());
    }
    assert!(out.at + (rows - 1) * out.stride + columns <= out.data.len());
    configure();
    // SAFETY: the tiles are configured as 16 rows of 64 bytes. A left tile at `s.a + k` reads 16 (32 for two) rows of
    // 32 elements, a right tile at `s.b + k / 2 * stride` reads 16 rows of 16 pairs, the second `panel` pairs on, for
    // k < depth in steps of 32;
    // the assertions keep all within their slices, and the result likewise. Strides are bytes. The compiler
    // never touches tile registers by itself and nothing called here does, so that their values live on from one
    // statement to the next.
    unsafe {
        if out.accumulate {
            load::<ROWS, COLUMNS>(out.data.as_ptr().add(out.at), out.stride);
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
        for s in segments {
            let mut left = a.data.as_ptr().add(s.a);
            let mut right = b.data.as_ptr().add(s.b);
            for _ in 0..depth / DEPTH {
                multiply::<ROWS, COLUMNS>(
                    left,
                    a.stride * 2,
                    [right, right.wrapping_add(b.panel)],
                    b.stride * 4,
                );
                left = left.add(DEPTH);
                right = right.wrapping_add(DEPTH / 2 * b.stride);
            }
        }
        store::<ROWS, COLUMNS>(out.data.as_mut_ptr().add(out.at), out.stride);
    }
}

/// [`block`] as many tiles high and wide as `rows` and `columns` need, at most two.
#[inline(always)]
pub(crate) fn blocks(
    a: Left<'_>,
    b: Right<'_>,
    segments: &[Segment],
    depth: usize,
    [rows, columns]: [usize; 2],
    out: &mut Block<'_>,
) {
    match (rows > TILE, columns > TILE) {
        (true, true) => block::<2, 2>(a, b, segments, depth, out),
        (true, false) => block::<2, 1>(a, b, segments, depth, out),
        (false, true) => block::<1, 2>(a, b, segments, depth, out),
        (false, false) => block::<1, 1>(a, b, segments, depth, out),
    }
}

/// Loads the tiles at `left` and `right` and adds their products to tiles 0 to 3.
///
/// # Safety
/// As said in [`block`].
#[inline(always)]
unsafe fn multiply<const ROWS: usize, const COLUMNS: usize>(
    left: *const u16,
    left_stride: usize,
    [right, right_next]: [*const u32; 2],
    right_stride: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let left_next = left.byte_add(if ROWS == 2 { TILE * left_stride } else { 0 });
        match (ROWS, COLUMNS) {
            (2, 2) => asm!(
                "tileloadd tmm4, [{a}+{sa}*1]", "tileloadd tmm6, [{b}+{sb}*1]", "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{c}+{sb}*1]", "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{d}+{sa}*1]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                a = in(reg) left, sa = in(reg) left_stride, b = in(reg) right, sb = in(reg) right_stride,
                c = in(reg) right_next, d = in(reg) left_next, options(nostack, readonly)),
            (1, 2) => asm!(
                "tileloadd tmm4, [{a}+{sa}*1]", "tileloadd tmm6, [{b}+{sb}*1]", "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{c}+{sb}*1]", "tdpbf16ps tmm1, tmm4, tmm7",
                a = in(reg) left, sa = in(reg) left_stride, b = in(reg) right, sb = in(reg) right_stride,
                c = in(reg) right_next, options(nostack, readonly)),
            (2, 1) => asm!(
                "tileloadd tmm4, [{a}+{sa}*1]", "tileloadd tmm6, [{b}+{sb}*1]", "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{d}+{sa}*1]", "tdpbf16ps tmm2, tmm5, tmm6",
                a = in(reg) left, sa = in(reg) left_stride, b = in(reg) right, sb = in(reg) right_stride,
                d = in(reg) left_next, options(nostack, readonly)),
            _ => asm!(
                "tileloadd tmm4, [{a}+{sa}*1]", "tileloadd tmm6, [{b}+{sb}*1]", "tdpbf16ps tmm0, tmm4, tmm6",
                a = in(reg) left, sa = in(reg) left_stride, b = in(reg) right, sb = in(reg) right_stride,
                options(nostack, readonly)),
        }
    }
}

/// Reads tiles 0 to 3 from `from`.
///
/// # Safety
/// As said in [`block`].
#[inline(always)]
unsafe fn load<const ROWS: usize, const COLUMNS: usize>(from: *const f32, stride: usize) {
    let bytes = stride * size_of::<f32>();
    // SAFETY: the caller's.
    unsafe {
        asm!("tileloadd tmm0, [{p}+{s}*1]", p = in(reg) from, s = in(reg) bytes, options(nostack, readonly));
        if COLUMNS == 2 {
            let right = from.add(TILE);
            asm!("tileloadd tmm1, [{p}+{s}*1]", p = in(reg) right, s = in(reg) bytes, options(nostack, readonly));
        }
        if ROWS == 2 {
            let below = from.add(TILE * stride);
            asm!("tileloadd tmm2, [{p}+{s}*1]", p = in(reg) below, s = in(reg) bytes, options(nostack, readonly));
            if COLUMNS == 2 {
                asm!("tileloadd tmm3, [{p}+{s}*1]", p = in(reg) below.add(TILE), s = in(reg) bytes,
                    options(nostack, readonly));
            }
        }
    }
}

/// Writes tiles 0 to 3 to `out`.
///
/// # Safety
/// As said in [`block`].
#[inline(always)]
unsafe fn store<const ROWS: usize, const COLUMNS: usize>(out: *mut f32, stride: usize) {
    let bytes = stride * size_of::<f32>();
    // SAFETY: the caller's.
    unsafe {
        asm!("tilestored [{p}+{s}*1], tmm0", p = in(reg) out, s = in(reg) bytes, options(nostack));
        if COLUMNS == 2 {
            asm!("tilestored [{p}+{s}*1], tmm1", p = in(reg) out.add(TILE), s = in(reg) bytes, options(nostack));
        }
        if ROWS == 2 {
            let below = out.add(TILE * stride);
            asm!("tilestored [{p}+{s}*1], tmm2", p = in(reg) below, s = in(reg) bytes, options(nostack));
            if COLUMNS == 2 {
                asm!("tilestored [{p}+{s}*1], tmm3", p = in(reg) below.add(TILE), s = in(reg) bytes,
                    options(nostack));
            }
        }
    }
}

/// Rounds `x` to bf16, to the nearest even, into as many first elements of `out`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn round(x: &[f32], out: &mut [u16]) {
    assert!(x.len() <= out.len());
    let whole = x.len() / DEPTH * DEPTH;
    // SAFETY: whole vectors end before `whole`; the masks leave out whatever lies behind the end of `x`.
    unsafe {
        for i in (0..whole).step_by(DEPTH) {
            let (low, high) = (_mm512_loadu_ps(x.as_ptr().add(i)), _mm512_loadu_ps(x.as_ptr().add(i + 16)));
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(out.as_mut_ptr().add(i).cast(), both);
        }
        let rest = x.len() - whole;
        if rest > 0 {
            let mask = (1_u32 << rest) - 1;
            let low = _mm512_maskz_loadu_ps(mask as __mmask16, x.as_ptr().add(whole));
            let high = _mm512_maskz_loadu_ps((mask >> 16) as __mmask16, x.as_ptr().wrapping_add(whole + 16));
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi16(out.as_mut_ptr().add(whole).cast(), mask, both);
        }
    }
}

/// Interleaves two rows as pairs of bf16, `first` in the lower half; `second` is as long, or empty for zeros. `out`
/// takes 16 pairs, then skips to the next panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) fn interleave(first: &[f32], second: &[f32], out: &mut [u32], panel: usize) {
    let n = first.len();
    assert!(second.is_empty() || second.len() == n);
    assert!(n == 0 || (n - 1) / TILE * panel + (n - 1) % TILE < out.len());
    // The halves of two vectors, one after the other, to those of pairs.
    #[rustfmt::skip]
    const ORDER: [u16; 32] = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27,
        12, 28, 13, 29, 14, 30, 15, 31];
    // SAFETY: the masks leave out whatever lies behind the end of the rows; vector `i` of the result ends before the
    // end that the assertion has seen.
    unsafe {
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        for i in (0..n).step_by(TILE) {
            let mask = ((1_u32 << (n - i).min(TILE)) - 1) as __mmask16;
            let other = if second.is_empty() { 0 } else { mask };
            let low = _mm512_maskz_loadu_ps(mask, first.as_ptr().add(i));
            let high = _mm512_maskz_loadu_ps(other, second.as_ptr().wrapping_add(i));
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            let pairs = _mm512_permutexvar_epi16(order, both);
            _mm512_mask_storeu_epi32(out.as_mut_ptr().add(i / TILE * panel).cast(), mask, pairs);
        }
    }
}

/// Transposes a matrix of 16 x 16 words: `from` row by row at `from_stride`, `to` likewise.
#[target_feature(enable = "avx512f")]
pub(crate) fn transpose(from: &[u32], from_stride: usize, to: &mut [u32], to_stride: usize) {
    assert!(to.len() >= 15 * to_stride + 16);
    for (i, column) in columns(from, from_stride).into_iter().enumerate() {
        // SAFETY: the assertion keeps all 16 rows of 16 words within their slice.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().add(i * to_stride).cast(), column) };
    }
}

/// The columns of a matrix of 16 x 16 words, row by row at `stride`.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn columns(from: &[u32], stride: usize) -> [__m512i; 16] {
    assert!(from.len() >= 15 * stride + 16);
    // SAFETY: the assertion keeps all 16 rows of 16 words within their slice.
    let row = |i: usize| unsafe { _mm512_loadu_si512(from.as_ptr().add(i * stride).cast()) };
    let r: [__m512i; 16] = std::array::from_fn(row);
    let t: [__m512i; 16] = std::array::from_fn(|i| {
        let (a, b) = (r[i & !1], r[i | 1]);
        if i & 1 == 0 { _mm512_unpacklo_epi32(a, b) } else { _mm512_unpackhi_epi32(a, b) }
    });
    let u: [__m512i; 16] = std::array::from_fn(|i| {
        let (a, b) = (t[(i & !3) + (i >> 1 & 1)], t[(i & !3) + (i >> 1 & 1) + 2]);
        if i & 1 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) }
    });
    // `u[4g + j]` holds columns j, j + 4, j + 8, j + 12 of rows 4g to 4g + 3.
    std::array::from_fn(|column| {
        let (j, i) = (column % 4, column / 4);
        let [low, high] = [[u[j], u[4 + j]], [u[8 + j], u[12 + j]]].map(|[a, b]| {
            if i % 2 == 0 { _mm512_shuffle_i32x4::<0x88>(a, b) } else { _mm512_shuffle_i32x4::<0xdd>(a, b) }
        });
        if i < 2 { _mm512_shuffle_i32x4::<0x88>(low, high) } else { _mm512_shuffle_i32x4::<0xdd>(low, high) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes_words() {
        if !available() {
            return;
        }
        let from: Vec<u32> = (0..16 * 20).collect();
        let mut to = vec![0; 16 * 17];
        // SAFETY: `available` has asked for the instructions.
        unsafe { transpose(&from, 20, &mut to, 17) };
        for (i, j) in (0..16).flat_map(|i| (0..16).map(move |j| (i, j))) {
            assert_eq!(to[j * 17 + i], from[i * 20 + j], "row {i}, column {j}");
        }
    }
}
