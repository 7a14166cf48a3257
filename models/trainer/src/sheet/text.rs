//! Lines of small letters.

use std::convert::Infallible;

use embedded_graphics::{
    Drawable, Pixel,
    mono_font::{MonoFont, MonoTextStyle, ascii::FONT_6X10},
    pixelcolor::{Rgb888, RgbColor},
    prelude::{DrawTarget, OriginDimensions, Point, Size},
    text::{Baseline, Text},
};
use image::{Rgb, RgbImage};

const FONT: MonoFont<'static> = FONT_6X10;
/// Pixels from a picture to its label.
const MARGIN: u32 = 3;

/// The lines of `label`, none longer than `width` pixels unless a word is.
pub(super) fn wrap(label: &str, width: u32) -> Vec<String> {
    let room = (width / FONT.character_size.width) as usize;
    let mut lines = Vec::<String>::new();
    for word in label.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Pixels that so many lines need below a picture.
pub(super) fn height(lines: usize) -> u32 {
    let lines = u32::try_from(lines).unwrap_or(u32::MAX);
    if lines == 0 { 0 } else { MARGIN + lines.saturating_mul(FONT.character_size.height) }
}

/// Writes lines from `[left, top]` of the label's place.
pub(super) fn write(sheet: &mut RgbImage, lines: &[String], [left, top]: [u32; 2]) {
    let style = MonoTextStyle::new(&FONT, Rgb888::BLACK);
    let at = |side: u32| i32::try_from(side).unwrap_or(i32::MAX);
    for (line, below) in lines.iter().zip((top + MARGIN..).step_by(FONT.character_size.height as usize)) {
        let text = Text::with_baseline(line, Point::new(at(left), at(below)), style, Baseline::Top);
        let Ok(_) = text.draw(&mut Canvas(sheet));
    }
}

struct Canvas<'a>(&'a mut RgbImage);

impl OriginDimensions for Canvas<'_> {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Canvas<'_> {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, colour) in pixels {
            let place = u32::try_from(x).ok().zip(u32::try_from(y).ok());
            if let Some(pixel) = place.and_then(|(x, y)| self.0.get_pixel_mut_checked(x, y)) {
                *pixel = Rgb([colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_break_between_words() {
        assert_eq!(wrap("a red circle, blue background", 60), ["a red", "circle,", "blue", "background"]);
        assert_eq!(wrap("a red circle", 72), ["a red circle"]);
        assert!(wrap(" ", 72).is_empty());
        assert_eq!(wrap("background", 6), ["background"]);
    }
}
