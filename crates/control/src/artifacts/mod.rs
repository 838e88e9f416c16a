// SPDX-License-Identifier: Apache-2.0
//! Templates on several hosts. What a template is on a host, a snapshot or an image, is its artifact. The host that has made it
//! keeps it; a worker writes it to the store, if there is one; and another host that is to create a sandbox from it gets it first,
//! once, from the store or else from a host that has it. Agents verify what they get.

mod choose;
mod fetch;
mod layout;
mod manifest;
mod push;
mod transfer;
mod upkeep;

pub(crate) use self::{
    choose::{hosts_for, note_failure, note_use},
    push::run as push,
    upkeep::run as upkeep,
};

use std::time::Duration;

use uuid::Uuid;
use wrenn_api::ErrorCode;

use crate::{
    error::Fault,
    images,
    templates::{Artifact, Kind},
};

/// Number of objects of one artifact that are read or written at a time.
const OBJECTS: usize = 4;
/// Number of renewals in the time of a lease, so that one may be late.
const RENEWALS: u32 = 3;

/// Returns the id of an artifact as agents know it.
fn on_host(kind: Kind, id: Uuid) -> String {
    match kind {
        Kind::Snapshot => id.simple().to_string(),
        Kind::Image => images::on_host(id),
    }
}

/// Does a work as long as its lease is renewed, and drops it when `renew` says that there is none any more.
async fn leased<T, F>(
    lease: Duration,
    renew: impl Fn() -> F,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault>
where
    F: Future<Output = sqlx::Result<bool>>,
{
    let lost = async {
        loop {
            tokio::time::sleep(lease / RENEWALS).await;
            if matches!(renew().await, Ok(false)) {
                return;
            }
        }
    };
    tokio::select! {
        done = work => done,
        () = lost => {
            let message = "the template was deleted while it was brought to another place, or another server brings it there now: \
                           try again";
            Err(Fault::new(ErrorCode::Conflict, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_ends_with_its_lease() {
        let (lease, renewals) = (Duration::from_secs(15), AtomicU32::new(0));
        let renew = || std::future::ready(Ok(renewals.fetch_add(1, Ordering::Relaxed) < 2));
        let done = leased(lease, renew, async {
            tokio::time::sleep(Duration::from_secs(14)).await;
            Ok(7)
        });
        assert_eq!(done.await.map_err(|fault| fault.code), Ok(7));
        assert_eq!(renewals.load(Ordering::Relaxed), 2);
        let lost = leased(lease, renew, std::future::pending::<Result<(), Fault>>()).await;
        assert_eq!(lost.map_err(|fault| fault.code), Err(ErrorCode::Conflict));
    }

    #[test]
    fn ids_are_those_of_agents() {
        let chosen = Uuid::now_v7();
        assert_eq!(on_host(Kind::Snapshot, chosen), chosen.simple().to_string());
        let of_digest = "0a0a0a0a-0a0a-8a0a-8a0a-0a0a0a0a0a0a";
        assert_eq!(on_host(Kind::Image, of_digest.parse().expect("an id")), of_digest);
    }
}
