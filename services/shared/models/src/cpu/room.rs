//! Memory of many pages, in large ones where the system has them: kernels go through more than the processor keeps
//! addresses of.
#![expect(unsafe_code, reason = "pages seen as words")]

use std::{
    alloc::{Layout, handle_alloc_error},
    cell::Cell,
    ops::{Deref, DerefMut, Range},
};

use candle_core::{Error, Result};
use memmap2::MmapMut;

/// Words in pages of their own.
#[derive(Debug)]
pub(crate) struct Room {
    pages: MmapMut,
    len: usize,
}

impl Room {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Result<Self> {
        let pages = MmapMut::map_anon((len * size_of::<u32>()).max(1)).map_err(Error::wrap)?;
        #[cfg(target_os = "linux")]
        // Without them it is only slower.
        let _ = pages.advise(memmap2::Advice::HugePage);
        Ok(Self { pages, len })
    }
}

/// Bytes of a large page.
const PAGE: usize = 2 << 20;
const WORD: usize = size_of::<u32>();

thread_local!(static DESK: Cell<Option<Room>> = const { Cell::new(None) });

/// A thread's words to go through again and again, from the beginning of a large page on. The thread keeps one.
#[derive(Debug)]
pub(super) struct Desk {
    room: Option<Room>,
    used: Range<usize>,
}

impl Desk {
    /// `len` words left over from some earlier use. Ends the process where there is no memory, as vectors do.
    pub(super) fn stale(len: usize) -> Self {
        // Where a page begins is not known before.
        let with_page = len.next_multiple_of(PAGE / WORD) + PAGE / WORD;
        let room = DESK.take().filter(|room| room.len >= with_page).or_else(|| Room::zeros(with_page).ok());
        let Some(room) = room else {
            handle_alloc_error(Layout::array::<u32>(with_page).unwrap_or(Layout::new::<u32>()))
        };
        let first = room.pages.as_ptr().align_offset(PAGE) / WORD;
        Self { room: Some(room), used: first..first + len }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let room = self.room.take();
        // A thread that ends has no desk any more.
        let _ = DESK.try_with(|desk| desk.replace(room));
    }
}

impl Deref for Desk {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.room.as_deref().unwrap_or_default()[self.used.clone()]
    }
}

impl DerefMut for Desk {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut self.room.as_deref_mut().unwrap_or_default()[self.used.clone()]
    }
}

impl Deref for Room {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        // SAFETY: pages are aligned for words and hold `len` of them, and all bits are words.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_desk_is_its_threads_own_and_begins_with_a_page() {
        let place = |desk: &Desk| (desk.as_ptr().addr() % PAGE, desk.len());
        let mut first = Desk::stale(1000);
        assert_eq!(place(&first), (0, 1000));
        first[999] = 7;
        // Two at a time are two.
        let second = Desk::stale(PAGE);
        assert_eq!((place(&second), second[999]), ((0, PAGE), 0));
        drop(second);
        drop(first);
        let again = Desk::stale(1200);
        assert_eq!((again[999], again.len()), (7, 1200));
        drop(again);
        assert_eq!(place(&Desk::stale(3 * PAGE)), (0, 3 * PAGE));
    }
}
