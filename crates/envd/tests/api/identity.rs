// SPDX-License-Identifier: Apache-2.0
//! What the host tells of the sandbox: its default user, and its ids in the environment.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::client::Envd;

/// Starts envd with a copy of the directory /etc and an empty /home, so that it changes nothing here.
fn start(dir: &tempfile::TempDir) -> Envd {
    let script = "cp -a /etc \"$1/etc\" && mkdir -p \"$1/etc/sudoers.d\" && mount --bind \"$1/etc\" /etc && \
                  mount -t tmpfs none /home && exec \"$2\" --port 0";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-c", script, "sh"]).arg(dir.path()).arg(env!("CARGO_BIN_EXE_envd"));
    Envd::spawn(command)
}

fn init(envd: &Envd, body: &Value) -> (u16, Vec<u8>) {
    envd.http("POST", "/init", &[], body.to_string().as_bytes())
}

fn printed(envd: &Envd, script: &str) -> String {
    let run = envd.sh(script).finish();
    assert_eq!(run.end["status"], "exit status 0", "{run:?}");
    String::from_utf8(run.stdout).unwrap()
}

#[test]
fn a_default_user_that_is_not_there_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let envd = start(&dir);
    // The name stays what it is when settings come again.
    for _ in 0..2 {
        assert_eq!(init(&envd, &json!({"defaultUser": "a-user"})), (204, Vec::new()));
    }
    let script = "id -un; id -gn; id -u; pwd; echo $HOME $USER; touch file; stat -c '%U %G' . file";
    let told = printed(&envd, script);
    let lines: Vec<_> = told.lines().collect();
    let id: u32 = lines[2].parse().unwrap();
    assert!((1000..60_000).contains(&id), "{told}");
    let home = "/home/a-user";
    let (both, variables) = ("a-user a-user", format!("{home} a-user"));
    assert_eq!(
        [&lines[..2], &lines[3..]].concat(),
        ["a-user", "a-user", home, &*variables, both, both],
        "{told}"
    );
    let sudo = fs::read_to_string(dir.path().join("etc/sudoers.d/a-user")).unwrap();
    assert_eq!(sudo, "a-user ALL=(ALL) NOPASSWD:ALL\n");
    let (status, told) = init(&envd, &json!({"defaultUser": "no/user"}));
    assert!(status == 500 && String::from_utf8_lossy(&told).contains("is not a valid name"), "{status}");
    assert_eq!(printed(&envd, "id -un"), "a-user\n");
}

#[test]
fn a_user_is_created_on_request_and_needs_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let envd = start(&dir);
    assert_eq!(init(&envd, &json!({"accessToken": "secret"})).0, 204);
    let token = ("x-access-token", "secret");
    let make = |headers: &[(&str, &str)], body: &str| {
        let (status, told) = envd.http("POST", "/users", headers, body.as_bytes());
        (status, String::from_utf8_lossy(&told).into_owned())
    };
    let passwd = || fs::read_to_string(dir.path().join("etc/passwd")).unwrap();
    let before = passwd();
    assert_eq!(make(&[], r#"{"name":"app"}"#).0, 401);
    for wrong in ["", "{}", r#"{"name":""}"#, r#"{"name":"no/user"}"#, r#"{"name":"../x"}"#] {
        let (status, told) = make(&[token], wrong);
        assert_eq!(status, 400, "{wrong}: {told}");
    }
    // Neither those that are there nor numbers get an account.
    for present in ["root", "nobody", "4242"] {
        assert_eq!(make(&[token], &json!({"name": present}).to_string()), (204, String::new()));
    }
    assert_eq!(passwd(), before);
    for _ in 0..2 {
        assert_eq!(make(&[token], r#"{"name":"app"}"#), (204, String::new()));
    }
    let accounts = passwd();
    assert_eq!(accounts.lines().filter(|line| line.starts_with("app:")).count(), 1);
    let printed = |basic: &str, script: &str| {
        let request = json!({"process": {"cmd": "sh", "args": ["-c", script]}, "stdin": false});
        let run = envd.stream("Start", &[token, ("authorization", basic)], &request).finish();
        assert_eq!(run.end["status"], "exit status 0", "{run:?}");
        String::from_utf8(run.stdout).unwrap()
    };
    // "app:"
    assert_eq!(printed("Basic YXBwOg==", "id -un; id -gn; pwd"), "app\napp\n/home/app\n");
    // "4242:"
    assert_eq!(printed("Basic NDI0Mjo=", "id -u; id -g; id -G; pwd; echo $HOME"), "4242\n4242\n4242\n/\n/\n");
}

#[test]
fn commands_begin_in_the_directory_of_the_sandbox() {
    let envd = Envd::start();
    assert_eq!(init(&envd, &json!({"defaultWorkdir": "/usr/lib"})).0, 204);
    assert_eq!(printed(&envd, "pwd"), "/usr/lib\n");
    // Settings that do not name it leave it, and an empty one takes it away.
    assert_eq!(init(&envd, &json!({"sandboxId": "sb1"})).0, 204);
    assert_eq!(printed(&envd, "pwd"), "/usr/lib\n");
    assert_eq!(init(&envd, &json!({"defaultWorkdir": ""})).0, 204);
    assert_eq!(printed(&envd, "pwd; echo $HOME"), "/root\n/root\n");
}

#[test]
fn programs_know_their_sandbox() {
    let envd = Envd::start();
    let settings =
        json!({"sandboxId": "sb1", "templateId": "t1", "envVars": {"E2B_TEMPLATE_ID": "own", "A": "b"}});
    assert_eq!(init(&envd, &settings).0, 204);
    let told = printed(&envd, "env | grep -E '^(WRENN|E2B|A=)' | sort");
    let own = "A=b\nE2B_SANDBOX=true\nE2B_SANDBOX_ID=sb1\nE2B_TEMPLATE_ID=own\n";
    assert_eq!(told, format!("{own}WRENN_SANDBOX=true\nWRENN_SANDBOX_ID=sb1\nWRENN_TEMPLATE_ID=t1\n"));
    // They are no variables of the user.
    assert_eq!(envd.http("GET", "/envs", &[], b"").1, br#"{"A":"b","E2B_TEMPLATE_ID":"own"}"#);
}
