//! Memory that threads write different parts of.
#![expect(
    unsafe_code,
    reason = "shared mutable memory; its parts are disjoint by the callers' division of work"
)]

use std::marker::PhantomData;

/// A slice whose disjoint parts are written by several threads at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: what `part` hands out is exclusive by its contract.
unsafe impl<T: Send> Send for Target<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Target<'_, T> {}

impl<'a, T> Target<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Elements `at..at + len`.
    ///
    /// # Safety
    /// No two parts that live at one time overlap.
    #[inline(always)]
    pub(super) unsafe fn part(self, at: usize, len: usize) -> &'a mut [T] {
        assert!(at + len <= self.len, "{at} + {len} of {}", self.len);
        // SAFETY: in bounds by the assertion, exclusive by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}
