//! How near a picture is to the nearest true rendering of what it shows.

use sdxl_scenes::{Facts, Gradient, MAX_ROTATION, Object, Scene};

use crate::classifier::{Raster, Reading};

/// Times that the steps are halved.
const ROUNDS: usize = 5;

/// Something about a scene that the fit turns, and by how much at first.
#[derive(Clone, Copy)]
enum Knob {
    X(usize),
    Y(usize),
    Radius(usize),
    Rotation(usize),
    Depth,
    Slant,
}

impl Knob {
    fn first_step(self) -> f32 {
        match self {
            Self::X(_) | Self::Y(_) | Self::Radius(_) => 0.02,
            Self::Rotation(_) => 0.05,
            Self::Depth => 0.02,
            Self::Slant => 0.2,
        }
    }

    fn turn(self, scene: &mut Scene, by: f32) {
        let Scene { gradient, objects, .. } = scene;
        match self {
            Self::X(i) => objects[i].x += by,
            Self::Y(i) => objects[i].y += by,
            Self::Radius(i) => objects[i].radius = (objects[i].radius + by).clamp(0.05, 0.5),
            Self::Rotation(i) => {
                objects[i].rotation = (objects[i].rotation + by).clamp(-MAX_ROTATION, MAX_ROTATION);
            }
            Self::Depth => gradient.depth = (gradient.depth + by).clamp(0.04, 0.10),
            Self::Slant => gradient.slant = (gradient.slant + by).clamp(0.0, 0.5),
        }
    }
}

/// The true rendering that is nearest to a picture, of the things that the facts name, each near to where `reading`
/// found it; with its root mean square distance in values of 0..=255. None where a thing was not found.
#[must_use]
pub fn nearest(picture: &Raster, reading: &Reading, facts: &Facts) -> Option<(Scene, f64)> {
    let things = [Some(facts.main), facts.second];
    let object = |thing: sdxl_scenes::Thing| {
        let found = reading.of_colour(thing.colour)?;
        let [x, y] = found.centre;
        Some(Object { thing, x, y, radius: found.radius, rotation: 0.0 })
    };
    let objects = things.into_iter().flatten().map(object).collect::<Option<Vec<_>>>()?;
    let background = facts.background.unwrap_or(reading.background);
    let mut scene = Scene { background, gradient: Gradient { depth: 0.07, slant: 0.25 }, objects };
    let knobs: Vec<_> = (0..scene.objects.len())
        .flat_map(|i| [Knob::X(i), Knob::Y(i), Knob::Radius(i), Knob::Rotation(i)])
        .chain([Knob::Depth, Knob::Slant])
        .collect();
    let mut best = distance(picture, &scene);
    for round in 0..ROUNDS {
        for knob in knobs.iter().chain(&knobs) {
            let step = knob.first_step() * 0.5_f32.powi(i32::try_from(round).unwrap_or(i32::MAX));
            for by in [step, -step] {
                let mut other = scene.clone();
                knob.turn(&mut other, by);
                let off = distance(picture, &other);
                if off < best {
                    (scene, best) = (other, off);
                    break;
                }
            }
        }
    }
    Some((scene, best))
}

/// Root mean square over all values, in 0..=255.
fn distance(picture: &Raster, scene: &Scene) -> f64 {
    let rendered = scene.render(picture.size[0], picture.size[1]);
    let squares = picture.pixels.iter().zip(&rendered).map(|(a, b)| f64::from((a - b) * (a - b)));
    255.0 * (squares.sum::<f64>() / rendered.len().max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{classifier::Found, evaluate::bench::Prompt};

    #[test]
    fn a_rendering_is_found_again() {
        for prompt in Prompt::held_out(6, |facts| facts.background.is_some()) {
            let scene = &prompt.scene;
            let found = |object: &Object| Found {
                colour: object.thing.colour,
                shape: object.thing.shape,
                likeness: 0.9,
                // As far off as a reading can be.
                centre: [object.x + 0.02, object.y - 0.02],
                area: 0.1,
                radius: object.radius + 0.015,
                whole: true,
            };
            let reading =
                Reading { background: scene.background, objects: scene.objects.iter().map(found).collect() };
            let picture = Raster::of_scene(scene, [128, 128]);
            let (fitted, off) = nearest(&picture, &reading, &prompt.facts).unwrap();
            assert!(off < 2.0, "{off} {fitted:?} {scene:?}");
            for (fitted, object) in fitted.objects.iter().zip(&scene.objects) {
                assert!((fitted.x - object.x).abs() < 0.004 && (fitted.radius - object.radius).abs() < 0.004);
            }
            let nothing = Reading { objects: Vec::new(), ..reading };
            assert!(nearest(&picture, &nothing, &prompt.facts).is_none());
        }
    }
}
