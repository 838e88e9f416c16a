//! End to end: one Wrenn, real guests, everything through the public API and the command line. At the end
//! it is stopped, and nothing may be left in the kernel.

mod cases;

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Failed, Trial};
use wrenn_testkit::Stack;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Guests are emulated where KVM does not work: more at once only makes each slower.
    arguments.test_threads.get_or_insert(2);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listing = arguments.list;
    let stack = if listing { None } else { Some(start(&runtime)) };

    let trials = cases::all().into_iter().map(|(name, case)| {
        let (stack, handle) = (stack.clone(), runtime.handle().clone());
        Trial::test(name, move || {
            let stack = stack.ok_or_else(|| Failed::from("not started"))?;
            handle.block_on(case(stack.clone())).map_err(|error| Failed::from(format!("{error:?}")))
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    let Some(stack) = stack else { return conclusion.exit_code() };
    if conclusion.has_failed() {
        eprintln!("{}", stack.logs());
    }
    let stack = Arc::try_unwrap(stack).expect("every case has ended");
    // Restarts disturb others, so they run alone, after them.
    let alone = runtime.block_on(cases::alone(stack, &arguments));
    match alone {
        Ok(()) => conclusion.exit_code(),
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn start(runtime: &tokio::runtime::Runtime) -> Arc<Stack> {
    match runtime.block_on(Stack::start()) {
        Ok(stack) => Arc::new(stack),
        Err(error) => panic!("wrenn did not start: {error:?}"),
    }
}
