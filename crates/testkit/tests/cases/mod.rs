// SPDX-License-Identifier: Apache-2.0
//! List of test cases by subject.

mod accounts;
mod bad_input;
mod broken_builds;
mod builds;
mod churn;
mod cli;
mod commands;
mod crashes;
mod faults;
mod files;
mod fleet;
mod guests;
mod hosts;
mod images;
mod lifecycle;
mod metrics;
mod migrations;
mod network;
mod outages;
mod pause;
mod people;
mod ports;
mod privileges;
mod processes;
mod secrets;
mod shipped_templates;
mod slots;
mod streams;
mod support;
mod template_snapshots;
mod terminals;
mod transfers;
mod user_terminal;

use std::{pin::Pin, sync::Arc};

use anyhow::Result;
use wrenn_testkit::{Stack, in_lab, short_or_long, test_guests};

/// Result of a case.
type Outcome = Pin<Box<dyn Future<Output = Result<()>>>>;
/// Case that uses the shared Wrenn and removes what it creates.
pub(crate) type Case = fn(Arc<Stack>) -> Outcome;
/// Case that starts and stops a Wrenn of its own.
pub(crate) type OwnCase = fn() -> Outcome;
/// Cases by name.
pub(crate) type Cases<T> = Vec<(&'static str, T)>;

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        vec![$((
            concat!(stringify!($module), "::", stringify!($name)),
            (|stack| Box::pin($module::$name(stack))) as Case,
        ),)*]
    };
}

macro_rules! own_cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        vec![$((
            concat!(stringify!($module), "::", stringify!($name)),
            (|| Box::pin($module::$name())) as OwnCase,
        ),)*]
    };
}

/// Names, or prefixes of names, of the cases that run in a lab.
pub(crate) const LAB: &[&str] = &[
    "builds::every_instruction_is_done_and_cached",
    "faults::amid_pauses_on_firecracker",
    "faults::on_firecracker",
    "faults::page_servers_that_die_amid_operations",
    "fleet::",
    "hosts::bad_guests_and_a_full_disk",
    "lifecycle::a_vmm_that_is_killed_is_told",
    "lifecycle::a_disk_deleted_underneath_is_told",
    "network::",
    "pause::a_paused_sandbox_survives_its_agent",
    "pause::files_and_a_database_stay_whole",
    "pause::many_go_on_from_a_snapshot",
    "pause::what_ran_goes_on",
    "template_snapshots::",
];

/// Cases that may run concurrently.
pub(crate) fn beside() -> Cases<Case> {
    cases![
        accounts::a_lost_key_is_no_dead_end,
        accounts::keys_are_kept_and_forgotten,
        accounts::keys_do_what_their_scopes_say,
        accounts::members_come_and_go_and_the_owner_changes,
        accounts::passwords_are_typed_and_sessions_end,
        accounts::servers_are_kept_apart,
        accounts::users_are_made_shut_out_and_deleted,
        accounts::what_a_team_does_is_delivered_recorded_and_counted,
        bad_input::paths_that_cannot_be,
        bad_input::environments_at_their_bounds,
        broken_builds::steps_that_misbehave_are_told,
        broken_builds::what_is_printed_without_bound_is_cut,
        builds::every_instruction_is_done_and_cached,
        builds::files_are_copied_and_a_changed_one_misses,
        builds::secrets_are_there_for_one_step,
        builds::a_failing_step_is_told_and_looked_into,
        builds::a_cancelled_build_leaves_nothing,
        builds::wrong_recipes_are_shown_where_they_are_wrong,
        cli::the_exit_status_tells_whose_failure_it_is,
        cli::output_and_input_are_exact,
        cli::processes_and_files_are_worked_with,
        cli::a_detached_run_stays,
        cli::names_and_labels_find_sandboxes,
        cli::events_are_lines,
        cli::a_killed_run_leaves_no_sandbox,
        cli::values_are_completed,
        cli::files_are_copied_as_by_cp,
        cli::an_interrupted_create_leaves_no_sandbox,
        cli::sandboxes_are_paused_and_resumed,
        cli::snapshots_are_made_and_removed,
        commands::output_and_exit_status,
        commands::output_that_is_not_text,
        commands::a_timeout_kills_the_process_group,
        commands::no_byte_of_a_short_command_is_lost,
        commands::the_command_line_passes_the_exit_status_on,
        files::large_files_come_back_as_they_went_in,
        files::the_path_may_be_in_the_query,
        files::a_file_that_is_not_there,
        files::a_full_disk_of_a_guest,
        files::entries_are_listed_moved_and_removed,
        guests::a_guest_is_a_machine_with_an_identity,
        guests::the_kernel_has_what_users_expect,
        images::they_run_as_they_say_and_are_built_on,
        images::an_uploaded_archive_runs,
        lifecycle::create_use_delete,
        lifecycle::a_repeated_create_makes_one_sandbox,
        lifecycle::the_disk_has_the_size_asked_for,
        lifecycle::a_guest_that_powers_off_is_an_error_that_can_be_deleted,
        lifecycle::a_vmm_that_is_killed_is_told,
        lifecycle::a_vmm_at_its_memory_limit_is_told,
        lifecycle::a_disk_deleted_underneath_is_told,
        streams::output_comes_in_order,
        streams::bytes_that_are_no_text_are_exact,
        streams::a_closed_stream_ends_its_command,
        streams::a_deleted_sandbox_ends_its_commands,
        streams::errors_are_frames_or_answers,
        metrics::out_of_memory_is_told,
        metrics::work_is_seen,
        migrations::several_at_once,
        pause::what_ran_goes_on,
        pause::commands_in_work_go_on,
        pause::open_streams_are_told_and_lose_nothing,
        pause::nobody_notices_a_snapshot,
        pause::many_pauses_leave_an_idle_vmm,
        pause::a_resume_during_a_pause_is_done,
        pause::a_wrong_clock_is_right_after_a_pause,
        pause::damaged_memory_is_refused,
        pause::missing_memory_is_told_and_leaves_nothing,
        pause::another_vmm_costs_the_memory_only,
        pause::a_vmm_that_hangs_ends_no_sandbox,
        pause::files_and_a_database_stay_whole,
        pause::connections_from_before_are_reset,
        pause::the_disk_survives_without_the_memory,
        pause::idle_sandboxes_are_paused,
        pause::many_go_on_from_a_snapshot,
        ports::servers_on_loopback_are_served,
        ports::private_ones_need_the_token,
        ports::requests_resume_and_keep_awake,
        ports::the_command_line_leads_to_them,
        privileges::each_process_has_its_own_and_no_more,
        processes::one_runs_by_itself_and_is_attached_to,
        processes::a_signal_reaches_all_descendants,
        processes::input_arrives_whole,
        processes::a_memory_hog_is_killed_and_the_sandbox_works_on,
        processes::a_bomb_of_tasks_is_contained,
        processes::requests_that_cannot_be,
        terminals::a_client_that_comes_back_sees_the_same_screen,
        terminals::input_output_and_size_are_exact,
        terminals::they_end_and_are_refused,
        terminals::the_program_gives_a_terminal,
        transfers::content_is_read_as_http_has_it,
        transfers::a_failed_upload_leaves_the_old_file,
        transfers::files_have_the_rights_that_are_given,
        transfers::a_directory_comes_back_as_it_went_out,
        transfers::hostile_archives_write_nothing_outside,
        transfers::changes_are_told_as_they_happen,
        transfers::the_command_line_copies_directories,
        transfers::the_command_line_works_with_files,
        user_terminal::it_follows_and_is_as_it_was,
        user_terminal::what_sandboxes_use_is_drawn_until_it_is_left,
    ]
}

/// Cases that restart processes of Wrenn, or look at what only they may have.
pub(crate) fn alone() -> Cases<Case> {
    let mut cases = cases![
        broken_builds::stores_that_go_away_end_no_build,
        builds::a_build_survives_its_worker_and_its_agent,
        cli::a_create_whose_answer_is_lost_leaves_no_sandbox,
        // An emulated processor does not start as many beside another guest in the time that a start may take.
        commands::many_at_once_are_kept_apart,
        crashes::the_agent,
        crashes::the_control_plane,
        crashes::a_snapshot_that_is_given_up_leaves_nothing,
        crashes::operations_in_any_order,
        fleet::many_survive_the_agent,
        metrics::busy_ones_come_first,
        metrics::figures_survive_the_agent,
        outages::postgres,
        outages::redis,
        outages::stores_restart_under_load,
        outages::the_host,
        pause::a_paused_sandbox_survives_its_agent,
        pause::a_restarted_host_has_its_sandboxes_paused,
        pause::snapshots_amid_writes_are_whole,
        faults::at_every_step,
        faults::vmms_that_die_amid_operations,
        secrets::none_in_logs_or_command_lines,
        transfers::a_large_file_is_streamed_both_ways,
        // It replaces the key of all.
        transfers::a_signed_url_opens_one_file,
        user_terminal::it_comes_back_after_a_restart,
    ];
    if in_lab() {
        cases.extend(of_labs());
    }
    cases
}

/// Cases like those, of labs only: elsewhere `faults::at_every_step` does the same with QEMU, which has no page servers.
fn of_labs() -> Cases<Case> {
    cases![faults::amid_pauses_on_firecracker, faults::page_servers_that_die_amid_operations]
}

/// Cases that need a Wrenn of their own.
pub(crate) fn own() -> Cases<OwnCase> {
    let mut cases = own_anywhere();
    if short_or_long(false, true) {
        cases.extend(own_of_long_form());
    }
    if test_guests::available() {
        cases.extend(own_with_test_guests());
    } else {
        eprintln!("test guests: NOT RUN HERE: there is no /dev/kvm, or no Firecracker");
    }
    cases
}

fn own_anywhere() -> Cases<OwnCase> {
    own_cases![
        hosts::bad_guests_and_a_full_disk,
        hosts::few_open_files,
        network::guests_reach_the_internet_and_nothing_else,
        pause::a_disk_that_becomes_full_is_told_and_all_goes_on,
        pause::nothing_that_restarts_loses_a_sandbox,
        people::a_second_user_is_invited_and_removed,
        slots::a_failed_one_takes_nothing_from_its_heir,
        template_snapshots::sandboxes_go_on_from_their_template_each_as_itself,
    ]
}

/// Cases that take the better part of an hour: `make test-long` has them.
fn own_of_long_form() -> Cases<OwnCase> {
    own_cases![shipped_templates::they_have_what_they_promise]
}

fn own_with_test_guests() -> Cases<OwnCase> {
    own_cases![
        churn::hundreds_come_and_go,
        churn::those_that_start_are_reaped_with_their_agent,
        faults::on_firecracker,
    ]
}

/// Names of all cases, also of those that this machine cannot run.
pub(crate) fn names() -> Vec<&'static str> {
    let shared = [beside(), alone(), of_labs()].into_iter().flatten().map(|(name, _)| name);
    let own = [own_anywhere(), own_of_long_form(), own_with_test_guests()]
        .into_iter()
        .flatten()
        .map(|(name, _)| name);
    shared.chain(own).collect()
}
