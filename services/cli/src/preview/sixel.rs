//! Sixel: the picture itself, drawn six rows at a time in up to 256 colours.

use crate::terminal::Window;
use anyhow::Context;
use icy_sixel::SixelImage;
use image::ImageReader;
use std::io::Cursor;

/// The escape sequence for an encoded picture, which is made smaller where the window is.
pub(super) fn encode(data: &[u8], window: Window) -> anyhow::Result<Vec<u8>> {
    let picture = image::load_from_memory(data).context("the picture cannot be decoded")?;
    let (width, height) = window.fit(picture.width(), picture.height());
    let picture = if (width, height) == (picture.width(), picture.height()) {
        picture
    } else {
        picture.thumbnail_exact(width, height)
    };
    let (width, height) = (usize::try_from(width)?, usize::try_from(height)?);
    let mut sixel = SixelImage::try_from_rgba(picture.into_rgba8().into_raw(), width, height)
        .and_then(|image| image.encode())
        .context("the picture cannot be drawn in sixel")?;
    sixel.push('\n');
    Ok(sixel.into_bytes())
}

/// An encoded picture's width and height in pixels.
pub(super) fn size_of(data: &[u8]) -> anyhow::Result<(u32, u32)> {
    let reader = ImageReader::new(Cursor::new(data)).with_guessed_format()?;
    reader.into_dimensions().context("the picture cannot be decoded")
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn the_picture_is_drawn_in_the_windows_size() {
        let sixel = encode(&picture(1000, 1000, image::ImageFormat::Png), WINDOW).unwrap();
        assert!(sixel.starts_with(b"\x1bP") && sixel.ends_with(b"\x1b\\\n"));
        let drawn = SixelImage::decode(&sixel[..sixel.len() - 1]).unwrap();
        assert_eq!((drawn.width, drawn.height), (360, 360));
        let (near, far) = (drawn.pixels[0], drawn.pixels[4 * 80]);
        assert!(near < 40 && far > 150, "red grows from left to right: {near} {far}");
        assert!(encode(b"no picture", WINDOW).is_err());
    }
}
