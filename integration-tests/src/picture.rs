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

    /// All reds row by row, then all greens, then all blues.
    #[must_use]
    pub fn planes(&self) -> Vec<u8> {
        (0..3).flat_map(|channel| self.0.pixels().map(move |pixel| pixel.0[channel])).collect()
    }

    /// (height, width) in pixels.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        (self.0.height(), self.0.width())
    }

    /// The share of pixels that are nearer to `colour` than to any other of `palette`, and the row and column of their
    /// centre, 0 to 1.
    #[must_use]
    pub fn share_and_centre(&self, colour: [u8; 3], palette: &[[u8; 3]]) -> (f64, (f64, f64)) {
        let apart = |a: [u8; 3], b: [u8; 3]| -> u32 {
            a.into_iter().zip(b).map(|(a, b)| u32::from(a.abs_diff(b)).pow(2)).sum()
        };
        let is_nearest =
            |pixel: [u8; 3]| palette.iter().all(|other| apart(pixel, colour) <= apart(pixel, *other));
        let places = self.0.enumerate_pixels().filter(|(_, _, pixel)| is_nearest(pixel.0));
        let (mut count, mut rows, mut columns) = (0.0, 0.0, 0.0);
        for (x, y, _) in places {
            (count, rows, columns) = (count + 1.0, rows + f64::from(y) + 0.5, columns + f64::from(x) + 0.5);
        }
        let (height, width) = (f64::from(self.0.height()), f64::from(self.0.width()));
        (count / (height * width), (rows / count / height, columns / count / width))
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
