//! Affine maps of rows.

use candle_core::{Result, Tensor, bail};

use super::{
    element::Element,
    finish::{Activation, Finish, Onto, To},
    operand::Operand,
    packed::{Order, Packed, Weight},
    product::{self, LANES, Space},
    target::Target,
    turned::{self, Rows},
};
use crate::autograd::slices;

/// A weight `[N, K]` with its bias, packed.
#[derive(Debug)]
pub(crate) struct Matrix {
    weight: Packed,
    /// In the order of the packed columns.
    bias: Option<Vec<f32>>,
}

impl Matrix {
    /// From `weight` `[N, K]` and `bias` `[N]`.
    pub(crate) fn new(weight: Weight<'_>, bias: Option<&Tensor>, element: Element) -> Result<Self> {
        Self::in_order(weight, bias, element, Order::Plain)
    }

    /// From those of values, then those of their gates.
    pub(crate) fn gated(weight: Weight<'_>, bias: Option<&Tensor>, element: Element) -> Result<Self> {
        Self::in_order(weight, bias, element, Order::Halves)
    }

    fn in_order(weight: Weight<'_>, bias: Option<&Tensor>, element: Element, order: Order) -> Result<Self> {
        let weight = Packed::new(weight, element, order)?;
        let bias = bias.map(|bias| packed_bias(bias, &weight)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// What its rows are made of.
    pub(crate) fn element(&self) -> Element {
        self.weight.element
    }

    /// Numbers of a row going in.
    pub(crate) fn inputs(&self) -> usize {
        self.weight.inputs
    }

    /// Numbers of a row coming out.
    pub(crate) fn outputs(&self) -> usize {
        match self.weight.order {
            Order::Plain => self.weight.columns,
            Order::Halves => self.weight.columns / 2,
        }
    }

    /// Words that its weight is kept in.
    #[cfg(test)]
    pub(crate) fn kept_words(&self) -> usize {
        self.weight.kept_words()
    }

    /// `[rows, K]` to `[rows, N]`.
    pub(crate) fn numbers(&self, rows: &Operand, out: &mut [f32]) {
        self.write(rows, out, Onto::Nothing);
    }

    /// `[rows, K]` to `[rows, N]`, added to what is there.
    pub(crate) fn add_to(&self, rows: &Operand, out: &mut [f32]) {
        self.write(rows, out, Onto::Itself);
    }

    /// `[rows, K]` to `[rows, N]`, added to `other`.
    pub(crate) fn onto(&self, rows: &Operand, other: &[f32], out: &mut [f32]) {
        assert_eq!(other.len(), out.len());
        self.write(rows, out, Onto::Other(other));
    }

    fn write(&self, rows: &Operand, out: &mut [f32], onto: Onto<'_>) {
        assert_eq!(out.len(), rows.rows * self.weight.columns);
        self.run(rows, To::Numbers { out: Target::new(out), onto });
    }

    /// `[rows, K]` to factors of the next product, through an activation.
    pub(crate) fn factors(&self, rows: &Operand, activation: Activation) -> Operand {
        let mut result = Operand::stale(self.weight.element, rows.rows, self.weight.columns);
        result.item = rows.item;
        let (element, stride) = (result.element, result.stride);
        self.run(rows, To::Factors { out: Target::new(&mut result.words), stride, element, activation });
        result
    }

    /// `[rows, K]` to factors of the next product: each value times its gate's GELU.
    pub(crate) fn values_by_gates(&self, rows: &Operand) -> Operand {
        let mut result = Operand::stale(self.weight.element, rows.rows, self.outputs());
        result.item = rows.item;
        let (element, stride) = (result.element, result.stride);
        self.run(rows, To::Gated { out: Target::new(&mut result.words), stride, element });
        result
    }

    fn run(&self, rows: &Operand, to: To<'_>) {
        assert_eq!((rows.element, rows.width), (self.weight.element, self.weight.inputs));
        let finish = Finish { to, bias: self.bias.as_deref(), shift: None };
        let &Operand { ref words, rows: count, stride, item, .. } = rows;
        if turned::suits(self.weight.element) {
            turned::multiply(Rows { words, count, stride, item }, &self.weight, &finish);
        } else {
            product::multiply(words, &Space::Rows { count, stride }, &[0], &self.weight, &finish);
        }
    }

    /// `x` `[.., K]` of any float type to `[.., N]` in f32.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut shape = x.dims().to_vec();
        if self.weight.order != Order::Plain || shape.pop() != Some(self.weight.inputs) {
            bail!("a map of {} numbers got {:?}", self.weight.inputs, x.shape());
        }
        shape.push(self.weight.columns);
        let x = x.to_dtype(candle_core::DType::F32)?;
        let rows = slices::with(&x, |x| Ok(Operand::new(self.weight.element, x, self.weight.inputs)))?;
        let mut out = vec![0.0; rows.rows * self.weight.columns];
        self.numbers(&rows, &mut out);
        Tensor::from_vec(out, shape, x.device())
    }
}

/// `[N]`, or what has as many elements, in the order of `weight`'s columns; zeros where they have no row.
pub(super) fn packed_bias(bias: &Tensor, weight: &Packed) -> Result<Vec<f32>> {
    let bias = bias.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if bias.len() != weight.columns {
        bail!("a bias of {} numbers for {} columns", bias.len(), weight.columns);
    }
    let parts: Vec<&[f32]> = match weight.order {
        Order::Plain => vec![&bias],
        Order::Halves => vec![&bias[..bias.len() / 2], &bias[bias.len() / 2..]],
    };
    let mut out = vec![0.0; weight.panels() * LANES];
    for (at, panel) in out.chunks_exact_mut(LANES).enumerate() {
        let part = parts[at % parts.len()];
        let first = at / parts.len() * LANES;
        let len = LANES.min(part.len() - first);
        panel[..len].copy_from_slice(&part[first..first + len]);
    }
    Ok(out)
}
