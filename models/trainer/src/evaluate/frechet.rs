//! The Fréchet distance of two sets of pictures, as points in the classifier's features (Heusel et al. 2017, whose
//! network was another).

use nalgebra::{DMatrix, DVector};

/// The normal distribution that fits a set of points.
#[derive(Clone, Debug)]
pub struct Gaussian {
    mean: DVector<f64>,
    covariance: DMatrix<f64>,
}

impl Gaussian {
    /// Of points of one dimension; at least two.
    #[must_use]
    pub fn fit(points: &[&[f64]]) -> Self {
        let dimension = points.first().map_or(0, |point| point.len());
        let points = DMatrix::from_fn(points.len(), dimension, |row, column| points[row][column]);
        let mean = points.row_mean();
        let centred = DMatrix::from_fn(points.nrows(), dimension, |r, c| points[(r, c)] - mean[c]);
        let degrees = points.nrows().saturating_sub(1).max(1) as f64;
        Self { mean: mean.transpose(), covariance: centred.tr_mul(&centred) / degrees }
    }

    /// The squared distance: `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`.
    #[must_use]
    pub fn distance(&self, other: &Self) -> f64 {
        let root = square_root(&self.covariance);
        // Its eigenvalues are those of C1 C2, but it is symmetric.
        let product = &root * &other.covariance * &root;
        let product = (&product + product.transpose()) * 0.5;
        let common: f64 = product.symmetric_eigenvalues().iter().map(|v| v.max(0.0).sqrt()).sum();
        let apart = (&self.mean - &other.mean).norm_squared();
        apart + self.covariance.trace() + other.covariance.trace() - 2.0 * common
    }
}

/// Of a symmetric matrix without negative eigenvalues but for rounding.
fn square_root(matrix: &DMatrix<f64>) -> DMatrix<f64> {
    let eigen = matrix.clone().symmetric_eigen();
    let roots = eigen.eigenvalues.map(|v| v.max(0.0).sqrt());
    &eigen.eigenvectors * DMatrix::from_diagonal(&roots) * eigen.eigenvectors.transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random;

    fn gaussian(mean: &[f64], covariance: &[f64]) -> Gaussian {
        let n = mean.len();
        Gaussian {
            mean: DVector::from_row_slice(mean),
            covariance: DMatrix::from_row_slice(n, n, covariance),
        }
    }

    #[test]
    fn known_distributions_have_their_known_distance() {
        // In one dimension (m1 - m2)^2 + (s1 - s2)^2; so too along common axes, each on its own.
        let (a, b) = (gaussian(&[1.0], &[4.0]), gaussian(&[4.0], &[0.25]));
        assert!((a.distance(&b) - 11.25).abs() < 1e-12);
        let a = gaussian(&[0.0, 1.0], &[4.0, 0.0, 0.0, 1.0]);
        let b = gaussian(&[1.0, 1.0], &[1.0, 0.0, 0.0, 9.0]);
        assert!((a.distance(&b) - 6.0).abs() < 1e-12);
        // Axes that differ: C1 = diag(1, 4) and C2 = [[2, 1], [1, 2]] have tr((C1 C2)^(1/2)) =
        // sqrt(tr(C1 C2) + 2 sqrt(det(C1 C2))) = sqrt(10 + 2 sqrt(12)).
        let (a, b) = (gaussian(&[0.0; 2], &[1.0, 0.0, 0.0, 4.0]), gaussian(&[0.0; 2], &[2.0, 1.0, 1.0, 2.0]));
        let expected = 5.0 + 4.0 - 2.0 * (10.0 + 2.0 * 12.0_f64.sqrt()).sqrt();
        assert!((a.distance(&b) - expected).abs() < 1e-12);
        assert!((b.distance(&a) - expected).abs() < 1e-12);
        assert!(a.distance(&a).abs() < 1e-12);
    }

    #[test]
    fn a_fit_finds_the_distribution_that_points_came_from() {
        let points = |seed, shift: f64| -> Vec<Vec<f64>> {
            let values = random::normal(&mut random::stream(seed, "points", 0, 0), 40_000);
            let point = |v: &[f32; 2]| vec![shift + f64::from(v[0]), f64::from(v[0] + 0.5 * v[1])];
            values.as_chunks::<2>().0.iter().map(point).collect()
        };
        let fit = |points: Vec<Vec<f64>>| Gaussian::fit(&points.iter().map(|p| &**p).collect::<Vec<_>>());
        let (one, other) = (fit(points(1, 0.0)), fit(points(2, 2.0)));
        assert!((one.covariance[(0, 1)] - 1.0).abs() < 0.03 && (one.covariance[(1, 1)] - 1.25).abs() < 0.03);
        assert!((one.distance(&other) - 4.0).abs() < 0.1);
        // Fewer points than dimensions make a covariance without full rank.
        let few = fit(vec![vec![1.0, 2.0, 3.0], vec![2.0, 2.0, 1.0]]);
        assert!(few.distance(&few).abs() < 1e-6);
    }
}
