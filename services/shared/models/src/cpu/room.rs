//! Memory of many pages, in large ones where the system has them: kernels go through more than the processor keeps
//! addresses of.
#![expect(unsafe_code, reason = "pages seen as words")]

use std::ops::{Deref, DerefMut};

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
