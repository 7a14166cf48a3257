use super::*;
use crate::autograd::testing::{draw, gradients_hold, worst};

fn padded(x: &Tensor, [near, far]: [usize; 2]) -> Tensor {
    x.pad_with_zeros(2, near, far).unwrap().pad_with_zeros(3, near, far).unwrap()
}

#[test]
fn equals_candle_and_its_gradients_hold() {
    let cases = [
        ([2, 5, 9, 7], 6, 3, 1, [1, 1]),
        ([1, 3, 4, 4], 40, 3, 1, [1, 1]),
        ([3, 33, 8, 8], 34, 1, 1, [0, 0]),
        ([2, 4, 9, 6], 3, 3, 2, [1, 1]),
        ([2, 4, 9, 7], 3, 3, 2, [0, 0]),
        ([2, 4, 8, 6], 3, 3, 2, [0, 1]),
        ([40, 2, 16, 16], 3, 3, 1, [1, 1]),
    ];
    for (dims, c_out, side, stride, padding) in cases {
        let [batch, c_in, ..] = dims;
        let (x, w) = (draw(dims.as_slice(), 1), draw((c_out, c_in, side, side), 2));
        for b in [draw(c_out, 3), draw((batch, c_out), 3)] {
            let bias = b.reshape(((), c_out, 1, 1)).unwrap();
            let expected =
                padded(&x, padding).conv2d(&w, 0, stride, 1, 1).unwrap().broadcast_add(&bias).unwrap();
            let size = ((c_in * side * side) as f32).sqrt();
            for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.015)] {
                let got = conv2d(&x, [&w, &b], stride, padding, precision).unwrap();
                let worst = worst(&got, &expected) / size;
                assert!(worst <= tolerance, "{dims:?} {c_out} {side} {stride} {precision:?}: {worst}");
            }
            gradients_hold(&[&x, &w, &b], |t| conv2d(&t[0], [&t[1], &t[2]], stride, padding, Precision::F32));
        }
    }
}

#[test]
fn bf16_gradients_are_those_of_f32_rounded() {
    let (x, w, b) = (draw((3, 20, 9, 8), 1), draw((36, 20, 3, 3), 2), draw(36, 3));
    for stride in [1, 2] {
        let gradients = |precision| {
            let vars = [&x, &w, &b].map(|t| candle_core::Var::from_tensor(t).unwrap());
            let y = conv2d(&vars[0], [&vars[1], &vars[2]], stride, [1, 1], precision).unwrap();
            let weights = draw(y.shape(), 9);
            let store = (y * weights).unwrap().sum_all().unwrap().backward().unwrap();
            vars.map(|v| store.get(&v).unwrap().clone())
        };
        let (exact, rounded) = (gradients(Precision::F32), gradients(Precision::Bf16));
        for (exact, rounded) in exact.iter().zip(&rounded) {
            let size = exact.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            assert!(worst(exact, rounded) <= 0.03 * size, "{}", worst(exact, rounded) / size);
        }
    }
}
