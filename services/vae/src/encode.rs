//! Pixels to picture files. The same pixels always give the same bytes.

use image::{
    ExtendedColorType, ImageEncoder,
    codecs::{
        jpeg::JpegEncoder,
        png::{CompressionType, FilterType, PngEncoder},
    },
};
use sdxl_core::ImageFormat;
use std::error::Error;

/// Encodes RGB `pixels`, `height` rows of `width`. `quality` is 1 to 100 and counts for the lossy formats.
///
/// # Errors
/// Where pixels and sides do not fit each other, or the format cannot hold a picture of that size.
pub(crate) fn encode(
    pixels: &[u8],
    [width, height]: [u32; 2],
    format: ImageFormat,
    quality: u8,
) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    // image panics at that, and libwebp reads beyond the end.
    if pixels.len() as u64 != u64::from(width) * u64::from(height) * 3 {
        return Err(format!("{} bytes are no {width} x {height} picture", pixels.len()).into());
    }
    let rgb = ExtendedColorType::Rgb8;
    let mut file = Vec::new();
    match format {
        // Fast: larger files than the slower settings make, but no network between servers is that slow.
        ImageFormat::Png => {
            PngEncoder::new_with_quality(&mut file, CompressionType::Fast, FilterType::Adaptive)
                .write_image(pixels, width, height, rgb)?;
        }
        ImageFormat::Jpeg => {
            JpegEncoder::new_with_quality(&mut file, quality).write_image(pixels, width, height, rgb)?;
        }
        ImageFormat::WebP => {
            let encoded =
                webp::Encoder::from_rgb(pixels, width, height).encode_simple(false, f32::from(quality));
            let encoded = encoded.map_err(|e| format!("cannot encode WebP: {e:?}"))?;
            file.extend_from_slice(&encoded);
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A soft slope with a sharp edge.
    fn pixels(width: u32, height: u32) -> Vec<u8> {
        let pixel = |x: u32, y: u32| {
            let edge = if x > width / 2 { 200 } else { 40 };
            [(x * 255 / width) as u8, (y * 255 / height) as u8, edge]
        };
        (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect()
    }

    #[test]
    fn png_keeps_every_pixel_whatever_the_quality() {
        let pixels = pixels(24, 16);
        let file = encode(&pixels, [24, 16], ImageFormat::Png, 1).unwrap();
        let back = image::load_from_memory(&file).unwrap().to_rgb8();
        assert_eq!((back.width(), back.height()), (24, 16));
        assert_eq!(back.into_raw(), pixels);
        assert_eq!(file, encode(&pixels, [24, 16], ImageFormat::Png, 100).unwrap());
    }

    #[test]
    fn lossy_formats_come_close_and_quality_counts() {
        let pixels = pixels(64, 48);
        for format in [ImageFormat::Jpeg, ImageFormat::WebP] {
            let file = encode(&pixels, [64, 48], format, 95).unwrap();
            assert_eq!(file, encode(&pixels, [64, 48], format, 95).unwrap(), "{format:?} twice");
            let back = image::load_from_memory(&file).unwrap().to_rgb8();
            assert_eq!((back.width(), back.height()), (64, 48));
            let difference: u32 =
                back.into_raw().iter().zip(&pixels).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
            assert!(difference < 6 * pixels.len() as u32, "{format:?}: {difference}");
            assert!(encode(&pixels, [64, 48], format, 20).unwrap().len() < file.len(), "{format:?}");
        }
        assert_eq!(encode(&pixels, [64, 48], ImageFormat::Jpeg, 90).unwrap()[..3], [0xff, 0xd8, 0xff]);
        assert_eq!(&encode(&pixels, [64, 48], ImageFormat::WebP, 90).unwrap()[8..12], b"WEBP");
    }

    #[test]
    fn pixels_that_do_not_fit_are_refused() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
            assert!(encode(&[0; 10], [64, 48], format, 90).is_err(), "{format:?}");
        }
    }
}
