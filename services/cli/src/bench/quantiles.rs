//! Percentiles by the nearest rank: the least value that so many per cent of all values do not exceed. It is always a
//! value that was measured.

use serde::Serialize;

/// Of the same unit as the values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Quantiles {
    /// Of how many values.
    pub(super) count: usize,
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Quantiles {
    /// Of `values` in any order; `None` where there are none.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<_> = values.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let max = *sorted.last()?;
        let at = |percent| sorted.get(rank(sorted.len(), percent)).copied().unwrap_or(max);
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(Self { count: sorted.len(), mean, p50: at(50), p95: at(95), p99: at(99), max })
    }
}

/// The 95th percentile of `values`, whose order changes; quicker than all.
pub(super) fn p95(values: &mut [f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let rank = rank(values.len(), 95);
    Some(*values.select_nth_unstable_by(rank, f64::total_cmp).1)
}

/// The place of a percentile among `count` sorted values, of which there is at least one.
fn rank(count: usize, percent: usize) -> usize {
    (count * percent).div_ceil(100).max(1) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred = Quantiles::of((1..=100).rev().map(f64::from)).unwrap();
        assert_eq!((hundred.p50, hundred.p95, hundred.p99, hundred.max), (50.0, 95.0, 99.0, 100.0));
        assert_eq!((hundred.count, hundred.mean), (100, 50.5));
        let few = Quantiles::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((few.p50, few.p95, few.p99, few.max), (2.0, 3.0, 3.0, 3.0));
        let one = Quantiles::of([7.0]).unwrap();
        assert_eq!((one.p50, one.p95, one.max), (7.0, 7.0, 7.0));
        assert_eq!(Quantiles::of([]), None);
    }

    #[test]
    fn one_percentile_is_the_same_as_all() {
        for count in [1, 2, 19, 20, 21, 100, 137] {
            let values: Vec<_> = (0..count).map(|i| f64::from(i * 37 % count)).collect();
            let all = Quantiles::of(values.clone()).unwrap();
            assert_eq!(p95(&mut values.clone()), Some(all.p95), "{count}");
        }
        assert_eq!(p95(&mut []), None);
    }
}
