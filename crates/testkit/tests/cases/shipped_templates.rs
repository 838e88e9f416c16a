// SPDX-License-Identifier: Apache-2.0
//! The recipes in `images`, built as templates of the platform with packages of Debian, and what they promise.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::json;
use wrenn_testkit::Stack;

use super::network::with_mirror;

/// Root of the repository, and the directory that `make test-long` fills with the packages.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const MIRROR: &str = "target/debian-mirror";
/// Seconds for a script in an emulated guest.
const SCRIPT_SEC: u64 = 600;
/// Packages are made and installed, in an environment and for the user. Debian's pip does not ask for an environment.
const PYTHON: &str = r#"set -e
mkdir -p /tmp/package && cd /tmp/package
printf 'from setuptools import setup\nsetup(name="six-times-seven", version="1", py_modules=["seven"])\n' > setup.py
echo 'ANSWER = 6 * 7' > seven.py
python -m venv --system-site-packages /tmp/venv
/tmp/venv/bin/pip install -q --no-index --no-build-isolation . >&2
/tmp/venv/bin/python -c 'import seven, sys; print(sys.prefix, seven.ANSWER)'
pip install -q --no-index --no-build-isolation . >&2
cd / && python -c 'import seven; print(seven.ANSWER)'"#;
/// A kernel runs code that it gets through the server's API.
const NOTEBOOK: &str = r#"
import asyncio, json, urllib.request as request, uuid
from tornado.websocket import websocket_connect

async def run(kernel):
    channel = await websocket_connect(f"ws://127.0.0.1:8888/api/kernels/{kernel}/channels")
    header = {"msg_id": uuid.uuid4().hex, "session": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "date": "",
              "version": "5.3"}
    content = {"code": "1+1", "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell", "buffers": []}
    await channel.write_message(json.dumps(message))
    while True:
        told = json.loads(await channel.read_message())
        if told["msg_type"] == "execute_result":
            return told["content"]["data"]["text/plain"]

async def main():
    asked = request.Request("http://127.0.0.1:8888/api/kernels", data=b"{}", method="POST")
    kernel = json.load(request.urlopen(asked))["id"]
    print(await asyncio.wait_for(run(kernel), 400))

asyncio.run(main())
"#;

/// Builds a recipe of `images` for all teams.
async fn build(stack: &Stack, name: &str) -> Result<()> {
    let recipe = Path::new(ROOT).join("images").join(name).join("Wrennfile").canonicalize()?;
    let recipe = recipe.to_str().context("a path that is no text")?.to_owned();
    let mut command = stack.command(&["template", "build", "--platform", "-f", &recipe, name])?;
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {told}");
    println!("  {}", told.lines().last().unwrap_or_default());
    Ok(())
}

/// Runs a program as the default user of a new sandbox of a template; returns its output.
async fn run(stack: &Stack, template: &str, program: &[&str]) -> Result<String> {
    let id = stack.api.create(&json!({"template": template})).await?;
    let body = json!({"cmd": program[0], "args": &program[1..], "timeout_sec": SCRIPT_SEC});
    let exec = stack.api.request(Method::POST, &format!("/v1/sandboxes/{id}/exec")).json(&body);
    let ran = stack.api.send(exec.timeout(Duration::from_secs(SCRIPT_SEC + 30))).await?.expect(200)?.json();
    stack.api.remove(&id).await?;
    ensure!(ran["exit_code"] == 0, "{template}: {ran}");
    Ok(ran["stdout"].as_str().unwrap_or_default().trim().to_owned())
}

async fn check(stack: &Stack) -> Result<()> {
    let python = run(stack, "minimal", &["sh", "-c", PYTHON]).await?;
    ensure!(python == "/tmp/venv 42\n42", "{python}");
    build(stack, "python").await?;
    let script = format!("pwd\n{PYTHON}\nid -un\ncc --version > /dev/null && echo compiles");
    let python = run(stack, "python", &["sh", "-c", &script]).await?;
    ensure!(python == "/home/wrenn-user\n/tmp/venv 42\n42\nwrenn-user\ncompiles", "{python}");
    build(stack, "node").await?;
    let node =
        run(stack, "node", &["sh", "-c", "node -e 'console.log(6 * 7)'; npm --version; id -un; pwd"]).await?;
    let lines: Vec<_> = node.lines().collect();
    ensure!(
        lines.len() == 4 && lines[0] == "42" && lines[2..] == ["wrenn-user", "/home/wrenn-user"],
        "{node}"
    );
    build(stack, "code-interpreter").await?;
    // At once: the server runs already.
    ensure!(run(stack, "code-interpreter", &["python3", "-c", NOTEBOOK]).await? == "2");
    let libraries =
        "import matplotlib, numpy, pandas; print(pandas.DataFrame({'a': numpy.arange(4)}).a.sum())";
    ensure!(run(stack, "code-interpreter", &["python3", "-c", libraries]).await? == "6");
    Ok(())
}

/// Each is built from Debian's packages, and has what it promises.
pub(crate) async fn they_have_what_they_promise() -> Result<()> {
    with_mirror(&Path::new(ROOT).join(MIRROR), async |stack: &Stack| check(stack).await).await
}
