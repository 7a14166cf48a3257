//! `x W^T + b` with its gradients.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{
    Precision,
    matmul::{Target, View, matmul},
    slices, vector,
};

/// `x` `[.., in]` by `weight` `[out, in]`, plus `bias` `[out]`, to `[.., out]`.
pub(crate) fn linear(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    precision: Precision,
) -> Result<Tensor> {
    let (x, op) = (x.contiguous()?, LinearOp { precision });
    match bias {
        Some(bias) => x.apply_op3(weight, bias, op),
        None => x.apply_op2(weight, op),
    }
}

#[derive(Clone, Copy, Debug)]
struct LinearOp {
    precision: Precision,
}

impl LinearOp {
    fn forward(
        self,
        (x, x_shape): (&[f32], &Shape),
        (weight, weight_shape): (&[f32], &Shape),
        bias: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        let (output, input) = weight_shape.dims2()?;
        let mut dims = x_shape.dims().to_vec();
        if dims.last() != Some(&input) || bias.is_some_and(|b| b.len() != output) {
            bail!("linear: {x_shape:?} does not fit a weight of {weight_shape:?}");
        }
        if let Some(last) = dims.last_mut() {
            *last = output;
        }
        let rows = x.len() / input.max(1);
        let mut y = vec![0_f32; rows * output];
        let weight = View::new(weight, input).transposed();
        matmul(
            [rows, output, input],
            View::new(x, input),
            weight,
            &mut Target::new(&mut y, output),
            self.precision,
        );
        if let Some(bias) = bias {
            vector::add_to_rows(&mut y, bias);
        }
        slices::result(y, dims)
    }

    /// Gradients of input and weight.
    fn backward(
        self,
        x: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (output, input) = weight.dims2()?;
        let rows = x.elem_count() / input;
        slices::with(grad, |dy| {
            let dx = x.track_op().then(|| {
                slices::with(weight, |w| {
                    let mut dx = vec![0_f32; rows * input];
                    let (dy, w) = (View::new(dy, output), View::new(w, input));
                    matmul([rows, input, output], dy, w, &mut Target::new(&mut dx, input), self.precision);
                    slices::tensor_like(dx, x)
                })
            });
            let dw = weight.track_op().then(|| {
                slices::with(x, |x| {
                    let mut dw = vec![0_f32; output * input];
                    let (dy, x) = (View::new(dy, output).transposed(), View::new(x, input));
                    matmul([output, input, rows], dy, x, &mut Target::new(&mut dw, input), self.precision);
                    slices::tensor_like(dw, weight)
                })
            });
            Ok((dx.transpose()?, dw.transpose()?))
        })
    }
}

/// The sum over all rows.
fn column_sums(grad: &Tensor, bias: &Tensor) -> Result<Tensor> {
    slices::with(grad, |dy| {
        let mut sums = vec![0_f32; bias.elem_count()];
        vector::add_rows(&mut sums, dy);
        slices::tensor_like(sums, bias)
    })
}

impl CustomOp2 for LinearOp {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((slices::of(x, lx)?, lx.shape()), (slices::of(w, lw)?, lw.shape()), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, grad)
    }
}

impl CustomOp3 for LinearOp {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = slices::of(b, lb)?;
        self.forward((slices::of(x, lx)?, lx.shape()), (slices::of(w, lw)?, lw.shape()), Some(bias))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.backward(x, w, grad)?;
        Ok((dx, dw, Some(column_sums(grad, b)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::testing::{draw, gradients_hold, worst};

    #[test]
    fn equals_candle_and_its_gradients_hold() {
        let (x, w, b) = (draw((2, 5, 33), 1), draw((17, 33), 2), draw(17, 3));
        let expected = x.broadcast_matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.1)] {
            let got = linear(&x, &w, Some(&b), precision).unwrap();
            assert!(worst(&got, &expected) <= tolerance, "{precision:?}");
        }
        gradients_hold(&[&x, &w, &b], |t| linear(&t[0], &t[1], Some(&t[2]), Precision::F32));
        gradients_hold(&[&x, &w], |t| linear(&t[0], &t[1], None, Precision::F32));
    }
}
