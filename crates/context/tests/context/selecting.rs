// SPDX-License-Identifier: Apache-2.0
//! What a COPY takes, as recipes have it.

use std::collections::BTreeMap;

use wrenn_context::{Context, SelectError};
use wrenn_recipe::{Action, Copied, Source};

use crate::support::{Thing, copied, directory, file, link, taken, tar, tree, unpacked};

fn sample() -> Context {
    let entries = [
        (".hidden", file("h")),
        ("app", Thing::Directory(0o750)),
        ("app/main.py", Thing::File(0o755, b"main".to_vec())),
        ("app/sub/x.py", file("x")),
        ("app/to-readme", link("../readme.md")),
        ("conf.d/x.py", file("other")),
        ("empty", directory()),
        ("package-lock.json", file("lock")),
        ("package.json", file("package")),
        ("readme.md", file("readme")),
        ("start", link("app/main.py")),
        ("there", link("app")),
    ];
    taken(&tar(&entries, 0)).unwrap()
}

/// Reads a COPY of a recipe.
fn read(line: &str) -> Copied {
    let recipe = wrenn_recipe::parse(line.as_bytes()).unwrap();
    let mut state = wrenn_recipe::Context { workdir: "/srv".to_owned(), ..wrenn_recipe::Context::default() };
    match state.apply(&recipe.steps[0]).unwrap() {
        Action::Copy(copied) => copied,
        other => panic!("{other:?}"),
    }
}

/// Returns the absolute paths of what is copied, with it.
fn select(line: &str) -> Result<BTreeMap<String, Thing>, SelectError> {
    let selection = sample().select(&read(line))?;
    let top = selection.directory.trim_end_matches('/');
    let things: BTreeMap<_, _> =
        unpacked(&selection).into_iter().map(|(name, thing)| (format!("{top}/{name}"), thing)).collect();
    assert!(selection.digests().keys().eq(things.keys()));
    Ok(things)
}

fn names(line: &str) -> Vec<String> {
    select(line).unwrap_or_else(|error| panic!("{line}: {error}")).into_keys().collect()
}

#[test]
fn files_and_directories_go_where_a_dockerfile_says() {
    for (line, expected) in [
        // A file gets the name of the destination, or goes into it.
        ("COPY readme.md /etc/motd", &["/etc/motd"][..]),
        ("COPY readme.md /etc/", &["/etc/readme.md"]),
        ("COPY readme.md /", &["/readme.md"]),
        ("COPY readme.md /motd", &["/motd"]),
        ("COPY app/main.py .", &["/srv/main.py"]),
        ("COPY ./app/../app//sub/x.py y", &["/srv/y"]),
        // Of a directory its content is copied, whatever the destination looks like.
        ("COPY app/sub /x", &["/x/x.py"]),
        ("COPY app/sub/ /x/", &["/x/x.py"]),
        ("COPY app /x", &["/x/main.py", "/x/sub", "/x/sub/x.py", "/x/to-readme"]),
        ("COPY empty /x", &[]),
        ("COPY app/sub conf.d /x/", &["/x/x.py"]),
        ("COPY app/sub readme.md /x/", &["/x/readme.md", "/x/x.py"]),
        // Patterns are for one name, and see hidden files.
        ("COPY package*.json ./", &["/srv/package-lock.json", "/srv/package.json"]),
        ("COPY package*.json /x", &["/x/package-lock.json", "/x/package.json"]),
        ("COPY *.md /x", &["/x"]),
        ("COPY app/*/*.py /x/", &["/x/x.py"]),
        ("COPY a?p/[a-m]*.p[xy] /x/", &["/x/main.py"]),
        ("COPY *hid* /x/", &["/x/.hidden"]),
        ("COPY ./[ce]* /x/", &["/x/x.py"]),
        ("COPY app/[^m]* /x/", &["/x/to-readme", "/x/x.py"]),
        // Links are copied as links.
        ("COPY start /x", &["/x"]),
        ("COPY there /x/", &["/x/there"]),
    ] {
        assert_eq!(names(line), expected, "{line}");
    }
    let everything = names("COPY . /");
    assert_eq!(everything.len(), 14);
    assert!(everything.contains(&"/app/sub".to_owned()) && everything.contains(&"/.hidden".to_owned()));
    assert_eq!(names("COPY app/.. /"), everything);
}

#[test]
fn what_is_copied_is_as_it_was_uploaded() {
    let app = select("COPY app there start /x/").unwrap();
    let expected = [
        ("/x/main.py", Thing::File(0o755, b"main".to_vec())),
        ("/x/start", link("app/main.py")),
        ("/x/sub", directory()),
        ("/x/sub/x.py", file("x")),
        ("/x/there", link("app")),
        ("/x/to-readme", link("../readme.md")),
    ];
    assert_eq!(app, tree(&expected));
    let conf = select("COPY app/sub conf.d /x/").unwrap();
    assert_eq!(conf, tree(&[("/x/x.py", file("other"))]), "the last one counts");
    let moded = select("COPY --chmod=4711 app/sub app/to-readme empty/../app/sub/.. /x/").unwrap();
    assert_eq!(moded["/x/sub"], Thing::Directory(0o4711));
    assert_eq!(moded["/x/x.py"], Thing::File(0o4711, b"x".to_vec()));
    assert_eq!(moded["/x/to-readme"], link("../readme.md"));
}

#[test]
fn files_of_the_recipe_are_copied() {
    let both = select("COPY <<A <<B readme.md /x/\n1\nA\n2\nB").unwrap();
    let expected = [("/x/A", file("1\n")), ("/x/B", file("2\n")), ("/x/readme.md", file("readme"))];
    assert_eq!(both, tree(&expected));
    assert_eq!(select("COPY <<A /x\n1\nA").unwrap(), tree(&[("/x", file("1\n"))]));
    let moded = select("COPY --chmod=0 <<A x\n1\nA").unwrap();
    assert_eq!(moded, tree(&[("/srv/x", Thing::File(0, b"1\n".to_vec()))]));
    let inline = Source::Inline { name: "A".to_owned(), content: "1".to_owned() };
    let copied = Copied { sources: vec![inline], ..copied(&[], "/x/") };
    let selection = Context::empty().select(&copied).unwrap();
    assert_eq!(unpacked(&selection), tree(&[("A", file("1"))]));
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let missing = |source: &str| SelectError::Missing { source: source.to_owned() };
    for (line, expected) in [
        ("COPY readme.md absent /x/", missing("absent")),
        ("COPY app/absent /x/", missing("app/absent")),
        ("COPY *.txt /x/", missing("*.txt")),
        ("COPY app*py /x/", missing("app*py")),
        ("COPY readme.md/x /x/", missing("readme.md/x")),
        ("COPY empty/* /x/", missing("empty/*")),
        // No link is followed to find a source.
        ("COPY there/main.py /x/", missing("there/main.py")),
        ("COPY there/* /x/", missing("there/*")),
    ] {
        assert_eq!(select(line).unwrap_err(), expected, "{line}");
    }
    for source in ["app/[a", "[]", "[z-"] {
        let error = sample().select(&copied(&[source], "/x/")).unwrap_err();
        assert!(matches!(&error, SelectError::Pattern { source: named, .. } if named == source), "{error}");
    }
    let clash = tar(&[("a/x", directory()), ("b/x", file("1")), ("x", link("a"))], 0);
    let context = taken(&clash).unwrap();
    for sources in [["a", "b"], ["b", "a"], ["a", "x"], ["x", "a"]] {
        let error = context.select(&copied(&sources, "/y/")).unwrap_err();
        assert_eq!(error, SelectError::Conflict { name: "x".to_owned() }, "{sources:?}");
    }
}

#[test]
fn nothing_is_in_an_empty_context() {
    let empty = Context::empty();
    assert!(empty.select(&copied(&["."], "/x/")).unwrap().digests().is_empty());
    for source in ["a", "*", "a/b"] {
        let error = empty.select(&copied(&[source], "/x/")).unwrap_err();
        assert_eq!(error, SelectError::Missing { source: source.to_owned() });
    }
}

#[test]
fn digests_tell_what_changed() {
    let digests = |entries: &[(&str, Thing)], time: u64| {
        taken(&tar(entries, time)).unwrap().select(&copied(&["."], "/x/")).unwrap().digests()
    };
    let before = [("a", file("1")), ("d", directory()), ("d/b", file("2")), ("l", link("a"))];
    let same = digests(&before, 1);
    assert_eq!(digests(&before, 2), same);
    let after = [
        ("a", Thing::File(0o755, b"1".to_vec())),
        ("d", Thing::Directory(0o700)),
        ("d/b", file("3")),
        ("l", link("d")),
    ];
    let after = digests(&after, 1);
    assert!(same.keys().eq(["/x/a", "/x/d", "/x/d/b", "/x/l"]));
    for (name, digest) in &same {
        assert_ne!(after[name], *digest, "{name}");
    }
    let context = taken(&tar(&before, 1)).unwrap();
    let moded = Copied { mode: Some("0755".parse().unwrap()), ..copied(&["a"], "/x/") };
    assert_eq!(
        context.select(&moded).unwrap().digests()["/x/a"],
        after["/x/a"],
        "the mode is that of the file"
    );
    let sub = context.select(&copied(&["d"], "/x/")).unwrap().digests();
    assert_eq!(sub, BTreeMap::from([("/x/b".to_owned(), same["/x/d/b"].clone())]));
}
