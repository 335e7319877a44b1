//! Threads: scoped, one atomic counter, no global pool (a forked child of a process with a pool would hang).

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};

/// Lets the caller stop a long computation; asked about every 50 ms from the calling thread.
pub trait Interrupt {
    /// True when the computation should end.
    fn interrupted(&mut self) -> bool;
}

/// Never interrupts.
#[derive(Clone, Copy, Debug)]
pub struct Uninterrupted;

impl Interrupt for Uninterrupted {
    fn interrupted(&mut self) -> bool {
        false
    }
}

impl<F: FnMut() -> bool> Interrupt for F {
    fn interrupted(&mut self) -> bool {
        self()
    }
}

/// Run `work(worker, task)` for every task in `0..tasks`; each worker is owned by one thread at a time.
///
/// Which worker gets which task is left to chance, so a worker's result must not depend on it: here that is the exact
/// sums' doing. The first error (by time) ends the run.
pub fn for_each_task<W: Send>(
    workers: &mut [W],
    tasks: usize,
    interrupt: &mut dyn Interrupt,
    work: impl Fn(&mut W, usize) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let running = AtomicUsize::new(workers.len().min(tasks));
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        let main = std::thread::current();
        for worker in workers.iter_mut().take(tasks) {
            let (next, stop, running, failure, work, main) = (&next, &stop, &running, &failure, &work, main.clone());
            scope.spawn(move || {
                let _done = OnDrop(|| {
                    running.fetch_sub(1, Ordering::Release);
                    main.unpark();
                });
                while !stop.load(Ordering::Relaxed) {
                    let task = next.fetch_add(1, Ordering::Relaxed);
                    if task >= tasks {
                        break;
                    }
                    if let Err(error) = work(worker, task) {
                        stop.store(true, Ordering::Relaxed);
                        let mut slot = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        // The error of the earliest task, so that the report does not depend on the schedule
                        // more than it must.
                        if slot.as_ref().is_none_or(|&(earlier, _)| task < earlier) {
                            *slot = Some((task, error));
                        }
                    }
                }
            });
        }
        while running.load(Ordering::Acquire) > 0 {
            std::thread::park_timeout(Duration::from_millis(50));
            if running.load(Ordering::Acquire) > 0 && !stop.load(Ordering::Relaxed) && interrupt.interrupted() {
                stop.store(true, Ordering::Relaxed);
                let mut slot = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                *slot = Some((0, Error::Interrupted));
            }
        }
    });
    let failure = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    failure.map_or(Ok(()), |(_, error)| Err(error))
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_once() {
        for threads in [1, 2, 3, 8] {
            let mut sums = vec![0usize; threads];
            for_each_task(&mut sums, 100, &mut Uninterrupted, |sum, task| {
                *sum += task;
                Ok(())
            })
            .unwrap();
            assert_eq!(sums.iter().sum::<usize>(), 4950);
        }
    }

    #[test]
    fn errors_and_interrupts_end_it() {
        let fail = |(): &mut (), task| if task == 3 { Err(Error::Shape("three".into())) } else { Ok(()) };
        assert_eq!(for_each_task(&mut [()], 10, &mut Uninterrupted, fail), Err(Error::Shape("three".into())));
        let sleep = |(): &mut (), _| {
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        };
        assert_eq!(for_each_task(&mut [(), ()], 10_000, &mut || true, sleep), Err(Error::Interrupted));
    }
}
