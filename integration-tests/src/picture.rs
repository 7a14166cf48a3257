//! Pictures and how far apart they are.

use std::{fmt, path::Path};

/// A decoded picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture(image::RgbImage);

impl Picture {
    /// Decodes a PNG, JPEG or WebP.
    ///
    /// # Panics
    /// Where the bytes are none of these.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        Self(image::load_from_memory(bytes).expect("an encoded picture").to_rgb8())
    }

    /// Reads a file.
    ///
    /// # Panics
    /// Where it is no picture.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        Self(image::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).to_rgb8())
    }

    /// (height, width) in pixels.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        (self.0.height(), self.0.width())
    }

    /// How far the two are apart.
    ///
    /// # Panics
    /// Where they differ in size.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Difference {
        assert_eq!(self.size(), other.size(), "pictures of one size");
        let apart = self.0.as_raw().iter().zip(other.0.as_raw()).map(|(a, b)| a.abs_diff(*b));
        let (mut sum, mut max, mut count) = (0u64, 0u8, 0u32);
        for d in apart {
            (sum, max, count) = (sum + u64::from(d), max.max(d), count + 1);
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        Difference { mean: sum as f64 / f64::from(count), max }
    }
}

/// How far two pictures are apart, in steps of 255.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// Mean over all pixels and channels.
    pub mean: f64,
    /// The greatest of all pixels and channels.
    pub max: u8,
}

impl Difference {
    /// Whether it is within what the project promises against diffusers in float32.
    #[must_use]
    pub fn is_parity(self) -> bool {
        self.mean <= 0.05 && self.max <= 2
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mean {:.5} max {}", self.mean, self.max)
    }
}
