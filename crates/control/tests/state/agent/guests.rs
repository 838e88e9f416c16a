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
        CopyFileResponse, ExportArtifactRequest, ExportArtifactResponse, ImportArtifactRequest,
        ImportArtifactResponse, ImportImageResponse, ListDirectoryRequest, ListDirectoryResponse,
        ListProcessesRequest, ListProcessesResponse, LoadImageRequest, MakeDirectoryRequest,
        MakeDirectoryResponse, MoveFileRequest, MoveFileResponse, ProcessStreamRequest,
        ProcessStreamResponse, ReadFileRequest, ReadFileResponse, ReadScreenRequest, ReadScreenResponse,
        RemoveFileRequest, RemoveFileResponse, SignalProcessRequest, SignalProcessResponse,
        StartProcessRequest, StartProcessResponse, StatFileRequest, StatFileResponse, WatchFilesRequest,
        WriteFileRequest, WriteFileResponse,
    },
};

use super::{Agent, artifacts, files, ports, processes};

const SERVICE: &str = "host.v1.Host";

impl Agent {
    /// Routes all these calls.
    pub(super) fn guests(self: &Arc<Self>) -> Router {
        unary! {
            self, self.streams(),
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

    /// Routes the calls with streams.
    fn streams(self: &Arc<Self>) -> Router {
        let (of_process, of_write) = (self.clone(), self.clone());
        let (of_export, of_import) = (self.clone(), self.clone());
        let export = streaming_handler_fn(move |_, request: ExportArtifactRequest| {
            let agent = of_export.clone();
            async move { Response::ok(artifacts::export(&agent, request)?) }
        });
        let import = client_streaming_handler_fn(move |_, requests: ServiceStream<ImportArtifactRequest>| {
            let agent = of_import.clone();
            async move { Response::ok(artifacts::import(&agent, requests).await?) }
        });
        let process = bidi_streaming_handler_fn(move |_, requests: ServiceStream<ProcessStreamRequest>| {
            let agent = of_process.clone();
            async move { Ok(Response::new(processes::stream(agent, requests))) }
        });
        let write = client_streaming_handler_fn(move |_, requests: ServiceStream<WriteFileRequest>| {
            let agent = of_write.clone();
            async move { Response::ok(files::write(&agent, requests).await?) }
        });
        let of_load = self.clone();
        let load = client_streaming_handler_fn(move |_, requests: ServiceStream<LoadImageRequest>| {
            let agent = of_load.clone();
            async move { Response::ok(agent.load_image(requests).await?) }
        });
        streams()
            .route_bidi_stream::<_, ProcessStreamRequest, ProcessStreamResponse>(
                SERVICE,
                "ProcessStream",
                process,
            )
            .route_client_stream::<_, WriteFileRequest, WriteFileResponse>(SERVICE, "WriteFile", write)
            .route_client_stream::<_, LoadImageRequest, ImportImageResponse>(SERVICE, "LoadImage", load)
            .route_server_stream::<_, ExportArtifactRequest, ExportArtifactResponse>(
                SERVICE,
                "ExportArtifact",
                export,
            )
            .route_client_stream::<_, ImportArtifactRequest, ImportArtifactResponse>(
                SERVICE,
                "ImportArtifact",
                import,
            )
    }
}

/// Routes the calls with streams that need nothing of the agent.
fn streams() -> Router {
    let connect = bidi_streaming_handler_fn(async |_, requests: ServiceStream<ConnectRequest>| {
        Ok(Response::new(ports::connect(requests)))
    });
    let read =
        streaming_handler_fn(async |_, request: ReadFileRequest| Ok(Response::new(files::read(request))));
    let watch = streaming_handler_fn(async |_, _: WatchFilesRequest| Ok(Response::new(files::watch())));
    Router::new()
        .route_bidi_stream::<_, ConnectRequest, ConnectResponse>(SERVICE, "Connect", connect)
        .route_server_stream::<_, ReadFileRequest, ReadFileResponse>(SERVICE, "ReadFile", read)
        .route_server_stream::<_, WatchFilesRequest, WatchDirResponse>(SERVICE, "WatchFiles", watch)
}
