//! The units with the largest weights, row by row.
//!
//! Everything that depends on where weights are cut (truncation at a level known only at the end, Pareto smoothing, the
//! tail index) is a matter of a few units. They are kept whole; the rest is in the sums. The kept set is "the
//! `capacity` largest by (largest log-weight, key)": a property of the set of units, not of their order.

use core::cmp::Ordering;

/// One row of a kept unit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TailRow {
    /// Log-weight.
    pub l: f64,
    /// Rescaled reward.
    pub r: f64,
    /// Multiplicity.
    pub m: f64,
    /// Key of the cluster (0 if there are none).
    pub cluster: i64,
    /// Key of the group (0 if there are none).
    pub group: i64,
}

/// A kept unit.
#[derive(Clone, Debug, PartialEq)]
pub struct TailUnit {
    /// Its largest log-weight.
    pub l_max: f64,
    /// Its key (row units: the row's number).
    pub key: u64,
    /// Its rows: in canonical order, or in that of its pairs.
    pub rows: Box<[TailRow]>,
    /// Similarities of the pairs of rows ([`crate::pairs`]); empty without embeddings.
    pub similar: Box<[i32]>,
}

fn row_order(a: &TailRow, b: &TailRow) -> Ordering {
    let floats = |r: &TailRow| [r.l, r.r, r.m];
    let by_float = floats(a).iter().zip(floats(b)).map(|(x, y)| x.total_cmp(&y)).find(|o| o.is_ne());
    by_float.unwrap_or_else(|| (a.cluster, a.group).cmp(&(b.cluster, b.group)))
}

impl TailUnit {
    /// A unit from its rows, in any order.
    pub fn new(l_max: f64, key: u64, mut rows: Vec<TailRow>) -> Self {
        rows.sort_unstable_by(row_order);
        TailUnit { l_max, key, rows: rows.into_boxed_slice(), similar: Box::default() }
    }

    /// A unit whose rows stand in the order in which `similar` counts their pairs.
    pub fn with_pairs(l_max: f64, key: u64, rows: Vec<TailRow>, similar: &[i32]) -> Self {
        TailUnit { l_max, key, rows: rows.into_boxed_slice(), similar: similar.into() }
    }

    /// Largest weights first; ties by key, then by content.
    fn order(&self, other: &Self) -> Ordering {
        other.l_max.total_cmp(&self.l_max).then_with(|| self.key.cmp(&other.key)).then_with(|| {
            let pairs = self.rows.iter().zip(&other.rows);
            let content = pairs.map(|(a, b)| row_order(a, b)).find(|o| o.is_ne());
            content.unwrap_or_else(|| self.rows.len().cmp(&other.rows.len()))
        })
    }
}

/// The `capacity` units with the largest weights seen so far.
#[derive(Clone, Debug)]
pub struct Tail {
    capacity: usize,
    units: Vec<TailUnit>,
    dropped: u64,
    /// Anything not above this `(l_max, key)` cannot enter.
    bar: Option<(f64, u64)>,
}

impl Tail {
    /// An empty tail.
    pub fn new(capacity: usize) -> Self {
        Tail { capacity: capacity.max(1), units: Vec::new(), dropped: 0, bar: None }
    }

    /// Would a unit with this largest log-weight and key be kept? If not, it is counted as dropped.
    #[inline(always)]
    pub fn admits(&mut self, l_max: f64, key: u64) -> bool {
        let below = self.bar.is_some_and(|(bar, bar_key)| l_max < bar || (l_max == bar && key > bar_key));
        self.dropped += u64::from(below);
        !below
    }

    /// Keep a unit (after [`Self::admits`] said yes).
    pub fn push(&mut self, unit: TailUnit) {
        self.units.push(unit);
        if self.units.len() >= 2 * self.capacity {
            self.trim();
        }
    }

    fn trim(&mut self) {
        if self.units.len() > self.capacity {
            self.units.select_nth_unstable_by(self.capacity - 1, TailUnit::order);
            self.dropped += (self.units.len() - self.capacity) as u64;
            self.units.truncate(self.capacity);
            let last = &self.units[self.capacity - 1];
            self.bar = Some((last.l_max, last.key));
        }
    }

    /// Trim to capacity and sort: the canonical form.
    pub fn settle(&mut self) {
        self.trim();
        self.units.sort_unstable_by(TailUnit::order);
    }

    /// Take in another tail of the same capacity.
    pub fn merge(&mut self, other: &Tail) {
        self.units.extend_from_slice(&other.units);
        self.dropped += other.dropped;
        self.settle();
    }

    /// Kept units, largest weight first (after [`Self::settle`]).
    pub fn units(&self) -> &[TailUnit] {
        &self.units
    }

    /// Maximum number of kept units.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of units seen but not kept.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Every unit with a weight above the exponential of this is kept.
    pub fn complete_above(&self) -> f64 {
        if self.dropped == 0 { f64::NEG_INFINITY } else { self.units.last().map_or(f64::NEG_INFINITY, |u| u.l_max) }
    }

    /// A tail from stored parts.
    pub fn from_parts(capacity: usize, units: Vec<TailUnit>, dropped: u64) -> Self {
        let mut tail = Tail { capacity: capacity.max(1), units, dropped, bar: None };
        tail.settle();
        if tail.dropped > 0 && tail.units.len() == tail.capacity {
            tail.bar = tail.units.last().map(|u| (u.l_max, u.key));
        }
        tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Tail {
        /// Change a kept unit, for tests of what is stored.
        pub fn change(&mut self, f: impl FnOnce(&mut TailUnit)) {
            f(&mut self.units[0]);
        }
    }

    fn unit(l: f64, key: u64) -> TailUnit {
        TailUnit::new(l, key, vec![TailRow { l, r: 0.5, m: 1.0, cluster: 0, group: 0 }])
    }

    fn keep(tail: &mut Tail, units: &[(i32, u64)]) {
        for &(l, key) in units {
            if tail.admits(f64::from(l), key) {
                tail.push(unit(f64::from(l), key));
            }
        }
    }

    proptest! {
        #[test]
        fn keeps_the_largest_whatever_the_order(
            ls in prop::collection::vec(-5i32..5, 0..200), capacity in 1usize..20, cut in 0usize..200,
        ) {
            let units: Vec<(i32, u64)> = ls.into_iter().zip(0..).collect();
            let mut expected = units.clone();
            expected.sort_by_key(|&(l, key)| (-l, key));
            expected.truncate(capacity);
            let (left, right) = units.split_at(cut.min(units.len()));
            let (mut a, mut b) = (Tail::new(capacity), Tail::new(capacity));
            keep(&mut a, right);
            keep(&mut b, left);
            a.settle();
            b.settle();
            a.merge(&b);
            let kept: Vec<(i32, u64)> = a.units().iter().map(|u| (u.l_max as i32, u.key)).collect();
            prop_assert_eq!(kept, expected);
            prop_assert_eq!(a.dropped(), units.len().saturating_sub(capacity) as u64);
        }
    }
}
