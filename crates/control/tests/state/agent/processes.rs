// SPDX-License-Identifier: Apache-2.0
//! Processes of simulated sandboxes: each has the same one, with a terminal, which prints nothing and never ends.

use connectrpc::{ConnectError, ServiceStream};
use futures::{StreamExt as _, stream};
use wrenn_rpc::host::v1::{
    __buffa::oneof::process_stream_response::Event, ListProcessesRequest, ListProcessesResponse, Process,
    ProcessStreamResponse, ReadScreenRequest, ReadScreenResponse, SignalProcessRequest,
    SignalProcessResponse, StartProcessRequest, StartProcessResponse, process_stream_response::Start,
};

use super::Agent;

/// Id of the process.
const PID: u32 = 7;

/// Starts the process, or attaches to it.
pub(super) fn stream() -> ServiceStream<ProcessStreamResponse> {
    let start = Event::Start(Start { pid: PID, ..Default::default() }.into());
    let started = ProcessStreamResponse { event: Some(start), ..Default::default() };
    stream::iter([Ok(started)]).chain(stream::pending()).boxed()
}

impl Agent {
    pub(super) async fn start_process(
        &self,
        request: StartProcessRequest,
    ) -> Result<StartProcessResponse, ConnectError> {
        self.call("start_process", &request.sandbox_id);
        Ok(StartProcessResponse { pid: PID, ..Default::default() })
    }

    pub(super) async fn list_processes(
        &self,
        request: ListProcessesRequest,
    ) -> Result<ListProcessesResponse, ConnectError> {
        self.call("list_processes", &request.sandbox_id);
        let process = Process { pid: PID, cmd: "sleep".into(), ..Default::default() };
        Ok(ListProcessesResponse { processes: vec![process], ..Default::default() })
    }

    pub(super) async fn signal_process(
        &self,
        request: SignalProcessRequest,
    ) -> Result<SignalProcessResponse, ConnectError> {
        self.call("signal_process", &request.sandbox_id);
        Ok(SignalProcessResponse { pid: PID, processes: 1, ..Default::default() })
    }

    pub(super) async fn read_screen(
        &self,
        request: ReadScreenRequest,
    ) -> Result<ReadScreenResponse, ConnectError> {
        self.call("read_screen", &request.sandbox_id);
        Ok(ReadScreenResponse::default())
    }
}
