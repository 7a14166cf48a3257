//! Operations of any number of tensors as nodes of candle's graph, which knows of three at most.
//!
//! candle adds every gradient to zeros made for it: an operation that does the work of ten spares twenty passes over
//! memory, and holds between them what a cache can hold.
//!
//! The node has one input, a number that depends on all tensors by a chain of nodes, each of which joins one tensor to
//! it. The node's backward pass leaves the tensors' gradients in the chain, and candle, on its way back along it, finds
//! one at each link.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, bail};

use super::slices;

/// What happens to the tensors.
pub(super) trait Operation: Send + Sync {
    /// For candle's messages.
    fn name(&self) -> &'static str;

    /// The result and its shape. `keep` says whether [`Operation::backward`] may follow, for which the operation may
    /// keep what it likes.
    fn forward(&self, inputs: &[&[f32]], keep: bool) -> Result<(Vec<f32>, Shape)>;

    /// From the gradient `dy` of the result, those of all inputs.
    fn backward(&self, inputs: &[&[f32]], dy: &[f32]) -> Result<Vec<Vec<f32>>>;
}

/// `operation` on `inputs`, f32 on the CPU.
pub(super) fn apply(operation: impl Operation + 'static, inputs: &[&Tensor]) -> Result<Tensor> {
    let gradients = Arc::new(Mutex::new(Vec::new()));
    let mut chain = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
    for (place, input) in inputs.iter().enumerate().filter(|(_, input)| input.track_op()) {
        let link = Link { place, gradients: Arc::clone(&gradients) };
        chain = input.apply_op2(&chain, link)?;
    }
    let inputs = inputs.iter().map(|t| Ok(t.contiguous()?.detach())).collect::<Result<_>>()?;
    let keep = chain.track_op();
    chain.apply_op1(Node { operation: Box::new(operation), inputs, keep, gradients })
}

/// One for each input, in order; taken by the links.
type Gradients = Arc<Mutex<Vec<Option<Tensor>>>>;

struct Node {
    operation: Box<dyn Operation>,
    /// Cut off from the graph, which leads to them through the chain.
    inputs: Vec<Tensor>,
    keep: bool,
    gradients: Gradients,
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        self.operation.name()
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        let (y, shape) = slices::with_list(&inputs, |inputs| self.operation.forward(inputs, self.keep))?;
        slices::result(y, shape)
    }

    fn bwd(&self, chain: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        let gradients = slices::with(grad, |dy| {
            slices::with_list(&inputs, |inputs| self.operation.backward(inputs, dy))
        })?;
        let tensors = gradients.into_iter().zip(&self.inputs).map(|(gradient, input)| {
            // An empty list stands for a gradient that nobody asked for.
            (gradient.len() == input.elem_count()).then(|| slices::tensor_like(gradient, input)).transpose()
        });
        *self.gradients.lock().unwrap_or_else(PoisonError::into_inner) = tensors.collect::<Result<_>>()?;
        Ok(Some(chain.zeros_like()?))
    }
}

struct Link {
    place: usize,
    gradients: Gradients,
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "link"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        slices::result(vec![0.0], 1)
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        match gradients.get_mut(self.place).and_then(Option::take) {
            Some(gradient) => Ok((Some(gradient), Some(grad.clone()))),
            None => bail!("the gradient of input {} is missing", self.place),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::testing::{draw, gradients_hold, worst};

    /// The product of all inputs, element by element.
    struct Product;

    impl Operation for Product {
        fn name(&self) -> &'static str {
            "product"
        }

        fn forward(&self, inputs: &[&[f32]], _: bool) -> Result<(Vec<f32>, Shape)> {
            let n = inputs[0].len();
            Ok(((0..n).map(|i| inputs.iter().map(|x| x[i]).product()).collect(), n.into()))
        }

        fn backward(&self, inputs: &[&[f32]], dy: &[f32]) -> Result<Vec<Vec<f32>>> {
            let others = |place: usize, i: usize| {
                let others = inputs.iter().enumerate().filter(|(other, _)| *other != place);
                dy[i] * others.map(|(_, x)| x[i]).product::<f32>()
            };
            Ok((0..inputs.len()).map(|place| (0..dy.len()).map(|i| others(place, i)).collect()).collect())
        }
    }

    #[test]
    fn gradients_reach_every_input() {
        let inputs = [1, 2, 3, 4, 5].map(|seed| draw(7, seed));
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        gradients_hold(&inputs, |t| apply(Product, &t.iter().collect::<Vec<_>>()));
        // One of them twice.
        gradients_hold(&inputs[..2], |t| apply(Product, &[&t[0], &t[1], &t[0]]));
        // A constant among them, and inputs that come from other operations.
        gradients_hold(&inputs[..2], |t| {
            apply(Product, &[&draw(7, 9), &(&t[0] * 2.0)?, &t[1]])? + apply(Product, &[&t[0], &t[1]])?
        });
        let plain = apply(Product, &inputs[..2]).unwrap();
        assert!(!plain.track_op());
        assert_eq!(worst(&plain, &(inputs[0] * inputs[1]).unwrap()), 0.0);
    }
}
