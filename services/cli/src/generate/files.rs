//! Where pictures are written, checked before the work begins and written whole or not at all.

use crate::failure::Failure;
use anyhow::{Context, anyhow};
use sdxl_core::ImageFormat;
use std::{
    ffi::OsString,
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// How many names are tried beside a file that exists.
const MAX_NAMES: u32 = 10_000;

/// What the pictures' files are called, and their format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// As given; `None` for names made of the seeds.
    path: Option<PathBuf>,
    /// How many pictures there will be.
    num_images: u32,
    /// Their encoding.
    pub(super) format: ImageFormat,
}

impl Target {
    /// Checks `--output` against `--image-format` and the file system.
    ///
    /// # Errors
    /// Bad input: a folder, a folder that is not there, an ending that is no picture format or contradicts `format`.
    pub(super) fn new(
        path: Option<PathBuf>,
        format: Option<ImageFormat>,
        num_images: u32,
    ) -> Result<Self, Failure> {
        let num_images = num_images.max(1);
        let Some(path) = path else {
            return Ok(Self { path: None, num_images, format: format.unwrap_or_default() });
        };
        let wrong = |text: String| Err(Failure::bad_input(format!("--output {}: {text}", path.display())));
        if path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.file_name().is_none()
        {
            return wrong("a folder; a file's name is needed".to_owned());
        }
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty() && !f.is_dir()) {
            return wrong(format!("there is no folder {}", folder.display()));
        }
        let ending = path.extension().map(|e| e.to_string_lossy().into_owned());
        let of_ending = ending.as_deref().and_then(format_of_ending);
        let format = match (format, of_ending, ending) {
            (Some(given), Some(meant), _) if given != meant => {
                return wrong(format!("the ending does not fit --image-format {}", name_of(given)));
            }
            (Some(format), ..) | (None, Some(format), _) => format,
            (None, None, None) => ImageFormat::default(),
            (None, None, Some(ending)) => {
                return wrong(format!(
                    "no picture format ends in .{ending}; use .png, .jpg or .webp, or give --image-format"
                ));
            }
        };
        Ok(Self { path: Some(path), num_images, format })
    }

    /// Writes the picture `index` with `seed`, and tells where.
    ///
    /// # Errors
    /// Where the file system refuses; nothing is left behind then.
    pub(super) fn write(&self, index: u32, seed: u64, data: &[u8]) -> anyhow::Result<PathBuf> {
        match &self.path {
            Some(path) => {
                let path = self.numbered(path, index);
                replace(&path, data).with_context(|| format!("cannot write {}", path.display()))?;
                Ok(path)
            }
            None => self.write_new(Path::new(""), seed, data),
        }
    }

    fn numbered(&self, path: &Path, index: u32) -> PathBuf {
        if self.num_images == 1 {
            return path.to_owned();
        }
        let mut name = path.file_stem().map(OsString::from).unwrap_or_default();
        name.push(format!("-{index}"));
        if let Some(ending) = path.extension() {
            name.push(".");
            name.push(ending);
        }
        path.with_file_name(name)
    }

    /// `sdxl-SEED.png`, or `sdxl-SEED-1.png` and so on: names that nobody asked for replace no file.
    fn write_new(&self, folder: &Path, seed: u64, data: &[u8]) -> anyhow::Result<PathBuf> {
        let ending = self.format.extension();
        let mut file = new_file(folder, data).context("cannot write to the current folder")?;
        for attempt in 0..MAX_NAMES {
            let number = if attempt == 0 { String::new() } else { format!("-{attempt}") };
            let path = folder.join(format!("sdxl-{seed}{number}.{ending}"));
            match file.persist_noclobber(&path) {
                Ok(_) => return Ok(path),
                Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => file = error.file,
                Err(error) => {
                    return Err(error.error).with_context(|| format!("cannot write {}", path.display()));
                }
            }
        }
        Err(anyhow!("there are {MAX_NAMES} files sdxl-{seed}-….{ending} already; give --output"))
    }
}

fn name_of(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "png",
        ImageFormat::Jpeg => "jpeg",
        ImageFormat::WebP => "webp",
    }
}

fn format_of_ending(ending: &str) -> Option<ImageFormat> {
    match ending.to_ascii_lowercase().as_str() {
        "png" => Some(ImageFormat::Png),
        "jpg" | "jpeg" => Some(ImageFormat::Jpeg),
        "webp" => Some(ImageFormat::WebP),
        _ => None,
    }
}

/// Writes a file whole or not at all, in place of what was there.
///
/// # Errors
/// Where the file system refuses; nothing is left behind then.
pub(crate) fn replace(path: &Path, data: &[u8]) -> anyhow::Result<()> {
    // A device or a pipe is written to; it must not become a file.
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        return Ok(fs::write(path, data)?);
    }
    new_file(path.parent().unwrap_or(Path::new("")), data)?.persist(path)?;
    Ok(())
}

/// A file in `folder` that has no lasting name yet.
fn new_file(folder: &Path, data: &[u8]) -> std::io::Result<tempfile::NamedTempFile> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut file = tempfile::Builder::new()
        .prefix(".sdxl-")
        .permissions(Permissions::from_mode(0o666)) // less the umask
        .tempfile_in(folder)?;
    file.write_all(data)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path, format: Option<ImageFormat>) -> String {
        match Target::new(Some(path.to_owned()), format, 1) {
            Err(Failure::BadInput(lines)) => lines.join("\n"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_ending_decides_the_format() {
        let format = |path: &str, given| Target::new(Some(path.into()), given, 1).map(|t| t.format).ok();
        assert_eq!(format("a.png", None), Some(ImageFormat::Png));
        assert_eq!(format("a.JPG", None), Some(ImageFormat::Jpeg));
        assert_eq!(format("a.jpeg", Some(ImageFormat::Jpeg)), Some(ImageFormat::Jpeg));
        assert_eq!(format("a.webp", None), Some(ImageFormat::WebP));
        assert_eq!(format("a", None), Some(ImageFormat::Png));
        assert_eq!(format("a.dat", Some(ImageFormat::WebP)), Some(ImageFormat::WebP));
        assert_eq!(format("a.gif", None), None);
        assert_eq!(format("a.png", Some(ImageFormat::Jpeg)), None);
    }

    #[test]
    fn wrong_outputs_are_named_before_any_work() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refused(folder.path(), None).contains("a folder"));
        assert!(refused(&folder.path().join("none/a.png"), None).contains("there is no folder"));
        assert!(refused(Path::new("a.gif"), None).contains(".gif"));
        assert!(refused(Path::new("a.png"), Some(ImageFormat::Jpeg)).contains("--image-format jpeg"));
        assert!(refused(Path::new("new/"), None).contains("a folder"));
    }

    #[test]
    fn one_picture_keeps_its_name_and_several_are_numbered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cat.png");
        let one = Target::new(Some(path.clone()), None, 0).unwrap();
        assert_eq!(one.write(0, 7, b"old").unwrap(), path);
        assert_eq!(one.write(0, 7, b"new").unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let four = Target::new(Some(path), None, 4).unwrap();
        assert_eq!(four.write(3, 10, b"x").unwrap(), folder.path().join("cat-3.png"));
        let bare = Target::new(Some(folder.path().join("cat")), None, 4).unwrap();
        assert_eq!(bare.write(1, 8, b"x").unwrap(), folder.path().join("cat-1"));
        let files = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(files, 3, "no temporary file is left");
    }

    #[test]
    fn names_made_of_the_seed_replace_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target::new(None, Some(ImageFormat::Jpeg), 1).unwrap();
        let write = |data| target.write_new(folder.path(), 42, data).unwrap();
        assert_eq!(write(b"first"), folder.path().join("sdxl-42.jpg"));
        assert_eq!(write(b"second"), folder.path().join("sdxl-42-1.jpg"));
        assert_eq!(fs::read(folder.path().join("sdxl-42.jpg")).unwrap(), b"first");
    }

    #[test]
    fn files_are_readable_as_the_umask_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        Target::new(Some(path.clone()), None, 1).unwrap().write(0, 0, b"x").unwrap();
        let plain = folder.path().join("plain");
        fs::write(&plain, b"x").unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }
}
