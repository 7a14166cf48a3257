//! How bytes of a file get into memory: past the system's page cache where they are not in it.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

/// What reads past the page cache begin and end with, in the file and in memory; a device that wants more is read through it.
pub(super) const BLOCK: u64 = 4096;
/// How far apart pages are that are looked for in the page cache.
#[cfg(target_os = "linux")]
const STRIDE: usize = 2 << 20;
/// After so many bytes a device's speed is known.
const ENOUGH: u64 = 128 << 20;
/// Bytes a second that one of two threads gets: below it reading is all that a start waits for, and the next one is better off
/// with the page cache.
const SLOW: f64 = 250e6;

/// A file to be read from.
#[derive(Debug)]
pub(super) struct Source<'a> {
    file: &'a File,
    /// The same, to be read past the page cache.
    direct: Option<File>,
    read: u64,
    took: Duration,
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self { direct: direct(file), ..Self::through_cache(file) }
    }

    /// To be read as any file is.
    pub(super) fn through_cache(file: &'a File) -> Self {
        Self { file, direct: None, read: 0, took: Duration::ZERO }
    }

    /// Reads into `pages`, which begin with a page of memory, what lies from `from` on, both multiples of [`BLOCK`]; at least
    /// `wanted` bytes.
    pub(super) fn fill(&mut self, from: u64, wanted: usize, pages: &mut [u8]) -> io::Result<()> {
        if let Some(direct) = self.direct.as_ref().filter(|_| !in_page_cache(self.file, from, wanted)) {
            let began = Instant::now();
            let read = fill(direct, from, wanted, pages);
            self.read += wanted as u64;
            self.took += began.elapsed();
            let slow = self.read >= ENOUGH && (self.read as f64) < SLOW * self.took.as_secs_f64();
            // Where its file system does not know such reading, or wants larger blocks, it is read like any other.
            if slow || read.is_err() {
                self.direct = None;
            }
            if read.is_ok() {
                return read;
            }
        }
        fill(self.file, from, wanted, pages)
    }
}

fn fill(file: &File, from: u64, wanted: usize, pages: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < wanted {
        match file.read_at(&mut pages[done..], from + done as u64) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The file again, for reading past the page cache.
#[cfg(target_os = "linux")]
fn direct(file: &File) -> Option<File> {
    use rustix::fs::{Mode, OFlags, open};
    use std::os::fd::AsRawFd;
    // By its number and not by its name: another may have that by now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).ok().map(File::from)
}

#[cfg(not(target_os = "linux"))]
fn direct(_: &File) -> Option<File> {
    None
}

/// Whether bytes are in the page cache, by the look of some of them; or it cannot be told. Each time others are looked at, as
/// the system fetches a page that is looked for.
#[cfg(target_os = "linux")]
fn in_page_cache(file: &File, from: u64, len: usize) -> bool {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    use std::{
        hash::{BuildHasher, RandomState},
        io::IoSliceMut,
    };
    let mut byte = [0];
    let len = len.max(1);
    let first = RandomState::new().hash_one(from) as usize % len.min(STRIDE);
    (first..len).step_by(STRIDE).all(|at| {
        let byte = &mut [IoSliceMut::new(&mut byte)];
        preadv2(file, byte, from + at as u64, ReadWriteFlags::NOWAIT) != Err(Errno::AGAIN)
    })
}

#[cfg(not(target_os = "linux"))]
fn in_page_cache(_: &File, _: u64, _: usize) -> bool {
    true
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::io::Write;

    use memmap2::MmapMut;
    use rustix::fs::{Advice, fadvise};

    use super::*;

    const LEN: usize = 3 * STRIDE + 1234;

    fn file() -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..LEN).map(|i| (i * i / 7 % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.sync_all().unwrap();
        (file, bytes)
    }

    /// What `source` reads from a block on to the end.
    fn rest(source: &mut Source<'_>, from: u64) -> io::Result<Vec<u8>> {
        let wanted = LEN - from as usize;
        let mut pages = MmapMut::map_anon(wanted.next_multiple_of(BLOCK as usize)).unwrap();
        source.fill(from, wanted, &mut pages)?;
        Ok(pages[..wanted].to_vec())
    }

    #[test]
    fn a_file_is_read_the_same_from_the_page_cache_and_past_it() {
        let (file, bytes) = file();
        assert!(in_page_cache(&file, 0, LEN));
        for from in [0, BLOCK, 5 * BLOCK, STRIDE as u64 + BLOCK] {
            let expected = &bytes[from as usize..];
            assert!(rest(&mut Source::new(&file), from).unwrap() == expected);
            assert!(rest(&mut Source::through_cache(&file), from).unwrap() == expected);
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            // Some file systems keep all of it, and of some it cannot be told.
            let forgets = direct(&file).is_some() && !in_page_cache(&file, 0, LEN);
            assert!(rest(&mut Source::new(&file), from).unwrap() == expected);
            // Of four places that are looked at, at most one was fetched by looking.
            assert_eq!(in_page_cache(&file, 0, LEN), !forgets);
        }
    }

    #[test]
    fn a_slow_device_is_read_through_the_page_cache() {
        let (file, bytes) = file();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        let mut source = Source::new(&file);
        let can = source.direct.is_some() && !in_page_cache(&file, 0, LEN);
        (source.read, source.took) = (ENOUGH, Duration::from_secs(100));
        assert!(rest(&mut source, 0).unwrap() == bytes);
        assert_eq!(source.direct.is_none(), can);
    }

    #[test]
    fn a_file_that_ends_too_early_is_no_file() {
        let (file, _) = file();
        let mut pages = MmapMut::map_anon(LEN.next_multiple_of(BLOCK as usize) + STRIDE).unwrap();
        for mut source in [Source::new(&file), Source::through_cache(&file)] {
            let error = source.fill(0, LEN + 1, &mut pages).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        }
    }
}
