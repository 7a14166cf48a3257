use std::fs;

use candle_nn::linear;
use safetensors::{serialize_to_file, tensor::TensorView};
use tempfile::TempDir;

use super::*;

fn write(path: &Path, tensors: &[(&str, &[usize])]) {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape)| (0..shape.iter().product()).flat_map(|i: usize| (i as f32).to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        (*name, TensorView::new(safetensors::Dtype::F32, shape.to_vec(), data).unwrap())
    });
    serialize_to_file(views, None, path).unwrap();
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn load(folder: &Path) -> Result<candle_nn::Linear, ModelError> {
    let weights = Weights::open(folder)?;
    Ok(linear(3, 2, weights.var_builder(DType::F32, &Device::Cpu).pp("proj"))?)
}

const GOOD: [(&str, &[usize]); 2] = [("proj.weight", &[2, 3]), ("proj.bias", &[2])];

#[test]
fn every_published_file_layout_is_found() {
    let index =
        |name: &str| format!("{{\"metadata\": {{}}, \"weight_map\": {{\"proj.weight\": \"{name}\"}}}}");
    for (file, index_file, listed) in [
        ("diffusion_pytorch_model.safetensors", None, ""),
        ("model.safetensors", None, ""),
        ("model.fp16.safetensors", None, ""),
        (
            "diffusion_pytorch_model-00001-of-00001.safetensors",
            Some("diffusion_pytorch_model.safetensors.index.json"),
            "",
        ),
        (
            "diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
            Some("diffusion_pytorch_model.safetensors.index.fp16.json"),
            "",
        ),
        (
            "diffusion_pytorch_model-00001-of-00001.fp16.safetensors",
            Some("diffusion_pytorch_model.safetensors.fp16.index.json"),
            "",
        ),
        (
            "diffusion_pytorch_model-00001-of-00001.fp16.safetensors",
            Some("diffusion_pytorch_model.safetensors.index.fp16.json"),
            "diffusion_pytorch_model.fp16-00001-of-00001.safetensors",
        ),
    ] {
        let folder = folder();
        write(&folder.path().join(file), &GOOD);
        if let Some(name) = index_file {
            let listed = if listed.is_empty() { file } else { listed };
            fs::write(folder.path().join(name), index(listed)).unwrap();
        }
        assert!(load(folder.path()).is_ok(), "{file}");
    }
}

#[test]
fn tensors_of_all_shards_are_found_and_full_precision_is_preferred() {
    let folder = folder();
    write(&folder.path().join("model-00001-of-00002.safetensors"), &GOOD[..1]);
    write(&folder.path().join("model-00002-of-00002.safetensors"), &GOOD[1..]);
    let map = "{\"weight_map\": {\"proj.weight\": \"model-00001-of-00002.safetensors\", \
               \"proj.bias\": \"model-00002-of-00002.safetensors\"}}";
    fs::write(folder.path().join("model.safetensors.index.json"), map).unwrap();
    write(&folder.path().join("model.fp16.safetensors"), &[("other", &[1])]);
    let layer = load(folder.path()).unwrap();
    assert_eq!(layer.weight().to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("model-00002-of-00002.safetensors: no such file; expected a shard that"),
        "{error}"
    );
    fs::write(folder.path().join("model.safetensors.index.json"), map.replace("model-00002", "../model"))
        .unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("is not a file name"), "{error}");
}

#[test]
fn faults_name_file_and_tensor_on_one_line() {
    let folder = folder();
    let path = folder.path().join("diffusion_pytorch_model.safetensors");
    let fault = || load(folder.path()).unwrap_err();
    let check = |error: &ModelError, parts: &[&str]| {
        let line = error.to_string();
        assert!(line.contains("diffusion_pytorch_model.safetensors: "), "{line}");
        assert!(parts.iter().all(|p| line.contains(p)) && !line.contains('\n'), "{line}");
    };
    check(&fault(), &["no such file"]);

    write(&path, &GOOD[..1]);
    check(&fault(), &["tensor proj.bias is missing"]);
    write(&path, &[GOOD[0], ("proj.bias", &[5])]);
    check(&fault(), &["tensor proj.bias has shape [5], its config.json asks for [2]"]);

    write(&path, &GOOD);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 5]).unwrap();
    check(
        &fault(),
        &["truncated", &format!("{} bytes", whole.len() - 5), &format!("asks for {}", whole.len())],
    );
    fs::write(&path, &whole[..40]).unwrap();
    check(&fault(), &["truncated: 40 bytes"]);
    for short in [0, 3] {
        fs::write(&path, &whole[..short]).unwrap();
        check(&fault(), &["truncated"]);
    }
    fs::write(&path, "<html>not found</html> and more").unwrap();
    check(&fault(), &["not a safetensors file"]);
    let mut odd = whole.clone();
    odd[12] = b'\n';
    fs::write(&path, &odd).unwrap();
    check(&fault(), &[]);
}

#[test]
fn old_names_of_the_autoencoders_attention_are_read() {
    let folder = folder();
    let attention = "decoder.mid_block.attentions.0";
    let names = ["query", "key", "value", "proj_attn"].map(|n| format!("{attention}.{n}.weight"));
    write(
        &folder.path().join("diffusion_pytorch_model.safetensors"),
        &[(&names[0], &[2, 3]), (&names[1], &[2, 3, 1, 1]), (&names[2], &[2, 3]), (&names[3], &[2, 3])],
    );
    let weights = Weights::open(folder.path()).unwrap();
    let vb = weights.var_builder(DType::F16, &Device::Cpu).pp(attention);
    for name in ["to_q", "to_k", "to_v", "to_out.0"] {
        let tensor = vb.get((2, 3), &format!("{name}.weight")).unwrap();
        assert_eq!((tensor.dims(), tensor.dtype()), (&[2, 3][..], DType::F16));
    }
    assert_eq!(current_name("text_model.key.weight"), "text_model.key.weight");
}

#[test]
fn the_same_bytes_are_known_as_such() {
    let (a, b) = (folder(), folder());
    for f in [&a, &b] {
        write(&f.path().join("model.safetensors"), &GOOD);
    }
    let (one, two) = (Weights::open(a.path()).unwrap(), Weights::open(b.path()).unwrap());
    assert!(one.same_bytes(&two) && one.same_bytes(&one));
    write(&b.path().join("model.safetensors"), &[GOOD[0], ("proj.bias", &[3])]);
    assert!(!one.same_bytes(&Weights::open(b.path()).unwrap()));
}

/// Layers whose weights are packed out of their file are those of a tensor with the same numbers, to the last bit.
#[test]
fn a_weight_packed_out_of_its_file_is_the_tensors() {
    use crate::{Packing, conv::Conv2d, linear};
    use candle_core::Module;
    const IN: usize = 300;
    const OUT: usize = 52;
    /// Of as many inputs it is large enough to be kept in two bytes.
    const MANY: usize = 900;
    let shapes: [(&str, &[usize]); 9] = [
        ("large.weight", &[MANY, IN]),
        ("map.weight", &[OUT, IN]),
        ("map.bias", &[OUT]),
        ("pixels.weight", &[OUT, IN, 1, 1]),
        ("pixels.bias", &[OUT]),
        ("conv.weight", &[OUT, IN, 3, 3]),
        ("conv.bias", &[OUT]),
        ("small.weight", &[3, IN, 3, 3]),
        ("small.bias", &[3]),
    ];
    let mut state = 1_u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as f32 / u32::MAX as f32 - 0.5
    };
    for from in
        [safetensors::Dtype::F16, safetensors::Dtype::BF16, safetensors::Dtype::F32, safetensors::Dtype::F64]
    {
        let data = shapes.map(|(_, shape)| {
            let values = (0..shape.iter().product()).map(|_| draw());
            let bytes = values.flat_map(|value| match from {
                safetensors::Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
                safetensors::Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
                safetensors::Dtype::F32 => value.to_le_bytes().to_vec(),
                _ => f64::from(value).to_le_bytes().to_vec(),
            });
            bytes.collect::<Vec<u8>>()
        });
        let views = shapes
            .iter()
            .zip(&data)
            .map(|((name, shape), data)| (*name, TensorView::new(from, shape.to_vec(), data).unwrap()));
        let folder = folder();
        serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
        let weights = Weights::open(folder.path()).unwrap();
        for to in [DType::F32, DType::BF16] {
            let _packing = Packing::new();
            let stored = weights.var_builder(to, &Device::Cpu);
            let tensors = shapes.iter().map(|(name, shape)| {
                let tensor = weights.load(name, Some(&Shape::from(*shape)), to, &Device::Cpu).unwrap();
                ((*name).to_owned(), tensor)
            });
            let tensors = VarBuilder::from_tensors(tensors.collect(), to, &Device::Cpu);
            let rows = Tensor::arange(0.0, IN as f32 * 5.0, &Device::Cpu).unwrap().reshape((5, IN)).unwrap();
            let pictures = Tensor::arange(0.0, IN as f32 * 42.0, &Device::Cpu).unwrap();
            let pictures = pictures.reshape((1, 6, 7, IN)).unwrap();
            let results = |vb: &VarBuilder<'_>| {
                let bits = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let conv = |name: &str, outputs| {
                    let conv = Conv2d::load(&vb.pp(name), [IN, outputs], 3).unwrap();
                    assert!(conv.packed().is_some());
                    bits(conv.forward(&pictures).unwrap())
                };
                let map = linear::linear(IN, OUT, &vb.pp("map")).unwrap();
                let bare = linear::linear_no_bias(IN, OUT, &vb.pp("map")).unwrap();
                let pixels = linear::linear_of_pixels(IN, OUT, &vb.pp("pixels")).unwrap();
                let large = linear::linear_no_bias(IN, MANY, &vb.pp("large")).unwrap();
                let kept = large.packed().unwrap().kept_words();
                let maps = [map, bare, pixels, large].map(|map| bits(map.forward(&rows).unwrap()));
                (kept, (maps, conv("conv", OUT), conv("small", 3)))
            };
            assert!(Stored::of(&stored, &[OUT, IN], "map.weight").unwrap().is_ok());
            assert!(Stored::of(&tensors, &[OUT, IN], "map.weight").unwrap().is_err());
            let [(kept, got), (_, expected)] = [&stored, &tensors].map(results);
            assert!(got == expected, "{from:?} as {to:?}");
            let short =
                to == DType::BF16 || matches!(from, safetensors::Dtype::F16 | safetensors::Dtype::BF16);
            assert_eq!(kept < MANY * IN * 3 / 4, short, "{kept} words for {from:?} as {to:?}");
        }
    }
}

/// In whatever part of whatever kind of layer, in its file's spelling.
#[test]
fn a_number_that_is_not_finite_is_named() {
    use crate::{Packing, conv::Conv2d, linear};
    use half::{bf16, f16};
    const WIDTH: usize = 64;
    let shapes: [(&str, &[usize]); 6] = [
        ("mid.attentions.0.query.weight", &[WIDTH + 5, WIDTH]),
        ("mid.attentions.0.query.bias", &[WIDTH + 5]),
        ("gated.weight", &[WIDTH + 16, WIDTH]),
        ("gated.bias", &[WIDTH + 16]),
        ("conv.weight", &[WIDTH, WIDTH, 3, 3]),
        ("conv.bias", &[WIDTH]),
    ];
    let bytes_of = |from, value: f32| match from {
        safetensors::Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    let check = |(bad, at, value): (&str, usize, f32), from: safetensors::Dtype| {
        let data = shapes.map(|(name, shape)| {
            let number = |i| if (name, i) == (bad, at) { value } else { 0.5 };
            let numbers = (0..shape.iter().product()).map(number);
            numbers.flat_map(|value| bytes_of(from, value)).collect::<Vec<_>>()
        });
        let views = shapes
            .iter()
            .zip(&data)
            .map(|((name, shape), data)| (*name, TensorView::new(from, shape.to_vec(), data).unwrap()));
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        serialize_to_file(views, None, &path).unwrap();
        let weights = Weights::open(folder.path()).unwrap();
        let stored = if from == safetensors::Dtype::F16 { f16::from_f32(value).to_f32() } else { value };
        for (packed, dtype, finite) in [
            (false, DType::F32, stored.is_finite()),
            (false, DType::F16, f16::from_f32(stored).is_finite()),
            (true, DType::F32, stored.is_finite()),
            (true, DType::BF16, bf16::from_f32(stored).is_finite()),
        ] {
            let _packing = packed.then(Packing::new);
            let vb = weights.var_builder(dtype, &Device::Cpu);
            let layers = [
                linear::linear(WIDTH, WIDTH + 5, &vb.pp("mid.attentions.0.to_q")).err(),
                linear::linear_gated(WIDTH, WIDTH + 16, &vb.pp("gated")).err(),
                Conv2d::load(&vb.pp("conv"), [WIDTH; 2], 3).err(),
            ];
            let wrong: Vec<_> =
                layers.into_iter().flatten().map(|error| ModelError::from(error).to_string()).collect();
            let (path, name) = (path.display(), dtype.as_str());
            let fault = format!("{path}: tensor {bad} holds a number that is not finite in {name}");
            let expected: &[String] = if finite { &[] } else { &[fault] };
            assert_eq!(wrong, expected, "{value} at {at} in {from:?}, packed: {packed}");
        }
    };
    for (bad, shape) in shapes {
        let count = shape.iter().product::<usize>();
        let values = [(0, f32::NAN), (count / 2, f32::NEG_INFINITY), (count / 3, f32::MAX), (count - 1, 1e5)];
        for (at, value) in values {
            for from in [safetensors::Dtype::F32, safetensors::Dtype::F16] {
                check((bad, at, value), from);
            }
        }
    }
}

#[test]
fn what_is_wrong_with_a_weight_that_is_to_be_packed_is_told_and_not_kept() {
    let folder = folder();
    write(&folder.path().join("model.safetensors"), &GOOD);
    let weights = Weights::open(folder.path()).unwrap();
    let vb = weights.var_builder(DType::F32, &Device::Cpu);
    let fault = |shape: &[usize], name| ModelError::from(Stored::of(&vb, shape, name).unwrap_err());
    assert!(matches!(fault(&[2, 3], "none"), ModelError::MissingTensor { tensor, .. } if tensor == "none"));
    assert!(matches!(fault(&[3, 2], "proj.weight"), ModelError::MisshapenTensor { .. }));
    // The next that asks gets a tensor.
    assert_eq!(vb.get((2, 3), "proj.weight").unwrap().dims(), [2, 3]);
}
