// SPDX-License-Identifier: Apache-2.0
//! Calls that concern what is in the guests of simulated sandboxes. They are answered in every state.

use std::sync::Arc;

use connectrpc::{
    Response, Router, ServiceStream, bidi_streaming_handler_fn, client_streaming_handler_fn,
    streaming_handler_fn,
};
use wrenn_rpc::{
    filesystem::WatchDirResponse,
    host::v1::{
        ChangeFileRequest, ChangeFileResponse, ConnectRequest, ConnectResponse, CopyFileRequest,
        CopyFileResponse, ListDirectoryRequest, ListDirectoryResponse, ListProcessesRequest,
        ListProcessesResponse, MakeDirectoryRequest, MakeDirectoryResponse, MoveFileRequest,
        MoveFileResponse, ProcessStreamRequest, ProcessStreamResponse, ReadFileRequest, ReadFileResponse,
        ReadScreenRequest, ReadScreenResponse, RemoveFileRequest, RemoveFileResponse, SignalProcessRequest,
        SignalProcessResponse, StartProcessRequest, StartProcessResponse, StatFileRequest, StatFileResponse,
        WatchFilesRequest, WriteFileRequest, WriteFileResponse,
    },
};

use super::{Agent, files, ports, processes};

const SERVICE: &str = "host.v1.Host";

impl Agent {
    /// Routes all these calls.
    pub(super) fn guests(self: &Arc<Self>) -> Router {
        unary! {
            self, streams(),
            "StartProcess": StartProcessRequest => StartProcessResponse, start_process;
            "ListProcesses": ListProcessesRequest => ListProcessesResponse, list_processes;
            "SignalProcess": SignalProcessRequest => SignalProcessResponse, signal_process;
            "ReadScreen": ReadScreenRequest => ReadScreenResponse, read_screen;
            "ListDirectory": ListDirectoryRequest => ListDirectoryResponse, list_directory;
            "StatFile": StatFileRequest => StatFileResponse, stat_file;
            "MakeDirectory": MakeDirectoryRequest => MakeDirectoryResponse, make_directory;
            "MoveFile": MoveFileRequest => MoveFileResponse, move_file;
            "CopyFile": CopyFileRequest => CopyFileResponse, copy_file;
            "ChangeFile": ChangeFileRequest => ChangeFileResponse, change_file;
            "RemoveFile": RemoveFileRequest => RemoveFileResponse, remove_file;
        }
    }
}

/// Routes the calls with streams.
fn streams() -> Router {
    let process = bidi_streaming_handler_fn(async |_, _: ServiceStream<ProcessStreamRequest>| {
        Ok(Response::new(processes::stream()))
    });
    let connect = bidi_streaming_handler_fn(async |_, requests: ServiceStream<ConnectRequest>| {
        Ok(Response::new(ports::connect(requests)))
    });
    let read =
        streaming_handler_fn(async |_, request: ReadFileRequest| Ok(Response::new(files::read(request))));
    let write = client_streaming_handler_fn(async |_, requests: ServiceStream<WriteFileRequest>| {
        Response::ok(files::write(requests).await?)
    });
    let watch = streaming_handler_fn(async |_, _: WatchFilesRequest| Ok(Response::new(files::watch())));
    Router::new()
        .route_bidi_stream::<_, ProcessStreamRequest, ProcessStreamResponse>(
            SERVICE,
            "ProcessStream",
            process,
        )
        .route_bidi_stream::<_, ConnectRequest, ConnectResponse>(SERVICE, "Connect", connect)
        .route_server_stream::<_, ReadFileRequest, ReadFileResponse>(SERVICE, "ReadFile", read)
        .route_client_stream::<_, WriteFileRequest, WriteFileResponse>(SERVICE, "WriteFile", write)
        .route_server_stream::<_, WatchFilesRequest, WatchDirResponse>(SERVICE, "WatchFiles", watch)
}
