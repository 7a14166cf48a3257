use super::*;
use crate::autograd::{
    attend, gelu, layer_norm, linear,
    testing::{draw, equal_with_gradients, gradients_hold},
};

/// Input, context, and weights in the operation's order.
fn inputs([batch, rows, width]: [usize; 3], [context_rows, context_width]: [usize; 2]) -> Vec<Tensor> {
    let inner = 2 * width;
    let mut shapes = vec![vec![batch, rows, width], vec![batch, context_rows, context_width]];
    shapes.extend(vec![vec![width]; 6]);
    for source in [width, context_width] {
        shapes.extend([vec![width, width], vec![width, source], vec![width, source]]);
        shapes.extend([vec![width, width], vec![width]]);
    }
    shapes.extend([vec![2 * inner, width], vec![2 * inner], vec![width, inner], vec![width]]);
    let drawn = shapes.into_iter().enumerate().map(|(i, shape)| {
        let scale = if let [_, input] = *shape { 1.0 / (input as f64).sqrt() } else { 1.0 };
        (draw(shape, i as u64 + 1) * scale).unwrap()
    });
    drawn.collect()
}

fn whole(t: &[Tensor], heads: usize, precision: Precision) -> Result<Tensor> {
    let attention = |at: usize| [&t[at], &t[at + 1], &t[at + 2], &t[at + 3], &t[at + 4]];
    let tensors = TransformerTensors {
        norms: [[&t[2], &t[3]], [&t[4], &t[5]], [&t[6], &t[7]]],
        attentions: [attention(8), attention(13)],
        feed_forward: [[&t[18], &t[19]], [&t[20], &t[21]]],
    };
    transformer_block([&t[0], &t[1]], &tensors, heads, 1e-5, precision)
}

fn parts(t: &[Tensor], heads: usize, precision: Precision) -> Result<Tensor> {
    let map = |x: &Tensor, at: usize| linear(x, &t[at], None, precision);
    let biased = |x: &Tensor, at: usize| linear(x, &t[at], Some(&t[at + 1]), precision);
    let normed = |x: &Tensor, at: usize| layer_norm(x, [&t[at], &t[at + 1]], 1e-5);
    let attention = |x: &Tensor, context: &Tensor, at: usize| {
        let (q, k, v) = (map(x, at)?, map(context, at + 1)?, map(context, at + 2)?);
        biased(&attend([&q, &k, &v], heads, false, precision)?, at + 3)
    };
    let x = normed(&t[0], 2)?;
    let x = (&t[0] + attention(&x, &x, 8)?)?;
    let x = (&x + attention(&normed(&x, 4)?, &t[1], 13)?)?;
    let both = biased(&normed(&x, 6)?, 18)?;
    let inner = both.dim(2)? / 2;
    let gated = (both.narrow(2, 0, inner)? * gelu(&both.narrow(2, inner, inner)?)?)?;
    &x + biased(&gated, 20)?
}

#[test]
fn equals_its_parts_and_its_gradients_hold() {
    for (sizes, context, heads) in
        [([3, 6, 24], [5, 10], 3), ([2, 16, 32], [9, 48], 1), ([5, 100, 32], [77, 16], 2)]
    {
        let inputs = inputs(sizes, context);
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        for precision in [Precision::F32, Precision::Bf16] {
            equal_with_gradients(
                &inputs,
                |t| whole(t, heads, precision),
                |t| parts(t, heads, precision),
                precision,
            );
        }
        gradients_hold(&inputs, |t| whole(t, heads, Precision::F32));
    }
}

#[test]
fn no_gradient_is_kept_for_nobody() {
    let inputs = inputs([1, 4, 16], [3, 16]);
    assert!(!whole(&inputs, 2, Precision::F32).unwrap().track_op());
}
