//! How far results are from what is expected.

/// Normalised mean squared error, `Σ (found - expected)² / Σ expected²`, in f64. It is NaN if a result is, so that no bound
/// holds.
pub fn nmse<E: Copy + Into<f64>>(found: &[f32], expected: &[E]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let expected = || expected.iter().map(|&value| value.into());
    let error: f64 = found.iter().zip(expected()).map(|(&f, e): (_, f64)| (f64::from(f) - e).powi(2)).sum();
    error / expected().map(|e| e * e).sum::<f64>()
}
