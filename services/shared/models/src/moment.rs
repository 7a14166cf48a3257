//! When a device got somewhere, which on a GPU is later than when it was asked to.

use std::time::{Duration, Instant};

use candle_core::Device;

use crate::{ModelError, cuda};

/// When a device has done what it was asked for before.
#[derive(Debug)]
pub(crate) enum Moment {
    Host(Instant),
    Device(cuda::Mark),
}

impl Moment {
    /// That in which all is done that `device` has been asked for so far.
    pub(crate) fn of(device: &Device) -> Result<Self, ModelError> {
        Ok(match device.is_cuda() {
            true => Self::Device(cuda::Mark::of(device)?),
            false => Self::Host(Instant::now()),
        })
    }

    /// Waits for it.
    pub(crate) fn wait(&self) -> Result<(), ModelError> {
        match self {
            Self::Host(_) => Ok(()),
            Self::Device(mark) => Ok(mark.wait()?),
        }
    }

    /// How long after this one `later`, of the same device, is; waits for both.
    pub(crate) fn until(&self, later: &Self) -> Result<Duration, ModelError> {
        match (self, later) {
            (Self::Host(first), Self::Host(last)) => Ok(last.saturating_duration_since(*first)),
            (Self::Device(first), Self::Device(last)) => Ok(first.until(last)?),
            _ => Ok(Duration::ZERO), // of two devices
        }
    }
}
