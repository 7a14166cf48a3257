//! Memory of many pages, in large ones where the system has them: kernels go through more than the processor keeps
//! addresses of.
#![expect(unsafe_code, reason = "pages seen as words")]

use std::{
    alloc::{Layout, handle_alloc_error},
    cell::{Cell, RefCell},
    ops::{Deref, DerefMut},
    sync::{Arc, Weak},
};

use candle_core::{Error, Result};
use memmap2::{MmapMut, MmapRaw};

/// Words that are nobody else's.
#[derive(Debug)]
pub(crate) struct Room {
    pages: Arc<MmapRaw>,
    /// Words before its own.
    first: usize,
    len: usize,
}

/// Bytes of a large page.
const PAGE: usize = 2 << 20;
const WORD: usize = size_of::<u32>();
/// Words of pages that rooms share: each in pages of its own, of which the first and the last are not whole, would be in small
/// ones for the most part.
const SHARED: usize = (256 << 20) / WORD;
/// Words of a line of the cache: rooms begin with one.
const LINE: usize = 64 / WORD;

thread_local! {
    /// Pages with room left, and their words that are given away.
    static OPEN: RefCell<(Weak<MmapRaw>, usize)> = const { RefCell::new((Weak::new(), 0)) };
    static DESK: Cell<Option<Room>> = const { Cell::new(None) };
}

impl Room {
    /// `len` zeros, in pages that it shares with others of its thread where it is small. They go back to the system together.
    pub(crate) fn zeros(len: usize) -> Result<Self> {
        if len > SHARED / 4 {
            return Self::apart(len);
        }
        OPEN.with_borrow_mut(|(open, given)| {
            if let Some(pages) = open.upgrade().filter(|_| *given + len <= SHARED) {
                // Nobody had these words before, so they are zeros.
                let first = *given;
                *given = (first + len).next_multiple_of(LINE);
                return Ok(Self { first: Self::beginning(&pages) + first, pages, len });
            }
            let room = Self::apart(SHARED)?;
            (*open, *given) = (Arc::downgrade(&room.pages), len.next_multiple_of(LINE));
            Ok(Self { len, ..room })
        })
    }

    /// `len` zeros, in pages of its own from the beginning of a large one on.
    fn apart(len: usize) -> Result<Self> {
        // Where a page begins is not known before.
        let pages = MmapMut::map_anon((len * WORD).next_multiple_of(PAGE) + PAGE).map_err(Error::wrap)?;
        #[cfg(target_os = "linux")]
        // Without them it is only slower.
        let _ = pages.advise(memmap2::Advice::HugePage);
        let pages = MmapRaw::from(pages);
        Ok(Self { first: Self::beginning(&pages), pages: Arc::new(pages), len })
    }

    /// Words before the first large page.
    fn beginning(pages: &MmapRaw) -> usize {
        pages.as_ptr().align_offset(PAGE) / WORD
    }
}

/// A thread's words to go through again and again, from the beginning of a large page on. The thread keeps one.
#[derive(Debug)]
pub(super) struct Desk {
    room: Option<Room>,
    len: usize,
}

impl Desk {
    /// `len` words left over from some earlier use. Ends the process where there is no memory, as vectors do.
    pub(super) fn stale(len: usize) -> Self {
        let kept = DESK.take().filter(|room| room.len >= len);
        let Some(room) = kept.or_else(|| Room::apart(len.next_multiple_of(PAGE / WORD)).ok()) else {
            handle_alloc_error(Layout::array::<u32>(len).unwrap_or(Layout::new::<u32>()))
        };
        Self { room: Some(room), len }
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
        &self.room.as_deref().unwrap_or_default()[..self.len]
    }
}

impl DerefMut for Desk {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut self.room.as_deref_mut().unwrap_or_default()[..self.len]
    }
}

impl Deref for Room {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        // SAFETY: pages are aligned for words, hold these and live as long as it, nobody else writes to these, and all bits are
        // words.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast::<u32>().add(self.first), self.len) }
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above, nobody else reads these, and the borrow is exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast::<u32>().add(self.first), self.len)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_are_zeros_that_nobody_else_has() {
        let lens = [1000, 1, SHARED / 4, 0, SHARED / 4 - 7, SHARED / 4 + 1, SHARED / 4, SHARED / 4, 3, PAGE];
        let mut rooms: Vec<Room> = Vec::new();
        for (round, len) in lens.into_iter().chain(lens).enumerate() {
            let mut room = Room::zeros(len).unwrap();
            assert_eq!((room.len(), room.as_ptr().addr() % (LINE * WORD)), (len, 0));
            assert!(room.iter().all(|word| *word == 0));
            room.fill(round as u32 + 1);
            rooms.push(room);
            if round == lens.len() {
                // What is given back is not given away again while others share its pages.
                rooms.drain(..3);
            }
        }
        for (room, round) in rooms.iter().zip(3..) {
            assert!(room.iter().all(|word| *word == round as u32 + 1), "{round}");
        }
        let shared = Arc::downgrade(&Room::zeros(5).unwrap().pages);
        drop(rooms);
        assert!(shared.upgrade().is_none(), "no room, no pages");
    }

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
