// SPDX-License-Identifier: Apache-2.0
//! How commands report failures: exit status, standard error, and an object with `--json`.
#![allow(clippy::unwrap_used)]

use std::{
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

const ID: &str = "sb00000000000000000000000a1";

fn wrenn(arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_wrenn"))
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", home.path())
        .env("WRENN_API_KEY", "wrn_x")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// URL on which nothing listens.
fn nowhere() -> String {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("http://{free}")
}

fn error(output: &Output) -> Value {
    let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    value["error"].clone()
}

#[test]
fn run_and_exec_have_a_status_of_their_own_for_our_failures() {
    let url = nowhere();
    for (arguments, status) in [
        (vec!["run", "--url", &url, "--", "false"], 125),
        (vec!["sandbox", "exec", "--url", &url, ID, "--", "false"], 125),
        (vec!["run", "--set", "no.such=key", "--", "false"], 125),
        (vec!["run", "--url", "localhost", "false"], 125),
        (vec!["sandbox", "ls", "--url", &url], 1),
        (vec!["run", "--memory-mb", "much", "false"], 2),
        (vec!["run"], 2),
    ] {
        let output = wrenn(&arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn with_json_an_error_is_an_object() {
    let url = nowhere();
    for (arguments, code) in [
        (vec!["--json", "run", "--url", &url, "false"], "unreachable"),
        (vec!["--json", "sandbox", "ls", "--url", &url], "unreachable"),
        (vec!["--json", "sandbox", "ls", "--url", "localhost"], "invalid_url"),
        (vec!["--json", "sandbox", "ls", "--set", "no.such=key"], "invalid_configuration"),
        (vec!["--json", "sandbox", "get", "No Sense"], "usage"),
        (vec!["--json", "run"], "usage"),
    ] {
        let output = wrenn(&arguments);
        let error = error(&output);
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().unwrap().len() > 10, "{error}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn messages_name_what_is_wrong() {
    let url = nowhere();
    for (arguments, told) in [
        (vec!["sandbox", "ls", "--url", "localhost"], "write http://HOST:PORT"),
        (vec!["sandbox", "ls", "--url", &url], "Start it with `wrenn up`"),
        (vec!["sandbox", "ls", "--set", "server.lissten=x"], "did you mean server.listen?"),
        (vec!["sandbox", "ls", "--set", "agent.driver=kvmm"], "--set agent.driver=kvmm: not one of auto"),
        (vec!["run", "--memory-mb", "much", "true"], "a number of MiB, such as 1024"),
    ] {
        let output = wrenn(&arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(told) && text.len() < 400, "{text}");
    }
}

#[test]
fn what_is_printed_is_json_where_that_is_asked_for() {
    let output = wrenn(&["--json", "openapi"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(wrenn(&["openapi"]).stdout.starts_with(b"openapi: 3.1.0"));
}
