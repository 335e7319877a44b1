//! Prompts in tasks of about equal work, and outputs in the parts that belong to them.

use core::ops::Range;

use crate::error::{Error, Result};

/// Work of a task: squared rows of its prompts. Some thousand rows of small prompts, or one of 250 rows.
const WORK: usize = 1 << 16;

/// Check that offsets say to which prompt each of `rows` rows belongs.
pub(super) fn check_offsets(offsets: &[i64], rows: usize) -> Result<()> {
    let ordered = offsets.windows(2).all(|w| w[0] <= w[1]);
    if offsets.first() != Some(&0) || !ordered || offsets.last() != Some(&(rows as i64)) {
        return Err(Error::Shape(format!("offsets must ascend from 0 to {rows}, the number of rows")));
    }
    if let Some(w) = offsets.windows(2).find(|w| w[1] - w[0] > i64::from(i32::MAX)) {
        return Err(Error::Shape(format!("a prompt of {} rows is too large", w[1] - w[0])));
    }
    Ok(())
}

/// Ranges of prompts. They depend on the offsets only, never on the number of threads.
pub(super) fn tasks(offsets: &[i64]) -> Vec<Range<usize>> {
    let mut tasks = Vec::new();
    let (mut start, mut work) = (0, 0usize);
    for (prompt, w) in offsets.windows(2).enumerate() {
        let rows = (w[1] - w[0]) as usize;
        let own = rows.saturating_mul(rows);
        if start < prompt && work.saturating_add(own) > WORK {
            tasks.push(start..prompt);
            (start, work) = (prompt, 0);
        }
        work = work.saturating_add(own + 1);
    }
    if start + 1 < offsets.len() {
        tasks.push(start..offsets.len() - 1);
    }
    tasks
}

/// Cut a slice into consecutive parts of the given lengths.
pub(super) fn split<T>(mut slice: &mut [T], lengths: impl Iterator<Item = usize>) -> Vec<&mut [T]> {
    lengths
        .map(|n| {
            let (part, rest) = core::mem::take(&mut slice).split_at_mut(n);
            slice = rest;
            part
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prompt_in_one_task() {
        let sizes = [0, 1, 8, 300, 0, 2, 5000, 0, 0, 3];
        let mut offsets = vec![0i64];
        sizes.iter().cycle().take(1000).for_each(|n| offsets.push(offsets[offsets.len() - 1] + n));
        let tasks = tasks(&offsets);
        assert_eq!(tasks.iter().cloned().flatten().collect::<Vec<_>>(), (0..1000).collect::<Vec<_>>());
        assert!(tasks.iter().all(|t| t.len() == 1 || offsets[t.end] - offsets[t.start] < 300));
        assert!(super::tasks(&[0]).is_empty());
    }

    #[test]
    fn offsets_must_fit() {
        assert!(check_offsets(&[0, 2, 2, 5], 5).is_ok());
        for bad in [&[][..], &[1, 5], &[0, 4], &[0, 3, 2, 5], &[0, 6]] {
            assert!(check_offsets(bad, 5).is_err());
        }
    }
}
