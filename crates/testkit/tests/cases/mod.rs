//! The cases, by subject.

mod bad_input;
mod commands;
mod crashes;
mod files;
mod lifecycle;

use std::{pin::Pin, sync::Arc};

use anyhow::Result;
use libtest_mimic::Arguments;
use wrenn_testkit::Stack;

/// One case: it gets the shared Wrenn and cleans up what it made.
pub(crate) type Case = fn(Arc<Stack>) -> Pin<Box<dyn Future<Output = Result<()>>>>;

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        vec![$((
            concat!(stringify!($module), "::", stringify!($name)),
            (|stack| Box::pin($module::$name(stack))) as Case,
        ),)*]
    };
}

/// Cases that may run side by side.
pub(crate) fn all() -> Vec<(&'static str, Case)> {
    cases![
        bad_input::every_endpoint_wants_a_key,
        bad_input::a_create_that_cannot_be,
        bad_input::ids_of_nobody,
        bad_input::paths_that_cannot_be,
        commands::output_and_exit_status,
        commands::output_that_is_not_text,
        commands::a_timeout_kills_the_process_group,
        commands::no_byte_of_a_short_command_is_lost,
        commands::the_command_line_passes_the_exit_status_on,
        files::large_files_come_back_as_they_went_in,
        files::a_file_that_is_not_there,
        lifecycle::create_use_delete,
        lifecycle::a_repeated_create_makes_one_sandbox,
        lifecycle::the_disk_has_the_size_asked_for,
        lifecycle::a_guest_that_powers_off_is_an_error_that_can_be_deleted,
    ]
}

/// Cases that restart parts of Wrenn, and its end.
pub(crate) async fn alone(stack: Stack, arguments: &Arguments) -> Result<()> {
    if arguments.filter.is_none() {
        for (name, result) in [
            ("crashes::the_agent", crashes::the_agent(&stack).await),
            ("crashes::the_control_plane", crashes::the_control_plane(&stack).await),
        ] {
            println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
            if let Err(error) = result {
                let logs = stack.logs();
                stack.stop().await?;
                return Err(error.context(logs));
            }
        }
    }
    stack.stop().await
}
