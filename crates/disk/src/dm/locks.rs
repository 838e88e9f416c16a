// SPDX-License-Identifier: Apache-2.0
//! One lock per volume, so that a slow operation on one volume delays no other.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Locks in use, by volume id.
#[derive(Debug, Default)]
pub(super) struct Locks {
    held: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

impl Locks {
    fn held(&self) -> MutexGuard<'_, HashMap<String, Arc<Mutex<()>>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` while holding the lock of volume `id`.
    pub(super) fn with<T>(&self, id: &str, work: impl FnOnce() -> T) -> T {
        let lock = self.held().entry(id.to_owned()).or_default().clone();
        let done = {
            let _held = lock.lock().unwrap_or_else(PoisonError::into_inner);
            work()
        };
        let mut held = self.held();
        // Waiting threads have a reference too. Without them there are the map's and ours.
        if Arc::strong_count(&lock) <= 2 {
            held.remove(id);
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn one_volume_waits_for_itself_and_for_no_other() {
        let locks = Locks::default();
        thread::scope(|scope| {
            let (go, gone) = mpsc::channel::<()>();
            let (tell, told) = mpsc::channel();
            let (locks, other) = (&locks, tell.clone());
            scope.spawn(move || locks.with("busy", || (tell.send("first"), gone.recv().is_ok())));
            assert_eq!(told.recv(), Ok("first"));
            // Another volume meanwhile.
            assert_eq!(locks.with("sb2", || 7), 7);
            scope.spawn(move || locks.with("busy", || other.send("second")));
            while Arc::strong_count(&locks.held()["busy"]) < 3 {
                thread::yield_now();
            }
            assert!(told.try_recv().is_err());
            go.send(()).unwrap();
            assert_eq!(told.recv(), Ok("second"));
        });
        assert!(locks.held().is_empty());
    }
}
