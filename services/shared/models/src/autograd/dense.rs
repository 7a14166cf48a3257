//! Linear maps inside larger operations: weights made ready once, gradients summed over many parts of a batch.

use super::{
    Precision,
    matmul::{Left, Right, Target, View, matmul, product},
    scratch::Scratch,
    vector,
};

/// `x W^T + b`, ready for both directions.
#[derive(Debug)]
pub(super) struct Dense<'a> {
    forward: Right<'a>,
    back: Right<'a>,
    bias: Option<&'a [f32]>,
    /// Numbers out of a row, and into it.
    sizes: [usize; 2],
    precision: Precision,
}

impl<'a> Dense<'a> {
    /// From a weight `[out, in]` and a bias `[out]`.
    pub(super) fn new(
        weight: &'a [f32],
        bias: Option<&'a [f32]>,
        sizes: [usize; 2],
        precision: Precision,
    ) -> Self {
        let [output, input] = sizes;
        let view = View::new(weight, input);
        let forward = Right::new(view.transposed(), [input, output], precision);
        Self { forward, back: Right::new(view, [output, input], precision), bias, sizes, precision }
    }

    /// Rows of results.
    pub(super) fn forward(&self, x: &[f32]) -> Scratch<f32> {
        let [output, input] = self.sizes;
        let rows = x.len() / input;
        let mut y = Scratch::stale(rows * output);
        let x = Left::new(View::new(x, input), [rows, input], self.precision);
        product(&x, &self.forward, &mut Target::new(&mut y, output));
        if let Some(bias) = self.bias {
            vector::add_to_rows(&mut y, bias);
        }
        y
    }

    /// Adds rows of results to `y`.
    pub(super) fn add(&self, x: &[f32], y: &mut [f32]) {
        let [output, input] = self.sizes;
        let rows = x.len() / input;
        let x = Left::new(View::new(x, input), [rows, input], self.precision);
        product(&x, &self.forward, &mut Target::sum(y, output));
        if let Some(bias) = self.bias {
            vector::add_to_rows(y, bias);
        }
    }

    /// The results' gradient to that of the input.
    pub(super) fn backward(&self, dy: &[f32]) -> Scratch<f32> {
        let [output, input] = self.sizes;
        let rows = dy.len() / output;
        let mut dx = Scratch::stale(rows * input);
        let dy = Left::new(View::new(dy, output), [rows, output], self.precision);
        product(&dy, &self.back, &mut Target::new(&mut dx, input));
        dx
    }

    /// Zeros for the gradients of weight and bias.
    pub(super) fn slopes(&self) -> Slopes {
        let [output, input] = self.sizes;
        let bias = self.bias.map_or_else(Vec::new, |bias| vec![0.0; bias.len()]);
        Slopes { weight: vec![0.0; output * input], bias, sizes: self.sizes, precision: self.precision }
    }
}

/// Sums of gradients of a weight and a bias.
#[derive(Debug)]
pub(super) struct Slopes {
    pub(super) weight: Vec<f32>,
    /// Empty where there is none.
    pub(super) bias: Vec<f32>,
    sizes: [usize; 2],
    precision: Precision,
}

impl Slopes {
    /// Adds what comes from rows `x` whose results have the gradient `dy`.
    pub(super) fn add(&mut self, x: &[f32], dy: &[f32]) {
        let [output, input] = self.sizes;
        let rows = x.len() / input;
        let (x, turned) = (View::new(x, input), View::new(dy, output).transposed());
        let mut target = Target::sum(&mut self.weight, input);
        matmul([output, input, rows], turned, x, &mut target, self.precision);
        if !self.bias.is_empty() {
            vector::add_rows(&mut self.bias, dy);
        }
    }
}
