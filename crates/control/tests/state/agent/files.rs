// SPDX-License-Identifier: Apache-2.0
//! Files of simulated sandboxes: every path has one, whose content is its path, but for those that are absent; and of what is
//! written only its size is kept.

use connectrpc::{ConnectError, ServiceStream};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use wrenn_api::ErrorCode;
use wrenn_rpc::{
    filesystem::{
        __buffa::oneof::watch_dir_response::Event, EntryInfo, WatchDirResponse,
        watch_dir_response::StartEvent,
    },
    host::v1::{
        __buffa::oneof::{read_file_response, write_file_request},
        ChangeFileRequest, ChangeFileResponse, CopyFileRequest, CopyFileResponse, ListDirectoryRequest,
        ListDirectoryResponse, MakeDirectoryRequest, MakeDirectoryResponse, MoveFileRequest,
        MoveFileResponse, ReadFileRequest, ReadFileResponse, RemoveFileRequest, RemoveFileResponse,
        StatFileRequest, StatFileResponse, WriteFileRequest, WriteFileResponse,
        read_file_response::{Head, State},
        write_file_request::Open,
    },
};

use super::{Agent, refusal};

/// Path of a file that has no end.
const ENDLESS: &str = "endless";

/// Reads a file or a directory.
pub(super) fn read(request: ReadFileRequest) -> ServiceStream<ReadFileResponse> {
    let is_endless = request.path == ENDLESS;
    let head = Head { state: State::STATE_WHOLE.into(), ..Default::default() };
    let parts = [
        read_file_response::Part::Head(head.into()),
        read_file_response::Part::Chunk(request.path.into_bytes()),
    ];
    let parts = parts.map(|part| Ok(ReadFileResponse { part: Some(part), ..Default::default() }));
    let content = stream::iter(parts);
    if is_endless { content.chain(stream::pending()).boxed() } else { content.boxed() }
}

/// What was written, and where.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) open: Open,
    /// Number of bytes.
    pub(crate) size: u64,
}

/// Takes what is written.
pub(super) async fn write(
    agent: &Agent,
    mut requests: ServiceStream<WriteFileRequest>,
) -> Result<WriteFileResponse, ConnectError> {
    let mut written = Written { open: Open::default(), size: 0 };
    while let Some(request) = requests.try_next().await? {
        match request.part {
            Some(write_file_request::Part::Chunk(bytes)) => written.size += bytes.len() as u64,
            Some(write_file_request::Part::Commit(_)) => {
                let size = written.size;
                agent.now().written.push(written);
                return Ok(WriteFileResponse { size, ..Default::default() });
            }
            Some(write_file_request::Part::Open(open)) => written.open = *open,
            None => {}
        }
    }
    Err(ConnectError::invalid_argument("the upload ended without `commit`"))
}

/// Watches a directory, in which nothing changes.
pub(super) fn watch() -> ServiceStream<WatchDirResponse> {
    let start = Event::Start(StartEvent::default().into());
    let started = WatchDirResponse { event: Some(start), ..Default::default() };
    stream::iter([Ok(started)]).chain(stream::pending()).boxed()
}

/// The entry that every path leads to.
fn entry() -> EntryInfo {
    EntryInfo { name: "a".into(), path: "/a".into(), ..Default::default() }
}

/// Operations that return an entry.
macro_rules! of_entries {
    ($($name:ident: $request:ty => $response:ident;)*) => {
        impl Agent {
            $(pub(super) async fn $name(&self, request: $request) -> Result<$response, ConnectError> {
                self.call(stringify!($name), &request.sandbox_id);
                Ok($response { entry: entry().into(), ..Default::default() })
            })*
        }
    };
}

of_entries! {
    make_directory: MakeDirectoryRequest => MakeDirectoryResponse;
    move_file: MoveFileRequest => MoveFileResponse;
    copy_file: CopyFileRequest => CopyFileResponse;
    change_file: ChangeFileRequest => ChangeFileResponse;
}

impl Agent {
    pub(super) async fn stat_file(&self, request: StatFileRequest) -> Result<StatFileResponse, ConnectError> {
        self.call("stat_file", &request.sandbox_id);
        if self.now().absent.contains(&request.path) {
            return Err(refusal(ErrorCode::NotFound, format!("there is no {}", request.path)));
        }
        Ok(StatFileResponse { entry: entry().into(), ..Default::default() })
    }

    pub(super) async fn list_directory(
        &self,
        request: ListDirectoryRequest,
    ) -> Result<ListDirectoryResponse, ConnectError> {
        self.call("list_directory", &request.sandbox_id);
        Ok(ListDirectoryResponse { entries: vec![entry()], ..Default::default() })
    }

    pub(super) async fn remove_file(
        &self,
        request: RemoveFileRequest,
    ) -> Result<RemoveFileResponse, ConnectError> {
        self.call("remove_file", &request.sandbox_id);
        Ok(RemoveFileResponse::default())
    }
}
