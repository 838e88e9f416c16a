// SPDX-License-Identifier: Apache-2.0
//! Tests of the control plane with a real PostgreSQL, a real Redis and simulated agents: stored state,
//! reservations, pauses and destroys. Each case has a database and agents of its own.

mod access;
mod accounts;
mod activity;
mod administrators;
mod agent;
mod artifacts;
mod audit;
mod bodies;
mod browser;
mod build_cuts;
mod build_faults;
mod build_files;
mod build_forms;
mod build_logs;
mod build_races;
mod build_secrets;
mod build_workers;
mod builds;
#[path = "../certificates/mod.rs"]
mod certificates;
mod channels;
mod cuts;
mod cutter;
mod database;
mod event_kinds;
mod event_stream;
mod extension;
mod fixture;
mod fleets;
mod github;
mod guesses;
mod hosts;
mod idempotency;
mod idle_pauses;
mod images;
mod keys;
mod killed;
mod lasting_uses;
mod leaving;
mod log_scan;
mod log_secrets;
mod lost_answers;
mod mail;
mod metrics;
mod names;
mod oauth;
mod oauth_callbacks;
mod operator_keys;
mod pages;
mod people;
mod permissions;
mod plans;
mod platform;
mod platform_sandboxes;
mod quotas;
mod records;
mod refused;
mod resumes;
mod second;
mod sessions;
mod snapshots;
mod snapshots_overwritten;
mod stores;
mod teams;
mod templates;
mod timeouts;
mod unauthorized;
mod uploaded_images;
mod usage;
mod usage_across_kills;
mod uses;
mod walk;

use std::{pin::Pin, process::ExitCode, sync::Arc};

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use stores::Stores;
use tokio::runtime::Runtime;
use wrenn_testkit::{short_or_long, timed};

/// A case; its arguments are the stores and a name for its database.
type Case = fn(Arc<Stores>, &'static str) -> Pin<Box<dyn Future<Output = Result<()>>>>;

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        [$((
            concat!(stringify!($module), "::", stringify!($name)),
            stringify!($name),
            (|stores, database| Box::pin(async move { $module::$name(&stores, database).await })) as Case,
        ),)*]
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    let cases = cases![
        accounts::a_user_signs_up_by_mail,
        accounts::a_link_activates_its_own_sign_up,
        accounts::mails_wait_for_their_server,
        accounts::a_reset_password_ends_all_sessions,
        accounts::a_user_takes_another_name,
        accounts::passwords_are_not_guessed,
        accounts::a_deleted_user_is_gone_at_once,
        accounts::the_first_administrator_signs_in_by_a_link,
        access::a_revocation_acts_on_every_server,
        access::scopes_change_without_a_new_secret,
        access::a_ticket_opens_one_stream,
        access::a_ticket_opens_one_web_socket,
        access::a_cookie_needs_its_token,
        access::a_membership_that_ends_ends_its_streams,
        activity::a_ping_that_is_later_than_the_pause_is_refused,
        activity::a_command_that_is_later_than_the_pause_is_not_started,
        activity::a_command_that_is_later_than_the_pause_resumes_the_sandbox,
        activity::a_resume_that_is_later_than_the_pause_resumes_the_sandbox,
        activity::what_was_pinged_is_not_paused,
        administrators::administrators_decide_about_users,
        administrators::one_administrator_stays,
        administrators::administrators_see_all_teams,
        activity::a_missing_sandbox_is_used_once_its_host_answers,
        artifacts::a_full_host_gives_its_template_to_another_one_once,
        artifacts::a_template_that_nobody_can_give_is_told,
        artifacts::a_transfer_that_was_taken_over_does_not_count,
        artifacts::a_directory_keeps_templates,
        artifacts::a_bucket_keeps_templates,
        artifacts::copies_that_nobody_uses_go,
        artifacts::all_of_a_team_is_deleted,
        audit::every_act_is_on_record,
        audit::pages_skip_no_record_that_comes_late,
        audit::old_audit_records_go,
        audit::a_record_keeps_the_names_of_then,
        bodies::wrong_fields_are_refused_and_nothing_happens,
        bodies::what_may_be_left_out_is_left_out_in_any_form,
        bodies::a_paused_sandbox_names_the_resume,
        build_cuts::of_a_build_of_an_image,
        build_cuts::of_a_build_of_a_snapshot,
        build_faults::output_beyond_the_bounds_is_not_kept,
        build_faults::a_silent_command_is_said_to_run,
        build_faults::a_host_without_space_is_told,
        build_faults::a_cancel_counts_at_every_stage,
        build_faults::two_builds_of_a_name_make_two_versions,
        build_faults::a_base_that_is_deleted_stays_for_its_builds,
        build_files::a_directory_that_cannot_be_used_is_told,
        build_files::servers_that_share_no_files_are_told,
        build_forms::files_come_in_forms,
        build_logs::a_log_is_followed_to_its_end,
        build_races::a_build_that_waits_for_a_host_is_cancelled,
        build_races::a_build_whose_base_is_fetched_is_cancelled,
        build_races::a_template_is_deleted_while_it_is_built,
        build_secrets::a_secret_is_there_for_its_step,
        build_secrets::a_failed_step_leaves_no_secret,
        build_secrets::secrets_fit_to_the_recipe,
        build_workers::another_worker_goes_on_after_the_last_result,
        build_workers::a_build_whose_workers_die_is_given_up,
        build_workers::builds_are_cancelled,
        build_workers::a_base_is_what_it_was_when_it_was_asked_for,
        build_workers::what_nothing_refers_to_is_removed,
        builds::what_is_cached_is_not_built_again,
        builds::a_failed_step_is_named_and_its_sandbox_stays,
        builds::why_a_step_is_done_again_is_told,
        builds::a_result_that_cannot_be_used_is_built_again,
        builds::what_a_recipe_starts_is_checked,
        builds::a_check_may_fail_in_its_start_period,
        builds::files_are_copied_and_refusals_told,
        cuts::of_a_sign_up_and_its_activation,
        cuts::of_an_invitation,
        cuts::of_deletions,
        channels::a_receiver_that_was_down_gets_every_event_in_order,
        channels::what_the_system_does_reaches_a_receiver_that_was_down,
        channels::what_waits_goes_to_another_receiver_at_once,
        channels::an_attempt_that_was_taken_over_does_not_count,
        channels::what_waits_for_a_channel_is_bounded,
        channels::what_is_not_taken_in_time_is_given_up,
        channels::deliveries_are_signed_logged_and_repeated,
        channels::a_key_is_exchanged_while_events_are_delivered,
        channels::what_a_channel_cannot_be_is_refused,
        database::a_foreign_database_is_refused,
        database::a_statement_that_waits_is_ended_and_probes_are_answered_meanwhile,
        event_kinds::each_type_that_can_be_asked_for_is_told,
        event_kinds::what_was_kept_for_long_enough_goes_for_that,
        event_stream::a_life_is_told_in_order_and_resumed_anywhere,
        event_stream::a_resume_of_what_runs_is_not_told,
        event_stream::each_event_says_why_and_who,
        extension::another_program_has_a_route_a_worker_tables_and_hooks,
        extension::events_wait_for_a_hook_that_fails,
        extension::an_extension_that_cannot_be_is_refused,
        extension::an_extension_knows_callers_of_its_own,
        fleets::a_deleted_row_destroys_nothing_at_once,
        fleets::a_stray_is_destroyed_in_time,
        fleets::a_quarantined_database_destroys_nothing_but_what_users_delete,
        fleets::what_an_agent_does_not_understand_is_kept,
        guesses::links_are_not_guessed,
        guesses::strangers_cause_few_mails,
        guesses::sign_ins_of_one_address_are_counted,
        guesses::what_users_guess_is_counted,
        hosts::a_host_that_hangs_delays_no_other,
        hosts::removals_delay_no_round,
        hosts::one_row_that_fails_delays_no_other,
        hosts::another_host_at_the_address_is_unreachable,
        hosts::no_host_is_filled_beyond_its_capacity,
        hosts::a_locked_host_stops_no_create_elsewhere,
        hosts::a_broken_template_ejects_no_host,
        idempotency::a_sandbox_that_was_made_is_found_again,
        idempotency::requests_are_the_same_by_their_meaning,
        idempotency::a_deleted_sandbox_is_told,
        idempotency::a_failed_create_frees_its_key,
        idle_pauses::a_pause_that_fails_is_told_and_tried_again,
        images::a_sandbox_starts_from_the_image_on_its_host,
        images::an_image_that_is_gone_is_imported_again,
        images::accounts_reach_the_host_and_nobody_else,
        images::what_no_team_needs_is_removed,
        images::what_nobody_waited_for_is_removed,
        images::what_is_being_removed_is_imported_again,
        images::a_build_pins_what_its_first_worker_imported,
        images::a_digest_that_has_moved_is_told,
        images::an_import_tells_how_far_it_is,
        uploaded_images::an_upload_is_listed_run_built_on_and_deleted,
        uploaded_images::an_upload_that_cannot_be_is_refused,
        uploaded_images::an_upload_replaces_the_one_of_its_name,
        uploaded_images::an_upload_that_is_being_removed_is_made_again,
        keys::a_revoked_key_ends_its_streams,
        keys::a_key_gives_no_later_end_than_its_own,
        killed::each_is_told_once,
        killed::a_whole_sandbox_is_told,
        lasting_uses::what_lasts_keeps_its_sandbox_awake,
        leaving::a_pause_is_completed,
        leaving::a_resume_is_completed,
        leaving::a_snapshot_is_completed,
        log_secrets::no_log_has_a_secret,
        lost_answers::lost_answers_make_one_sandbox,
        lost_answers::leaving_interrupts_no_create,
        mail::mails_go_by_tls_with_an_account,
        mail::a_mail_waits_for_the_right_password,
        mail::no_mail_goes_to_a_stranger,
        mail::nothing_is_sent_in_clear,
        metrics::each_range_is_asked_of_the_host,
        metrics::what_is_paused_or_deleted_is_kept,
        metrics::a_host_that_does_not_say_it_delays_nothing,
        metrics::a_pause_of_the_host_keeps_them,
        metrics::old_points_go,
        metrics::who_has_none_is_told_why,
        names::a_name_is_of_one_sandbox,
        names::of_many_creates_at_once_one_gets_the_name,
        names::sandboxes_are_found_by_name_and_beginning,
        names::labels_are_added_changed_and_removed,
        names::lists_are_filtered,
        operator_keys::a_lost_key_is_no_dead_end,
        names::pages_skip_nothing_while_sandboxes_come_and_go,
        names::events_are_filtered,
        names::what_is_idle_is_deleted_if_so_wished,
        oauth::a_provider_signs_up_and_in,
        oauth::a_provider_takes_nobodys_account,
        oauth::a_user_with_a_password_connects_a_provider,
        oauth::accounts_are_connected_and_disconnected,
        oauth_callbacks::a_server_below_a_path_keeps_it,
        oauth_callbacks::two_tabs_sign_in_at_once,
        oauth_callbacks::a_callback_that_is_loaded_again,
        oauth_callbacks::a_provider_that_fails_is_told,
        pages::lists_come_in_pages,
        plans::no_statement_reads_a_whole_table,
        permissions::callers_may_do_what_their_permissions_say,
        platform::all_teams_use_what_the_platform_has_built,
        platform::a_replaced_template_is_another_base,
        platform::what_the_cache_has_is_pruned,
        platform_sandboxes::administrators_act_for_the_platform,
        platform_sandboxes::what_the_platform_has_not_is_refused,
        platform_sandboxes::all_teams_use_a_snapshot_of_the_platform,
        platform_sandboxes::who_administers_no_more_has_lost_the_platform,
        quotas::of_many_creates_at_once_some_are_refused,
        quotas::a_create_that_fails_uses_none_up,
        quotas::each_quota_is_told,
        records::old_records_go,
        records::a_repeated_delete_changes_nothing,
        refused::a_create_that_cannot_be,
        refused::ids_of_nobody,
        refused::bodies_that_are_not_taken,
        refused::a_place_that_is_none_is_refused,
        resumes::a_refused_resume_is_told_until_it_succeeds,
        resumes::a_lost_memory_is_told_once,
        resumes::a_boot_that_has_not_begun_is_no_failure,
        sessions::what_ends_a_session_ends_its_streams,
        snapshots::a_repeated_snapshot_is_made_once,
        snapshots::a_key_is_of_one_request,
        snapshots::a_deleted_snapshot_is_told,
        snapshots::a_snapshot_that_was_not_made_frees_its_key,
        snapshots_overwritten::a_name_moves_to_the_new_snapshot,
        snapshots_overwritten::a_failure_leaves_the_old_snapshot,
        snapshots_overwritten::of_many_that_take_a_name_one_has_it,
        snapshots_overwritten::overwriting_needs_no_more_room,
        teams::an_invitation_is_accepted_once,
        teams::a_removed_member_sees_nothing,
        teams::a_team_has_another_owner,
        teams::a_deleted_team_leaves_nothing,
        teams::a_deleted_team_leaves_nothing_on_any_host,
        templates::a_sandbox_starts_from_the_version_of_its_tag,
        templates::a_tag_goes_back_and_forth,
        templates::a_deleted_template_takes_its_images_along,
        templates::a_sandbox_stays_on_its_version,
        templates::a_name_is_of_a_template_or_a_snapshot,
        templates::another_team_sees_no_template,
        timeouts::creates,
        timeouts::resumes,
        timeouts::updates,
        unauthorized::no_operation_serves_those_who_may_not,
        usage::sums_are_those_of_a_naive_model,
        usage::statistics_are_of_what_runs,
        usage_across_kills::it_is_what_the_events_say,
        uses::each_use_puts_the_pause_off,
        uses::each_use_of_a_port_puts_the_pause_off,
        uses::a_create_and_a_resume_begin_the_timeout,
        uses::what_is_no_use_puts_no_pause_off,
    ];
    // It waits for the time limit of what a host that hangs does not end, which no setting changes.
    let of_long_form = cases![build_faults::what_never_ends_is_given_up];
    let cases = cases.into_iter().chain(short_or_long(None, Some(of_long_form)).into_iter().flatten());
    log_scan::install();
    let stores = (!arguments.list).then(|| {
        let started = runtime.block_on(Stores::start());
        Arc::new(started.unwrap_or_else(|error| panic!("no stores: {error:#}")))
    });
    let trials = cases.map(|(name, database, case)| {
        let (runtime, stores) = (runtime.clone(), stores.clone());
        Trial::test(name, move || {
            let stores = stores.ok_or("not started")?;
            let result = runtime.block_on(timed(name, case(stores, &database[..database.len().min(60)])));
            result.map_err(|error| Failed::from(format!("{error:#}")))
        })
    });
    // The cases wait most of the time.
    arguments.test_threads.get_or_insert(8);
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(stores);
    match log_scan::search() {
        Ok(logged) if logged.is_empty() => conclusion.exit_code(),
        Ok(logged) => {
            eprintln!("the log has secrets:\n{}", logged.join("\n"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("the log was not searched for secrets: {error:#}");
            ExitCode::FAILURE
        }
    }
}
