//! Draws samples into one picture, to look at: `cargo run -p sdxl-scenes --example contact_sheet -- out.png [SEED]`.

use sdxl_scenes::{Sample, Split};
use std::{env, error::Error};

const COLUMNS: u32 = 8;
const ROWS: u32 = 6;
const SIDE: u32 = 128;
const GAP: u32 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let path = args.next().ok_or("give the picture's path")?;
    let first: u64 = args.next().map_or(Ok(0), |seed| seed.parse())?;

    let mut sheet = image::RgbImage::new(COLUMNS * (SIDE + GAP) - GAP, ROWS * (SIDE + GAP) - GAP);
    for (index, seed) in (0..COLUMNS * ROWS).zip(first..) {
        let sample = Sample::draw(seed, Split::Train);
        let pixels = sample.scene.render(SIDE as usize, SIDE as usize);
        let (left, top) = (index % COLUMNS * (SIDE + GAP), index / COLUMNS * (SIDE + GAP));
        for y in 0..SIDE {
            for x in 0..SIDE {
                let at =
                    |plane: u32| (255.0 * pixels[(SIDE * (SIDE * plane + y) + x) as usize]).round() as u8;
                sheet.put_pixel(left + x, top + y, image::Rgb([at(0), at(1), at(2)]));
            }
        }
        #[expect(clippy::print_stdout, reason = "an example that is run by hand")]
        {
            println!("{index:2} {}", sample.caption);
        }
    }
    sheet.save(path)?;
    Ok(())
}
