// SPDX-License-Identifier: Apache-2.0
//! User ids of this agent's VMMs: a range that no other agent of the machine uses.
//!
//! The range is claimed by a machine-wide lock, which is released when the agent ends, and stored in the
//! state directory, because VMMs outlive the agent.

use std::{
    fs, io,
    ops::Range,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use wrenn_os::{
    atomic_file,
    machine_lock::{LockError, MachineLock},
};

/// First id of the first candidate range.
pub const DEFAULT_BASE: u32 = 210_000;
/// Distance between candidate ranges: more than the number of an agent's slots.
const STEP: u32 = 32_768;
/// Number of candidate ranges.
const RANGES: u32 = 64;
const LOCK: &str = "vmm-uids";
/// Number of attempts to take the lock, and the pause between them: a child of a killed agent has it until it
/// executes its program.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

/// A claimed range; dropping it releases the claim.
#[derive(Debug)]
pub(crate) struct Uids {
    base: u32,
    /// Without root all VMMs have the same user, and there is nothing to claim.
    _lock: Option<MachineLock>,
}

/// Parameters of a claim.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    /// State directory of the agent.
    pub(crate) state_dir: PathBuf,
    /// First id, if configured.
    pub(crate) base: Option<u32>,
    /// Number of ids.
    pub(crate) count: u32,
    /// Whether VMMs of a former agent may still run as users of its range.
    pub(crate) in_use: bool,
}

impl Uids {
    /// First id, for the VMM of the probe; slot i uses this plus i.
    pub(crate) fn base(&self) -> u32 {
        self.base
    }
}

impl Claim {
    /// Claims the configured range, the range of a former agent of this state directory, or the first free
    /// one. Blocking.
    pub(crate) fn take(&self) -> anyhow::Result<Uids> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Uids { base: self.base.unwrap_or(DEFAULT_BASE), _lock: None });
        }
        self.take_by(&|range, patient| lock(range, &self.state_dir, patient), &|range| has_processes(range))
    }

    fn take_by<L: Into<Option<MachineLock>>>(
        &self,
        lock: &dyn Fn(Range<u64>, bool) -> Result<L, LockError>,
        used: &dyn Fn(Range<u64>) -> io::Result<bool>,
    ) -> anyhow::Result<Uids> {
        let range = |base: u32| u64::from(base)..u64::from(base) + u64::from(self.count);
        let claimed = |base: u32, lock: L| -> anyhow::Result<Uids> {
            self.keep(base)?;
            Ok(Uids { base, _lock: lock.into() })
        };
        if let Some(base) = self.base {
            let lock = lock(range(base), true).with_context(|| {
                format!(
                    "user ids from {base} cannot be had for this agent's VMMs: set agent.vmm_uid_base to others, or \
                     unset it"
                )
            })?;
            return claimed(base, lock);
        }
        let kept = self.kept()?.or(self.in_use.then_some(DEFAULT_BASE));
        if let Some(base) = kept {
            match lock(range(base), true) {
                Ok(lock) => return claimed(base, lock),
                Err(LockError::Taken(_)) if !self.in_use => {}
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("user ids from {base}, which VMMs of this agent run as, cannot be had again")
                    });
                }
            }
        }
        for base in (0..RANGES).map(|index| DEFAULT_BASE + index * STEP) {
            match lock(range(base), false) {
                Ok(lock) if !used(range(base)).context("the processes cannot be looked at")? => {
                    return claimed(base, lock);
                }
                Ok(_) | Err(LockError::Taken(_)) => {}
                Err(error) => return Err(error).context("no user ids for VMMs can be claimed"),
            }
        }
        anyhow::bail!("all {RANGES} ranges of user ids for VMMs are in use: set agent.vmm_uid_base to others")
    }

    fn file(&self) -> PathBuf {
        self.state_dir.join("uid-base")
    }

    fn kept(&self) -> anyhow::Result<Option<u32>> {
        match fs::read_to_string(self.file()) {
            Ok(text) => {
                let base = text.trim().parse();
                Ok(Some(base.with_context(|| format!("{} holds no user id", self.file().display()))?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("the range of user ids that this agent had cannot be read"),
        }
    }

    fn keep(&self, base: u32) -> anyhow::Result<()> {
        if self.kept()? == Some(base) {
            return Ok(());
        }
        atomic_file::write(&self.file(), format!("{base}\n").as_bytes(), 0o600, None)
            .context("the range of user ids cannot be written down")
    }
}

fn lock(range: Range<u64>, state_dir: &Path, patient: bool) -> Result<MachineLock, LockError> {
    let holder = format!("an agent in {}", state_dir.display());
    let mut tries = if patient { TRIES } else { 1 };
    loop {
        tries -= 1;
        match MachineLock::take_range(LOCK, range.clone(), &holder) {
            Err(LockError::Taken(_)) if tries > 0 => thread::sleep(PAUSE),
            other => return other,
        }
    }
}

/// Returns whether a process runs as one of these users, as a VMM of a stopped agent does.
fn has_processes(range: Range<u64>) -> io::Result<bool> {
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        match entry.metadata() {
            Ok(meta) if range.contains(&u64::from(meta.uid())) => return Ok(true),
            Ok(_) => {}
            // It ended meanwhile.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claims a range while another agent has the ranges that start at `taken`, and `used` has processes.
    fn claim(claim: &Claim, taken: &[u32], used: &[u32]) -> anyhow::Result<u32> {
        let lock = |range: Range<u64>, _| {
            let other = taken.iter().any(|&base| range.contains(&u64::from(base)));
            if other { Err(LockError::Taken("process 7".to_owned())) } else { Ok(None) }
        };
        let used = |range: Range<u64>| Ok(used.iter().any(|&user| range.contains(&u64::from(user))));
        claim.take_by::<Option<MachineLock>>(&lock, &used).map(|uids| uids.base())
    }

    #[test]
    fn two_agents_of_a_machine_share_no_user() {
        let dir = tempfile::tempdir().expect("a directory");
        let free = Claim { state_dir: dir.path().to_owned(), base: None, count: 69, in_use: false };
        let second = DEFAULT_BASE + STEP;
        assert_eq!(claim(&free, &[DEFAULT_BASE], &[]).expect("the next"), second);
        // It keeps its range; the processes may be its own VMMs.
        assert_eq!(claim(&free, &[], &[second + 3]).expect("the same"), second);
        let running = Claim { in_use: true, ..free.clone() };
        let error = claim(&running, &[second], &[]).expect_err("its VMMs run as these users");
        assert!(format!("{error:#}").contains("process 7"), "{error:#}");
        // Without VMMs it may take another range, and skips ranges whose users have processes.
        assert_eq!(claim(&free, &[second], &[DEFAULT_BASE + 1]).expect("the third"), second + STEP);
    }

    #[test]
    fn what_is_configured_is_taken_or_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let wish = Claim { state_dir: dir.path().to_owned(), base: Some(5000), count: 69, in_use: false };
        let error = format!("{:#}", claim(&wish, &[5068], &[]).expect_err("a part of it is taken"));
        assert!(error.contains("agent.vmm_uid_base") && error.contains("process 7"), "{error}");
        assert_eq!(claim(&wish, &[5069], &[]).expect("it is free"), 5000);
        // VMMs of an agent that stored no range use the first one.
        fs::remove_file(wish.file()).expect("it was kept");
        let former = Claim { base: None, in_use: true, ..wish };
        assert_eq!(claim(&former, &[], &[DEFAULT_BASE + 1]).expect("its own"), DEFAULT_BASE);
    }
}
