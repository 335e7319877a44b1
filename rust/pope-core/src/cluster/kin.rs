//! Small prompts, divided before anything is sorted or joined.
//!
//! Call rows kin when their similarity is at least the threshold. Rows between which no chain of kin leads are never in one
//! cluster: all similarities between two such families are below the threshold, hence so is each mean and each minimum,
//! and leaders hold kin only. So every family is clustered on its own. And a family in which all are kin is a cluster:
//! each mean and each minimum is at or above the threshold, and whoever leads holds all. Well separated answers fall
//! into such families, and nothing remains to be computed.
//!
//! With several thresholds families are those of the lowest, which those of higher ones divide.

use super::gram::BLOCK;
use crate::simd::multiversion;

/// Kinship of the rows of a prompt at several thresholds; reused from prompt to prompt.
#[derive(Debug, Default)]
pub(super) struct Kin {
    /// The kin of each row as bits, threshold after threshold.
    bits: Vec<u64>,
    rows: usize,
}

multiversion! {
    fn relate(similarities: &[f64], threshold: f64, kin: &mut [u64]) {
        let n = kin.len().max(1);
        for (kin, row) in kin.iter_mut().zip(similarities.chunks_exact(n)) {
            *kin = row.iter().enumerate().fold(0, |bits, (j, &s)| bits | u64::from(s >= threshold) << j);
        }
    }
}

/// The rows of a set.
pub(super) fn members(mut set: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let first = set.trailing_zeros();
        let found = (set != 0).then_some(first);
        set &= set.wrapping_sub(1);
        found
    })
}

impl Kin {
    /// Take the similarities of `n` rows, at most [`BLOCK`], all to all, and thresholds that fall.
    pub fn load(&mut self, similarities: &[f64], n: usize, thresholds: &[(usize, f64)]) {
        debug_assert!(n <= BLOCK);
        self.rows = n;
        self.bits.resize(n * thresholds.len(), 0);
        for (kin, &(_, threshold)) in self.bits.chunks_exact_mut(n.max(1)).zip(thresholds) {
            relate(similarities, threshold, kin);
        }
    }

    /// The families at the lowest threshold.
    pub fn families(&self) -> impl Iterator<Item = u64> {
        let kin = &self.bits[self.bits.len() - self.rows..];
        let mut left = if self.rows < 64 { (1u64 << self.rows) - 1 } else { u64::MAX };
        core::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let (mut family, mut grown) = (0, 1u64 << left.trailing_zeros());
            while grown != family {
                let new = grown & !family;
                family = grown;
                grown = members(new).fold(grown, |all, row| all | kin[row as usize]);
            }
            left &= !family;
            Some(family)
        })
    }

    /// Write the clusters of a family at a threshold, each as its first row, if they are families in which all are kin.
    pub fn classes(&self, threshold: usize, family: u64, out: &mut [i32]) -> bool {
        let kin = &self.bits[threshold * self.rows..(threshold + 1) * self.rows];
        members(family).all(|row| {
            // That holds if every row has the kin of the first of its kin.
            let first = kin[row as usize].trailing_zeros();
            out[row as usize] = first as i32;
            kin[row as usize] == kin[first as usize]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clear(n: usize, kin: &Kin, threshold: usize) -> Option<Vec<i32>> {
        let mut out = vec![-1; n];
        kin.families().all(|family| kin.classes(threshold, family, &mut out)).then_some(out)
    }

    #[test]
    fn clear_or_not() {
        let s = [[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]].concat();
        let mut kin = Kin::default();
        for (threshold, expected) in
            [(1.0, Some(vec![0, 1, 2])), (0.5, Some(vec![0, 1, 0])), (0.15, None), (-1.0, Some(vec![0, 0, 0]))]
        {
            kin.load(&s, 3, &[(0, threshold)]);
            assert_eq!(clear(3, &kin, 0), expected, "{threshold}");
        }
        kin.load(&s, 3, &[(0, 0.5), (1, 0.15)]);
        assert_eq!(kin.families().collect::<Vec<_>>(), [0b111]);
        assert_eq!([clear(3, &kin, 0), clear(3, &kin, 1)], [Some(vec![0, 1, 0]), None]);
        kin.load(&[], 0, &[(0, 0.5)]);
        assert_eq!(kin.families().next(), None);
    }

    #[test]
    fn families_are_chains_of_kin() {
        // 0 - 63 - 1 - 62, and the others by themselves.
        let n = BLOCK;
        let mut s = vec![0.0; n * n];
        for (i, j) in (0..n).map(|i| (i, i)).chain([(0, 63), (1, 63), (1, 62)]) {
            s[i * n + j] = 0.7;
            s[j * n + i] = 0.7;
        }
        let mut kin = Kin::default();
        kin.load(&s, n, &[(0, 0.7)]);
        let families: Vec<u64> = kin.families().collect();
        assert_eq!(families[0], 1 << 63 | 1 << 62 | 0b11);
        assert_eq!(families[1..], (2..62).map(|i| 1 << i).collect::<Vec<u64>>());
        let mut out = vec![-1; n];
        assert!(!kin.classes(0, families[0], &mut out));
        assert!(families[1..].iter().all(|&family| kin.classes(0, family, &mut out)));
        assert!((2..62).all(|i| out[i] == i as i32));
        assert_eq!(members(families[0]).collect::<Vec<_>>(), [0, 1, 62, 63]);
    }
}
