use super::*;
use crate::autograd::{
    conv2d, group_norm,
    testing::{draw, equal_with_gradients, gradients_hold},
};

const GROUPS: (usize, f32) = (4, 1e-5);

/// Weights in the operation's order, the shift if there is one, the input's parts.
fn inputs(batch: usize, [c_in, c_out]: [usize; 2], shifted: bool, parts: &[usize]) -> Vec<Tensor> {
    let mut shapes = vec![vec![c_in], vec![c_in], vec![c_out], vec![c_out]];
    shapes.extend([vec![c_out, c_in, 3, 3], vec![c_out], vec![c_out, c_out, 3, 3], vec![c_out]]);
    if c_in != c_out {
        shapes.extend([vec![c_out, c_in, 1, 1], vec![c_out]]);
    }
    if shifted {
        shapes.push(vec![batch, c_out]);
    }
    shapes.extend(parts.iter().map(|channels| vec![batch, *channels, 7, 6]));
    let drawn = shapes.into_iter().enumerate().map(|(i, shape)| {
        let scale = if let [_, input, side, 1 | 3] = *shape {
            1.0 / (input as f64).sqrt() / side as f64
        } else {
            1.0
        };
        (draw(shape, i as u64 + 1) * scale).unwrap()
    });
    drawn.collect()
}

/// Both forms of the block, of the tensors that [`inputs`] gives.
fn block(t: &[Tensor], whole: bool, shifted: bool, parts: usize, precision: Precision) -> Result<Tensor> {
    let pair = |at: usize| [&t[at], &t[at + 1]];
    let shortcut = (t.len() - parts - usize::from(shifted) > 8).then(|| pair(8));
    let x: Vec<&Tensor> = t[t.len() - parts..].iter().collect();
    let shift = shifted.then(|| &t[t.len() - parts - 1]);
    if whole {
        let (norms, convs) = ([pair(0), pair(2)], [pair(4), pair(6)]);
        let tensors = ResnetTensors { norms, convs, shortcut, groups: GROUPS };
        return resnet_block(&x, shift, &tensors, precision);
    }
    let x = Tensor::cat(&x, 1)?;
    let normed = |x: &Tensor, at| group_norm(x, pair(at), GROUPS.0, GROUPS.1, true);
    let bias = match shift {
        Some(shift) => shift.broadcast_add(&t[5])?,
        None => t[5].clone(),
    };
    let hidden = conv2d(&normed(&x, 0)?, [&t[4], &bias], 1, [1, 1], precision)?;
    let residual = match shortcut {
        Some(conv) => conv2d(&x, conv, 1, [0, 0], precision)?,
        None => x,
    };
    residual + conv2d(&normed(&hidden, 2)?, pair(6), 1, [1, 1], precision)?
}

#[test]
fn equals_its_parts_and_its_gradients_hold() {
    for (batch, channels, shifted, parts) in
        [(2, [8, 8], false, vec![8]), (3, [16, 36], true, vec![16]), (60, [40, 32], true, vec![28, 12])]
    {
        let inputs = inputs(batch, channels, shifted, &parts);
        let inputs: Vec<&Tensor> = inputs.iter().collect();
        for precision in [Precision::F32, Precision::Bf16] {
            let form = |t: &[Tensor], whole| block(t, whole, shifted, parts.len(), precision);
            equal_with_gradients(&inputs, |t| form(t, true), |t| form(t, false), precision);
        }
        gradients_hold(&inputs, |t| block(t, true, shifted, parts.len(), Precision::F32));
    }
}
