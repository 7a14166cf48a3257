//! What the device tells while the host goes on: numbers on their way, and when it got somewhere.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use candle_core::{
    Device, Result, Tensor,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{CudaContext, CudaEvent, PinnedHostSlice, sys},
    },
};

use super::{device, elements};

/// A number that the device will have computed once it has done what it was asked for before.
#[derive(Debug)]
pub(crate) struct Arriving(Option<Cell>);

/// Where it arrives, which is memory that the device can write to by itself, and what tells that it has.
#[derive(Debug)]
struct Cell {
    place: PinnedHostSlice<f32>,
    arrived: CudaEvent,
}

/// Those that nobody waits for: a new one may have all of a device wait.
static FREE: Mutex<Vec<Cell>> = Mutex::new(Vec::new());

impl Arriving {
    /// The value of `scalar`, of one element in f32.
    pub(crate) fn of(scalar: &Tensor) -> Result<Self> {
        let (storage, layout) = scalar.storage_and_layout();
        let stream = device(&storage)?.device.cuda_stream();
        // Whatever fails, the device may be about to write there: it is kept.
        let mut arriving = Self(Some(Cell::take(stream.context())?));
        if let Some(cell) = &mut arriving.0 {
            stream.memcpy_dtoh(&elements::<f32>(&storage, layout)?, &mut cell.place).w()?;
            // With one stream cudarc records none of its own.
            cell.arrived.record(&stream).w()?;
        }
        Ok(arriving)
    }

    /// The number, once it is there.
    pub(crate) fn wait(&self) -> Result<f32> {
        let Some(cell) = &self.0 else { return Ok(f32::NAN) };
        cell.arrived.synchronize().w()?;
        Ok(cell.place.as_slice().w()?.first().copied().unwrap_or(f32::NAN))
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let Some(cell) = self.0.take() else { return };
        // What is on its way to it arrives before what is asked for next: there is one stream.
        FREE.lock().unwrap_or_else(PoisonError::into_inner).push(cell);
    }
}

impl Cell {
    fn take(context: &Arc<CudaContext>) -> Result<Self> {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = free.iter().position(|cell| Arc::ptr_eq(cell.place.context(), context)) {
            return Ok(free.swap_remove(at));
        }
        drop(free);
        // SAFETY: a place is written before it is read: `wait` comes after `of` alone, and waits for what that had copied.
        let place = unsafe { context.alloc_pinned_with_flags(1, 0) }.w()?;
        Ok(Self { place, arrived: context.new_event(None).w()? })
    }
}

/// When the device gets to what it is asked for next.
#[derive(Debug)]
pub(crate) struct Mark(CudaEvent);

impl Mark {
    pub(crate) fn of(device: &Device) -> Result<Self> {
        let stream = device.as_cuda_device()?.cuda_stream();
        let timed = sys::CUevent_flags::CU_EVENT_DEFAULT;
        let event = stream.context().new_event(Some(timed)).w()?;
        event.record(&stream).w()?;
        Ok(Self(event))
    }

    pub(crate) fn wait(&self) -> Result<()> {
        self.0.synchronize().w()
    }

    /// The time on the device from this one to `later`; waits for both.
    pub(crate) fn until(&self, later: &Self) -> Result<Duration> {
        let ms = self.0.elapsed_ms(&later.0).w()?;
        Ok(Duration::from_secs_f32(ms.max(0.0) / 1e3))
    }
}
