// SPDX-License-Identifier: Apache-2.0
//! Test harness: starts `wrenn up` in a temporary state directory, calls its public API over plain HTTP, and
//! compares kernel resources before and after.

mod api;
mod duration;
pub mod envd;
mod events;
pub mod fuzz;
pub mod lab;
mod mail;
pub mod oci_images;
mod processes;
mod resources;
mod stack;
pub mod test_guests;
mod webhooks;

pub use api::{Api, Reply};
pub use duration::{short_or_long, timed};
pub use events::{Event, Events, kinds_once};
pub use lab::{Lab, LabConfig};
pub use mail::{MailDemands, MailServer, ReceivedMail};
pub use processes::{Frozen, Process, processes, processor_time};
pub use resources::Resources;
pub use stack::{INHERITED, Setup, Stack, in_lab, lab_agent_variables, wait_until};
pub use webhooks::{ReceivedWebhook, WebhookReceiver, told_in_order};
