//! The short way for small prompts: where similarity is transitive, its classes are the clusters.
//!
//! Let rows be related when their similarity is at least the threshold. If that is an equivalence, then every linkage
//! joins all of a class (each pair, hence each mean and each minimum, is at or above the threshold) and no two classes
//! (below it), and leaders do the same. Well separated answers are like that, and nothing remains to be computed. Equal
//! rows are in one class, and the order of the rows does not enter.

use super::gram::BLOCK;
use crate::simd::multiversion;

/// The rows related to each row, as bits.
type Relation = [u64; BLOCK];

multiversion! {
    fn relate(similarities: &[f64], threshold: f64, relation: &mut [u64]) {
        let n = relation.len().max(1);
        for (related, row) in relation.iter_mut().zip(similarities.chunks_exact(n)) {
            *related = row.iter().enumerate().fold(0, |bits, (j, &s)| bits | u64::from(s >= threshold) << j);
        }
    }
}

/// Write the labels of a prompt of `out.len()` rows, at most [`BLOCK`], if similarity is transitive.
pub(super) fn label_classes(similarities: &[f64], threshold: f64, out: &mut [i32]) -> bool {
    let mut relation: Relation = [0; BLOCK];
    let relation = &mut relation[..out.len()];
    relate(similarities, threshold, relation);
    let mut next = 0;
    for i in 0..relation.len() {
        // It is an equivalence if each row has the relatives of its first relative.
        let first = relation[i].trailing_zeros() as usize;
        if relation[i] != relation[first] {
            return false;
        }
        out[i] = if first == i { next } else { out[first] };
        next += i32::from(first == i);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_or_nothing() {
        let s = [[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]].concat();
        let mut labels = [-1; 3];
        assert!(label_classes(&s, 0.5, &mut labels));
        assert_eq!(labels, [0, 1, 0]);
        assert!(label_classes(&s, 1.0, &mut labels));
        assert_eq!(labels, [0, 1, 2]);
        // 1 - 2 - 0 without 0 - 1.
        assert!(!label_classes(&s, 0.15, &mut labels));
        assert!(label_classes(&s, -1.0, &mut labels));
        assert_eq!(labels, [0, 0, 0]);
        assert!(label_classes(&[], 0.5, &mut []));
    }

    #[test]
    fn all_bits_count() {
        let n = BLOCK;
        let s: Vec<f64> = (0..n * n).map(|k| if (k / n) % 3 == (k % n) % 3 { 0.8 } else { -0.8 }).collect();
        let mut labels = vec![0; n];
        assert!(label_classes(&s, 0.0, &mut labels));
        assert!(labels.iter().enumerate().all(|(i, &label)| label == i as i32 % 3));
    }
}
