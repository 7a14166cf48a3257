use candle_core::Device;

use super::*;
use crate::toy::{self, Toy};

fn gradients(threads: usize, samples: Vec<usize>) -> (f32, Vec<Vec<f32>>, f64) {
    let (store, toy) = Toy::new(5);
    let team = Team::new(threads).unwrap();
    let batch = Batch { step: 1, samples };
    let (loss, gradients) = step(&team, &store, &batch, |shard| toy.loss(shard)).unwrap();
    let values = (0..store.parameters().len()).map(|i| gradients.values(i).unwrap().unwrap()).collect();
    (loss, values, gradients.norm(&team).unwrap())
}

#[test]
fn two_shards_are_one_and_do_not_depend_on_timing() {
    for samples in [toy::batch(1), vec![3, 1, 4, 1, 5], vec![9]] {
        let (loss, values, norm) = gradients(1, samples.clone());
        let two = gradients(2, samples.clone());
        assert!((loss - two.0).abs() < 1e-6 && (norm - two.2).abs() < 1e-6);
        for (one, two) in values.iter().flatten().zip(two.1.iter().flatten()) {
            assert!((one - two).abs() < 1e-6, "{one} {two}");
        }
        for _ in 0..5 {
            assert_eq!(gradients(2, samples.clone()), two);
        }
        let square: f64 = values.iter().flatten().map(|v| f64::from(*v).powi(2)).sum();
        assert!((norm - square.sqrt()).abs() < 1e-6);
    }
}

#[test]
fn shards_share_a_batch_in_order() {
    let batch = Batch { step: 1, samples: vec![5, 6, 7, 8, 9] };
    let parts =
        |threads| batch.shards(threads).iter().map(|s| (s.first, s.samples.to_vec())).collect::<Vec<_>>();
    assert_eq!(parts(2), [(0, vec![5, 6]), (2, vec![7, 8, 9])]);
    assert_eq!(parts(9).len(), 5);
}

#[test]
fn a_parameter_that_one_shard_alone_uses_gets_its_share() {
    let (store, _) = Toy::new(5);
    let team = Team::new(2).unwrap();
    let weight = &store.parameters()[0];
    let bias = &store.parameters()[1];
    let loss = |shard: &Shard<'_>| {
        let used = if shard.index == 1 { weight } else { bias };
        Ok(used.var().sum_all()?)
    };
    let (_, gradients) = step(&team, &store, &Batch { step: 1, samples: vec![0, 1, 2, 3] }, loss).unwrap();
    for i in [0, 1] {
        assert!(gradients.values(i).unwrap().unwrap().iter().all(|v| *v == 0.5));
    }
    assert_eq!(gradients.values(2).unwrap(), None);
}

#[test]
fn a_loss_that_is_not_finite_names_its_samples() {
    let (store, toy) = Toy::new(5);
    let before = store.frozen().unwrap();
    let team = Team::new(2).unwrap();
    let poisoned = |shard: &Shard<'_>| {
        let loss = toy.loss(shard)?;
        Ok(if shard.samples.contains(&8) { (loss * f64::NAN)? } else { loss })
    };
    let batch = Batch { step: 17, samples: vec![5, 6, 7, 8] };
    let error = step(&team, &store, &batch, poisoned).unwrap_err();
    assert_eq!(error.to_string(), "step 17: the loss is not finite; samples [7, 8]");
    assert_eq!(store.frozen().unwrap(), before);
}

#[test]
fn a_deep_graph_fits_the_stack() {
    let (store, _) = Toy::new(5);
    let team = Team::new(1).unwrap();
    let loss = |_: &Shard<'_>| {
        let mut x = store.parameters()[0].var().sum_all()?;
        let one = Tensor::new(1.0_f32, &Device::Cpu)?;
        for _ in 0..30_000 {
            x = (x * &one)?;
        }
        Ok(x)
    };
    let (_, gradients) = step(&team, &store, &Batch { step: 1, samples: vec![0] }, loss).unwrap();
    assert!(gradients.values(0).unwrap().unwrap().iter().all(|v| *v == 1.0));
}
