// SPDX-License-Identifier: Apache-2.0
//! Requests to a sandbox: those that wait for the end of the running operation, and those that come meanwhile.

use std::{collections::VecDeque, pin::pin};

use tokio::sync::{mpsc, oneshot};
use tracing::Span;
use wrenn_api::ErrorCode;

use super::{
    admit::{Admit, Request, admit},
    operations::Cancel,
    phase::State,
};
use crate::error::AgentError;

/// Maximum number of waiting requests; further ones wait in the channel.
const WAITING: usize = 8;

/// Request with the sender of its result and the span of its call.
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) call: Span,
    reply: Option<oneshot::Sender<Result<(), AgentError>>>,
}

/// Requests to one sandbox.
pub(super) struct Mailbox {
    requests: mpsc::Receiver<Asked>,
    waiting: VecDeque<Asked>,
}

impl Asked {
    /// Request of another task, and the receiver of its result.
    pub(super) fn by_call(request: Request) -> (Self, oneshot::Receiver<Result<(), AgentError>>) {
        let (reply, answer) = oneshot::channel();
        (Self { request, call: Span::current(), reply: Some(reply) }, answer)
    }

    /// Request of the sandbox's own task.
    pub(super) fn by_itself(request: Request) -> Self {
        Self { request, call: Span::current(), reply: None }
    }

    /// Sends the result.
    pub(super) fn answer(self, result: Result<(), AgentError>) {
        if let Some(reply) = self.reply {
            // Nobody waits if the call has ended.
            let _ = reply.send(result);
        }
    }

    /// Refuses the request.
    pub(super) fn refuse(self, state: State, code: ErrorCode) {
        tracing::debug!(request = ?self.request, ?state, "a request was refused");
        self.answer(Err(refusal(state, code)));
    }
}

/// Error of a request that is refused in this state.
pub(super) fn refusal(state: State, code: ErrorCode) -> AgentError {
    AgentError::new(code, format!("a sandbox that is {state:?} does not take this request").to_lowercase())
}

impl Mailbox {
    /// Creates the mailbox and the sender of requests.
    pub(super) fn new() -> (mpsc::Sender<Asked>, Self) {
        let (sender, requests) = mpsc::channel(WAITING);
        (sender, Self { requests, waiting: VecDeque::new() })
    }

    /// Takes the next request; `None` if the agent is stopping.
    pub(super) async fn next(&mut self) -> Option<Asked> {
        match self.waiting.pop_front() {
            Some(asked) => Some(asked),
            None => self.requests.recv().await,
        }
    }

    /// Runs an operation, and meanwhile decides about requests. One that makes the operation pointless cancels
    /// it, if it can be cancelled.
    pub(super) async fn during<T>(
        &mut self,
        state: State,
        cancel: &Cancel,
        operation: impl Future<Output = T>,
    ) -> T {
        let mut operation = pin!(operation);
        loop {
            tokio::select! {
                result = &mut operation => return result,
                Some(asked) = self.requests.recv(), if self.waiting.len() < WAITING => {
                    match admit(state, &asked.request) {
                        Admit::Already => asked.answer(Ok(())),
                        Admit::Refuse(code) => asked.refuse(state, code),
                        Admit::Wait | Admit::Run(_) => {
                            if let Cancel::Undo(token) = cancel && asked.request.cancels() {
                                token.cancel();
                            }
                            self.waiting.push_back(asked);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test]
    async fn a_destroy_cancels_what_can_be_cancelled_and_waits_for_its_end() {
        let (sender, mut mailbox) = Mailbox::new();
        let token = CancellationToken::new();
        let (asked, _answer) = Asked::by_call(Request::Destroy);
        assert!(sender.send(asked).await.is_ok());
        mailbox.during(State::Creating, &Cancel::Undo(token.clone()), token.cancelled()).await;
        assert_eq!(mailbox.next().await.map(|asked| asked.request), Some(Request::Destroy));
        drop(sender);
        assert!(mailbox.next().await.is_none());
        mailbox.during(State::Creating, &Cancel::Finish, async {}).await;
    }

    #[tokio::test]
    async fn a_request_that_does_not_wait_is_answered_meanwhile() {
        let (sender, mut mailbox) = Mailbox::new();
        let (asked, answer) = Asked::by_call(Request::Hold(true));
        assert!(sender.send(asked).await.is_ok());
        let answered = mailbox.during(State::Destroying, &Cancel::Finish, answer).await;
        assert_eq!(answered, Ok(Ok(())));
    }
}
