// SPDX-License-Identifier: Apache-2.0
//! Confinement of a page server: what it may still ask of the kernel once it reads what a VMM sends.

use std::{collections::BTreeMap, io};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::userfault::{COPY, WAKE, ZEROPAGE};

/// System calls with any arguments: reading open files, waiting, memory, and ending. None opens, connects or starts
/// anything.
const CALLS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_ppoll,
    libc::SYS_recvmsg,
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Others of these processors.
#[cfg(target_arch = "x86_64")]
const OTHER_CALLS: &[libc::c_long] = &[libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const OTHER_CALLS: &[libc::c_long] = &[];

fn error(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

fn rule(argument: u8, op: SeccompCmpOp, value: u64) -> io::Result<SeccompRule> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value);
    SeccompRule::new(vec![condition.map_err(error)?]).map_err(error)
}

/// Confines this process for good. Calls that are not allowed fail with `EPERM`. Others of its user cannot trace it.
pub(super) fn confine() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let any = CALLS.iter().chain(OTHER_CALLS).map(|call| (*call, Vec::new()));
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = any.collect();
    let fills = [COPY, ZEROPAGE, WAKE].map(|request| rule(1, SeccompCmpOp::Eq, request.into()));
    rules.insert(libc::SYS_ioctl, fills.into_iter().collect::<io::Result<_>>()?);
    let not_code = rule(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?;
    rules.insert(libc::SYS_mmap, vec![not_code]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into().map_err(error)?,
    );
    let program: BpfProgram = filter.map_err(error)?.try_into().map_err(error)?;
    seccompiler::apply_filter(&program).map_err(error)
}
