//! The grouped jackknife with groups of unequal size.
//!
//! Busing, Meijer & van der Leeden (1999), "Delete-m jackknife for unequal m". Buckets are hashed, hence independent
//! of the data and the same for any partition of the log.

/// What the jackknife says about a statistic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jackknife {
    /// Bias-corrected value.
    pub value: f64,
    /// Variance of the statistic.
    pub variance: f64,
    /// Number of non-empty groups.
    pub groups: usize,
}

/// Jackknife of a statistic from its value on everything and on everything but one group, as
/// `(units in the group, value without it)`.
pub fn jackknife(whole: f64, without: &[(u64, f64)]) -> Option<Jackknife> {
    let joint = jackknife_pairs(&[whole], &without.iter().map(|&(m, v)| (m, vec![v])).collect::<Vec<_>>())?;
    Some(Jackknife { value: joint.values[0], variance: joint.covariance[0], groups: joint.groups })
}

/// Several statistics at once, with their covariance.
#[derive(Clone, Debug, PartialEq)]
pub struct JointJackknife {
    /// Bias-corrected values.
    pub values: Vec<f64>,
    /// Covariance matrix, row by row.
    pub covariance: Vec<f64>,
    /// Number of non-empty groups.
    pub groups: usize,
}

/// Jackknife of several statistics; `None` with fewer than two groups or where one leave-out value does not exist.
pub fn jackknife_pairs(whole: &[f64], without: &[(u64, Vec<f64>)]) -> Option<JointJackknife> {
    let used: Vec<_> = without.iter().filter(|(m, _)| *m > 0).collect();
    let (g, d) = (used.len(), whole.len());
    let n: u64 = used.iter().map(|(m, _)| m).sum();
    if g < 2 || used.iter().any(|(_, v)| v.iter().any(|x| !x.is_finite())) {
        return None;
    }
    let n = n as f64;
    let values: Vec<f64> = (0..d)
        .map(|i| g as f64 * whole[i] - used.iter().map(|(m, v)| (1.0 - *m as f64 / n) * v[i]).sum::<f64>())
        .collect();
    let mut covariance = vec![0.0; d * d];
    for (m, v) in used {
        let h = n / *m as f64;
        let pseudo = |i: usize| h * whole[i] - (h - 1.0) * v[i] - values[i];
        for i in 0..d {
            for j in 0..d {
                covariance[i * d + j] += pseudo(i) * pseudo(j) / ((h - 1.0) * g as f64);
            }
        }
    }
    Some(JointJackknife { values, covariance, groups: g })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_mean_is_the_textbook_variance() {
        let x = [1.0, 4.0, 2.0, 9.0, 5.5];
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let without: Vec<(u64, f64)> = x.iter().map(|&v| (1, (mean * n - v) / (n - 1.0))).collect();
        let j = jackknife(mean, &without).unwrap();
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n;
        assert!((j.value - mean).abs() < 1e-14 && (j.variance - variance).abs() < 1e-14);
        assert_eq!(jackknife(1.0, &[(3, 1.0)]), None);
        assert_eq!(jackknife(1.0, &[(3, 1.0), (2, f64::NAN)]), None);
    }
}
