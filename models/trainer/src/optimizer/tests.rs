use super::*;
use crate::{
    gradients::{self, Batch, Shard},
    store::Parameter,
    toy::{self, Toy},
};

/// The textbook's AdamW with clipping and average, a number at a time in double precision.
struct Reference {
    weights: Vec<f64>,
    moments: Vec<[f64; 2]>,
    ema: Vec<f64>,
}

impl Reference {
    fn step(&mut self, config: &AdamW, t: u64, gradient: &[f64], decays: &[bool]) {
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        let clip = (config.max_grad_norm / (norm + 1e-6)).min(1.0);
        let rate = config.schedule.learning_rate(t);
        let n = t as f64;
        let decay = config.ema_decay.min((1.0 + n) / (10.0 + n));
        let [beta1, beta2] = config.betas;
        for (i, g) in gradient.iter().enumerate() {
            let g = g * clip;
            let [m, v] = &mut self.moments[i];
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            let (m, v) = (*m / (1.0 - beta1.powf(n)), *v / (1.0 - beta2.powf(n)));
            if decays[i] {
                self.weights[i] *= 1.0 - rate * config.weight_decay;
            }
            self.weights[i] -= rate * m / (v.sqrt() + config.epsilon);
            self.ema[i] = decay * self.ema[i] + (1.0 - decay) * self.weights[i];
        }
    }
}

fn flat(store: &ParameterStore) -> Vec<f64> {
    let all = store.parameters().iter().flat_map(|p| p.values().unwrap());
    all.map(f64::from).collect()
}

#[test]
fn ten_steps_are_the_formula() {
    let (store, toy) = Toy::new(5);
    let team = Team::new(2).unwrap();
    let config = AdamW { max_grad_norm: 0.5, ..toy::adamw(12) };
    let mut optimizer = Optimizer::new(config.clone(), &store).unwrap();
    let weights = flat(&store);
    let mut reference =
        Reference { moments: vec![[0.0; 2]; weights.len()], ema: weights.clone(), weights: weights.clone() };
    let decays: Vec<bool> = store
        .parameters()
        .iter()
        .flat_map(|p| std::iter::repeat_n(p.var().rank() == 2, p.var().elem_count()))
        .collect();
    let mut clipped = 0;
    for step in 1..=10 {
        let batch = Batch { step, samples: toy::batch(step) };
        let (_, gradients) = gradients::step(&team, &store, &batch, |shard| toy.loss(shard)).unwrap();
        let gradient = (0..4).flat_map(|i| gradients.values(i).unwrap().unwrap()).map(f64::from);
        reference.step(&config, step, &gradient.collect::<Vec<_>>(), &decays);
        let applied = optimizer.step(&team, &store, &gradients).unwrap();
        clipped += u32::from(applied.grad_norm > 0.5);
        assert_eq!(applied.learning_rate, config.schedule.learning_rate(step));
    }
    let ema = optimizer.states().iter().flat_map(|state| &state.ema).map(|v| f64::from(*v));
    for (found, expected) in
        [flat(&store), ema.collect()].into_iter().zip([&reference.weights, &reference.ema])
    {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-6, "{found} {expected}");
        }
    }
    let moved = weights.iter().zip(&reference.weights).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(moved > 0.05 && clipped > 0, "{moved} {clipped}");
}

#[test]
fn a_parameter_without_gradient_stays_and_is_averaged() {
    let (store, _) = Toy::new(5);
    let team = Team::new(1).unwrap();
    let mut optimizer = Optimizer::new(toy::adamw(10), &store).unwrap();
    let (used, unused) = (&store.parameters()[0], &store.parameters()[2]);
    let before = unused.values().unwrap();
    unused
        .change(|weights| {
            weights.fill(2.0);
            Ok(())
        })
        .unwrap();
    let loss = |_: &Shard<'_>| Ok(used.var().sum_all()?);
    let (_, gradients) = gradients::step(&team, &store, &Batch { step: 1, samples: vec![0] }, loss).unwrap();
    optimizer.step(&team, &store, &gradients).unwrap();
    assert!(unused.values().unwrap().iter().all(|v| *v == 2.0));
    let ema = optimizer.ema(&store);
    for (average, before) in ema.get("out.weight").unwrap().iter().zip(before) {
        assert!((average - (2.0 + 2.0 / 11.0 * (before - 2.0))).abs() < 1e-6);
    }
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let (store, _) = Toy::new(5);
    let team = Team::new(1).unwrap();
    let mut optimizer = Optimizer::new(toy::adamw(10), &store).unwrap();
    // Biases start at zero, where the root has a value and an infinite slope.
    let bias: &Parameter = &store.parameters()[1];
    let infinite = |_: &Shard<'_>| Ok(bias.var().sqrt()?.sum_all()?);
    let batch = Batch { step: 3, samples: vec![4, 2] };
    let (_, gradients) = gradients::step(&team, &store, &batch, infinite).unwrap();
    let (weights, states) = (store.frozen().unwrap(), optimizer.states().to_vec());
    let error = optimizer.step(&team, &store, &gradients).unwrap_err().to_string();
    assert_eq!(error, "step 3: the gradient is not finite; samples [4, 2]");
    assert_eq!((store.frozen().unwrap(), optimizer.states()), (weights, states.as_slice()));
}
