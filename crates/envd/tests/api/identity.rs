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
    let (status, told) = init(&envd, &json!({"defaultUser": "no:user"}));
    assert!(status == 500 && String::from_utf8_lossy(&told).contains("is not a valid name"), "{status}");
    assert_eq!(printed(&envd, "id -un"), "a-user\n");
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
