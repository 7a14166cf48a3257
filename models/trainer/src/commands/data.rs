//! `data`: what the networks are shown in training, for people to look at.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context as _, ensure};
use image::ImageFormat;

use crate::{
    data::{Picture, Pictures},
    recipe::Recipe,
    sheet::{self, Rgb8Picture},
};

/// The sheet is about as wide as this many pictures in a row.
const COLUMNS: usize = 6;

/// Which pictures, and where to draw them.
#[derive(Clone, Debug, clap::Args)]
pub struct DataArgs {
    /// The model's recipe
    #[arg(long, value_name = "FILE")]
    pub recipe: PathBuf,
    /// How many training pictures; each of the recipe's sizes has its share
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub count: u16,
    /// The picture of them all
    #[arg(long, value_name = "FILE.png")]
    pub out: PathBuf,
}

/// Draws the first training pictures on one sheet, and prints what conditions on each.
///
/// # Errors
/// The recipe is not valid, there are more sizes than pictures, or the sheet cannot be written.
pub fn data(args: &DataArgs) -> anyhow::Result<()> {
    show(args, &mut io::stdout().lock())
}

fn show(args: &DataArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let pictures = Pictures::new(&Recipe::open(&args.recipe)?);
    let (buckets, count) = (pictures.buckets(), usize::from(args.count));
    ensure!(count >= buckets.len(), "--count {count}: the recipe has {} sizes", buckets.len());
    let shown: Vec<Picture> =
        (0..count).map(|i| pictures.picture(i, buckets[i * buckets.len() / count])).collect();
    let numbered = |(i, picture): (usize, &Picture)| {
        let label = format!("{i}: {}", picture.caption);
        Rgb8Picture::new(&picture.pixels, picture.target_size, label)
    };
    let cells: Vec<_> = shown.iter().enumerate().map(numbered).collect();
    sheet::grid(&cells, COLUMNS)
        .save_with_format(&args.out, ImageFormat::Png)
        .with_context(|| format!("{}: cannot be written", args.out.display()))?;
    print(&shown, out).context("standard output")
}

fn print(shown: &[Picture], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:>4}  {:>9}  {:>9}  {:>9}  {:>5}  caption", "", "original", "crop", "target", "score")?;
    let size = |[height, width]: [usize; 2]| format!("{height}x{width}");
    for (i, picture) in shown.iter().enumerate() {
        let [top, left] = picture.crops_coords_top_left;
        let (original, crop, target) =
            (size(picture.original_size), format!("{top},{left}"), size(picture.target_size));
        let (score, caption) = (picture.aesthetic_score, &picture.caption);
        writeln!(out, "{i:>4}  {original:>9}  {crop:>9}  {target:>9}  {score:>5.2}  {caption}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn a_sheet_shows_every_size() {
        let folder = tempfile::tempdir().unwrap();
        let (recipe, out) = (folder.path().join("tiny.toml"), folder.path().join("sheet.png"));
        fs::write(&recipe, include_str!("../recipe/example.toml")).unwrap();
        let args = |count| DataArgs { recipe: recipe.clone(), count, out: out.clone() };
        let few = show(&args(2), &mut io::sink()).unwrap_err().to_string();
        assert_eq!(few, "--count 2: the recipe has 3 sizes");
        show(&args(3), &mut io::sink()).unwrap();
        let sheet = image::open(&out).unwrap();
        assert!(sheet.width() > 128 + 2 * 160 && sheet.height() > 160, "{:?}", sheet.width());
        let nowhere = DataArgs { out: Path::new("/nowhere/x.png").into(), ..args(3) };
        let error = show(&nowhere, &mut io::sink()).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/x.png: cannot"));
    }

    #[test]
    fn the_table_has_a_line_for_each_picture() {
        let text = include_str!("../recipe/example.toml");
        let pictures = Pictures::new(&Recipe::parse(text, Path::new("tiny.toml")).unwrap());
        let mut out = Vec::new();
        print(&[pictures.picture(7, [96, 160])], &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        let picture = pictures.picture(7, [96, 160]);
        assert_eq!(out.lines().count(), 2);
        assert!(out.contains("96x160") && out.trim_end().ends_with(&picture.caption), "{out}");
    }
}
