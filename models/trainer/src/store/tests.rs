use candle_core::Tensor;
use candle_nn::{Module, linear};

use super::*;

fn network(vb: &VarBuilder<'_>) -> candle_core::Result<candle_nn::Linear> {
    candle_nn::embedding(10, 4, vb.pp("token_embedding"))?;
    vb.get(4, "norm.weight")?;
    vb.get((8, 4, 3, 3), "conv.weight")?;
    vb.get((4, 8), "to_out.weight")?;
    vb.get_with_hints((), "logit_scale", Init::Const(2.5))?;
    linear(4, 3, vb.pp("head"))
}

fn store(seed: u64) -> (ParameterStore, candle_nn::Linear) {
    let initialisation = Initialisation { seed, is_zero: |name| name.ends_with("to_out.weight") };
    ParameterStore::build(initialisation, network).unwrap()
}

#[test]
fn weights_start_as_their_kind_does() {
    let (store, _) = store(3);
    let names: Vec<_> = store.parameters().iter().map(Parameter::name).collect();
    let expected = [
        "token_embedding.weight",
        "norm.weight",
        "conv.weight",
        "to_out.weight",
        "logit_scale",
        "head.weight",
        "head.bias",
    ];
    assert_eq!(names, expected);
    assert_eq!(store.numel(), 40 + 4 + 288 + 32 + 1 + 12 + 3);
    let frozen = store.frozen().unwrap();
    let largest = |name| frozen.get(name).unwrap().iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    assert!((0.02..0.1).contains(&largest("token_embedding.weight")));
    assert!((0.9..=1.0).contains(&(largest("conv.weight") * 6.0)));
    assert_eq!(frozen.get("norm.weight").unwrap(), [1.0; 4]);
    assert_eq!((largest("to_out.weight"), largest("head.bias"), largest("logit_scale")), (0.0, 0.0, 2.5));
}

#[test]
fn a_weight_is_its_seed_and_name_alone() {
    let (one, _) = store(3);
    let (same, _) = store(3);
    let (other, _) = store(4);
    let frozen = one.frozen().unwrap();
    assert_eq!(frozen, same.frozen().unwrap());
    assert_ne!(frozen.get("head.weight"), other.frozen().unwrap().get("head.weight"));
    let build = |vb: &VarBuilder<'static>| linear(4, 3, vb.pp("head"));
    let (alone, _) = ParameterStore::build(Initialisation::new(3), build).unwrap();
    assert_eq!(frozen.get("head.weight"), alone.frozen().unwrap().get("head.weight"));
}

#[test]
fn networks_see_changes_and_snapshots_do_not() {
    let (store, network) = store(3);
    let x = Tensor::ones((1, 4), DType::F32, &Device::Cpu).unwrap();
    let frozen = store.frozen().unwrap();
    store
        .set(&store.parameters().iter().map(|p| vec![1.0; p.var().elem_count()]).collect::<Vec<_>>())
        .unwrap();
    assert_eq!(network.forward(&x).unwrap().to_vec2::<f32>().unwrap(), [[5.0; 3]]);
    let again = linear(4, 3, store.var_builder(DType::BF16, &Device::Cpu).pp("head")).unwrap();
    let y = again.forward(&x.to_dtype(DType::BF16).unwrap()).unwrap();
    assert_eq!(y.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap(), [[5.0; 3]]);
    let weight = &store.parameters()[5];
    assert_eq!(weight.name(), "head.weight");
    assert!(y.backward().unwrap().get(weight.var()).is_some_and(|g| g.dtype() == DType::F32));
    let old = linear(4, 3, frozen.part("head.").var_builder(DType::F32, &Device::Cpu).unwrap()).unwrap();
    assert_ne!(old.forward(&x).unwrap().to_vec2::<f32>().unwrap(), [[5.0; 3]]);
}

#[test]
fn weights_are_read_back_if_all_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (trained, _) = store(3);
    let (fresh, _) = store(4);
    trained.frozen().unwrap().write(&path, StoredType::F32).unwrap();
    fresh.read(&path).unwrap();
    assert_eq!(fresh.frozen().unwrap(), trained.frozen().unwrap());

    trained.frozen().unwrap().write(&path, StoredType::F16).unwrap();
    let (fresh, _) = store(4);
    fresh.read(&path).unwrap();
    let (half, whole) = (fresh.frozen().unwrap(), trained.frozen().unwrap());
    let (half, whole) = (half.get("conv.weight").unwrap(), whole.get("conv.weight").unwrap());
    assert!(half.iter().zip(whole).all(|(a, b)| (a - b).abs() < 1e-4));
    assert_ne!(half, whole);

    let (smaller, _) =
        ParameterStore::build(Initialisation::new(0), |vb: &VarBuilder<'static>| linear(4, 3, vb.pp("head")))
            .unwrap();
    let before = smaller.frozen().unwrap();
    let error = smaller.read(&path).unwrap_err().to_string();
    assert!(error.ends_with("model.safetensors: tensor conv.weight is none of the network's"), "{error}");
    assert_eq!(smaller.frozen().unwrap(), before);
    assert!(trained.adopt(&before).is_err());
    smaller.adopt(&trained.frozen().unwrap()).unwrap();
    assert_eq!(smaller.frozen().unwrap().get("head.weight"), trained.frozen().unwrap().get("head.weight"));
    before.write(&path, StoredType::F32).unwrap();
    let error = trained.read(&path).unwrap_err().to_string();
    assert!(error.ends_with("tensor token_embedding.weight is missing"), "{error}");
}

#[test]
fn one_network_of_several_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (trained, _) = store(3);
    let trained = trained.frozen().unwrap();
    trained.part("head.").write(&path, StoredType::F32).unwrap();
    let (fresh, _) = store(4);
    let before = fresh.frozen().unwrap();
    fresh.read_part("head.", &path).unwrap();
    let after = fresh.frozen().unwrap();
    assert_eq!(after.part("head."), trained.part("head."));
    assert_eq!(after.get("conv.weight"), before.get("conv.weight"));
    let error = fresh.read_part("norm.", &path).unwrap_err().to_string();
    assert!(error.ends_with("model.safetensors: tensor bias is none of the network's"), "{error}");
    assert_eq!(fresh.frozen().unwrap(), after);
}

#[test]
fn a_name_has_one_shape() {
    let twice = |vb: &VarBuilder<'static>| {
        vb.get(4, "a")?;
        vb.get(5, "a")
    };
    assert!(ParameterStore::build(Initialisation::new(0), twice).is_err());
    let (store, _) = store(3);
    assert!(store.var_builder(DType::F32, &Device::Cpu).get(3, "norm.weight").is_err());
    assert!(store.var_builder(DType::F32, &Device::Cpu).get(3, "unheard_of").is_err());
}
