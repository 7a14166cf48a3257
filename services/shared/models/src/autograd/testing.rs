//! Checks of gradients against differences.

use candle_core::{Device, Result, Shape, Tensor, Var};

use super::Precision;
use crate::noise::TorchGenerator;

/// Normal values by seed.
pub(super) fn draw(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    Tensor::from_vec(TorchGenerator::new(seed).randn(shape.elem_count()), shape, &Device::Cpu).unwrap()
}

/// The greatest difference between two tensors of one shape.
pub(super) fn worst(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

fn sum_of(y: &Tensor, weights: &Tensor) -> f64 {
    let products = (y.flatten_all().unwrap() * weights).unwrap().to_vec1::<f32>().unwrap();
    products.into_iter().map(f64::from).sum()
}

/// Moves every input along a random direction, and compares how a random combination of the results of `f` changes
/// with what the gradients say, to 1 % of its size.
pub(super) fn gradients_hold(inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    const STEP: f64 = 2e-3;
    let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = f(&tensors).unwrap();
    let weights = draw(y.elem_count(), 77);
    let loss = (y.flatten_all().unwrap() * &weights).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    for (i, var) in vars.iter().enumerate() {
        let direction = draw(var.shape(), 100 + i as u64);
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("input {i} has no gradient"));
        assert_eq!(gradient.dims(), var.dims());
        let said = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let moved = |by: f64| {
            let mut inputs: Vec<Tensor> = inputs.iter().map(|t| (*t).clone()).collect();
            inputs[i] = (inputs[i].clone() + (&direction * by).unwrap()).unwrap();
            // Through the differentiable path too.
            let inputs: Vec<Tensor> =
                inputs.iter().map(|t| Var::from_tensor(t).unwrap().as_tensor().clone()).collect();
            sum_of(&f(&inputs).unwrap(), &weights)
        };
        let found = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let size = f64::from(norm(gradient)).max(1.0);
        assert!((f64::from(said) - found).abs() <= 0.01 * size, "input {i}: {said} said, {found} found");
    }
}

/// Compares results and gradients of one computation in two forms: relative to the root mean square, to rounding in f32,
/// to a few hundredths where factors are rounded to bf16.
pub(super) fn equal_with_gradients(
    inputs: &[&Tensor],
    whole: impl Fn(&[Tensor]) -> Result<Tensor>,
    parts: impl Fn(&[Tensor]) -> Result<Tensor>,
    precision: Precision,
) {
    let tolerance = if precision == Precision::F32 { 1e-4 } else { 0.06 };
    let run = |f: &dyn Fn(&[Tensor]) -> Result<Tensor>| {
        let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&tensors).unwrap();
        let weights = draw(y.shape(), 78);
        let store = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let mut all = vec![y.detach()];
        all.extend(vars.iter().map(|v| store.get(v).unwrap().clone()));
        all
    };
    for (i, (whole, parts)) in run(&whole).iter().zip(&run(&parts)).enumerate() {
        let size = parts.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let worst = worst(whole, parts) / size;
        assert!(worst <= tolerance, "result or gradient {i} in {precision:?}: {worst} apart");
    }
}
