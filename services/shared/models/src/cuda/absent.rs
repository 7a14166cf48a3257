//! What stands for [`cuda`](super::cuda) in a build without it: no device is its, so that nothing here is ever asked.

use std::time::Duration;

use candle_core::{Device, Result, Tensor, bail};

pub(crate) fn open(_: usize) -> Result<Device> {
    absent()
}

pub(crate) fn wanted(_: &[&Tensor]) -> bool {
    false
}

pub(crate) fn group_norm(
    _: &Tensor,
    _: Option<&Tensor>,
    _: [&Tensor; 2],
    _: (usize, f32),
    _: bool,
) -> Result<Tensor> {
    absent()
}

pub(crate) fn layer_norm(_: &Tensor, _: [&Tensor; 2], _: f32) -> Result<Tensor> {
    absent()
}

pub(crate) fn geglu(_: &Tensor) -> Result<Tensor> {
    absent()
}

pub(crate) fn linear(_: &Tensor, _: &Tensor, _: Option<&Tensor>, _: Option<&Tensor>) -> Result<Tensor> {
    absent()
}

pub(crate) fn conv2d(_: &Tensor, _: &Tensor, _: [Option<&Tensor>; 2], _: [usize; 2]) -> Result<Tensor> {
    absent()
}

pub(crate) fn upsampled(_: &Tensor, _: [usize; 2]) -> Result<Tensor> {
    absent()
}

pub(crate) fn attend(_: &Tensor, _: &[[Tensor; 2]], _: usize) -> Result<Option<Tensor>> {
    absent()
}

#[derive(Debug)]
pub(crate) enum Arriving {}

impl Arriving {
    pub(crate) fn of(_: &Tensor) -> Result<Self> {
        absent()
    }

    pub(crate) fn wait(&self) -> Result<f32> {
        match *self {}
    }
}

#[derive(Debug)]
pub(crate) enum Mark {}

impl Mark {
    pub(crate) fn of(_: &Device) -> Result<Self> {
        absent()
    }

    pub(crate) fn wait(&self) -> Result<()> {
        match *self {}
    }

    pub(crate) fn until(&self, _: &Self) -> Result<Duration> {
        match *self {}
    }
}

fn absent<T>() -> Result<T> {
    bail!("this build has no CUDA")
}
