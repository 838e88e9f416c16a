//! A whole Wrenn for tests: `wrenn up` in a state directory of its own, a client that speaks plain HTTP to
//! its public API, and a record of what exists in the kernel before and after.

mod api;
mod resources;
mod stack;

pub use api::{Api, Reply};
pub use resources::Resources;
pub use stack::{Stack, wait_until};
