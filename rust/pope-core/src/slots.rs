//! Dense numbers for sparse keys: cluster and group labels as they turn up.

use std::collections::HashMap;

use crate::batch::Ints;
use crate::hash::BuildMix;

/// Keys `0..DIRECT` are their own slot, so that the usual small integer labels cost no look-up.
pub const DIRECT: usize = 64;

/// A growing map from keys to slots.
#[derive(Clone, Debug)]
pub struct Slots {
    keys: Vec<i64>,
    index: HashMap<i64, u32, BuildMix>,
}

impl Default for Slots {
    fn default() -> Self {
        Slots { keys: (0..DIRECT as i64).collect(), index: HashMap::default() }
    }
}

impl Slots {
    /// The slot of a key, new if need be.
    #[inline(always)]
    pub fn slot(&mut self, key: i64) -> u32 {
        if (key as u64) < DIRECT as u64 { key as u32 } else { self.look_up(key) }
    }

    #[inline(never)]
    fn look_up(&mut self, key: i64) -> u32 {
        let next = self.keys.len() as u32;
        let slot = *self.index.entry(key).or_insert(next);
        if slot == next {
            self.keys.push(key);
        }
        slot
    }

    /// Append the slots of the keys in rows `start..end`.
    pub fn load(&mut self, keys: Ints<'_>, start: usize, end: usize, out: &mut Vec<u32>) {
        match keys {
            Ints::I32(keys) if are_direct(&keys[start..end]) => {
                out.extend(keys[start..end].iter().map(|&key| key as u32));
            }
            _ => out.extend((start..end).map(|row| self.slot(keys.get(row)))),
        }
    }

    /// The key of a slot.
    #[inline(always)]
    pub fn key(&self, slot: u32) -> i64 {
        self.keys[slot as usize]
    }

    /// All slots, in ascending order of their keys: the canonical order of every sum over clusters.
    pub fn by_key(&self) -> Vec<u32> {
        let mut slots: Vec<u32> = (0..self.len() as u32).collect();
        slots.sort_unstable_by_key(|&slot| self.key(slot));
        slots
    }

    /// Number of slots, the unused direct ones included.
    #[allow(clippy::len_without_is_empty)] // never empty: the direct slots are always there
    pub fn len(&self) -> usize {
        self.keys.len()
    }
}

/// Are all keys their own slots?
fn are_direct(keys: &[i32]) -> bool {
    keys.iter().fold(0, |all, &key| all | key as u32) < DIRECT as u32
}
