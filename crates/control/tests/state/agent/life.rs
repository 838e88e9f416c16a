// SPDX-License-Identifier: Apache-2.0
//! Pauses, resumes and commands of simulated sandboxes, in the states in which a real agent admits them.

use connectrpc::ConnectError;
use wrenn_api::ErrorCode;
use wrenn_rpc::host::v1::{
    ExecRequest, ExecResponse, GetRequest, GetResponse, PauseRequest, PauseResponse, ResumeRequest,
    ResumeResponse, Sandbox, SandboxState,
};

use super::{Agent, Now, Simulated, refusal};

const STARTING: SandboxState = SandboxState::SANDBOX_STATE_STARTING;
const RUNNING: SandboxState = SandboxState::SANDBOX_STATE_RUNNING;
const PAUSING: SandboxState = SandboxState::SANDBOX_STATE_PAUSING;
const PAUSED: SandboxState = SandboxState::SANDBOX_STATE_PAUSED;
const RESUMING: SandboxState = SandboxState::SANDBOX_STATE_RESUMING;
const FAILED: SandboxState = SandboxState::SANDBOX_STATE_FAILED;

/// Decision about a call.
enum Admit {
    /// It is done now; the sandbox has the new state.
    Run,
    /// It is decided again when the running operation has ended.
    Wait,
    /// There is nothing to do.
    Already,
}

fn of<'a>(now: &'a mut Now, id: &str) -> Result<&'a mut Simulated, ConnectError> {
    let unknown = || refusal(ErrorCode::NotFound, format!("this host has no sandbox {id}"));
    now.sandboxes.get_mut(id).ok_or_else(unknown)
}

fn not_now(id: &str, state: SandboxState) -> ConnectError {
    refusal(ErrorCode::InvalidState, format!("sandbox {id} has the state {state:?}: try it in another one"))
}

impl Agent {
    /// Describes a sandbox, if it is there.
    pub(super) fn described(&self, id: &str) -> Option<Sandbox> {
        self.now().sandboxes.get(id).map(|sandbox| sandbox.describe(id))
    }

    /// Notes what was called for a sandbox.
    pub(super) fn call(&self, what: &'static str, id: &str) {
        self.now().calls.push((what, id.to_owned()));
    }

    fn set(&self, id: &str, state: SandboxState) -> Result<(), ConnectError> {
        of(&mut self.now(), id)?.state = state;
        self.changed.send_replace(());
        Ok(())
    }

    /// Waits until a call can be decided, and decides it.
    async fn admit(
        &self,
        id: &str,
        decide: impl Fn(&mut Simulated) -> Result<Admit, ConnectError>,
    ) -> Result<Admit, ConnectError> {
        let mut changes = self.changed.subscribe();
        loop {
            let decided = decide(of(&mut self.now(), id)?)?;
            if !matches!(decided, Admit::Wait) {
                self.changed.send_replace(());
                return Ok(decided);
            }
            let _ = changes.changed().await;
        }
    }

    pub(super) async fn get(&self, request: GetRequest) -> Result<GetResponse, ConnectError> {
        let id = &request.sandbox_id;
        let sandbox = of(&mut self.now(), id)?.describe(id);
        Ok(GetResponse { sandbox: Some(sandbox).into(), ..Default::default() })
    }

    pub(super) async fn pause(&self, request: PauseRequest) -> Result<PauseResponse, ConnectError> {
        let id = &request.sandbox_id;
        self.call("pause", id);
        let admitted = self.admit(id, |sandbox| match sandbox.state {
            RUNNING => {
                sandbox.state = PAUSING;
                Ok(Admit::Run)
            }
            STARTING | PAUSING | RESUMING => Ok(Admit::Wait),
            PAUSED => Ok(Admit::Already),
            state => Err(not_now(id, state)),
        });
        if matches!(admitted.await?, Admit::Run) {
            let (takes, fails) = {
                let mut now = self.now();
                (now.takes, now.pause_fails.pop())
            };
            tokio::time::sleep(takes).await;
            let _open = self.life_gate.acquire().await;
            if let Some((code, message)) = fails {
                self.set(id, RUNNING)?;
                return Err(refusal(code, message));
            }
            of(&mut self.now(), id)?.pauses += 1;
            self.set(id, PAUSED)?;
        }
        Ok(PauseResponse { sandbox: self.described(id).into(), ..Default::default() })
    }

    pub(super) async fn resume(&self, request: ResumeRequest) -> Result<ResumeResponse, ConnectError> {
        let (id, from_disk) = (&request.sandbox_id, request.from_disk);
        self.call(if from_disk { "boot" } else { "resume" }, id);
        let _begun = self.begin_gate.acquire().await;
        let admitted = self.admit(id, |sandbox| match (sandbox.state, &sandbox.failure) {
            (PAUSED, Some((code, why))) if !from_disk => Err(refusal(*code, why)),
            (PAUSED, _) => {
                sandbox.state = RESUMING;
                Ok(Admit::Run)
            }
            (FAILED, _) if from_disk => {
                sandbox.state = RESUMING;
                Ok(Admit::Run)
            }
            (STARTING | PAUSING | RESUMING, _) => Ok(Admit::Wait),
            (RUNNING, _) => Ok(Admit::Already),
            (state, _) => Err(not_now(id, state)),
        });
        if matches!(admitted.await?, Admit::Run) {
            let (takes, fails) = {
                let mut now = self.now();
                (now.takes, now.resume_fails.pop())
            };
            tokio::time::sleep(takes).await;
            let _open = self.life_gate.acquire().await;
            if let Some((code, message)) = fails {
                self.set(id, PAUSED)?;
                return Err(refusal(code, message));
            }
            of(&mut self.now(), id)?.failure = None;
            self.set(id, RUNNING)?;
        }
        Ok(ResumeResponse { sandbox: self.described(id).into(), ..Default::default() })
    }

    /// Runs a command, which prints its name. A pause breaks it off.
    pub(super) async fn exec(&self, request: ExecRequest) -> Result<ExecResponse, ConnectError> {
        let id = &request.sandbox_id;
        self.call("exec", id);
        let mut changes = self.changed.subscribe();
        let ended = self.exec_gate.acquire();
        tokio::pin!(ended);
        loop {
            let state = of(&mut self.now(), id)?.state;
            if state != RUNNING {
                return Err(not_now(id, state));
            }
            tokio::select! {
                _ = &mut ended => break,
                _ = changes.changed() => {}
            }
        }
        let stdout = request.command.into_option().unwrap_or_default().cmd.into_bytes();
        Ok(ExecResponse { stdout, ..Default::default() })
    }
}
