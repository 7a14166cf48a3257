//! The figures as a part of `model.md`.

use std::{fmt::Write as _, fs, io, path::Path};

use anyhow::{Context as _, ensure};

use super::{Figures, captions::Rate, compare::Comparison, quality::Distance, sizes::Crop};
use crate::classifier::{Aspect, Disturbance};

/// A part of the page that is written anew, by its name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part(&'static str);

/// What was measured of the model.
pub(super) const FIGURES: Part = Part("figures");
/// What was measured of models beside each other.
pub(super) const COMPARISON: Part = Part("comparison");

impl Part {
    fn marks(self) -> [String; 2] {
        ["begin", "end"].map(|end| format!("<!-- {}:{end} -->", self.0))
    }
}

/// Replaces what stands between a part's marks, or adds it; makes the page if there is none.
pub(super) fn write(part: Part, text: &str, path: &Path) -> anyhow::Result<()> {
    let page = replaced(&read(path)?, part, text).with_context(|| path.display().to_string())?;
    fs::write(path, page).with_context(|| format!("{}: cannot be written", path.display()))
}

/// Whether a part can be written, before it is measured.
pub(super) fn check(part: Part, path: &Path) -> anyhow::Result<()> {
    replaced(&read(path)?, part, "").with_context(|| path.display().to_string()).map(drop)
}

fn read(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok("# The model\n".to_owned()),
        other => other.with_context(|| format!("{}: cannot be read", path.display())),
    }
}

fn replaced(page: &str, part: Part, text: &str) -> anyhow::Result<String> {
    let [begin, end] = part.marks();
    if !page.contains(&begin) && !page.contains(&end) {
        return Ok(format!("{}\n\n{begin}\n\n{}\n\n{end}\n", page.trim_end(), text.trim()));
    }
    let places = page.find(&begin).zip(page.find(&end)).filter(|(begin, end)| begin < end);
    ensure!(places.is_some(), "it lacks {begin} and, after it, {end}");
    let (from, to) = places.unwrap_or_default();
    Ok(format!("{}\n\n{}\n\n{}", &page[..from + begin.len()], text.trim(), &page[to..]))
}

/// Models beside each other.
pub(super) fn comparison(comparison: &Comparison) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let page = &mut out;
    writeln!(
        page,
        "Written by `sdxl-train compare`, of {} captions whose combinations of shapes and colours no training picture \
         shows, drawn with 30 Euler steps at a guidance scale of 5 by {}, asked for at full size. In brackets: 95 % \
         intervals.\n\n\
         | | Fréchet distance by what is shown | and how sharp | sharpness, of true renderings' |\n\
         | --- | --- | --- | --- |",
        comparison.prompts.len(),
        comparison.kernels.name()
    )?;
    let mut row = |name: &str, Distance { shown, whole }: &Distance, sharpness: &str| {
        writeln!(page, "| {name} | {:.3} | {:.3} |{sharpness} |", shown.estimate, whole.estimate)
    };
    row("true renderings", &comparison.floor, "")?;
    for model in &comparison.models {
        row(&model.name, &model.distance, &format!(" {:.3}", model.sharpness))?;
    }
    for pair in comparison.models.windows(2) {
        let [one, other] = pair else { continue };
        let [shown, whole] =
            [one.distance.shown.less(&other.distance.shown), one.distance.whole.less(&other.distance.whole)];
        writeln!(page, "| {}, less {} | {shown:.3} | {whole:.3} | |", one.name, other.name)?;
    }
    writeln!(page, "\n![Models beside each other](pictures/model-comparison.png)")?;
    Ok(out)
}

/// What was measured of the model.
pub(super) fn text(figures: &Figures) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let page = &mut out;
    writeln!(
        page,
        "Written by `sdxl-train evaluate`. Pictures are drawn with 30 Euler steps at a guidance scale of 5, by {}, \
         from captions whose combinations of shapes and colours no training picture shows. In brackets: 95 % \
         intervals.\n",
        figures.kernels.name()
    )?;
    captions(page, figures)?;
    classifier(page, figures)?;
    sharpness(page, figures)?;
    crops(page, figures)?;
    buckets(page, figures)?;
    quality(page, figures)?;
    Ok(out)
}

fn share(rates: &[Rate], aspect: Aspect) -> String {
    let rate = rates.iter().find(|rate| rate.aspect == aspect);
    rate.map_or_else(|| "–".to_owned(), |rate| format!("{} of {}", rate.rate.percent(), rate.rate.count))
}

fn captions(page: &mut String, Figures { captions, .. }: &Figures) -> std::fmt::Result {
    writeln!(page, "### What is said is shown\n")?;
    writeln!(page, "| right | captions as they come | two objects with a relation |\n| --- | --- | --- |")?;
    for aspect in Aspect::ALL {
        let [mixed, related] = [&captions.mixed, &captions.related].map(|rates| share(rates, aspect));
        writeln!(page, "| {} | {mixed} | {related} |", aspect.name())?;
    }
    writeln!(page, "\n![Held-out captions](pictures/model-captions.png)\n")?;
    writeln!(page, "![Held-out captions of two objects](pictures/model-relations.png)\n")
}

fn classifier(page: &mut String, Figures { classifier, autoencoder, .. }: &Figures) -> std::fmt::Result {
    writeln!(
        page,
        "A small classifier judges, which was trained on true renderings alone. On true renderings of held-out scenes \
         it is right itself so often:\n"
    )?;
    let names = Disturbance::ALL.map(Disturbance::name).join(" | ");
    writeln!(page, "| right | {names} | through the autoencoder |\n| --- | --- | --- | --- | --- |")?;
    for aspect in Aspect::ALL {
        let rows = classifier.iter().filter(|row| row.aspect == aspect);
        let shares: Vec<_> = rows
            .map(|row| {
                format!("{:.1} % of {}", 100.0 * row.right as f64 / row.total.max(1) as f64, row.total)
            })
            .collect();
        let decoded = autoencoder.rates.iter().find(|rate| rate.aspect == aspect).map_or_else(
            || "–".to_owned(),
            |rate| format!("{:.1} % of {}", 100.0 * rate.rate.value, rate.rate.count),
        );
        writeln!(page, "| {} | {} | {decoded} |", aspect.name(), shares.join(" | "))?;
    }
    writeln!(page)
}

fn sharpness(page: &mut String, Figures { sharpness, .. }: &Figures) -> std::fmt::Result {
    writeln!(page, "### `original_size` sets the sharpness\n")?;
    writeln!(
        page,
        "The same captions and seeds, asked for as enlarged from originals of several sizes. Sharpness is the mean \
         square of the Laplacian, here as a share of that at full size; true renderings were really so small. Last, \
         those after the autoencoder: blur that it does not keep cannot be drawn.\n"
    )?;
    writeln!(
        page,
        "| original | drawn | true renderings | through the autoencoder |\n| --- | --- | --- | --- |"
    )?;
    for row in sharpness {
        writeln!(
            page,
            "| {0} x {0} | {1:.3} | {2:.3} | {3:.3} |",
            row.original_size, row.drawn, row.rendered, row.decoded
        )?;
    }
    writeln!(page, "\n![Original sizes](pictures/model-original-size.png)\n")
}

fn crops(page: &mut String, Figures { crops: [down, right], .. }: &Figures) -> std::fmt::Result {
    writeln!(page, "### `crops_coords_top_left` moves what is shown\n")?;
    writeln!(
        page,
        "An object in the center of an original half as long again, cropped at several places: where its pixels' \
         centre is, in pixels.\n"
    )?;
    writeln!(page, "| cut off at the | pixels | place | expected |\n| --- | --- | --- | --- |")?;
    let mut rows = |side: &str, axis: usize, crops: &[Crop]| {
        crops.iter().try_for_each(|crop| {
            let cut = crop.crops_coords_top_left[axis];
            writeln!(page, "| {side} | {cut} | {:.1} | {:.0} |", crop.place, crop.expected)
        })
    };
    rows("top", 0, &down.0)?;
    rows("left", 1, &right.0)?;
    let [down, right] = [down.1, right.1];
    writeln!(
        page,
        "\nWith each pixel cut off, objects move by {down:.2} pixels down and {right:.2} to the right; -1 is right.\n"
    )?;
    writeln!(page, "![Crops](pictures/model-crops.png)\n")
}

fn buckets(page: &mut String, Figures { buckets, .. }: &Figures) -> std::fmt::Result {
    writeln!(page, "### Every size has whole pictures\n")?;
    writeln!(
        page,
        "Whole: every object keeps clear of the border. Area: that of the only object is within a quarter of what \
         its size allows.\n"
    )?;
    writeln!(page, "| height x width | whole | area | colour and shape | everything said |")?;
    writeln!(page, "| --- | --- | --- | --- | --- |")?;
    for bucket in buckets {
        let [height, width] = bucket.size;
        let (whole, area) = (bucket.whole.percent(), bucket.area.percent());
        let [colour, shape, all] = [Aspect::MainColour, Aspect::Shape, Aspect::Everything].map(|aspect| {
            let rate = bucket.rates.iter().find(|rate| rate.aspect == aspect);
            rate.map_or(f64::NAN, |rate| 100.0 * rate.rate.value)
        });
        writeln!(
            page,
            "| {height} x {width} | {whole} | {area} | {colour:.1} %, {shape:.1} % | {all:.1} % |"
        )?;
    }
    writeln!(page, "\n![All sizes](pictures/model-buckets.png)\n")
}

fn quality(page: &mut String, figures: &Figures) -> std::fmt::Result {
    writeln!(page, "### How near pictures are to true ones\n")?;
    writeln!(
        page,
        "- The autoencoder gives held-out renderings back at {:.2} dB, over {} pictures.",
        figures.autoencoder.psnr, figures.autoencoder.psnr.count
    )?;
    writeln!(
        page,
        "\nFréchet distances from true renderings of the same captions: by what is shown, in the classifier's features \
         alone, which see through blur; and by that and the logarithms of sharpness at three scales beside it.\n\n\
         | | what is shown | and how sharp |\n| --- | --- | --- |"
    )?;
    for (name, distance) in ["true renderings", "the model"].into_iter().zip(figures.frechet) {
        writeln!(page, "| {name} | {:.3} | {:.3} |", distance.shown, distance.whole)?;
    }
    writeln!(page)?;
    let Some(refined) = &figures.refiner else { return Ok(()) };
    writeln!(
        page,
        "- From the nearest true rendering, as fitted, the base's pictures are {:.2} values of 255 off; with the \
         refiner after {:.0} % of the steps {:.2}. Of the same picture the refiner changes this by {:.2}, and it is \
         nearer in {}, of {} pictures.",
        refined.base,
        100.0 * refined.split,
        refined.refined,
        refined.difference,
        refined.better.percent(),
        refined.better.count
    )?;
    writeln!(page, "\n![The refiner](pictures/model-refiner.png)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        classifier::Accuracy,
        evaluate::{
            Frechet, Kernels,
            captions::Captions,
            compare::Compared,
            figures::Estimate,
            quality::Autoencoder,
            sizes::{Bucket, Sharpness},
        },
    };

    #[test]
    fn prose_around_the_figures_stays() {
        let [begin, end] = FIGURES.marks();
        let others = COMPARISON.marks().join("\nkept\n");
        let page = format!("# Model\n\nBefore.\n\n{begin}\nold\n{end}\n\nAfter.\n\n{others}\n");
        let once = replaced(&page, FIGURES, "new\n").unwrap();
        let wanted = format!("# Model\n\nBefore.\n\n{begin}\n\nnew\n\n{end}\n\nAfter.\n\n{others}\n");
        assert_eq!(once, wanted);
        assert_eq!(replaced(&once, FIGURES, "new").unwrap(), once);
        assert!(replaced(&once, COMPARISON, "newer").unwrap().contains("-->\n\nnewer\n\n<!--"));
        let added = replaced("# Model\n", COMPARISON, "new").unwrap();
        assert_eq!(added, "# Model\n\n<!-- comparison:begin -->\n\nnew\n\n<!-- comparison:end -->\n");
        for broken in [begin.clone(), format!("{end} {begin}")] {
            let error = replaced(&broken, FIGURES, "new").unwrap_err().to_string();
            assert!(error.contains("it lacks <!-- figures:begin"), "{error}");
        }
    }

    #[test]
    fn every_measurement_has_its_place() {
        let estimate = |value| Estimate { value, interval: [value - 0.01, value + 0.01], count: 400 };
        let rates = |value| vec![Rate { aspect: Aspect::MainColour, rate: estimate(value) }];
        let crop = |at| Crop {
            crops_coords_top_left: [at, at],
            place: estimate(64.5),
            expected: 64.0,
            pictures: Vec::new(),
        };
        let right =
            |disturbance| Accuracy { aspect: Aspect::MainColour, disturbance, right: 399, total: 400 };
        let figures = Figures {
            kernels: Kernels::Bf16,
            classifier: Disturbance::ALL.map(right).to_vec(),
            captions: Captions { mixed: rates(0.95), related: rates(0.90), drawn: Default::default() },
            autoencoder: Autoencoder { psnr: estimate(36.7), rates: rates(0.98) },
            sharpness: vec![Sharpness {
                original_size: 24,
                drawn: estimate(0.02),
                rendered: estimate(0.03),
                decoded: estimate(0.9),
                pictures: Vec::new(),
            }],
            crops: [(vec![crop(16)], estimate(-1.0)), (vec![crop(32)], estimate(-0.98))],
            buckets: vec![Bucket {
                size: [96, 160],
                whole: estimate(0.97),
                area: estimate(0.96),
                rates: rates(0.95),
                drawn: Default::default(),
            }],
            refiner: None,
            frechet: [0.1, 1.5].map(|value| Frechet { shown: estimate(value), whole: estimate(value + 1.0) }),
        };
        let page = text(&figures).unwrap();
        for line in [
            "| main colour | 95.0 % (94.0 to 96.0) of 400 | 90.0 % (89.0 to 91.0) of 400 |",
            "| main colour | 99.8 % of 400 | 99.8 % of 400 | 99.8 % of 400 | 98.0 % of 400 |",
            "| shape | – | – |",
            "| 24 x 24 | 0.020 (0.010 to 0.030) | 0.030 (0.020 to 0.040) | 0.900 (0.890 to 0.910) |",
            "| top | 16 | 64.5 (64.5 to 64.5) | 64 |",
            "| left | 32 | 64.5 (64.5 to 64.5) | 64 |",
            "| 96 x 160 | 97.0 % (96.0 to 98.0) | 96.0 % (95.0 to 97.0) | 95.0 %, NaN % | NaN % |",
            "- The autoencoder gives held-out renderings back at 36.70 (36.69 to 36.71) dB, over 400 pictures.",
            "| true renderings | 0.100 (0.090 to 0.110) | 1.100 (1.090 to 1.110) |",
            "| the model | 1.500 (1.490 to 1.510) | 2.500 (2.490 to 2.510) |",
        ] {
            assert!(page.lines().any(|other| other == line), "{line}\n{page}");
        }
        assert!(!page.contains("refiner"));
    }

    #[test]
    fn models_are_held_against_the_next() {
        let distance = |value: f64| Distance::of([value, value + 1.0]);
        let model = |name: &str, value| Compared {
            name: name.to_owned(),
            distance: distance(value),
            sharpness: Estimate { value: 0.5, interval: [0.4, 0.6], count: 100 },
            pictures: Vec::new(),
        };
        let page = comparison(&Comparison {
            kernels: Kernels::F32,
            prompts: Vec::new(),
            floor: distance(0.1),
            models: vec![model("one", 3.0), model("other", 1.0), model("third", 0.5)],
        })
        .unwrap();
        for line in [
            "| true renderings | 0.100 (0.100 to 0.100) | 1.100 (1.100 to 1.100) | |",
            "| one | 3.000 (3.000 to 3.000) | 4.000 (4.000 to 4.000) | 0.500 (0.400 to 0.600) |",
            "| one, less other | 2.000 (2.000 to 2.000) | 2.000 (2.000 to 2.000) | |",
            "| other, less third | 0.500 (0.500 to 0.500) | 0.500 (0.500 to 0.500) | |",
        ] {
            assert!(page.lines().any(|other| other == line), "{line}\n{page}");
        }
    }
}
