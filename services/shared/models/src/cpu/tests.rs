use candle_core::{Device, Tensor};

use super::{packed::Weight, *};
use crate::autograd::slices;

const ELEMENTS: [(Element, f32); 2] = [(Element::F32, 1e-5), (Element::Bf16, 2e-2)];

/// The elements that there are here, with what results may be off by for each term's root.
fn elements() -> impl Iterator<Item = (Element, f32)> {
    ELEMENTS.into_iter().filter(|(element, _)| *element == Element::F32 || isa::multiplies_bf16())
}

fn draw(shape: &[usize]) -> Tensor {
    Tensor::rand(-1f32, 1.0, shape, &Device::Cpu).unwrap()
}

fn worst(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

fn root_mean_square(t: &Tensor) -> f32 {
    t.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt()
}

fn operand(element: Element, x: &Tensor) -> Operand {
    let width = *x.dims().last().unwrap();
    slices::with(&x.contiguous().unwrap(), |x| Ok(Operand::new(element, x, width))).unwrap()
}

/// What rows of factors hold.
fn read(operand: &Operand) -> Vec<f32> {
    let number = |row: usize, i: usize| {
        let words = &operand.words[row * operand.stride..];
        match operand.element {
            Element::F32 => f32::from_bits(words[i]),
            Element::Bf16 => f32::from_bits((words[i / 2] >> (16 * (i % 2))) << 16),
        }
    };
    let width = operand.width;
    (0..operand.rows)
        .flat_map(|row| (0..width).map(move |i| (row, i)))
        .map(|(row, i)| number(row, i))
        .collect()
}

#[test]
fn a_matrix_equals_the_textbook() {
    for (element, tolerance) in elements() {
        for [m, n, k] in [[1, 1, 1], [2, 16, 32], [33, 47, 65], [5, 100, 31], [77, 20, 130], [64, 96, 64]] {
            let (x, w, b) = (draw(&[m, k]), draw(&[n, k]), draw(&[n]));
            let expected = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
            let matrix = Matrix::new(Weight::Tensor(&w), Some(&b), element).unwrap();
            let tolerance = tolerance * (k as f32).sqrt();
            assert!(worst(&matrix.forward(&x).unwrap(), &expected) <= tolerance, "{element:?} {m} {n} {k}");
            let rows = operand(element, &x);
            let other = draw(&[m, n]);
            let mut out = vec![0.0; m * n];
            let other_numbers = other.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            matrix.onto(&rows, &other_numbers, &mut out);
            let onto = Tensor::from_vec(out.clone(), (m, n), &Device::Cpu).unwrap();
            assert!(worst(&onto, &(&expected + &other).unwrap()) <= tolerance);
            matrix.add_to(&rows, &mut out);
            let twice = Tensor::from_vec(out, (m, n), &Device::Cpu).unwrap();
            assert!(worst(&twice, &(expected.affine(2.0, 0.0).unwrap() + other).unwrap()) <= 2.0 * tolerance);
        }
    }
}

#[test]
fn factors_go_through_their_activation() {
    for (element, tolerance) in elements() {
        for [m, n, k] in [[3, 5, 7], [33, 48, 64], [20, 70, 32]] {
            let (x, w, b) = (draw(&[m, k]), draw(&[n, k]), draw(&[n]));
            let plain = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
            let matrix = Matrix::new(Weight::Tensor(&w), Some(&b), element).unwrap();
            for (activation, expected) in [
                (Activation::Nothing, plain.clone()),
                (Activation::Silu, plain.silu().unwrap()),
                (Activation::Gelu, plain.gelu_erf().unwrap()),
                (Activation::QuickGelu, {
                    let gate = candle_nn::ops::sigmoid(&(&plain * 1.702).unwrap()).unwrap();
                    (&plain * gate).unwrap()
                }),
            ] {
                let rows = matrix.factors(&operand(element, &x), activation);
                assert_eq!((rows.rows, rows.width), (m, n));
                let got = Tensor::from_vec(read(&rows), (m, n), &Device::Cpu).unwrap();
                // Rounded once more.
                let tolerance = tolerance * ((k as f32).sqrt() + 2.0);
                assert!(worst(&got, &expected) <= tolerance, "{element:?} {activation:?} {m} {n} {k}");
                let beyond = rows.words.chunks_exact(rows.stride).take(m).all(|row| match element {
                    Element::F32 => row.len() == n,
                    Element::Bf16 => row[n.div_ceil(2)..].iter().all(|word| *word == 0),
                });
                assert!(beyond, "what is beyond a row is zero");
            }
        }
    }
}

#[test]
fn values_go_by_their_gates() {
    for (element, tolerance) in elements() {
        for [m, n, k] in [[3, 5, 7], [33, 48, 64], [20, 70, 32]] {
            let (x, w, b) = (draw(&[m, k]), draw(&[2 * n, k]), draw(&[2 * n]));
            let both = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
            let (value, gate) = (both.narrow(1, 0, n).unwrap(), both.narrow(1, n, n).unwrap());
            let expected = (value * gate.gelu_erf().unwrap()).unwrap();
            let matrix = Matrix::gated(Weight::Tensor(&w), Some(&b), element).unwrap();
            let rows = matrix.values_by_gates(&operand(element, &x));
            let got = Tensor::from_vec(read(&rows), (m, n), &Device::Cpu).unwrap();
            let largest = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(worst(&got, &expected) <= tolerance * (largest + 8.0), "{element:?} {m} {n} {k}");
        }
    }
}

#[test]
fn a_convolution_equals_candles_own() {
    for (element, tolerance) in elements() {
        for (shape, c_out, kernel, stride, before, behind) in [
            ([2, 5, 43, 19], 7, 3, 1, 1, 1),
            ([1, 3, 8, 8], 4, 3, 2, 1, 1),
            ([2, 3, 9, 6], 4, 3, 2, 0, 1),
            ([1, 4, 1, 1], 2, 3, 1, 1, 1),
            ([1, 6, 7, 1], 5, 3, 1, 1, 1),
            ([2, 8, 12, 10], 3, 1, 1, 0, 0),
            ([1, 2, 11, 7], 3, 3, 2, 0, 0),
            ([2, 64, 16, 32], 96, 3, 1, 1, 1),
            ([3, 32, 13, 52], 33, 3, 1, 1, 1),
        ] {
            let x = draw(&shape);
            let (w, b) = (draw(&[c_out, shape[1], kernel, kernel]), draw(&[c_out]));
            let last = |x: &Tensor| x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
            let padded =
                x.pad_with_zeros(2, before, behind).unwrap().pad_with_zeros(3, before, behind).unwrap();
            let plain = padded.conv2d(&w, 0, stride, 1, 1).unwrap();
            let expected = last(&plain.broadcast_add(&b.reshape((1, c_out, 1, 1)).unwrap()).unwrap());
            let conv = Convolution::tiled(Weight::Tensor(&w), &b, stride, element, None).unwrap();
            let margins = Margins { before, behind };
            let laid = last(&x);
            let parts = [&laid];
            let source = Source { parts: &parts, norm: None, size: None, margins };
            let got = conv.forward(&source, None, None).unwrap();
            let tolerance = tolerance * ((shape[1] * kernel * kernel) as f32).sqrt();
            assert!(worst(&got, &expected) <= tolerance, "{element:?} {shape:?} to {c_out}");
            // In two parts, shifted, added to something.
            let split = shape[1] / 2;
            let halves =
                [laid.narrow(3, 0, split).unwrap(), laid.narrow(3, split, shape[1] - split).unwrap()];
            let halves = halves.each_ref().map(|t| t.contiguous().unwrap());
            let parts = halves.each_ref();
            let parts = if split == 0 { &parts[1..] } else { &parts[..] };
            let (shift, onto) = (draw(&[shape[0], c_out]), draw(expected.dims()));
            let got = conv.forward(&Source { parts, ..source }, Some(&shift), Some(&onto)).unwrap();
            let shift = shift.reshape((shape[0], 1, 1, c_out)).unwrap();
            let expected = (expected.broadcast_add(&shift).unwrap() + onto).unwrap();
            assert!(worst(&got, &expected) <= 1.1 * tolerance, "{element:?} {shape:?} to {c_out}, in parts");
        }
    }
}

#[test]
fn a_convolution_normalizes_and_enlarges_what_it_takes() {
    let x = draw(&[2, 12, 5, 6]);
    let (w, b) = (draw(&[8, 12, 3, 3]), draw(&[8]));
    let (weight, bias) = (draw(&[12]), draw(&[12]));
    let groups = x.reshape((2, 3, 4 * 30)).unwrap();
    let centred = groups.broadcast_sub(&groups.mean_keepdim(2).unwrap()).unwrap();
    let deviation = (centred.sqr().unwrap().mean_keepdim(2).unwrap() + 1e-5).unwrap().sqrt().unwrap();
    let normed = centred.broadcast_div(&deviation).unwrap().reshape((2, 12, 5, 6)).unwrap();
    let by = |t: &Tensor| t.reshape((1, 12, 1, 1)).unwrap();
    let normed = normed.broadcast_mul(&by(&weight)).unwrap().broadcast_add(&by(&bias)).unwrap();
    let large = normed.silu().unwrap().upsample_nearest2d(9, 12).unwrap();
    let plain =
        large.conv2d(&w, 1, 1, 1, 1).unwrap().broadcast_add(&b.reshape((1, 8, 1, 1)).unwrap()).unwrap();
    let expected = plain.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
    let laid = x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
    let norm = Normalization::new([&weight, &bias], 3, 1e-5).unwrap();
    let source = Source {
        parts: &[&laid],
        norm: Some((&norm, Then::Silu)),
        size: Some([9, 12]),
        margins: Margins { before: 1, behind: 1 },
    };
    for (element, tolerance) in elements() {
        let conv = Convolution::new(Weight::Tensor(&w), &b, 1, element).unwrap();
        let got = conv.forward(&source, None, None).unwrap();
        assert!(worst(&got, &expected) <= tolerance * 11.0, "{element:?}");
    }
}

#[test]
fn a_normalization_far_from_zero_keeps_its_digits() {
    let x = (draw(&[1, 64, 64, 8]) + 1000.0).unwrap();
    let (weight, bias) = (Tensor::ones(8, DType::F32, &Device::Cpu).unwrap(), draw(&[8]));
    let norm = Normalization::new([&weight, &bias], 2, 1e-5).unwrap();
    let rows = slices::with(&x, |x| norm.rows(x, [1, 64 * 64], Element::F32)).unwrap();
    let got = read(&rows);
    let x = x.to_dtype(DType::F64).unwrap().reshape((64 * 64, 2, 4)).unwrap();
    let mean = x.mean_keepdim(0).unwrap().mean_keepdim(2).unwrap();
    let centred = x.broadcast_sub(&mean).unwrap();
    let variance = centred.sqr().unwrap().mean_keepdim(0).unwrap().mean_keepdim(2).unwrap();
    let expected = centred.broadcast_div(&(variance + 1e-5).unwrap().sqrt().unwrap()).unwrap();
    let bias = bias.to_dtype(DType::F64).unwrap().reshape((1, 2, 4)).unwrap();
    let expected = expected.broadcast_add(&bias).unwrap().to_dtype(DType::F32).unwrap();
    let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // The numbers themselves have 24 bits, ten of which are before the point.
    assert!(worst < 2e-4, "{worst}");
}

#[test]
fn attention_equals_the_textbook() {
    for (element, tolerance) in elements() {
        for (items, rows, tokens, heads, width) in
            [(2, 11, 7, 3, 8), (1, 50, 50, 2, 32), (3, 77, 77, 2, 64), (1, 5, 200, 1, 5), (2, 33, 1, 4, 16)]
        {
            let size = heads * width;
            let (q, k, v) =
                (draw(&[items, rows, size]), draw(&[items, tokens, size]), draw(&[items, tokens, size]));
            let split = |x: &Tensor, n: usize| {
                x.reshape((items, n, heads, width)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap()
            };
            let scores = split(&q, rows).matmul(&split(&k, tokens).t().unwrap()).unwrap();
            let scale = (width as f64).powf(-0.5);
            for causal in [false, true] {
                if causal && rows != tokens {
                    continue;
                }
                let mut scores = (&scores * scale).unwrap();
                if causal {
                    let mask = |i: usize| if i % tokens > i / tokens { f32::NEG_INFINITY } else { 0.0 };
                    let mask: Vec<f32> = (0..rows * tokens).map(mask).collect();
                    let mask = Tensor::from_vec(mask, (rows, tokens), &Device::Cpu).unwrap();
                    scores = scores.broadcast_add(&mask).unwrap();
                }
                let weights = candle_nn::ops::softmax(&scores, candle_core::D::Minus1).unwrap();
                let expected = weights.matmul(&split(&v, tokens)).unwrap().transpose(1, 2).unwrap();
                let expected = expected.reshape((items * rows, size)).unwrap();
                let of = |x: &Tensor| operand(element, x);
                let keys = Keys::new([&of(&k), &of(&v)], items, [heads, width]);
                #[expect(clippy::cast_possible_truncation, reason = "a scale")]
                let queries = Queries { rows: &of(&q), scale: scale as f32, causal };
                let got = attend(queries, &[&keys]).unwrap();
                let got = Tensor::from_vec(read(&got), (items * rows, size), &Device::Cpu).unwrap();
                let worst = worst(&got, &expected);
                assert!(worst <= 2.0 * tolerance, "{element:?} {rows} to {tokens}, causal {causal}: {worst}");
            }
        }
    }
}

#[test]
fn queries_that_fit_no_keys_are_refused() {
    let rows = operand(Element::F32, &draw(&[6, 8]));
    let keys = Keys::new([&rows, &rows], 2, [2, 4]);
    let queries = |rows| Queries { rows, scale: 1.0, causal: false };
    assert!(attend(queries(&rows), &[&keys]).is_ok());
    let other = operand(Element::F32, &draw(&[5, 8]));
    assert!(attend(queries(&other), &[&keys]).is_err());
    let other = operand(Element::F32, &draw(&[6, 12]));
    assert!(attend(queries(&other), &[&keys]).is_err());
}

/// Longer than what is packed at once, with panels that are not full; as words and in two bytes.
#[test]
fn each_number_of_a_weight_is_where_products_look_for_it() {
    use kept::Kept;
    for (kept, dtype) in [(Kept::Words, DType::F32), (Kept::F16, DType::F16), (Kept::Bf16, DType::BF16)] {
        check_panels(kept, dtype);
    }
}

fn check_panels(kept: kept::Kept, dtype: DType) {
    use packed::{Order, Packed};
    use product::LANES;
    for (shape, order) in [
        (&[20, 2100][..], Order::Plain),
        (&[40, 2100], Order::Halves),
        (&[20, 2100, 1, 1], Order::Plain),
        (&[17, 300, 3, 3], Order::Plain),
        (&[5, 1, 2, 2], Order::Plain),
    ] {
        let weight = draw(shape).to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
        let (columns, inputs) = (shape[0], shape[1]);
        let taps: usize = shape[2..].iter().product();
        let numbers = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let packed = Packed::kept_as(kept, Weight::Tensor(&weight), Element::F32, order).unwrap();
        let all = taps * inputs * LANES;
        let mut desk = packed.desk(all);
        let panels: Vec<Vec<u32>> = (0..packed.panels())
            .map(|panel| packed.right((panel, 1), (0, all), &mut desk).words[..all].to_vec())
            .collect();
        assert_eq!(
            (packed.columns, packed.inputs, packed.taps, packed.depth),
            (columns, inputs, taps, inputs)
        );
        for (at, number) in numbers.iter().enumerate() {
            let (n, k, tap) = (at / taps / inputs, at / taps % inputs, at % taps);
            let (panel, lane) = match order {
                Order::Plain => (n / LANES, n % LANES),
                Order::Halves => {
                    let half = columns / 2;
                    (n % half / LANES * 2 + n / half, n % half % LANES)
                }
            };
            let word = panels[panel][(tap * inputs + k) * LANES + lane];
            assert_eq!(word, number.to_bits(), "{n}, {k}, {tap} of {shape:?} as {kept:?}");
        }
    }
}

/// Sums in several parts, over several taps, by panels with and without a neighbour: to the last bit what whole words
/// give.
#[test]
fn weights_kept_in_two_bytes_multiply_as_they_are() {
    let bits = |t: Tensor| {
        let numbers = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    for (columns, inputs, rows) in [(200, 3000, 70), (272, 1280, 1), (1000, 300, 33)] {
        let short = draw(&[columns, inputs]).to_dtype(DType::BF16).unwrap();
        let whole = short.to_dtype(DType::F32).unwrap();
        let (x, b) = (draw(&[rows, inputs]), draw(&[columns]));
        let of = |w| Matrix::new(Weight::Tensor(w), Some(&b), Element::F32).unwrap();
        let (kept, words) = (of(&short), of(&whole));
        assert_eq!(2 * kept.kept_words(), words.kept_words());
        let expected = bits(words.forward(&x).unwrap());
        assert_eq!(bits(kept.forward(&x).unwrap()), expected, "{columns} x {inputs}");
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(bits(one.install(|| kept.forward(&x)).unwrap()), expected);
    }
    // Values beside their gates.
    let short = draw(&[600, 500]).to_dtype(DType::BF16).unwrap();
    let (rows, b) = (operand(Element::F32, &draw(&[40, 500])), draw(&[600]));
    let [kept, words] = [short.clone(), short.to_dtype(DType::F32).unwrap()].map(|w| {
        let map = Matrix::gated(Weight::Tensor(&w), Some(&b), Element::F32).unwrap();
        (map.kept_words(), map.values_by_gates(&rows).words[..40 * 300].to_vec())
    });
    assert_eq!((2 * kept.0, kept.1), words);
    // Steps of two are not taken in tiles. Four taps at once, and one that is left.
    let short = draw(&[100, 300, 3, 3]).to_dtype(DType::BF16).unwrap();
    let (x, b) = (draw(&[2, 9, 8, 300]), draw(&[100]));
    let [kept, words] = [short.clone(), short.to_dtype(DType::F32).unwrap()].map(|w| {
        let kernel = Convolution::new(Weight::Tensor(&w), &b, 2, Element::F32).unwrap();
        let (parts, margins) = ([&x], Margins { before: 1, behind: 1 });
        let source = Source { parts: &parts, norm: None, size: None, margins };
        (kernel.kept_words(), bits(kernel.forward(&source, None, None).unwrap()))
    });
    assert_eq!((2 * kept.0, kept.1), words);
}

/// Every kernel gives the same sums as the loops, within rounding, for each number of rows.
#[test]
fn kernels_agree() {
    use product::{LANES, Left, Segment, block};
    let depth = 64;
    for (element, tolerance) in elements() {
        let (x, w) = (draw(&[32 + 32, depth]), draw(&[32, depth]));
        let rows = operand(element, &x);
        let packed = packed::Packed::new(Weight::Tensor(&w), element, packed::Order::Plain).unwrap();
        let all = packed.depth * LANES;
        let exact = x.matmul(&w.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
        for count in 1..=32 {
            for panels in [1, 2] {
                let mut out = vec![f32::NAN; 32 * 32];
                block(
                    element,
                    (Left { words: &rows.words, stride: rows.stride }, count),
                    (packed.right((0, panels), (0, all), &mut packed.desk(all)), panels),
                    (&[Segment { a: 0, b: 0 }], packed.depth),
                    (&mut out, 32),
                    false,
                );
                for (row, exact) in exact.iter().enumerate().take(count) {
                    for (column, exact) in exact.iter().enumerate().take(panels * LANES) {
                        let got = out[row * 32 + column];
                        assert!((got - exact).abs() <= 8.0 * tolerance, "{element:?} {count} {row} {column}");
                    }
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        if isa::best() == isa::Isa::Avx512 {
            check_vectors(element, &rows, &packed, &exact, 8.0 * tolerance);
        }
        let mut out = vec![0.0; 32 * 32];
        if element == Element::F32 {
            portable::block(
                (Left { words: &rows.words, stride: rows.stride }, 31),
                (packed.right((0, 2), (0, all), &mut packed.desk(all)), 2),
                (&[Segment { a: 0, b: 0 }], packed.depth),
                (&mut out, 32),
                false,
            );
            let near = |(i, got): (usize, &f32)| (got - exact[i / 32][i % 32]).abs() <= 8.0 * tolerance;
            assert!(out.iter().take(31 * 32).enumerate().all(near));
        }
    }
}

/// Where there is a matrix unit, vectors would not be asked otherwise.
#[cfg(target_arch = "x86_64")]
fn check_vectors(
    element: Element,
    rows: &Operand,
    packed: &packed::Packed,
    exact: &[Vec<f32>],
    tolerance: f32,
) {
    use product::{LANES, Left, Segment};
    let all = packed.depth * LANES;
    for count in [1, 3, 12, 29, 32] {
        let mut out = vec![f32::NAN; 32 * 32];
        avx512::block(
            element,
            (Left { words: &rows.words, stride: rows.stride }, count),
            (packed.right((0, 2), (0, all), &mut packed.desk(all)), 2),
            (&[Segment { a: 0, b: 0 }], packed.depth),
            (&mut out, 32),
            false,
        );
        let near = |(i, got): (usize, &f32)| (got - exact[i / 32][i % 32]).abs() <= tolerance;
        assert!(out.iter().take(count * 32).enumerate().all(near), "{element:?}: {count} rows");
    }
}

/// Tiles of both sizes give what the plain sum gives, where they are cut off at the far sides and where the channels fill
/// no vector.
#[test]
fn tiles_give_the_same_convolution() {
    use winograd::Tile;
    let chosen =
        [[320, 320], [1280, 1280], [32, 512], [512, 3]].map(|[c_in, c_out]| Tile::for_channels(c_in, c_out));
    assert_eq!(chosen, [Some(Tile::Four), Some(Tile::Two), None, None]);
    let bits = |t: &Tensor| {
        let numbers = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    for (shape, c_out, before, behind) in [
        ([2, 16, 8, 8], 16, 1, 1),
        ([1, 24, 13, 7], 40, 1, 1),
        ([3, 17, 5, 9], 33, 0, 0),
        ([1, 16, 3, 1], 16, 1, 2),
        ([2, 48, 33, 18], 20, 1, 1),
        ([1, 1300, 6, 6], 18, 1, 1),
        // More than are under way at once.
        ([2, 16, 200, 190], 16, 1, 1),
    ] {
        let x = draw(&shape);
        let (w, b) = (draw(&[c_out, shape[1], 3, 3]), draw(&[c_out]));
        let laid = x.permute((0, 2, 3, 1)).unwrap().contiguous().unwrap();
        let parts = [&laid];
        let source = Source { parts: &parts, norm: None, size: None, margins: Margins { before, behind } };
        let shift = draw(&[shape[0], c_out]);
        let plain = Convolution::tiled(Weight::Tensor(&w), &b, 1, Element::F32, None).unwrap();
        let onto = draw(plain.forward(&source, None, None).unwrap().dims());
        let expected = plain.forward(&source, Some(&shift), Some(&onto)).unwrap();
        // Twice what 25 runs gave at most: for the root of the channels a few units in the last place of f32; where factors are
        // rounded to bf16, which those of tiles of two alone are, two of its last place whatever the channels.
        let root = (shape[1] as f32).sqrt();
        let [two, four] = [1.3e-7 * root, 6.4e-7 * root];
        let ways = [
            (Element::F32, Tile::Two, two),
            (Element::F32, Tile::Four, four),
            (Element::Bf16, Tile::Two, 8.6e-3),
            (Element::Bf16, Tile::Four, four),
        ];
        let here = |element: Element| elements().any(|(here, _)| here == element) && turned::suits(element);
        for (element, tile, bound) in ways.into_iter().filter(|(element, ..)| here(*element)) {
            let tiled = Convolution::tiled(Weight::Tensor(&w), &b, 1, element, Some(tile)).unwrap();
            let got = tiled.forward(&source, Some(&shift), Some(&onto)).unwrap();
            let error = root_mean_square(&(&got - &expected).unwrap()) / root_mean_square(&expected);
            assert!(error <= bound, "{element:?} {tile:?} {shape:?} to {c_out}: {error} of {bound}");
            let threads = |count| rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
            for count in [1, 3] {
                let again = || tiled.forward(&source, Some(&shift), Some(&onto)).unwrap();
                assert_eq!(bits(&threads(count).install(again)), bits(&got), "{count} threads");
            }
            for (item, got) in got.chunk(shape[0], 0).unwrap().iter().enumerate() {
                let own = laid.narrow(0, item, 1).unwrap().contiguous().unwrap();
                let [shift, onto] =
                    [&shift, &onto].map(|t| t.narrow(0, item, 1).unwrap().contiguous().unwrap());
                let alone = Source { parts: &[&own], ..source };
                let alone = tiled.forward(&alone, Some(&shift), Some(&onto)).unwrap();
                assert_eq!(bits(&alone), bits(got), "an item depends on the others of its batch");
            }
        }
    }
}
