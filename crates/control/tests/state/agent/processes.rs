// SPDX-License-Identifier: Apache-2.0
//! Processes of simulated sandboxes: each has the same one, with a terminal, which prints nothing and never ends, unless a rule
//! says what it does.

use std::sync::Arc;

use connectrpc::{ConnectError, ServiceStream};
use futures::{StreamExt as _, stream};
use wrenn_rpc::host::v1::{
    __buffa::oneof::{
        process_selector::Selector, process_stream_request::Part, process_stream_response::Event,
    },
    Command, ListProcessesRequest, ListProcessesResponse, Process, ProcessStreamRequest,
    ProcessStreamResponse, ReadScreenRequest, ReadScreenResponse, SignalProcessRequest,
    SignalProcessResponse, StartProcessRequest, StartProcessResponse,
    process_stream_response::{End, Start},
};

use super::Agent;

/// Id of the process.
const PID: u32 = 7;

/// What a command does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Does {
    /// What it writes to standard output and to standard error.
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// How often it writes both once more, one after the other.
    pub(crate) again: usize,
    /// Exit status; without one, it never ends.
    pub(crate) ends: Option<i32>,
}

impl Does {
    /// Ends with this status.
    pub(crate) fn end(status: i32) -> Self {
        Self { ends: Some(status), ..Self::default() }
    }
}

/// A command that has not ended; when it is dropped, its caller has left.
struct Endless {
    agent: Arc<Agent>,
    text: String,
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.agent.now().left.push(std::mem::take(&mut self.text));
    }
}

/// Starts a process, or attaches to one.
pub(super) fn stream(
    agent: Arc<Agent>,
    mut requests: ServiceStream<ProcessStreamRequest>,
) -> ServiceStream<ProcessStreamResponse> {
    let begin = async move {
        let first = requests.next().await.and_then(Result::ok).and_then(|request| request.part);
        let text = first.map(text).unwrap_or_default();
        let does = agent.does(&text);
        let mut events = vec![Event::Start(Start { pid: PID, ..Default::default() }.into())];
        for _ in 0..=does.again {
            if !does.stdout.is_empty() {
                events.push(Event::Stdout(does.stdout.clone()));
            }
            if !does.stderr.is_empty() {
                events.push(Event::Stderr(does.stderr.clone()));
            }
        }
        events.extend(does.ends.map(|exit_code| Event::End(End { exit_code, ..Default::default() }.into())));
        let told = events
            .into_iter()
            .map(|event| Ok(ProcessStreamResponse { event: Some(event), ..Default::default() }));
        let endless = does.ends.is_none().then(|| (Endless { agent, text }, requests));
        let rest = stream::iter(endless).filter_map(async |endless| {
            let _running = endless;
            std::future::pending::<Option<Result<ProcessStreamResponse, ConnectError>>>().await
        });
        stream::iter(told).chain(rest)
    };
    stream::once(begin).flatten().boxed()
}

/// Returns the text of what begins a stream: that of a shell, or program and arguments, or `attach` and the process.
fn text(part: Part) -> String {
    match part {
        Part::Start(start) => of_command(start.command.into_option().unwrap_or_default()),
        Part::Attach(attach) => match attach.process.into_option().and_then(|process| process.selector) {
            Some(Selector::Tag(tag)) => format!("attach {tag}"),
            other => format!("attach {other:?}"),
        },
        other => format!("{other:?}"),
    }
}

fn of_command(Command { cmd, args, .. }: Command) -> String {
    match args.as_slice() {
        [dash, text] if cmd == "/bin/sh" && dash == "-c" => text.clone(),
        _ => format!("{cmd} {}", args.join(" ")).trim_end().to_owned(),
    }
}

impl Agent {
    /// Adds a rule for commands whose text has this part.
    pub(crate) fn obey(&self, part: &str, does: Does) {
        self.now().rules.push((part.to_owned(), does));
    }

    /// Notes a command, and returns what it does.
    fn does(&self, text: &str) -> Does {
        let mut now = self.now();
        now.commands.push(text.to_owned());
        let rule = now.rules.iter().rev().find(|(part, _)| text.contains(part.as_str()));
        rule.map(|(_, does)| does.clone()).unwrap_or_default()
    }

    pub(super) async fn start_process(
        &self,
        request: StartProcessRequest,
    ) -> Result<StartProcessResponse, ConnectError> {
        self.call("start_process", &request.sandbox_id);
        self.now().started.push(of_command(request.command.into_option().unwrap_or_default()));
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
