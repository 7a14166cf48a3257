//! Flag values that are more than one number or word.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use sdxl_core::{CropCoords, ImageFormat, Priority, SchedulerKind, Size, TimestepSpacing};

/// Height and width as `768x1344`.
pub(crate) fn size(text: &str) -> Result<Size, String> {
    pair(text, &['x', 'X', '×'])
        .map(|(height, width)| Size::new(height, width))
        .ok_or_else(|| "not HEIGHTxWIDTH in pixels, such as 768x1344".to_owned())
}

/// Top and left as `0,256`.
pub(super) fn crop(text: &str) -> Result<CropCoords, String> {
    pair(text, &[','])
        .map(|(top, left)| CropCoords { top, left })
        .ok_or_else(|| "not TOP,LEFT in pixels, such as 0,256".to_owned())
}

fn pair(text: &str, separators: &[char]) -> Option<(u32, u32)> {
    let (first, second) = text.split_once(separators)?;
    Some((first.trim().parse().ok()?, second.trim().parse().ok()?))
}

/// A parser of the names in `table`, which the help lists.
fn named<T: Copy + Send + Sync + 'static>(
    table: &'static [(&'static str, T)],
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(table.iter().map(|(name, _)| *name)).try_map(move |given| {
        table.iter().find(|(name, _)| *name == given).map(|(_, value)| *value).ok_or("not one of the names")
    })
}

/// The samplers' names.
pub(super) fn scheduler_kind() -> impl TypedValueParser<Value = SchedulerKind> {
    named(&[("euler", SchedulerKind::Euler), ("ddim", SchedulerKind::Ddim)])
}

/// The spacings' names.
pub(super) fn timestep_spacing() -> impl TypedValueParser<Value = TimestepSpacing> {
    named(&[
        ("leading", TimestepSpacing::Leading),
        ("linspace", TimestepSpacing::Linspace),
        ("trailing", TimestepSpacing::Trailing),
    ])
}

/// The priorities' names.
pub(super) fn priority() -> impl TypedValueParser<Value = Priority> {
    named(&[("interactive", Priority::Interactive), ("batch", Priority::Batch)])
}

/// The picture formats' names.
pub(super) fn image_format() -> impl TypedValueParser<Value = ImageFormat> {
    named(&[("png", ImageFormat::Png), ("jpeg", ImageFormat::Jpeg), ("webp", ImageFormat::WebP)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_height_first() {
        assert_eq!(size("768x1344"), Ok(Size::new(768, 1344)));
        assert_eq!(size("768X1344"), Ok(Size::new(768, 1344)));
        assert_eq!(size(" 768 × 1344 "), Ok(Size::new(768, 1344)));
        for wrong in
            ["", "768", "768x", "x768", "768x1344x1", "-8x8", "8.5x8", "axb", "768,1344", "4294967296x8"]
        {
            let error = size(wrong).unwrap_err();
            assert!(error.contains("HEIGHTxWIDTH"), "{wrong}: {error}");
        }
    }

    #[test]
    fn crops_are_top_first() {
        assert_eq!(crop("0,256"), Ok(CropCoords { top: 0, left: 256 }));
        assert_eq!(crop("3, 4"), Ok(CropCoords { top: 3, left: 4 }));
        for wrong in ["", "0", "0x256", "0,", ",1", "-1,0", "1,2,3"] {
            let error = crop(wrong).unwrap_err();
            assert!(error.contains("TOP,LEFT"), "{wrong}: {error}");
        }
    }
}
