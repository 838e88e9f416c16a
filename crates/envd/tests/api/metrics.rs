// SPDX-License-Identifier: Apache-2.0
//! Resource usage of the machine.

use std::time::Instant;

use serde_json::Value;

use crate::client::Envd;

#[test]
fn memory_and_disk_are_told_with_and_without_a_measurement_of_the_cpu() {
    let envd = Envd::start();
    let told = |path: &str| -> Value {
        let (status, body) = envd.http("GET", path, &[], b"");
        assert_eq!(status, 200, "{path}");
        serde_json::from_slice(&body).unwrap()
    };
    let begin = Instant::now();
    let whole = told("/metrics");
    assert!(begin.elapsed().as_millis() >= 100 && whole["cpu_used_pct"].is_number(), "{whole}");
    let without = told("/metrics?cpu=false");
    assert!(without["cpu_used_pct"].is_null(), "{without}");
    for metrics in [whole, without] {
        let number = |field: &str| metrics[field].as_u64().unwrap();
        assert!(0 < number("mem_used") && number("mem_used") < number("mem_total"), "{metrics}");
        assert!(0 < number("disk_used") && number("disk_used") <= number("disk_total"), "{metrics}");
        assert!(metrics["out_of_memory"].is_array(), "{metrics}");
    }
    assert_eq!(envd.http("GET", "/metrics?cpu=2", &[], b"").0, 400);
}
