// SPDX-License-Identifier: Apache-2.0
//! Contexts in their directory.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use wrenn_context::{Context, ContextError, Contexts, Limits};

use crate::support::{Store, all, copied, directory, file, tar, tree, zip};

impl Store {
    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("contexts").join(name)
    }
}

fn stored() -> (Store, Context) {
    let store = Store::new(Limits::default());
    let context = store.take(&tar(&[("a", file("1")), ("d", directory())], 0)).unwrap();
    (store, context)
}

#[test]
fn a_context_is_found_by_its_digest_until_it_is_removed() {
    let (store, context) = stored();
    let other = store.take(&tar(&[("a", file("2"))], 0)).unwrap();
    let mut digests = [context.digest.clone(), other.digest.clone()];
    digests.sort();
    let mut listed = store.contexts.list().unwrap();
    listed.sort();
    assert_eq!(listed, digests);
    // Also by another server, and after a restart.
    let again = Contexts::open(&store.path(""), Limits::default()).unwrap();
    let found = again.get(&context.digest).unwrap().unwrap();
    assert_eq!((all(&found), &found.digest), (all(&context), &context.digest));
    again.remove(&context.digest).unwrap();
    again.remove(&context.digest).unwrap();
    assert!(store.contexts.get(&context.digest).unwrap().is_none());
    assert_eq!(store.contexts.list().unwrap(), [other.digest]);
    assert_eq!(all(&found), tree(&[("a", file("1")), ("d", directory())]), "who has it reads on");
    let plain = fs::read(store.path(&format!("{}.tar", store.contexts.list().unwrap()[0]))).unwrap();
    assert_eq!(::tar::Archive::new(&plain[..]).entries().unwrap().count(), 1);
}

#[test]
fn files_are_for_the_server_alone() {
    let (store, _) = stored();
    for name in store.files() {
        assert_eq!(fs::metadata(store.path(&name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(store.path("")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn the_same_files_are_kept_once() {
    let (store, context) = stored();
    let before = store.files();
    let again = store.take(&zip(&[("d", directory()), ("a", file("1"))])).unwrap();
    assert_eq!((again.digest.as_str(), store.files()), (context.digest.as_str(), before));
    assert_eq!(all(&again), all(&context));
}

#[test]
fn what_is_no_digest_names_no_file() {
    let (store, context) = stored();
    fs::write(store.home.path().join("victim.json"), "{}").unwrap();
    for digest in ["", "..", "../victim", "lock", &context.digest.to_uppercase(), &context.digest[1..]] {
        assert!(store.contexts.get(digest).unwrap().is_none(), "{digest}");
        store.contexts.remove(digest).unwrap();
    }
    assert!(store.home.path().join("victim.json").exists());
    assert_eq!(store.files().len(), 3);
}

#[test]
fn what_is_damaged_is_not_used_and_is_replaced() {
    let (store, context) = stored();
    let index = store.path(&format!("{}.json", context.digest));
    let text = fs::read_to_string(&index).unwrap();
    for damaged in ["", "{}", &text.replace("\"a\"", "\"b\""), &text[..text.len() / 2]] {
        fs::write(&index, damaged).unwrap();
        assert!(matches!(store.contexts.get(&context.digest), Err(ContextError::Io(_))), "{damaged}");
    }
    let again = store.take(&tar(&[("d", directory()), ("a", file("1"))], 0)).unwrap();
    assert_eq!((all(&again), again.digest), (all(&context), context.digest.clone()));
    assert!(store.contexts.get(&context.digest).unwrap().is_some());
    let content = store.path(&format!("{}.tar", context.digest));
    fs::write(&content, vec![7; fs::metadata(&content).unwrap().len() as usize]).unwrap();
    let found = store.contexts.get(&context.digest).unwrap().unwrap();
    let selection = found.select(&copied(&["a"], "/x/")).unwrap();
    let error = selection.write_tar(&mut io::sink()).unwrap_err();
    assert!(error.to_string().contains("\"a\" is not as it was uploaded"), "{error}");
    fs::remove_file(&content).unwrap();
    assert!(store.contexts.get(&context.digest).unwrap().is_none());
}

#[test]
fn what_a_server_left_goes_when_nobody_can_be_writing_it() {
    let (store, context) = stored();
    let upload = store.contexts.upload_path();
    assert_ne!(upload, store.contexts.upload_path());
    let half = store.path(&format!("{}.tar", "0".repeat(64)));
    let left = [upload, half, store.path("0.new"), store.path("1.json.7.new")];
    for path in &left {
        fs::write(path, "half").unwrap();
    }
    let kept = store.path(&format!("{}.tar", context.digest));
    store.contexts.clean().unwrap();
    assert!(left.iter().all(|path| path.exists()), "another server may be writing them");
    for path in left.iter().chain([&kept]) {
        let long_ago = SystemTime::now() - Duration::from_secs(2 * 3600);
        File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }
    let again = Contexts::open(&store.path(""), Limits::default()).unwrap();
    assert!(!left.iter().any(|path| path.exists()));
    assert_eq!(all(&again.get(&context.digest).unwrap().unwrap()), all(&context));
}

#[test]
fn who_takes_no_more_ends_the_writing() {
    /// Takes a few bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let store = Store::new(Limits::default());
    let context = store.take(&tar(&[("a", file(&"1".repeat(500_000)))], 0)).unwrap();
    let selection = context.select(&copied(&["."], "/x/")).unwrap();
    assert!(matches!(selection.write_tar(&mut Full(300_000)), Err(ContextError::Io(_))));
    assert!(selection.write_tar(&mut Full(600_000)).is_ok());
}
