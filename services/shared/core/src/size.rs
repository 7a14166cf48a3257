//! Picture sizes, crops and the buckets that SDXL was trained at.

use std::fmt;

/// The least side of a picture in pixels.
pub const MIN_SIDE: u32 = 64;
/// The greatest side of a picture in pixels.
pub const MAX_SIDE: u32 = 2048;
/// Sides are multiples of it: the autoencoder's compression.
pub const SIDE_MULTIPLE: u32 = 8;

/// A picture's size in pixels, in diffusers' order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Size {
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl Size {
    /// A size of `height` rows and `width` columns.
    #[must_use]
    pub const fn new(height: u32, width: u32) -> Self {
        Self { height, width }
    }

    /// The bucket nearest in aspect ratio, then in area; `None` for an empty list.
    #[must_use]
    pub fn nearest(self, buckets: &[Self]) -> Option<Self> {
        let distance = |b: &Self| {
            let aspect = |s: &Self| (f64::from(s.height.max(1)) / f64::from(s.width.max(1))).ln();
            let area = |s: &Self| (f64::from(s.height.max(1)) * f64::from(s.width.max(1))).ln();
            ((aspect(b) - aspect(&self)).abs(), (area(b) - area(&self)).abs())
        };
        buckets.iter().copied().min_by(|a, b| {
            let (a, b) = (distance(a), distance(b));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{} (height x width)", self.height, self.width)
    }
}

/// Pixels cut off at the top and at the left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CropCoords {
    /// Rows cut off at the top.
    pub top: u32,
    /// Columns cut off at the left.
    pub left: u32,
}

/// The 40 buckets of the paper's Appendix I, as (height, width).
pub const SDXL_BUCKETS: [Size; 40] = {
    const fn s(height: u32, width: u32) -> Size {
        Size { height, width }
    }
    [
        s(512, 2048),
        s(512, 1984),
        s(512, 1920),
        s(512, 1856),
        s(576, 1792),
        s(576, 1728),
        s(576, 1664),
        s(640, 1600),
        s(640, 1536),
        s(704, 1472),
        s(704, 1408),
        s(704, 1344),
        s(768, 1344),
        s(768, 1280),
        s(832, 1216),
        s(832, 1152),
        s(896, 1152),
        s(896, 1088),
        s(960, 1088),
        s(960, 1024),
        s(1024, 1024),
        s(1024, 960),
        s(1088, 960),
        s(1088, 896),
        s(1152, 896),
        s(1152, 832),
        s(1216, 832),
        s(1280, 768),
        s(1344, 768),
        s(1408, 704),
        s(1472, 704),
        s(1536, 640),
        s(1600, 640),
        s(1664, 576),
        s(1728, 576),
        s(1792, 576),
        s(1856, 512),
        s(1920, 512),
        s(1984, 512),
        s(2048, 512),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_what_the_paper_describes() {
        for (i, b) in SDXL_BUCKETS.iter().enumerate() {
            assert_eq!((b.height % 64, b.width % 64), (0, 0), "{b}");
            let area = f64::from(b.height * b.width) / f64::from(1024 * 1024);
            assert!((0.87..=1.04).contains(&area), "{b} has {area} of a megapixel");
            assert!(!SDXL_BUCKETS[..i].contains(b), "{b} stands twice");
        }
    }

    #[test]
    fn nearest_minds_aspect_before_area() {
        assert_eq!(Size::new(512, 512).nearest(&SDXL_BUCKETS), Some(Size::new(1024, 1024)));
        assert_eq!(Size::new(720, 1280).nearest(&SDXL_BUCKETS), Some(Size::new(768, 1344)));
        assert_eq!(Size::new(2048, 512).nearest(&SDXL_BUCKETS), Some(Size::new(2048, 512)));
        assert_eq!(Size::new(8, 8).nearest(&[]), None);
    }
}
