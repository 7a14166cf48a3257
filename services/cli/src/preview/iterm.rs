//! iTerm2's inline images: the file in base64 in one OSC 1337 escape sequence
//! (<https://iterm2.com/documentation-images.html>).

use crate::terminal::Window;
use base64::{Engine, engine::general_purpose::STANDARD};

/// The escape sequence for an encoded picture of any format.
pub(super) fn encode(data: &[u8], window: Window) -> anyhow::Result<Vec<u8>> {
    let (width, height) = super::sixel::size_of(data)?;
    let columns = window.columns_of(window.fit(width, height).0);
    let size = data.len();
    let base64 = STANDARD.encode(data);
    let escape =
        format!("\x1b]1337;File=inline=1;size={size};width={columns};preserveAspectRatio=1:{base64}\x07\n");
    Ok(escape.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    #[test]
    fn the_file_travels_as_it_is() {
        let jpeg = picture(400, 200, image::ImageFormat::Jpeg);
        let escape = String::from_utf8(encode(&jpeg, WINDOW).unwrap()).unwrap();
        let (head, base64) = escape.split_once(':').unwrap();
        let expected = format!("\x1b]1337;File=inline=1;size={};width=40;preserveAspectRatio=1", jpeg.len());
        assert_eq!(head, expected);
        assert_eq!(STANDARD.decode(base64.strip_suffix("\x07\n").unwrap()).unwrap(), jpeg);
        assert!(encode(b"no picture", WINDOW).is_err());
    }
}
