//! Gradients of one batch, split over threads: each builds its own graph on the weights that all share. Sums are taken
//! in the shards' order, so that no bit depends on which was first done.

use std::ops::Range;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::{
    TrainError,
    store::{ParameterStore, slice},
    threads::Team,
};

/// Numbers summed at once: as many as stay in the first cache.
pub(crate) const CHUNK: usize = 2048;

/// What a step trains on.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The step, from 1.
    pub step: u64,
    /// Indices of its samples.
    pub samples: Vec<usize>,
}

/// One thread's part of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Shard<'a> {
    /// The step, from 1.
    pub step: u64,
    /// Which shard this is.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// Place of its first sample in the whole batch.
    pub first: usize,
    /// Indices of its samples.
    pub samples: &'a [usize],
}

impl Batch {
    /// As many shards as there are threads or samples, as equal as can be.
    fn shards(&self, threads: usize) -> Vec<Shard<'_>> {
        let count = threads.min(self.samples.len()).max(1);
        let start = |index: usize| index * self.samples.len() / count;
        let shard = |index| {
            let (first, samples) = (start(index), &self.samples[start(index)..start(index + 1)]);
            Shard { step: self.step, index, count, first, samples }
        };
        (0..count).map(shard).collect()
    }
}

/// The gradient of the mean loss of a batch, still as its shards left it.
#[derive(Debug)]
pub struct Gradients {
    batch: Batch,
    /// By parameter, then by shard, with the shard's share of the batch. Empty for a parameter that the loss does not
    /// depend on.
    tensors: Vec<Vec<(f32, Tensor)>>,
}

/// Loss of `batch` and its gradient with respect to the weights of `store`. `loss` gets a shard and returns the mean
/// over its samples, one number.
///
/// # Errors
/// Those of `loss`; a loss that is not finite.
pub fn step<F>(
    team: &Team,
    store: &ParameterStore,
    batch: &Batch,
    loss: F,
) -> Result<(f32, Gradients), TrainError>
where
    F: Fn(&Shard<'_>) -> Result<Tensor, TrainError> + Sync,
{
    let shards = batch.shards(team.size());
    let results = team.each(shards.len(), |i| backward(&shards[i], store, &loss));
    let results = results.into_iter().collect::<Result<Vec<_>, _>>()?;
    let failed = results.iter().zip(&shards).filter(|((value, _), _)| !value.is_finite());
    let failed: Vec<usize> = failed.flat_map(|(_, shard)| shard.samples).copied().collect();
    if !failed.is_empty() {
        return Err(TrainError::NotFinite { step: batch.step, what: "loss", batch: failed, bucket: None });
    }
    let share = |shard: &Shard<'_>| shard.samples.len() as f32 / batch.samples.len() as f32;
    let shares: Vec<f32> = shards.iter().map(share).collect();
    let mean = results.iter().zip(&shares).map(|((value, _), share)| value * share).sum();
    let mut tensors = vec![Vec::with_capacity(shards.len()); store.parameters().len()];
    for ((_, gradients), share) in results.into_iter().zip(shares) {
        for (of_parameter, gradient) in tensors.iter_mut().zip(gradients) {
            of_parameter.extend(gradient.map(|gradient| (share, gradient)));
        }
    }
    Ok((mean, Gradients { batch: batch.clone(), tensors }))
}

/// A shard's loss, and the gradient of each parameter. The graph lives and dies on the shard's own thread.
fn backward<F>(
    shard: &Shard<'_>,
    store: &ParameterStore,
    loss: F,
) -> Result<(f32, Vec<Option<Tensor>>), TrainError>
where
    F: Fn(&Shard<'_>) -> Result<Tensor, TrainError>,
{
    let loss = loss(shard)?;
    let value = loss.to_dtype(DType::F32)?.reshape(())?.to_scalar::<f32>()?;
    if !value.is_finite() {
        return Ok((value, Vec::new()));
    }
    let mut gradients = loss.backward()?;
    let gradient = |parameter: &crate::store::Parameter| {
        gradients.remove(parameter.var()).map(|g| g.to_dtype(DType::F32)?.contiguous()).transpose()
    };
    let gradients = store.parameters().iter().map(gradient).collect::<candle_core::Result<_>>()?;
    Ok((value, gradients))
}

impl Gradients {
    /// What they are the gradients of.
    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The gradient of the parameter in that place of the store; `None` where the loss does not depend on it.
    ///
    /// # Errors
    /// None in practice: they lie in memory as f32.
    pub fn values(&self, parameter: usize) -> candle_core::Result<Option<Vec<f32>>> {
        let count = self.tensors[parameter].first().map(|(_, tensor)| tensor.elem_count());
        let mut values = vec![0.0; count.unwrap_or(0)];
        self.chunks(parameter, &mut |range, chunk| values[range].copy_from_slice(chunk))?;
        Ok(count.map(|_| values))
    }

    /// Length of the whole gradient as one vector.
    pub(crate) fn norm(&self, team: &Team) -> candle_core::Result<f64> {
        let square = |parameter| {
            let mut sum = 0.0;
            self.chunks(parameter, &mut |_, chunk| sum += sum_of_squares(chunk))?;
            Ok(sum)
        };
        let squares = team.together(|| {
            (0..self.tensors.len()).into_par_iter().map(square).collect::<candle_core::Result<Vec<f64>>>()
        })?;
        Ok(squares.iter().sum::<f64>().sqrt())
    }

    /// Passes a parameter's gradient to `see` in chunks, each with its place. Nothing where there is none.
    pub(crate) fn chunks(
        &self,
        parameter: usize,
        see: &mut dyn FnMut(Range<usize>, &[f32]),
    ) -> candle_core::Result<()> {
        let shards = &self.tensors[parameter];
        let guards: Vec<_> =
            shards.iter().map(|(share, tensor)| (share, tensor.storage_and_layout())).collect();
        let shards = guards.iter().map(|(share, (storage, layout))| Ok((*share, slice(storage, layout)?)));
        let shards = shards.collect::<candle_core::Result<Vec<_>>>()?;
        let mut sum = [0.0; CHUNK];
        let count = shards.first().map_or(0, |(_, values)| values.len());
        for start in (0..count).step_by(CHUNK) {
            let range = start..count.min(start + CHUNK);
            let sum = &mut sum[..range.len()];
            sum.fill(0.0);
            for (share, values) in &shards {
                for (sum, value) in sum.iter_mut().zip(&values[range.clone()]) {
                    *sum += *share * value;
                }
            }
            see(range, sum);
        }
        Ok(())
    }
}

/// Several sums side by side, so that the processor need not wait for one.
fn sum_of_squares(values: &[f32]) -> f64 {
    let mut lanes = [0.0_f32; 32];
    let (blocks, rest) = values.as_chunks::<32>();
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane += value * value;
        }
    }
    lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>()
        + rest.iter().map(|v| f64::from(v * v)).sum::<f64>()
}

#[cfg(test)]
mod tests;
