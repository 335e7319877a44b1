//! A sample of rows by the hashes of their keys: the same rows whatever the order and the partition of a log.
//!
//! A key is in the sample of level `L` if its hash has at least `L` leading zeros, so rows of one key are all in it or
//! none. The level rises when there are too many: as counts at a level only grow, the last level is the lowest at which
//! the rows of the whole log fit, and depends on nothing else (adaptive sampling: Wegman, in Flajolet 1990).

/// Multiplicative hashing by the golden ratio (Knuth, TAOCP 3, 6.4): its leading bits depend on all bits of the key, and
/// it costs one multiplication, which every row of a log has to pay. The salt gives the key 0 a hash like any other.
#[inline(always)]
fn hash(key: u64) -> u64 {
    (key ^ 0xd1b5_4a32_d192_ed03).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Keys that are looked at together: as a rule none of them is in the sample.
const BLOCK: usize = 64;

/// Above the most leading zeros that a hash can have: nothing is in the sample.
pub const EMPTY_LEVEL: u32 = 65;

/// What a batch adds to a sample.
#[derive(Debug, PartialEq, Eq)]
pub struct Selection {
    /// The level that the sample now has.
    pub level: u32,
    /// Places of the keys that are in it, ascending.
    pub places: Vec<i64>,
    /// Their hashes.
    pub hashes: Vec<u64>,
}

impl Selection {
    /// Keep what the level has.
    fn thin(&mut self) {
        let inside: Vec<bool> = self.hashes.iter().map(|hash| hash.leading_zeros() >= self.level).collect();
        let mut places = inside.iter();
        self.places.retain(|_| places.next().is_some_and(|&inside| inside));
        let mut hashes = inside.iter();
        self.hashes.retain(|_| hashes.next().is_some_and(|&inside| inside));
    }
}

/// Select the keys that belong into a sample which holds the hashes `kept` already, at most `capacity` of both together.
pub fn select(keys: &[u64], kept: &[u64], level: u32, capacity: usize) -> Selection {
    let count = |level: u32| kept.iter().filter(|hash| hash.leading_zeros() >= level).count();
    let level = (level..EMPTY_LEVEL).find(|&level| count(level) <= capacity).unwrap_or(EMPTY_LEVEL);
    let mut found = Selection { level, places: Vec::new(), hashes: Vec::new() };
    let mut room = capacity.saturating_sub(count(level));
    let mut limit = largest(level);
    for (block, start) in keys.chunks(BLOCK).zip((0..).step_by(BLOCK)) {
        if found.level >= EMPTY_LEVEL {
            break;
        }
        if !block.iter().fold(false, |any, &key| any | (hash(key) <= limit)) {
            continue;
        }
        for (place, &key) in (start..).zip(block) {
            if hash(key) <= limit {
                found.places.push(place);
                found.hashes.push(hash(key));
            }
        }
        while found.hashes.len() > room {
            found.level += 1;
            limit = largest(found.level);
            room = capacity.saturating_sub(count(found.level));
            found.thin();
        }
    }
    found
}

/// The largest hash of a level.
fn largest(level: u32) -> u64 {
    u64::MAX.checked_shr(level).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Select batch by batch, as the caller does: what is kept is thinned to the level.
    fn in_batches(batches: &[&[u64]], capacity: usize) -> (u32, Vec<u64>) {
        let (mut level, mut kept) = (0, Vec::new());
        for batch in batches {
            let found = select(batch, &kept, level, capacity);
            level = found.level;
            kept.retain(|hash: &u64| hash.leading_zeros() >= level);
            kept.extend(found.hashes);
        }
        kept.sort_unstable();
        (level, kept)
    }

    #[test]
    fn a_small_log_is_kept_whole() {
        let found = select(&[5, 0, 5], &[], 0, 3);
        assert_eq!((found.level, found.places), (0, vec![0, 1, 2]));
        assert_eq!(found.hashes[0], found.hashes[2]);
    }

    #[test]
    fn the_sample_depends_on_the_rows_alone() {
        let keys: Vec<u64> = (0..10_000).map(|i| i / 3).collect();
        let (level, whole) = in_batches(&[&keys], 500);
        assert!(level > 0 && whole.len() <= 500 && whole.len() > 100, "{level} {}", whole.len());
        for cut in [1, 17, 4_000, 9_999] {
            let (left, right) = keys.split_at(cut);
            assert_eq!(in_batches(&[left, right], 500), (level, whole.clone()));
            assert_eq!(in_batches(&[right, &[], left], 500), (level, whole.clone()));
        }
    }

    #[test]
    fn rows_of_a_key_are_all_in_it_or_none() {
        let keys: Vec<u64> = (0..10_000).map(|i| i % 1_000).collect();
        let found = select(&keys, &[], 0, 1_000);
        for &hash in &found.hashes {
            assert_eq!(found.hashes.iter().filter(|&&other| other == hash).count(), 10);
        }
    }

    #[test]
    fn more_rows_of_one_key_than_fit_leave_nothing() {
        for key in [0, 1, u64::MAX] {
            let found = select(&[key; 100], &[], 0, 10);
            assert!(found.places.is_empty() && found.hashes.is_empty() && found.level <= EMPTY_LEVEL);
            assert!(select(&[1, 2, 3], &[], EMPTY_LEVEL, 10).places.is_empty());
        }
    }
}
