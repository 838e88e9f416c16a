// SPDX-License-Identifier: Apache-2.0
//! How long cases take, and how long they may take.

use std::{env, time::Instant};

/// Runs a case and prints the time that it took, for the report of `cargo xtask test`.
pub async fn timed<T>(name: &str, case: impl Future<Output = T>) -> T {
    let begin = Instant::now();
    let result = case.await;
    println!("took {:.1} s: {name}", begin.elapsed().as_secs_f64());
    result
}

/// Chooses a number, such as that of rounds, for `make test`, or for `make test-long`.
pub fn short_or_long<T>(short: T, long: T) -> T {
    if env::var_os("LONG_TESTS").is_some() { long } else { short }
}
