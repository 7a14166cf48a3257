//! Buffers that a thread uses over and over. Fresh memory costs a pass of zeros, and the kernel's own zeros before it.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
    thread::LocalKey,
};

/// Buffers kept by a thread; more are given back to the allocator.
const KEPT: usize = 64;
/// Numbers of a buffer that is given back whatever is kept: a large picture should not be paid for ever after.
const LARGE: usize = 16 << 20;

type Pool<T> = LocalKey<RefCell<Vec<Vec<T>>>>;

/// Numbers of which a thread keeps buffers.
pub(crate) trait Pooled: Copy + Default + 'static {
    fn pool() -> &'static Pool<Self>;
}

impl Pooled for f32 {
    fn pool() -> &'static Pool<Self> {
        thread_local!(static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) });
        &FREE
    }
}

impl Pooled for u32 {
    fn pool() -> &'static Pool<Self> {
        thread_local!(static FREE: RefCell<Vec<Vec<u32>>> = const { RefCell::new(Vec::new()) });
        &FREE
    }
}

/// A buffer of its thread's, handed back when dropped.
#[derive(Debug)]
pub(crate) struct Scratch<T: Pooled> {
    /// At least `len` long.
    buffer: Vec<T>,
    len: usize,
    /// Whether the buffer goes back to the pool.
    pooled: bool,
}

impl<T: Pooled> Scratch<T> {
    /// `len` numbers left over from some earlier use.
    pub(crate) fn stale(len: usize) -> Self {
        let fits = |pool: &RefCell<Vec<Vec<T>>>| {
            let mut pool = pool.borrow_mut();
            let fitting = pool.iter().enumerate().filter(|(_, buffer)| buffer.len() >= len);
            let best = fitting.min_by_key(|(_, buffer)| buffer.len()).map(|(i, _)| i)?;
            Some(pool.swap_remove(best))
        };
        if len > LARGE {
            return Self::own(len);
        }
        let fresh = || vec![T::default(); len.next_power_of_two()];
        Self { buffer: T::pool().with(fits).unwrap_or_else(fresh), len, pooled: true }
    }

    /// `len` zeros in memory of their own, for what is held long.
    pub(crate) fn own(len: usize) -> Self {
        Self { buffer: vec![T::default(); len], len, pooled: false }
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut scratch = Self::stale(len);
        scratch.fill(T::default());
        scratch
    }
}

impl<T: Pooled> Drop for Scratch<T> {
    fn drop(&mut self) {
        if !self.pooled {
            return;
        }
        let buffer = std::mem::take(&mut self.buffer);
        // A thread that ends has no pool any more.
        let _ = T::pool().try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(buffer);
            }
        });
    }
}

impl<T: Pooled> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.buffer[..self.len]
    }
}

impl<T: Pooled> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back() {
        let mut first = Scratch::<u32>::zeros(100);
        first[99] = 7;
        let at = first.as_ptr();
        drop(first);
        let second = Scratch::<u32>::stale(120);
        assert_eq!((second.as_ptr(), second.len(), second[99]), (at, 120, 7));
        assert_ne!(Scratch::<u32>::zeros(100).as_ptr(), at);
        let own = Scratch::<u32>::own(110);
        assert_ne!(own.as_ptr(), at);
        let of_its_own = own.as_ptr();
        drop((own, second));
        let next = [(); 3].map(|()| Scratch::<u32>::stale(110));
        // Its memory may be used again, its buffer is not: those of the pool are rounded up.
        assert!(next.iter().all(|next| next.as_ptr() != of_its_own || next.buffer.len() == 128));
    }
}
