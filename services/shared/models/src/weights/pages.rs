//! Bytes of files in memory of this process, whose pages are used again and again: the system clears each new one.

use std::{
    io,
    ops::{Deref, Range},
    sync::{Arc, Mutex, PoisonError},
};

use memmap2::MmapMut;

/// What lies in this process of some file.
#[derive(Clone, Debug)]
pub(super) struct Bytes {
    pages: Arc<Lent>,
    range: Range<usize>,
}

/// Pages that go back to where they came from.
#[derive(Debug)]
struct Lent {
    pages: Option<MmapMut>,
    pool: Pool,
}

/// Pages that nobody reads any more.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool(Arc<Mutex<Vec<MmapMut>>>);

/// Bytes of pages that are kept for later.
const KEPT: usize = 256 << 20;
/// Pages come in multiples of it, a large page of the system's.
const LARGE: usize = 2 << 20;

impl Pool {
    /// Pages for `len` bytes or more, with what was in them.
    pub(super) fn take(&self, len: usize) -> io::Result<MmapMut> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = kept.iter().enumerate().filter(|(_, pages)| pages.len() >= len);
        if let Some((at, _)) = fitting.min_by_key(|(_, pages)| pages.len()) {
            return Ok(kept.swap_remove(at));
        }
        drop(kept);
        let pages = MmapMut::map_anon(len.max(1).next_multiple_of(LARGE))?;
        #[cfg(target_os = "linux")]
        // Without them it is only slower.
        let _ = pages.advise(memmap2::Advice::HugePage);
        Ok(pages)
    }

    /// The bytes `range` of `pages`, which come back here when they are dropped.
    pub(super) fn lend(&self, pages: MmapMut, range: Range<usize>) -> Bytes {
        Bytes { pages: Arc::new(Lent { pages: Some(pages), pool: self.clone() }), range }
    }

    /// Gives all pages back to the system.
    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(pages) = self.pages.take() else { return };
        let mut kept = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().map(|pages| pages.len()).sum::<usize>() + pages.len() <= KEPT {
            kept.push(pages);
        }
    }
}

impl Bytes {
    /// Those of them in `range`.
    pub(super) fn part(&self, range: Range<usize>) -> Self {
        let start = self.range.start;
        assert!(range.start <= range.end && range.end <= self.range.len(), "a part of what there is");
        Self { pages: Arc::clone(&self.pages), range: start + range.start..start + range.end }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages.pages.as_deref().unwrap_or_default()[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_used_again_when_the_last_of_their_bytes_is_dropped() {
        let pool = Pool::default();
        let kept = || pool.0.lock().unwrap().iter().map(|pages| pages.len()).collect::<Vec<_>>();
        let mut pages = pool.take(10).unwrap();
        pages[..4].copy_from_slice(&[1, 2, 3, 4]);
        let whole = pool.lend(pages, 1..10);
        let part = whole.part(1..3);
        drop(whole);
        assert_eq!((&*part, kept()), (&[3, 4][..], vec![]));
        drop(part);
        assert_eq!(kept(), [LARGE]);
        // The smallest that are large enough.
        drop(pool.lend(pool.take(LARGE + 1).unwrap(), 0..1));
        assert_eq!(pool.take(LARGE).unwrap()[2], 3);
        assert_eq!(kept(), [2 * LARGE]);
        // No more than so many.
        drop(pool.lend(pool.take(KEPT).unwrap(), 0..0));
        assert_eq!(kept(), [2 * LARGE]);
        pool.clear();
        assert!(kept().is_empty());
    }
}
