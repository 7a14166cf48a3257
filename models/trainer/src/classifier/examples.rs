//! Pictures to learn from: true renderings, as sharp as an autoencoder's pictures or less, with what each cell shows.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use sdxl_scenes::{Colour, Sample, Scene, Shape, Split};

use super::{
    Raster,
    network::{CELL, COLOURS, SHAPES},
};
use crate::{
    data::{self, Framing},
    random,
};

/// A picture and what is in it.
pub(super) struct Example {
    /// In 0..=1.
    pub(super) picture: Raster,
    /// Each cell's place in `Colour::OF_OBJECTS`, or one more.
    pub(super) colours: Vec<u32>,
    /// Each cell's place in `Shape::ALL`, or one more.
    pub(super) shapes: Vec<u32>,
    /// Its place in `Colour::OF_BACKGROUNDS`.
    pub(super) background: u32,
}

impl Example {
    /// The example of that index, of that size; a `strange` one in colours that have no name, so that its shapes are
    /// learnt by nothing but their outlines: those that never come in some colour shall be known in it.
    pub(super) fn draw(seed: u64, index: usize, size: [usize; 2], strange: bool) -> Self {
        let mut rng = random::stream(seed, "classifier", 0, index as u64);
        let scene = Sample::draw(rng.random(), Split::Train).scene;
        let framing = framing(&mut rng, size);
        let pixels = data::frame(&scene, framing).into_iter().map(|v| 0.5 * v + 0.5).collect();
        let mut picture = Raster { size, pixels };
        if strange {
            recolour(&mut picture, &mut rng);
        }
        disturb(&mut picture, &mut rng);
        let labels = cells(&scene, framing);
        let things: Vec<_> = scene.objects.iter().map(|object| object.thing).collect();
        let of_thing = |label: &u8| label.checked_sub(1).and_then(|i| things.get(usize::from(i)));
        let colour = |label| of_thing(label).map_or(COLOURS - 1, |t| place(&Colour::OF_OBJECTS, t.colour));
        let shape = |label| of_thing(label).map_or(SHAPES - 1, |t| place(&Shape::ALL, t.shape));
        Self {
            picture,
            colours: labels.iter().map(|label| colour(label) as u32).collect(),
            shapes: labels.iter().map(|label| shape(label) as u32).collect(),
            background: place(&Colour::OF_BACKGROUNDS, scene.background) as u32,
        }
    }
}

fn place<T: PartialEq + Copy>(list: &[T], item: T) -> usize {
    list.iter().position(|other| *other == item).unwrap_or_default()
}

/// Half as they are, some small and enlarged, some cut out of a longer picture by whole cells.
fn framing(rng: &mut ChaCha8Rng, target_size: [usize; 2]) -> Framing {
    let (kind, share, along): (f64, f64, bool) = (rng.random(), rng.random(), rng.random());
    let mut framing = Framing::new(target_size, target_size, 0.0);
    if kind < 0.35 {
        let small = target_size.map(|side| ((side as f64 * (0.25 + 0.7 * share)) as usize).max(CELL));
        framing = Framing { original_size: small, ..framing };
    } else if kind < 0.5 {
        let axis = usize::from(along);
        let more = rng.random_range(1..=target_size[axis] / (2 * CELL));
        framing.original_size[axis] += CELL * more;
        framing.resized = framing.original_size;
        framing.crops_coords_top_left[axis] = CELL * rng.random_range(0..=more);
    }
    framing
}

/// Which object fills each cell that is not cut off.
fn cells(scene: &Scene, framing: Framing) -> Vec<u8> {
    let [height, width] = framing.resized;
    let all = scene.labels(height, width, height / CELL, width / CELL);
    let [top, left] = framing.crops_coords_top_left.map(|cut| cut / CELL);
    let [rows, columns] = framing.target_size.map(|side| side / CELL);
    let row = |row: usize| {
        let start = row * (width / CELL) + left;
        all[start..start + columns].iter().copied()
    };
    (top..top + rows).flat_map(row).collect()
}

/// Channels in another order, some of them negative, and each a little mixed with the next.
fn recolour(picture: &mut Raster, rng: &mut ChaCha8Rng) {
    let plane = picture.size[0] * picture.size[1];
    let (turn, mirror) = (rng.random_range(0..3usize), rng.random::<bool>());
    let (negative, mixed) = (rng.random::<[bool; 3]>(), 0.4 * rng.random::<f32>());
    let channel = |c: usize| turn + if mirror { 3 - c } else { c };
    let old = picture.pixels.clone();
    for (i, value) in picture.pixels.iter_mut().enumerate() {
        let (c, at) = (i / plane, i % plane);
        let from = |c: usize| old[channel(c % 3) % 3 * plane + at];
        let mix = (1.0 - mixed) * from(c) + mixed * from(c + 1);
        *value = if negative[c] { 1.0 - mix } else { mix };
    }
}

/// What a network that draws gets wrong: colours that are off by a little, blotches and grain.
fn disturb(picture: &mut Raster, rng: &mut ChaCha8Rng) {
    let [height, width] = picture.size;
    let plane = height * width;
    let (grain, blotches) = (0.05 * rng.random::<f32>(), 0.05 * rng.random::<f32>());
    let coarse = [height / CELL, width / CELL];
    let noise = random::normal(rng, 3 * plane);
    let spots = random::normal(rng, 3 * coarse[0] * coarse[1]);
    let shift: Vec<f32> = random::normal(rng, 6);
    for (i, value) in picture.pixels.iter_mut().enumerate() {
        let (channel, at) = (i / plane, i % plane);
        let spot = (channel * coarse[0] + at / width / CELL) * coarse[1] + at % width / CELL;
        let coloured = *value * (1.0 + 0.03 * shift[channel]) + 0.02 * shift[3 + channel];
        *value = (coloured + grain * noise[i] + blotches * spots[spot]).clamp(0.0, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_show_what_they_are_labelled() {
        for index in 0..200 {
            let size = [[128, 128], [96, 160], [144, 112]][index % 3];
            let Example { picture, colours, shapes, background } = Example::draw(1, index, size, false);
            assert_eq!(colours.len(), size[0] * size[1] / 64);
            assert!(picture.pixels.iter().all(|v| (0.0..=1.0).contains(v)));
            let mean = |colour: u32| {
                let cells: Vec<_> = (0..colours.len()).filter(|i| colours[*i] == colour).collect();
                let columns = size[1] / CELL;
                let value = |channel: usize, cell: usize| {
                    let (y, x) = (cell / columns * CELL + CELL / 2, cell % columns * CELL + CELL / 2);
                    picture.pixels[(channel * size[0] + y) * size[1] + x]
                };
                let count = cells.len() as f32;
                let channel = |c| cells.iter().map(|cell| value(c, *cell)).sum::<f32>() / count;
                (cells.len() > 2).then(|| [0, 1, 2].map(channel))
            };
            let near = |colour: Colour, mean: [f32; 3]| {
                colour.rgb().iter().zip(mean).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
            };
            for (i, colour) in (0u32..).zip(Colour::OF_OBJECTS) {
                assert!(mean(i).is_none_or(|mean| near(colour, mean) < 0.3), "{index} {colour:?}");
            }
            let behind = Colour::OF_BACKGROUNDS[background as usize];
            assert!(mean(COLOURS as u32 - 1).is_none_or(|mean| near(behind, mean) < 0.3), "{index}");
            let fits = |(c, s): (&u32, &u32)| (*c == COLOURS as u32 - 1) == (*s == SHAPES as u32 - 1);
            assert!(colours.iter().zip(&shapes).all(fits));
        }
    }
}
