// SPDX-License-Identifier: Apache-2.0
//! Tests of the control plane with a real PostgreSQL, a real Redis and simulated agents: stored state,
//! reservations, pauses and destroys. Each case has a database and agents of its own.

mod activity;
mod agent;
mod bodies;
#[path = "../certificates/mod.rs"]
mod certificates;
mod database;
mod event_stream;
mod extension;
mod fixture;
mod fleets;
mod hosts;
mod idempotency;
mod idle_pauses;
mod keys;
mod lasting_uses;
mod leaving;
mod lost_answers;
mod names;
mod pages;
mod records;
mod refused;
mod resumes;
mod snapshots;
mod stores;
mod timeouts;
mod unauthorized;
mod uses;

use std::{pin::Pin, process::ExitCode, sync::Arc};

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use stores::Stores;
use tokio::runtime::Runtime;
use wrenn_testkit::timed;

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
        activity::a_ping_that_is_later_than_the_pause_is_refused,
        activity::a_command_that_is_later_than_the_pause_is_not_started,
        activity::a_command_that_is_later_than_the_pause_resumes_the_sandbox,
        activity::a_resume_that_is_later_than_the_pause_resumes_the_sandbox,
        activity::what_was_pinged_is_not_paused,
        activity::a_missing_sandbox_is_used_once_its_host_answers,
        bodies::wrong_fields_are_refused_and_nothing_happens,
        bodies::what_may_be_left_out_is_left_out_in_any_form,
        bodies::a_paused_sandbox_names_the_resume,
        database::a_foreign_database_is_refused,
        database::a_statement_that_waits_is_ended_and_probes_are_answered_meanwhile,
        event_stream::a_life_is_told_in_order_and_resumed_anywhere,
        extension::another_program_adds_a_route_and_a_worker,
        extension::a_route_without_a_permission_is_refused,
        fleets::a_deleted_row_destroys_nothing_at_once,
        fleets::a_stray_is_destroyed_in_time,
        fleets::a_quarantined_database_destroys_nothing_but_what_users_delete,
        fleets::what_an_agent_does_not_understand_is_kept,
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
        keys::a_revoked_key_ends_its_streams,
        lasting_uses::what_lasts_keeps_its_sandbox_awake,
        leaving::a_pause_is_completed,
        leaving::a_resume_is_completed,
        leaving::a_snapshot_is_completed,
        lost_answers::lost_answers_make_one_sandbox,
        lost_answers::leaving_interrupts_no_create,
        names::a_name_is_of_one_sandbox,
        names::of_many_creates_at_once_one_gets_the_name,
        names::sandboxes_are_found_by_name_and_beginning,
        names::labels_are_added_changed_and_removed,
        names::lists_are_filtered,
        names::pages_skip_nothing_while_sandboxes_come_and_go,
        names::events_are_filtered,
        names::what_is_idle_is_deleted_if_so_wished,
        pages::lists_come_in_pages,
        records::old_records_go,
        records::a_repeated_delete_changes_nothing,
        refused::a_create_that_cannot_be,
        refused::ids_of_nobody,
        refused::bodies_that_are_not_taken,
        refused::a_place_that_is_none_is_refused,
        resumes::a_refused_resume_is_told_until_it_succeeds,
        resumes::a_lost_memory_is_told_once,
        snapshots::a_repeated_snapshot_is_made_once,
        snapshots::a_key_is_of_one_request,
        snapshots::a_deleted_snapshot_is_told,
        snapshots::a_snapshot_that_was_not_made_frees_its_key,
        timeouts::creates,
        timeouts::resumes,
        timeouts::updates,
        unauthorized::no_operation_serves_those_who_may_not,
        uses::each_use_puts_the_pause_off,
        uses::each_use_of_a_port_puts_the_pause_off,
        uses::a_create_and_a_resume_begin_the_timeout,
        uses::what_is_no_use_puts_no_pause_off,
    ];
    let stores = (!arguments.list).then(|| {
        let started = runtime.block_on(Stores::start());
        Arc::new(started.unwrap_or_else(|error| panic!("no stores: {error:#}")))
    });
    let trials = cases.into_iter().map(|(name, database, case)| {
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
    conclusion.exit_code()
}
