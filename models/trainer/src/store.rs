//! The weights in training: f32 variables under their safetensors names.

mod initialisation;

use std::{
    cell::Cell,
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Shape, Storage, Tensor, Var, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
pub use initialisation::Initialisation;

use crate::{
    TrainError,
    tensor_file::{self, Entry, StoredType, TensorFile},
};

/// A named weight.
#[derive(Clone, Debug)]
pub struct Parameter {
    name: String,
    var: Var,
}

impl Parameter {
    /// Its name in the safetensors file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variable; networks built from the store share it.
    #[must_use]
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// The numbers, in C order.
    ///
    /// # Errors
    /// None in practice: they lie in memory as f32.
    pub fn values(&self) -> candle_core::Result<Vec<f32>> {
        self.var.flatten_all()?.to_vec1()
    }

    /// Lets `change` at the numbers in place, seen by every network that shares them.
    pub(crate) fn change(
        &self,
        change: impl FnOnce(&mut [f32]) -> candle_core::Result<()>,
    ) -> candle_core::Result<()> {
        self.var.inplace_op1(&Change(Cell::new(Some(change))))
    }
}

/// candle's in-place operations are called through a shared reference, ours once.
struct Change<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> candle_core::Result<()>> InplaceOp1 for Change<F> {
    fn name(&self) -> &'static str {
        "change a parameter"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("a parameter is f32 and contiguous")
        };
        self.0.take().map_or(Ok(()), |change| change(&mut values[start..end]))
    }
}

/// The numbers of a contiguous f32 tensor, where they lie.
pub(crate) fn slice<'a>(storage: &'a Storage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("a gradient is f32 and contiguous"),
    }
}

/// All weights of a stage, in the order in which its networks asked for them. Clones share them.
#[derive(Clone, Debug)]
pub struct ParameterStore {
    parameters: Arc<[Parameter]>,
    index: Arc<HashMap<String, usize>>,
}

impl ParameterStore {
    /// Makes weights for whatever `build` builds, and what it built. Networks so built compute in f32 and see every
    /// update; for another type see [`Self::var_builder`].
    ///
    /// # Errors
    /// Those of `build`.
    pub fn build<N, E>(
        initialisation: Initialisation,
        build: impl FnOnce(&VarBuilder<'static>) -> Result<N, E>,
    ) -> Result<(Self, N), E> {
        let made = Arc::new(Mutex::new(Made::default()));
        let backend = Maker { initialisation, made: Arc::clone(&made) };
        let network = build(&VarBuilder::from_backend(Box::new(backend), DType::F32, Device::Cpu))?;
        let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
        let Made { parameters, index } = std::mem::take(&mut *made);
        Ok((Self { parameters: parameters.into(), index: Arc::new(index) }, network))
    }

    /// The weights in order.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// How many numbers there are.
    #[must_use]
    pub fn numel(&self) -> usize {
        self.parameters.iter().map(|p| p.var.elem_count()).sum()
    }

    /// A builder for networks on these weights. In another type than f32 or on another device than the CPU, a network gets
    /// copies made at this moment, through which gradients flow back: build one anew for every step.
    #[must_use]
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }

    /// A copy of the weights, which training does not change.
    ///
    /// # Errors
    /// A failed copy.
    pub fn frozen(&self) -> Result<Snapshot, TrainError> {
        let values = self.parameters.iter().map(Parameter::values).collect::<candle_core::Result<_>>()?;
        Ok(self.snapshot(values))
    }

    /// `values`, one list for each parameter in order, under their names.
    pub(crate) fn snapshot(&self, values: Vec<Vec<f32>>) -> Snapshot {
        let tensors = self.parameters.iter().zip(values);
        Snapshot(tensors.map(|(p, values)| (p.name.clone(), p.var.dims().to_vec(), values)).collect())
    }

    /// Takes the weights from a safetensors file that has these tensors and no others, in f32, f16 or bf16. Nothing
    /// changes unless all fit.
    ///
    /// # Errors
    /// The file cannot be read, or a tensor is missing, misshapen or too many.
    pub fn read(&self, path: &Path) -> Result<(), TrainError> {
        self.read_part("", path)
    }

    /// The same for one network of several: those weights whose names begin with `prefix`, which the file's lack.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_part(&self, prefix: &str, path: &Path) -> Result<(), TrainError> {
        let file = TensorFile::open(path)?;
        let tensors = file.tensors()?;
        if let Some(name) = tensors.unknown(|name| self.index.contains_key(&format!("{prefix}{name}"))) {
            return Err(tensors.unfit(name, "is none of the network's"));
        }
        let own = |p| Some((p, Parameter::name(p).strip_prefix(prefix)?));
        let read = |(p, name): (&Parameter, &str)| tensors.values(name, p.var.dims());
        let values: Vec<_> = self.parameters.iter().filter_map(own).map(read).collect::<Result<_, _>>()?;
        let parameters = self.parameters.iter().filter_map(own).map(|(p, _)| p);
        Ok(set(parameters, &values)?)
    }

    /// Takes the weights of another store of the same networks.
    ///
    /// # Errors
    /// A tensor is missing or of another size.
    pub fn adopt(&self, snapshot: &Snapshot) -> Result<(), TrainError> {
        let fitting = |p: &Parameter| match snapshot.get(&p.name) {
            Some(values) if values.len() == p.var.elem_count() => Ok(values.to_vec()),
            _ => bail!("the snapshot has no tensor {} of {:?}", p.name, p.var.shape()),
        };
        let values = self.parameters.iter().map(fitting).collect::<candle_core::Result<Vec<_>>>()?;
        Ok(self.set(&values)?)
    }

    /// Takes `values`, one list of the right length for each parameter in order.
    pub(crate) fn set(&self, values: &[Vec<f32>]) -> candle_core::Result<()> {
        set(self.parameters.iter(), values)
    }

    fn find(
        &self,
        name: &str,
        shape: Option<&Shape>,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let Some(i) = self.index.get(name) else { bail!("tensor {name} is none of the store's") };
        let var = &self.parameters[*i].var;
        if shape.is_some_and(|shape| shape != var.shape()) {
            bail!("tensor {name} is {:?}, not {shape:?}", var.shape())
        }
        var.to_dtype(dtype)?.to_device(device)
    }
}

fn set<'a>(parameters: impl Iterator<Item = &'a Parameter>, values: &[Vec<f32>]) -> candle_core::Result<()> {
    for (parameter, values) in parameters.zip(values) {
        parameter.change(|weights| {
            weights.copy_from_slice(values);
            Ok(())
        })?;
    }
    Ok(())
}

impl SimpleBackend for ParameterStore {
    fn get(
        &self,
        s: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.find(name, Some(&s), dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.find(name, None, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }
}

#[derive(Debug, Default)]
struct Made {
    parameters: Vec<Parameter>,
    index: HashMap<String, usize>,
}

/// Makes a variable when it is first asked for.
struct Maker {
    initialisation: Initialisation,
    made: Arc<Mutex<Made>>,
}

impl SimpleBackend for Maker {
    fn get(&self, s: Shape, name: &str, init: Init, dtype: DType, _: &Device) -> candle_core::Result<Tensor> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = made.index.get(name) {
            let var = &made.parameters[*i].var;
            if var.shape() != &s {
                bail!("tensor {name} is asked for as {:?} and as {s:?}", var.shape())
            }
            return var.to_dtype(dtype);
        }
        let values = self.initialisation.values(name, &s, init);
        let var = Var::from_vec(values, s, &Device::Cpu)?;
        let tensor = var.to_dtype(dtype);
        let place = made.parameters.len();
        made.index.insert(name.to_owned(), place);
        made.parameters.push(Parameter { name: name.to_owned(), var });
        tensor
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        bail!("the shape of {name} is not known while its network is made")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

/// Weights that no longer change: names, shapes and numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot(Vec<(String, Vec<usize>, Vec<f32>)>);

impl Snapshot {
    /// A builder for networks to run with these weights, without gradients.
    ///
    /// # Errors
    /// A failed copy.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> Result<VarBuilder<'static>, TrainError> {
        let tensor = |(name, shape, values): &(String, Vec<usize>, Vec<f32>)| {
            Ok((name.clone(), Tensor::from_slice(values, shape.as_slice(), device)?))
        };
        let tensors = self.0.iter().map(tensor).collect::<candle_core::Result<_>>()?;
        Ok(VarBuilder::from_tensors(tensors, dtype, device))
    }

    /// The numbers of one tensor.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.0.iter().find(|(n, ..)| n == name).map(|(.., values)| values.as_slice())
    }

    /// Only the tensors whose names begin with `prefix`, and without it: one network of several.
    #[must_use]
    pub fn part(&self, prefix: &str) -> Self {
        let strip = |(name, shape, values): &(String, Vec<usize>, Vec<f32>)| {
            Some((name.strip_prefix(prefix)?.to_owned(), shape.clone(), values.clone()))
        };
        Self(self.0.iter().filter_map(strip).collect())
    }

    /// Adds all there is to `hash`.
    pub(crate) fn digest(&self, hash: &mut sha2::Sha256) {
        use sha2::Digest;
        for (name, shape, values) in &self.0 {
            hash.update(format!("{name} {shape:?}"));
            values.iter().for_each(|value| hash.update(value.to_le_bytes()));
        }
    }

    /// Writes a safetensors file; it has its name only when it is whole.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path, stored: StoredType) -> Result<(), TrainError> {
        let entries: Vec<_> =
            self.0.iter().map(|(name, shape, values)| Entry { name: name.clone(), shape, values }).collect();
        tensor_file::write(path, &[("format", "pt".to_owned())], &entries, stored)
    }
}

#[cfg(test)]
mod tests;
