//! kitty's graphics protocol: PNG in base64, in chunks, each in an APC escape sequence
//! (<https://sw.kovidgoyal.net/kitty/graphics-protocol/>).

use crate::terminal::Window;
use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use std::io::Cursor;

/// The most base64 that one escape sequence may carry, a multiple of 4.
const CHUNK: usize = 4096;

/// The escape sequences for an encoded picture.
pub(super) fn encode(data: &[u8], media_type: &str, window: Window) -> anyhow::Result<Vec<u8>> {
    let (width, height) = super::sixel::size_of(data)?;
    // The protocol takes PNG only.
    let base64 = if media_type == "image/png" {
        STANDARD.encode(data)
    } else {
        let mut png = Cursor::new(Vec::new());
        image::load_from_memory(data)
            .and_then(|picture| picture.write_to(&mut png, image::ImageFormat::Png))
            .context("the picture cannot be turned into a PNG")?;
        STANDARD.encode(png.into_inner())
    };
    let columns = window.columns_of(window.fit(width, height).0);
    let mut escapes = Vec::with_capacity(base64.len() + base64.len() / CHUNK * 16 + 64);
    let chunks = base64.as_bytes().chunks(CHUNK);
    let last = chunks.len().saturating_sub(1);
    for (index, chunk) in chunks.enumerate() {
        let more = u8::from(index != last);
        // a=T: transmit and show; f=100: PNG; q=2: no answer, which the shell would take for typing.
        let head =
            if index == 0 { format!("a=T,f=100,q=2,c={columns},m={more}") } else { format!("m={more}") };
        escapes.extend_from_slice(format!("\x1b_G{head};").as_bytes());
        escapes.extend_from_slice(chunk);
        escapes.extend_from_slice(b"\x1b\\");
    }
    escapes.push(b'\n');
    Ok(escapes)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::*, *};

    /// The keys of each escape sequence, and the payloads' bytes together.
    fn parse(escapes: &[u8]) -> (Vec<String>, Vec<u8>) {
        let text = std::str::from_utf8(escapes).unwrap().strip_suffix('\n').unwrap();
        let (mut heads, mut payload) = (Vec::new(), String::new());
        for part in text.split_terminator("\x1b\\") {
            let (head, data) = part.strip_prefix("\x1b_G").unwrap().split_once(';').unwrap();
            assert!(data.len() <= CHUNK);
            heads.push(head.to_owned());
            payload.push_str(data);
        }
        (heads, STANDARD.decode(payload).unwrap())
    }

    #[test]
    fn a_png_travels_in_chunks_as_it_is() {
        let png = picture(200, 100, image::ImageFormat::Png);
        let noise: Vec<u8> = png.iter().copied().chain((0..9000_u32).map(|i| i as u8)).collect();
        let (heads, data) = parse(&encode(&noise, "image/png", WINDOW).unwrap());
        assert_eq!(data, noise);
        assert!(heads.len() > 2);
        assert_eq!(heads[0], "a=T,f=100,q=2,c=20,m=1");
        assert!(heads[1..heads.len() - 1].iter().all(|h| h == "m=1"));
        assert_eq!(heads.last().unwrap(), "m=0");
    }

    #[test]
    fn a_small_png_is_one_chunk() {
        let png = picture(8, 8, image::ImageFormat::Png);
        let (heads, data) = parse(&encode(&png, "image/png", WINDOW).unwrap());
        assert_eq!((heads, data), (vec!["a=T,f=100,q=2,c=1,m=0".to_owned()], png));
    }

    #[test]
    fn other_formats_become_png() {
        for (format, media_type) in
            [(image::ImageFormat::Jpeg, "image/jpeg"), (image::ImageFormat::WebP, "image/webp")]
        {
            let (_, data) = parse(&encode(&picture(16, 8, format), media_type, WINDOW).unwrap());
            assert_eq!(image::guess_format(&data).unwrap(), image::ImageFormat::Png);
        }
    }
}
