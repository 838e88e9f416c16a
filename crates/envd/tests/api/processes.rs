// SPDX-License-Identifier: Apache-2.0
//! Processes: output, input, exit and errors.

use std::{env, net::Shutdown, process::Command, thread};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::client::{Envd, alive, eventually};

#[test]
fn output_is_complete_to_the_last_byte() {
    let envd = Envd::start();
    for _ in 0..200 {
        let run =
            envd.sh("head -c 65536 /dev/zero | tr '\\0' x; printf end; printf err >&2; exit 3").finish();
        assert_eq!(run.stdout.len(), 65539);
        assert!(run.stdout.ends_with(b"xend"));
        assert_eq!(run.stderr, b"err");
        assert_eq!((&run.end["exitCode"], &run.end["status"]), (&json!(3), &json!("exit status 3")));
        assert!(run.error.is_null() && run.end["error"] == "exit status 3", "{}", run.end);
    }
}

/// A pipe has 64 KiB, so each of these commands exits before all of its output is read.
#[test]
fn many_short_commands_lose_no_byte() {
    let envd = Envd::start();
    let count = if env::var_os("LONG_TESTS").is_some() { 20_000 } else { 1000 };
    thread::scope(|scope| {
        for way in 0..4 {
            let envd = &envd;
            scope.spawn(move || {
                for number in (way..count).step_by(4) {
                    let run = envd.sh(&format!("printf %065536d {number}")).finish();
                    let wanted = format!("{}{number:05}", "0".repeat(65531));
                    let same = run.stdout.iter().zip(wanted.as_bytes()).take_while(|(a, b)| a == b).count();
                    assert_eq!(
                        (same, run.stdout.len()),
                        (65536, 65536),
                        "command {number}: right, all bytes"
                    );
                    assert_eq!(run.end["exitCode"].as_i64().unwrap_or_default(), 0, "{}", run.end);
                }
            });
        }
    });
}

#[test]
fn output_larger_than_the_buffer_is_not_lost_to_a_reading_client() {
    let run = Envd::start().sh("head -c 8000000 /dev/zero").finish();
    assert_eq!(run.stdout.len(), 8_000_000);
}

#[test]
fn input_reaches_the_process_until_it_is_closed() {
    let envd = Envd::start();
    let mut events =
        envd.stream("Start", &[], &json!({"process": {"cmd": "cat"}, "stdin": true, "tag": "t"}));
    events.pid();
    let input = json!({"process": {"tag": "t"}, "input": {"stdin": STANDARD.encode("hello")}});
    assert_eq!(envd.unary("process.Process/SendInput", &input).0, 200);
    assert_eq!(envd.unary("process.Process/List", &json!({})).1["processes"][0]["tag"], "t");
    assert_eq!(envd.unary("process.Process/CloseStdin", &json!({"process": {"tag": "t"}})).0, 200);
    let run = events.finish();
    assert_eq!((run.stdout.as_slice(), &run.end["exited"]), (&b"hello"[..], &json!(true)));
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let envd = Envd::start();
    let mut events = envd.sh("sleep 1000 & echo $!; wait");
    let pid = events.pid();
    let child = String::from_utf8(events.data()).unwrap().trim().to_owned();
    assert!(alive(&child));
    let request = json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"});
    assert_eq!(envd.unary("process.Process/SendSignal", &request).0, 200);
    let run = events.finish();
    assert_eq!((&run.end["exitCode"], &run.end["status"]), (&json!(-1), &json!("signal: killed")));
    eventually("the grandchild is killed", || !alive(&child));
    eventually("an ended process takes no signals", || {
        envd.unary("process.Process/SendSignal", &request).0 == 404
    });
}

/// Starts a process with this id, which is free.
fn foreign(pid: u64) -> std::process::Child {
    for _ in 0..500 {
        // Others take ids at the same time.
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        if u64::from(child.id()) == pid {
            return child;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    panic!("no process got the id {pid}");
}

#[test]
fn a_process_that_gets_the_id_of_an_ended_one_is_left_alone() {
    let envd = Envd::start();
    let mut ended = envd.sh("echo mine; exit 3");
    let pid = ended.pid();
    ended.finish();
    let mut other = foreign(pid);
    let process = json!({"process": {"pid": pid}});
    let kill = json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"});
    assert_eq!(envd.unary("process.Process/SendSignal", &kill).0, 404);
    let input = json!({"process": {"pid": pid}, "input": {"stdin": "eA=="}});
    assert_ne!(envd.unary("process.Process/SendInput", &input).0, 200);
    let run = envd.stream("Connect", &[], &process).finish();
    assert_eq!(
        (run.stdout.as_slice(), &run.end["exitCode"]),
        (&b"mine\n"[..], &json!(3)),
        "of another process"
    );
    assert!(other.try_wait().unwrap().is_none(), "it was killed");
    other.kill().unwrap();
    other.wait().unwrap();
}

/// Starts envd in a namespace of process ids, in which only it and its commands take any.
fn with_own_ids() -> Envd {
    let mut command = Command::new("unshare");
    // The first process of the namespace is a shell, because envd as the first one would boot.
    let script = "\"$0\" --port 0 & wait";
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--", "sh", "-c", script]);
    command.arg(env!("CARGO_BIN_EXE_envd"));
    Envd::spawn(command)
}

#[test]
fn an_id_that_can_still_be_read_is_not_given_to_another_process() {
    let envd = with_own_ids();
    // A thread of envd may take the id instead.
    for _ in 0..20 {
        let mut ended = envd.sh("echo mine; exit 3");
        let pid = ended.pid();
        ended.finish();
        let back = envd.sh(&format!("echo {} > /proc/sys/kernel/ns_last_pid", pid - 1)).finish();
        assert_eq!(back.end["status"], "exit status 0", "{}", String::from_utf8_lossy(&back.stderr));
        let mut other = envd.sh("echo other; exec sleep 1000");
        let other_pid = other.pid();
        assert_ne!(other_pid, pid, "it was given again");
        assert_eq!(other.data(), b"other\n");
        let kill = |pid: u64| {
            let request = json!({"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"});
            envd.unary("process.Process/SendSignal", &request).0
        };
        assert_eq!(kill(pid), 404);
        let run = envd.stream("Connect", &[], &json!({"process": {"pid": pid}})).finish();
        assert_eq!((run.stdout.as_slice(), &run.end["exitCode"]), (&b"mine\n"[..], &json!(3)));
        assert_eq!(kill(other_pid), 200);
        assert_eq!(other.finish().end["signal"], 9);
    }
}

#[test]
fn an_ended_process_can_be_read_for_a_time() {
    let envd = Envd::start_with(&["--readable", "5"]);
    let process = json!({"process": {"tag": "ended"}});
    let mut events = envd.stream(
        "Start",
        &[],
        &json!({"process": {"cmd": "sh", "args": ["-c", "echo it; exit 3"]}, "tag": "ended"}),
    );
    events.pid();
    drop(events);
    let run = envd.stream("Connect", &[], &process).finish();
    assert_eq!((run.stdout.as_slice(), &run.end["exitCode"]), (&b"it\n"[..], &json!(3)));
    eventually("it is forgotten", || {
        envd.stream("Connect", &[], &process).finish().error["code"] == "not_found"
    });
}

/// That it reaches those that left the process group needs cgroups, as guests have them: an end-to-end case.
#[test]
fn any_signal_can_be_sent() {
    let envd = Envd::start();
    let mut events = envd.sh("trap 'echo told; exit 5' INT; echo ready; while :; do sleep 0.1; done");
    let pid = events.pid();
    assert_eq!(events.data(), b"ready\n");
    let signal = |signal: Value| {
        envd.unary("process.Process/SendSignal", &json!({"process": {"pid": pid}, "signal": signal}))
    };
    assert_eq!(signal(json!(0)).1["code"], "invalid_argument");
    assert_eq!(signal(json!(65)).1["code"], "invalid_argument");
    let (status, reached) = signal(json!(2));
    assert!(status == 200 && reached["pid"] == pid && reached["processes"].as_u64() >= Some(1), "{reached}");
    let run = events.finish();
    assert_eq!((&run.end["exitCode"], run.stdout.as_slice()), (&json!(5), &b"told\n"[..]), "{}", run.end);
    eventually("nothing is left", || signal(json!(15)).0 == 404);
}

#[test]
fn a_tag_names_one_running_process() {
    let envd = Envd::start();
    let start = |cmd: &str| {
        let process = json!({"cmd": "sh", "args": ["-c", cmd]});
        envd.stream("Start", &[], &json!({"process": process, "tag": "one", "stdin": true}))
    };
    let mut first = start("echo first; read x");
    let pid = first.pid();
    let refused = start("echo second").finish().error;
    assert_eq!((&refused["code"], fault(&refused)), (&json!("already_exists"), "conflict".to_owned()));
    let one = json!({"tag": "one"});
    let listed = envd.unary("process.Process/List", &json!({})).1["processes"][0].clone();
    assert!(listed["pid"] == pid && listed["tag"] == "one" && listed["user"].is_string(), "{listed}");
    let started: u64 = listed["startedAtUnixMs"].as_str().unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    assert!(started <= now && now - started < 60_000, "{listed}");
    envd.unary("process.Process/CloseStdin", &json!({"process": one}));
    assert_eq!(first.finish().stdout, b"first\n");
    eventually("the tag is free", || start("echo third").finish().stdout == b"third\n");
    // Of several that had it, the last.
    let last = envd.stream("Connect", &[], &json!({"process": one})).finish();
    assert_eq!(last.stdout, b"third\n");
}

#[test]
fn a_client_reads_from_where_it_likes() {
    let envd = Envd::start();
    let request = json!({"process": {"cmd": "sh", "args": ["-c", "printf 0123456789; read x; printf end"]}, "stdin": true});
    let mut first = envd.stream("Start", &[], &request);
    let pid = first.pid();
    assert_eq!(first.data(), b"0123456789");
    let connect = |from: Value| {
        let mut request = json!({"process": {"pid": pid}});
        request.as_object_mut().unwrap().extend(from.as_object().unwrap().clone());
        envd.stream("Connect", &[], &request)
    };
    let mut all = [json!({}), json!({"offset": "7"}), json!({"now": true})].map(connect);
    let offsets = all.each_mut().map(|events| events.start()["offset"].as_str().unwrap_or("0").to_owned());
    assert_eq!(offsets, ["0", "7", "10"]);
    assert_eq!(connect(json!({"offset": "11"})).finish().error["code"], "out_of_range");
    envd.unary("process.Process/CloseStdin", &json!({"process": {"pid": pid}}));
    let read = all.map(|events| String::from_utf8(events.finish().stdout).unwrap());
    assert_eq!(read, ["0123456789end", "789end", "end"]);
}

#[test]
fn input_comes_as_a_stream_too() {
    let envd = Envd::start();
    let mut events = envd.stream("Start", &[], &json!({"process": {"cmd": "cat"}, "stdin": true}));
    let pid = events.pid();
    let data = |text: &str| json!({"data": {"input": {"stdin": STANDARD.encode(text)}}});
    let start = json!({"start": {"process": {"pid": pid}}});
    let sent =
        envd.messages("StreamInput", &[start.clone(), data("one "), json!({"keepalive": {}}), data("two")]);
    assert!(sent.finish().error.is_null());
    envd.unary("process.Process/CloseStdin", &json!({"process": {"pid": pid}}));
    assert_eq!(events.finish().stdout, b"one two");
    let code = |messages: &[Value]| envd.messages("StreamInput", messages).finish().error["code"].clone();
    assert_eq!(code(&[data("x")]), "invalid_argument");
    assert_eq!(code(&[json!({"start": {"process": {"pid": 999_999}}})]), "not_found");
}

#[test]
fn a_deadline_kills_and_says_so_after_the_output() {
    let envd = Envd::start();
    let request =
        json!({"process": {"cmd": "sh", "args": ["-c", "echo so far; sleep 1000"]}, "stdin": false});
    let run = envd.stream("Start", &[("connect-timeout-ms", "3000")], &request).finish();
    assert_eq!(run.stdout, b"so far\n");
    assert_eq!(
        (&run.end["status"], &run.error["code"]),
        (&json!("signal: killed"), &json!("deadline_exceeded"))
    );
}

#[test]
fn a_disconnect_kills_only_when_asked() {
    let envd = Envd::start();
    let request = json!({"process": {"cmd": "sleep", "args": ["1000"]}, "stdin": false});
    let mut kept = envd.stream("Start", &[], &request);
    let mut killed = envd.stream("Start", &[("x-wrenn-kill-on-disconnect", "1")], &request);
    let (kept_pid, killed_pid) = (kept.pid().to_string(), killed.pid().to_string());
    for events in [&kept, &killed] {
        events.reader.get_ref().shutdown(Shutdown::Both).unwrap();
    }
    eventually("the process ends with its connection", || !alive(&killed_pid));
    assert!(alive(&kept_pid));
    envd.unary(
        "process.Process/SendSignal",
        &json!({"process": {"pid": kept_pid.parse::<u64>().unwrap()}, "signal": "SIGNAL_SIGTERM"}),
    );
    eventually("it ends when told to", || !alive(&kept_pid));
}

#[test]
fn a_terminal_has_its_size() {
    let envd = Envd::start();
    let request = json!({"process": {"cmd": "sh", "args": ["-c", "stty size; read x; stty size"]},
        "pty": {"size": {"cols": 100, "rows": 30}}});
    let mut events = envd.stream("Start", &[], &request);
    let pid = events.pid();
    let mut said = Vec::new();
    while !said.ends_with(b"\n") {
        said.extend(events.data());
    }
    assert_eq!(said, b"30 100\r\n");
    let update = json!({"process": {"pid": pid}, "pty": {"size": {"cols": 90, "rows": 20}}});
    assert_eq!(envd.unary("process.Process/Update", &update).0, 200);
    let input = json!({"process": {"pid": pid}, "input": {"pty": STANDARD.encode("\n")}});
    assert_eq!(envd.unary("process.Process/SendInput", &input).0, 200);
    let run = events.finish();
    assert!(String::from_utf8(run.pty).unwrap().contains("20 90\r\n"));
}

#[test]
fn a_hundred_clients_read_the_same_output() {
    let envd = Envd::start();
    let mut first = envd.sh("echo begin; read x < /dev/null; head -c 300000 /dev/zero; echo end");
    let pid = first.pid();
    let whole = first.finish().stdout;
    assert_eq!(whole.len(), 300_010);
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                let run = envd.stream("Connect", &[], &json!({"process": {"pid": pid}})).finish();
                assert!(run.stdout == whole && run.end["exited"] == true);
            });
        }
    });
}

#[test]
fn bad_requests_are_told_apart() {
    let envd = Envd::start();
    let code = |headers: &[(&str, &str)], process: Value| {
        let run = envd.stream("Start", headers, &json!({"process": process})).finish();
        (run.error["code"].as_str().unwrap().to_owned(), run.error["message"].as_str().unwrap().to_owned())
    };
    assert_eq!(
        code(&[], json!({"cmd": "no-such"})),
        ("not_found".into(), "command not found: no-such".into())
    );
    assert_eq!(code(&[], json!({"cmd": "sh", "cwd": "/no/such"})).0, "invalid_argument");
    assert_eq!(code(&[], json!({"cmd": "/etc/passwd"})).0, "permission_denied");
    let who = [("authorization", "Basic bm9ib2R5LWhlcmU6")];
    let expected = ("unauthenticated".into(), "invalid username: 'nobody-here'".into());
    assert_eq!(code(&who, json!({"cmd": "sh"})), expected);
    let call = |method: &str, body: Value| {
        envd.unary(&format!("filesystem.Filesystem/{method}"), &body).1["code"].clone()
    };
    assert_eq!(call("Stat", json!({"path": "a\0b"})), "invalid_argument");
    assert_eq!(call("Stat", json!({"path": "a".repeat(5000)})), "invalid_argument");
    assert_eq!(call("ListDir", json!({"path": "/no/such"})), "not_found");
    assert_eq!(call("ListDir", json!({"path": "/etc/passwd"})), "invalid_argument");
}

/// A guest that does not take what makes it one of its own is not handed out.
#[test]
fn an_init_that_is_not_done_as_a_whole_fails() {
    let envd = Envd::start();
    for (body, told) in [
        (r#"{"entropy":"AAAAAAAAAAA=","accessToken":"secret"}"#, "no randomness of its own"),
        (r#"{"entropy":"no base 64"}"#, "no randomness of its own"),
        // Before 1970 no clock can be.
        (r#"{"timestamp":"1960-01-01T00:00:00Z"}"#, "the clock cannot be set"),
    ] {
        let (status, answer) = envd.http("POST", "/init", &[], body.as_bytes());
        assert_eq!(status, 500, "{body}");
        assert!(String::from_utf8_lossy(&answer).contains(told), "{body}");
    }
    assert_eq!(envd.http("GET", "/envs", &[], b"").0, 200, "its token is not set");
}

#[test]
fn once_set_the_token_is_required_everywhere_but_for_health() {
    let envd = Envd::start();
    assert_eq!(envd.http("POST", "/init", &[], br#"{"accessToken":"secret","envVars":{"A":"b"}}"#).0, 204);
    for (method, path) in [
        ("POST", "/init"),
        ("GET", "/envs"),
        ("GET", "/metrics"),
        ("GET", "/files?path=/etc/passwd"),
        ("POST", "/files?path=/tmp/x"),
        ("POST", "/process.Process/List"),
        ("POST", "/process.Process/Start"),
        ("POST", "/filesystem.Filesystem/Stat"),
        ("GET", "/no-such"),
    ] {
        assert_eq!(envd.http(method, path, &[], b"{}").0, 401, "{method} {path}");
        assert_eq!(envd.http(method, path, &[("x-access-token", "wrong")], b"{}").0, 401, "{method} {path}");
    }
    assert_eq!(envd.http("GET", "/health", &[], b"").0, 204);
    assert_eq!(
        envd.http("GET", "/envs", &[("x-access-token", "secret")], b""),
        (200, br#"{"A":"b"}"#.to_vec())
    );
}

/// Returns the code of the error detail.
fn fault(error: &Value) -> String {
    let detail = &error["details"][0];
    assert_eq!(detail["type"], "host.v1.Fault", "{error}");
    let bytes =
        base64::engine::general_purpose::STANDARD_NO_PAD.decode(detail["value"].as_str().unwrap()).unwrap();
    // Protobuf field 1, a string.
    String::from_utf8(bytes[2..2 + usize::from(bytes[1])].to_vec()).unwrap()
}

#[test]
fn why_a_process_was_not_started_has_a_code_of_its_own() {
    let envd = Envd::start();
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str, mode: u32| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let refused = |headers: &[(&str, &str)], process: Value| {
        let error = envd.stream("Start", headers, &json!({"process": process})).finish().error;
        (
            error["code"].as_str().unwrap().to_owned(),
            fault(&error),
            error["message"].as_str().unwrap().to_owned(),
        )
    };
    let (code, fault, _) = refused(&[], json!({"cmd": "no-such"}));
    assert_eq!((&*code, &*fault), ("not_found", "program_not_found"));
    let (code, fault, _) = refused(&[], json!({"cmd": "true", "cwd": "/no/such"}));
    assert_eq!((&*code, &*fault), ("invalid_argument", "directory_not_found"));
    let nobody = [("authorization", "Basic bm9ib2R5LWhlcmU6")];
    let (code, fault, _) = refused(&nobody, json!({"cmd": "true"}));
    assert_eq!((&*code, &*fault), ("unauthenticated", "user_not_found"));
    for cmd in ["/etc/passwd", "/tmp", &script("no-x", "#!/bin/sh\n", 0o644)] {
        let (code, fault, _) = refused(&[], json!({"cmd": cmd}));
        assert_eq!((&*code, &*fault), ("permission_denied", "program_not_executable"), "{cmd}");
    }
    let (_, fault, text) = refused(&[], json!({"cmd": script("missing", "#!/opt/no/python\n", 0o755)}));
    assert!(
        fault == "program_not_executable" && text.contains("\"/opt/no/python\" does not exist"),
        "{text}"
    );
    let (_, fault, text) = refused(&[], json!({"cmd": script("dos", "#!/bin/sh\r\necho\r\n", 0o755)}));
    assert!(
        fault == "program_not_executable" && text.contains("/bin/sh\\r") && text.contains("CRLF"),
        "{text}"
    );
    // A script without `#!` is run by the shell.
    let plain = json!({"process": {"cmd": script("plain", "echo ran", 0o755)}, "stdin": false});
    assert_eq!(envd.stream("Start", &[], &plain).finish().stdout, b"ran\n");
    // Long names are shortened in the error; the test client limits the message size.
    let long = "x".repeat(1 << 20);
    assert_eq!(refused(&[], json!({"cmd": long})).1, "program_not_found");
    assert_eq!(refused(&[], json!({"cmd": "true", "cwd": long})).1, "directory_not_found");
}

#[test]
fn every_signal_that_ends_a_process_is_told_by_its_number() {
    let envd = Envd::start();
    let ended = |signal: u32| envd.sh(&format!("kill -{signal} $$")).finish().end;
    for (signal, status) in
        [(10, "user defined signal 1"), (14, "alarm clock"), (31, "bad system call"), (35, "35")]
    {
        let end = ended(signal);
        assert_eq!((&end["signal"], &end["exitCode"]), (&json!(signal), &json!(-1)), "{end}");
        let told = end["status"].as_str().unwrap().trim_end_matches(" (core dumped)");
        assert_eq!(told, format!("signal: {status}"));
    }
    assert!(envd.sh("exit 3").finish().end["signal"].is_null());
}

#[test]
fn output_that_is_missing_is_told_where_it_is_missing() {
    let envd = Envd::start();
    let mut events = envd.sh("head -c 3000000 /dev/zero; echo end");
    let pid = events.pid();
    let whole = events.finish();
    assert!(whole.lost.is_empty() && whole.stdout.len() == 3_000_004);
    let late = envd.stream("Connect", &[], &json!({"process": {"pid": pid}})).finish();
    let [(lost, 0)] = late.lost[..] else { panic!("{:?}", late.lost) };
    assert_eq!(lost as usize + late.stdout.len(), 3_000_004);
    assert_eq!(late.end["lostBytes"], lost.to_string());
}

#[test]
fn input_that_nobody_reads_stops_neither_close_nor_end() {
    let envd = Envd::start();
    let request = json!({"process": {"cmd": "sleep", "args": ["1000"]}, "stdin": true});
    let mut events = envd.stream("Start", &[], &request);
    let pid = events.pid();
    let process = json!({"pid": pid});
    // More than a pipe can hold.
    let input = json!({"process": process, "input": {"stdin": STANDARD.encode(vec![0; 1 << 20])}});
    thread::scope(|scope| {
        let writing = scope.spawn(|| envd.unary("process.Process/SendInput", &input));
        eventually("the pipe is full", || pipe_holds(pid) == 64 << 10);
        assert_eq!(envd.unary("process.Process/CloseStdin", &json!({"process": process})).0, 200);
        let kill = json!({"process": process, "signal": "SIGNAL_SIGKILL"});
        assert_eq!(envd.unary("process.Process/SendSignal", &kill).0, 200);
        assert_eq!(events.finish().end["signal"], 9);
        eventually("it is no more listed", || {
            envd.unary("process.Process/List", &json!({})).1["processes"].as_array().is_none_or(Vec::is_empty)
        });
        assert_eq!(writing.join().unwrap().1["code"], "failed_precondition");
    });
}

/// Number of unread bytes in the standard input of a process.
fn pipe_holds(pid: u64) -> u64 {
    let pipe = std::fs::File::open(format!("/proc/{pid}/fd/0")).unwrap();
    rustix::io::ioctl_fionread(&pipe).unwrap()
}
