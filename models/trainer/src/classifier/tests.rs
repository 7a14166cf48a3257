use sdxl_scenes::{Colour, Sample, Shape, Split, Thing, parse};

use super::*;

fn recipe() -> Recipe {
    Recipe::parse(include_str!("../../../recipes/shapes.toml"), Path::new("shapes.toml")).unwrap()
}

fn found(colour: Colour, shape: Shape, centre: [f32; 2], radius: f32) -> Found {
    Found { colour, shape, likeness: 0.9, centre, area: radius * radius * 2.0, radius, whole: true }
}

#[test]
fn each_claim_is_judged_on_its_own() {
    let facts = parse("a small red circle at the top left on a blue background").unwrap();
    let right = found(Colour::Red, Shape::Circle, [0.2, 0.3], 0.16);
    let verdict = |object: Found, background: Colour| {
        let verdict = Verdict::new(&Reading { background, objects: vec![object] }, &facts);
        Aspect::ALL.map(|aspect| verdict.get(aspect))
    };
    let (yes, no) = (Some(true), Some(false));
    let all = [yes, yes, yes, yes, yes, None, None, None, yes, yes];
    assert_eq!(verdict(right, Colour::Blue), all);
    let but = |wrong: usize| {
        let mut all = all;
        (all[wrong], all[9]) = (no, no);
        all
    };
    assert_eq!(verdict(Found { colour: Colour::Green, ..right }, Colour::Blue), but(0));
    assert_eq!(verdict(right, Colour::Gray), but(1));
    assert_eq!(verdict(Found { shape: Shape::Star, ..right }, Colour::Blue), but(2));
    assert_eq!(verdict(Found { likeness: 0.6, ..right }, Colour::Blue), but(2));
    assert_eq!(verdict(Found { centre: [0.4, 0.3], ..right }, Colour::Blue), but(3));
    assert_eq!(verdict(Found { radius: 0.21, ..right }, Colour::Blue), but(4));
    let nothing = Verdict::new(&Reading { background: Colour::Blue, objects: Vec::new() }, &facts);
    assert_eq!(
        Aspect::ALL.map(|aspect| nothing.get(aspect) == yes).iter().filter(|right| **right).count(),
        1
    );
}

#[test]
fn two_objects_are_told_apart_by_their_colours() {
    let facts = parse("a red circle above a white star").unwrap();
    let red = found(Colour::Red, Shape::Circle, [0.5, 0.3], 0.17);
    let white = found(Colour::White, Shape::Star, [0.6, 0.7], 0.2);
    let verdict = |objects: &[Found]| {
        let reading = Reading { background: Colour::Black, objects: objects.to_vec() };
        let verdict = Verdict::new(&reading, &facts);
        [verdict.relation, verdict.second_colour, verdict.second_shape, verdict.get(Aspect::Everything)]
            .map(|right| right == Some(true))
    };
    assert_eq!(verdict(&[white, red]), [true; 4]);
    assert_eq!(verdict(&[red]), [false; 4]);
    let beside = Found { centre: [0.9, 0.4], ..white };
    assert_eq!(verdict(&[beside, red]), [false, true, true, false]);
    let third = found(Colour::Blue, Shape::Cross, [0.1, 0.1], 0.1);
    assert_eq!(verdict(&[white, red, third]), [true, true, true, false]);
}

#[test]
fn pixels_say_where_an_object_is_and_how_large() {
    // The network's part is given: every cell as it is labelled.
    let outlines = Outlines::new();
    for seed in 0..300 {
        let scene = Sample::draw(seed, Split::HeldOut).scene;
        let size = [[128, 128], [160, 96], [96, 160]][seed as usize % 3];
        let labels = scene.labels(size[0], size[1], size[0] / 8, size[1] / 8);
        let of = |label: u8| label.checked_sub(1).map(|i| scene.objects[usize::from(i)].thing);
        let one_hot = |place: usize, len: usize| (0..len).map(|i| f32::from(i == place)).collect::<Vec<_>>();
        let colour = |t: Thing| Colour::OF_OBJECTS.iter().position(|c| *c == t.colour).unwrap();
        let colours: Vec<_> = labels.iter().map(|l| one_hot(of(*l).map_or(8, colour), 9)).collect();
        let picture = Raster::of_scene(&scene, size);
        let reading = reading::objects(&picture, scene.background, &colours, &outlines);
        assert_eq!(reading.objects.len(), scene.objects.len(), "{scene:?}");
        for object in &scene.objects {
            let found = reading.of_colour(object.thing.colour).unwrap();
            assert_eq!(found.shape, object.thing.shape, "{found:?} {scene:?}");
            assert!(found.likeness > 0.85, "{found:?} {scene:?}");
            let off = (found.radius / object.radius - 1.0).abs();
            assert!(off < 0.13, "{off} {found:?} {scene:?}");
            // A triangle's pixels lie lower than the middle of its box.
            let shorter = size[0].min(size[1]) as f32;
            for (axis, centre) in [object.x, object.y].into_iter().enumerate() {
                let off = (found.centre[axis] - centre) * size[1 - axis] as f32 / shorter / object.radius;
                assert!(off.abs() < 0.2, "{axis} {off} {found:?} {scene:?}");
            }
            assert!(found.whole);
        }
    }
}

#[test]
fn weights_are_kept_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("classifier.safetensors");
    let mut recipe = recipe();
    recipe.data.buckets.clear();
    recipe.data.sample_size = 64;
    assert!(Classifier::cached(&recipe, &path).unwrap().is_none());
    let [one, other] = [(); 2].map(|()| training::train(&recipe, 2, &Stop::default()).unwrap());
    assert_eq!(one.frozen().unwrap(), other.frozen().unwrap());
    save(&one, &path, fingerprint(&recipe)).unwrap();
    let cached = Classifier::cached(&recipe, &path).unwrap().unwrap();
    assert_eq!(cached.frozen().unwrap(), one.frozen().unwrap());
    recipe.model.seed += 1;
    assert!(Classifier::cached(&recipe, &path).unwrap().is_none());
    let stopped = training::train(&recipe, 2, &Stop::default().within(Some(0.0)));
    assert!(matches!(stopped, Err(TrainError::Interrupted { .. })));
}
