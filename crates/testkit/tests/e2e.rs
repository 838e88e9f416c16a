// SPDX-License-Identifier: Apache-2.0
//! End-to-end tests: a Wrenn with real guests, used only through the public API and the command line. At the
//! end it is stopped, and no kernel resources may be left.

mod cases;

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use wrenn_testkit::{Stack, in_lab, timed};

/// Wrenn that the cases share; `None` after it is stopped.
type Shared = Arc<Mutex<Option<Arc<Stack>>>>;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    all_of_the_lab_exist();
    let runtime = Arc::new(Runtime::new().expect("a runtime"));
    let shared = Shared::default();
    let with_shared = |cases: cases::Cases<cases::Case>| -> Vec<Trial> {
        cases.into_iter().map(|(name, case)| trial(name, case, &runtime, &shared)).collect()
    };
    let (beside, alone) = (with_shared(here(cases::beside())), with_shared(here(cases::alone())));
    if !arguments.list && beside.iter().chain(&alone).any(|trial| !arguments.is_filtered_out(trial)) {
        let started = runtime.block_on(Stack::start());
        *lock(&shared) =
            Some(Arc::new(started.unwrap_or_else(|error| panic!("wrenn did not start: {error:#}"))));
    }

    // Without KVM, guests are emulated, and more at once would only be slower. A lab has one CPU.
    arguments.test_threads.get_or_insert(if in_lab() { 1 } else { 2 });
    let mut ok = run(&arguments, beside, &shared);
    let stack = lock(&shared).clone();
    if let Some(Err(error)) = stack.map(|stack| runtime.block_on(async { stack.delete_unused().await })) {
        eprintln!("shared sandboxes could not be deleted: {error:#}");
        ok = false;
    }
    // These cases disturb others, so they run one at a time afterwards.
    arguments.test_threads = Some(1);
    ok &= run(&arguments, alone, &shared);
    ok &= stop(&runtime, &shared);
    // These cases need a Wrenn with a special configuration.
    let own = here(cases::own()).into_iter().map(|(name, case)| {
        let runtime = runtime.clone();
        Trial::test(name, move || failed(runtime.block_on(timed(name, case()))))
    });
    ok &= run(&arguments, own.collect(), &shared);
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Selects the cases for this machine: labs are slow, so they run only those about VMM, disks and network.
fn here<T>(mut cases: cases::Cases<T>) -> cases::Cases<T> {
    cases.retain(|(name, _)| !in_lab() || cases::LAB.iter().any(|chosen| name.starts_with(chosen)));
    cases
}

/// Fails unless there is a case for each name that is chosen for labs: one that was renamed would run in none.
fn all_of_the_lab_exist() {
    let names = cases::names();
    let gone = |chosen: &&&str| !names.iter().any(|name| name.starts_with(**chosen));
    let gone: Vec<_> = cases::LAB.iter().filter(gone).collect();
    assert!(gone.is_empty(), "no case has a name that begins so: correct cases::LAB: {gone:?}");
}

fn lock(shared: &Shared) -> std::sync::MutexGuard<'_, Option<Arc<Stack>>> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(result: Result<()>) -> Result<(), Failed> {
    result.map_err(|error| Failed::from(format!("{error:#}")))
}

fn trial(name: &'static str, case: cases::Case, runtime: &Arc<Runtime>, shared: &Shared) -> Trial {
    let (runtime, shared) = (runtime.clone(), shared.clone());
    Trial::test(name, move || {
        let stack = lock(&shared).clone().ok_or("not started")?;
        failed(runtime.block_on(timed(name, case(stack))))
    })
}

/// Stops the shared Wrenn; fails if anything is left.
fn stop(runtime: &Runtime, shared: &Shared) -> bool {
    let Some(stack) = lock(shared).take() else { return true };
    let stopped =
        runtime.block_on(async { Arc::into_inner(stack).context("a case still holds it")?.stop().await });
    match stopped {
        Ok(()) => println!("Wrenn was stopped and left nothing behind"),
        Err(ref error) => eprintln!("Wrenn was not stopped cleanly: {error:#}"),
    }
    stopped.is_ok()
}

fn run(arguments: &Arguments, trials: Vec<Trial>, shared: &Shared) -> bool {
    let conclusion = libtest_mimic::run(arguments, trials);
    if conclusion.has_failed()
        && let Some(stack) = lock(shared).as_ref()
    {
        eprintln!("{}", stack.logs());
    }
    !conclusion.has_failed()
}
