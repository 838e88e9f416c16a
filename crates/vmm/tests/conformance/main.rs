// SPDX-License-Identifier: Apache-2.0
//! Conformance tests of all drivers that work on this machine: with the real guest kernel if it runs, with
//! Debian on a dm-snapshot disk in the lab, and with the test guest otherwise; and tests specific to
//! Firecracker.
#![allow(clippy::unwrap_used)]

mod churn;
mod disks;
mod faults;
mod guest;
mod life;
mod linux;
mod outside;
mod pages;
mod rig;
mod snapshots;

use std::{path::Path, process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Trial};

/// Adds cases by name. Each gets a driver and the files to start guests.
macro_rules! case {
    ($trials:ident, $rig:expr, $($module:ident::$case:ident),* $(,)?) => {
        $({
            let rig = $rig.clone();
            let name = format!("{}::{}::{}", rig.name, stringify!($module), stringify!($case));
            $trials.push(Trial::test(name, move || {
                block_on($module::$case(&rig));
                Ok(())
            }));
        })*
    };
}

fn block_on(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work);
}

async fn the_probe_says_what_kvm_can_do() {
    let found = rig::probe_kvm().await;
    println!("{found:?}");
    assert!(found.took_ms < 10_000 && !found.reason.is_empty());
    assert!(found.present || !found.usable);
}

fn main() -> ExitCode {
    if let Some(served) = wrenn_memory::page_server::run_if_asked() {
        return served;
    }
    let arguments = Arguments::from_args();
    let (mut trials, mut alone) = (Vec::new(), Vec::new());
    for rig in rig::all().into_iter().map(Arc::new) {
        case!(
            trials,
            rig,
            life::a_guest_prints_pauses_and_goes_on,
            life::a_vmm_has_its_own_user_and_few_system_calls,
            life::a_running_microvm_is_adopted,
            life::an_end_from_outside_is_noticed,
            life::a_log_keeps_its_bound,
            life::what_cannot_be_is_refused,
        );
        if rig.is_test_guest() && rig.driver.capabilities().security_boundary {
            case!(alone, rig, churn::hundreds_come_and_go_and_leave_nothing);
        }
        if rig.is_test_guest() {
            case!(
                trials,
                rig,
                snapshots::diffs_hold_the_changed_pages_and_no_other,
                snapshots::a_full_disk_leaves_no_half,
                snapshots::a_guest_goes_on_from_files_under_another_id,
                snapshots::a_diff_since_the_boot_is_the_whole_memory,
                snapshots::changes_that_can_be_read_are_those_of_a_diff,
                snapshots::many_share_one_memory,
                snapshots::what_is_no_snapshot_is_refused,
            );
        }
        if rig.is_test_guest() && rig.driver.capabilities().page_server {
            case!(
                trials,
                rig,
                pages::a_guest_goes_on_from_layers,
                pages::a_vmm_and_its_page_server_end_together,
            );
        }
        if rig.is_debian() {
            case!(trials, rig, linux::one_snapshot_runs_several_times_at_once);
        }
        if rig.firecracker().is_some() {
            case!(
                trials,
                rig,
                faults::a_dead_control_socket_is_said,
                faults::a_vmm_that_does_not_answer_holds_nobody_up,
                faults::old_and_unequal_programs_are_refused,
                faults::a_compressed_kernel_is_named,
                faults::a_kvm_that_may_not_be_used_is_said,
                faults::jails_need_nothing_of_their_directory,
                faults::arguments_that_are_written_over_hide_no_vmm,
            );
        }
    }
    if Path::new(&rig::qemu_program()).exists() {
        trials.push(Trial::test("the_probe_says_what_kvm_can_do", || {
            block_on(the_probe_says_what_kvm_can_do());
            Ok(())
        }));
    }
    let together = libtest_mimic::run(&arguments, trials);
    // Counts resources of this process and this machine, so nothing else may run concurrently.
    let alone = libtest_mimic::run(&arguments, alone);
    ExitCode::from(u8::from(together.has_failed() || alone.has_failed()))
}
