//! Normal noise exactly as torch draws it on the CPU, so that a seed means what it means in diffusers.
//!
//! torch fills 16 or more values by Box-Muller over blocks of 16 in single precision with the Cephes polynomials, and
//! fewer values one pair at a time in double precision. Both run on one Mersenne Twister (Matsumoto and Nishimura
//! 1998). Checked bit for bit against torch 2.15 built for AVX2 and AVX-512; see the SDXL inference notes, section 8.

use std::f64::consts::PI;

const STATE: usize = 624;
const SHIFT: usize = 397;
/// Values that torch transforms together, and the fewest that it treats so.
const BLOCK: usize = 16;
const HALF: usize = BLOCK / 2;

/// The 32-bit Mersenne Twister, MT19937.
#[derive(Clone, Debug)]
struct MersenneTwister {
    state: Box<[u32; STATE]>,
    next: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = Box::new([0_u32; STATE]);
        state[0] = seed;
        let mut last = seed;
        for (i, word) in (0_u32..).zip(state.iter_mut()).skip(1) {
            last = 1_812_433_253_u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i);
            *word = last;
        }
        Self { state, next: STATE }
    }

    fn refill(&mut self) {
        for i in 0..STATE {
            let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE] & 0x7fff_ffff);
            let twisted = (joined >> 1) ^ if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % STATE] ^ twisted;
        }
        self.next = 0;
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == STATE {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform in 0..1 with 24 bits.
    #[expect(clippy::cast_precision_loss, reason = "24 bits fit an f32 exactly")]
    fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in 0..1 with 53 bits; the high word is drawn first.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (u64::from(self.next_u32()), u64::from(self.next_u32()));
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }
}

/// `torch.Generator("cpu")`, as far as `torch.randn` in float32 uses it.
#[derive(Clone, Debug)]
pub struct TorchGenerator {
    engine: MersenneTwister,
    /// The second value of a pair drawn for fewer than 16; outlives the call, and calls for more do not touch it.
    cached: Option<f64>,
}

impl TorchGenerator {
    /// `torch.Generator("cpu").manual_seed(seed)`. Only the low 32 bits count, as in torch.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "torch seeds its engine with the low 32 bits")]
    pub fn new(seed: u64) -> Self {
        Self { engine: MersenneTwister::new(seed as u32), cached: None }
    }

    /// `torch.randn` of any shape with `numel` values, in C order, float32.
    pub fn randn(&mut self, numel: usize) -> Vec<f32> {
        if numel < BLOCK {
            return (0..numel).map(|_| self.normal_f64()).collect();
        }
        let mut values: Vec<f32> = (0..numel).map(|_| self.engine.uniform_f32()).collect();
        for block in values.as_chunks_mut::<BLOCK>().0 {
            box_muller(block);
        }
        if !numel.is_multiple_of(BLOCK)
            && let Some(tail) = values.last_chunk_mut::<BLOCK>()
        {
            // The last 16 are drawn anew, over values that are already normal.
            tail.fill_with(|| self.engine.uniform_f32());
            box_muller(tail);
        }
        values
    }

    #[expect(clippy::cast_possible_truncation, reason = "torch computes in double and stores a float")]
    fn normal_f64(&mut self) -> f32 {
        if let Some(cached) = self.cached.take() {
            return cached as f32;
        }
        let (u1, u2) = (self.engine.uniform_f64(), self.engine.uniform_f64());
        let radius = (-2.0 * (-u2).ln_1p()).sqrt();
        let theta = 2.0 * PI * u1;
        self.cached = Some(radius * theta.sin());
        (radius * theta.cos()) as f32
    }
}

/// Turns 16 uniform values into 16 normal ones: value `j` and value `j + 8` make a pair.
fn box_muller(block: &mut [f32; BLOCK]) {
    for j in 0..HALF {
        let radius = (-2.0 * ln(1.0 - block[j])).sqrt();
        let (sin, cos) = sin_cos(std::f32::consts::TAU * block[j + HALF]);
        block[j] = radius * cos;
        block[j + HALF] = radius * sin;
    }
}

/// Horner's rule with fused multiply-adds, highest power first.
#[inline(always)]
fn horner<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut y = coefficients[0];
    for c in &coefficients[1..] {
        y = y.mul_add(x, *c);
    }
    y
}

/// Cephes' natural logarithm for normal positive `x`, contracted to fused multiply-adds as torch's build has it.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "a small exponent")]
#[expect(clippy::excessive_precision, reason = "Cephes' constants as published")]
fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    let exponent = (bits >> 23) as i32 - 126;
    let mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000); // 0.5..1
    let low = mantissa < std::f32::consts::FRAC_1_SQRT_2;
    let e = (exponent - i32::from(low)) as f32;
    let m = if low { mantissa + mantissa } else { mantissa } - 1.0;
    let z = m * m;
    let p = horner(
        m,
        [
            7.0376836292e-2,
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ],
    );
    let y = (p * m).mul_add(z, e * -2.121_944_40e-4) - z * 0.5;
    e.mul_add(0.693_359_375, m + y)
}

/// Cephes' sine and cosine for `0 <= x < 8192`, contracted as [`ln`] is.
#[inline(always)]
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an octant, 0 to 8")]
#[expect(clippy::excessive_precision, reason = "Cephes' constants as published")]
fn sin_cos(theta: f32) -> (f32, f32) {
    let octant = ((theta * 1.273_239_544_735_16) as i32 + 1) & !1;
    let j = octant as f32;
    let x = j.mul_add(-0.785_156_25, theta);
    let x = j.mul_add(-2.418_756_484_985_351_562_5e-4, x);
    let x = j.mul_add(-3.774_894_977_445_941_08e-8, x);
    let z = x * x;
    let c = horner(z, [2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2]);
    let cos = (c * z).mul_add(z, -(z * 0.5)) + 1.0;
    let s = horner(z, [-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1]);
    let sin = (s * z).mul_add(x, x);
    let (sin, cos) = if octant & 2 == 0 { (sin, cos) } else { (cos, sin) };
    let negate = |value: f32, yes: bool| if yes { -value } else { value };
    (negate(sin, octant & 4 != 0), negate(cos, !(octant - 2) & 4 != 0))
}

#[cfg(test)]
mod tests;
