//! Random numbers that depend on nothing but what they are for.

/// Numbers for one component.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    key: u64,
}

/// Numbers for one tensor: normal-like, with a mean and a standard deviation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorSource {
    key: u64,
    mean: f32,
    std: f32,
}

/// The increment of SplitMix64 (Steele, Lea and Flood 2014), the golden ratio in 64 bits.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
/// The standard deviation of the sum of four 16-bit integers is 65536 / sqrt(3).
const SUM_TO_UNIT: f32 = 1.732_050_8 / 65536.0;

impl Source {
    pub(crate) fn new(seed: u64, component: &str) -> Self {
        Self { key: absorb(mix(seed.wrapping_add(GOLDEN)), component) }
    }

    /// The numbers of the tensor of that name and shape, scaled so that activations stay near unit size and every
    /// conditioning path shows in the result.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> TensorSource {
        let fan_in: usize = shape.iter().skip(1).product();
        let (mean, std) = if shape.len() >= 2 {
            let std = match name {
                n if n.contains("token_embedding") => 1.0,
                n if n.contains("position_embedding") => 0.3,
                // Sizes, crops and scores must show.
                n if n.starts_with("add_embedding") => 4.0 / (fan_in as f32).sqrt(),
                _ => 1.0 / (fan_in as f32).sqrt(),
            };
            (0.0, std)
        } else if name.ends_with("bias") {
            (0.0, 0.1)
        } else {
            (1.0, 0.1)
        };
        TensorSource { key: absorb(self.key, name), mean, std }
    }
}

impl TensorSource {
    /// The tensor's element at `index`, counted row by row. The sum of four uniform numbers has the shape of a normal
    /// distribution out to three and a half standard deviations, and needs no logarithm that another machine's
    /// library might round otherwise: every operation here is exact or correctly rounded.
    pub(crate) fn at(&self, index: u64) -> f32 {
        let bits = mix(self.key.wrapping_add(index.wrapping_mul(GOLDEN)));
        let sum: i32 = (0..4).map(|i| i32::from((bits >> (16 * i)) as u16)).sum();
        let unit = (sum - 2 * 65535) as f32 * SUM_TO_UNIT;
        unit * self.std + self.mean
    }
}

/// SplitMix64's finalizer.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A key for `text` under `key`.
fn absorb(key: u64, text: &str) -> u64 {
    text.bytes().fold(mix(key ^ text.len() as u64), |k, b| mix(k.wrapping_add(GOLDEN) ^ u64::from(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_they_have_always_been() {
        let source = Source::new(0, "unet").tensor("conv_in.weight", &[32, 4, 3, 3]);
        let bits: Vec<u32> = (0..4).map(|i| source.at(i).to_bits()).collect();
        assert_eq!(bits, GOLDEN_BITS);
    }

    /// Worked out apart from this code, in Python.
    const GOLDEN_BITS: [u32; 4] = [0xbe13_a720, 0xbe93_fc92, 0x3e84_462c, 0x3cc0_9e56];

    #[test]
    fn numbers_have_the_mean_and_deviation_asked_for() {
        let source = Source::new(7, "vae").tensor("decoder.conv_in.weight", &[64, 4, 5, 5]);
        let n = 100_000;
        let values: Vec<f64> = (0..n).map(|i| f64::from(source.at(i))).collect();
        let mean = values.iter().sum::<f64>() / n as f64;
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
        assert!(mean.abs() < 1e-3 && (std - 0.1).abs() < 1e-3, "{mean} {std}");
        let norm = Source::new(7, "vae").tensor("decoder.conv_norm_out.weight", &[64]);
        let mean = (0..n).map(|i| f64::from(norm.at(i))).sum::<f64>() / n as f64;
        assert!((mean - 1.0).abs() < 2e-3, "{mean}");
    }

    #[test]
    fn seed_component_and_name_each_matter() {
        let first =
            |seed, component, name| Source::new(seed, component).tensor(name, &[4, 4]).at(0).to_bits();
        let one = first(0, "unet", "a.weight");
        assert_ne!(one, first(1, "unet", "a.weight"));
        assert_ne!(one, first(0, "refiner/unet", "a.weight"));
        assert_ne!(one, first(0, "unet", "b.weight"));
    }
}
