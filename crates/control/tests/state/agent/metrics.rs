// SPDX-License-Identifier: Apache-2.0
//! Metrics of simulated sandboxes: as many points as the range has minutes, each of which has used more.

use connectrpc::ConnectError;
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::{MetricsPoint, MetricsRequest, MetricsResponse};

use super::{Agent, refusal};

/// Time of the first point. It is far ahead, because what is kept of the past is removed when it is old.
pub(crate) const BEGIN: i64 = 4_000_000_000;

impl Agent {
    pub(super) async fn metrics(&self, request: MetricsRequest) -> Result<MetricsResponse, ConnectError> {
        let id = &request.sandbox_id;
        let hangs = {
            let mut now = self.now();
            now.metrics_asked.push((id.clone(), request.range_sec));
            now.metrics_hang
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        if !self.now().sandboxes.contains_key(id) {
            return Err(refusal(ErrorCode::NotFound, format!("this host has no sandbox {id}")));
        }
        let point = |minute: u32| MetricsPoint {
            timestamp_unix_ms: (BEGIN + i64::from(minute) * 60) * 1000 + 999,
            cpu_hundredths: minute * 1001,
            mem_bytes: u64::from(minute) << 20,
            disk_bytes: u64::from(minute) << 12,
            net_rx_bytes: u64::from(minute) * 3,
            net_tx_bytes: u64::from(minute) * 2,
            guest_mem_used_bytes: u64::from(minute),
            guest_mem_total_bytes: 100,
            ..Default::default()
        };
        let points = (0..request.range_sec / 60).map(point).collect();
        Ok(MetricsResponse { points, ..Default::default() })
    }
}
