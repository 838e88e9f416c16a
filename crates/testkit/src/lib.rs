//! A whole Wrenn for tests: `wrenn up` in a state directory of its own, a client that speaks plain HTTP to
//! its public API, and a record of what exists in the kernel before and after.

mod api;
mod events;
pub mod lab;
mod processes;
mod resources;
mod stack;
pub mod test_guests;

pub use api::{Api, Reply};
pub use events::{Event, Events};
pub use lab::{Lab, LabConfig};
pub use processes::{Frozen, Process, processes};
pub use resources::Resources;
pub use stack::{Setup, Stack, in_lab, lab_agent_variables, wait_until};
