// SPDX-License-Identifier: Apache-2.0
//! What the result of a step depends on, the key that is made of it, and how it differs from what was there before. Pure.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Version of the way in which keys are made. Another one makes nothing that was built before be found.
const VERSION: u8 = 1;
/// Maximum number of files that are kept to be compared; of more, only a hash of all is kept.
const FILES_KEPT: usize = 4096;

/// What the result of a step depends on, apart from what it is done on. It is kept with the result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inputs {
    /// The word that the step begins with.
    pub(super) kind: String,
    /// What it says, with its variables replaced.
    pub(super) instruction: String,
    /// User of the step.
    #[serde(default)]
    pub(super) user: String,
    /// Directory that its command begins in; empty if it has none.
    #[serde(default)]
    pub(super) workdir: String,
    /// Variables of its command, each with a hash of its value, which may be a secret.
    #[serde(default)]
    pub(super) variables: BTreeMap<String, String>,
    /// What it copies: names with their digests.
    #[serde(default)]
    pub(super) files: BTreeMap<String, String>,
    /// Hash of all that it copies.
    #[serde(default)]
    pub(super) files_hash: String,
}

impl Inputs {
    /// Sets the variables of the command.
    pub(super) fn with_variables(self, variables: &BTreeMap<String, String>) -> Self {
        let hashed =
            |(name, value): (&String, &String)| (name.clone(), Hash::of("variable").field(value).hex());
        Self { variables: variables.iter().map(hashed).collect(), ..self }
    }

    /// Sets what is copied: names with their digests.
    pub(super) fn with_files(self, files: BTreeMap<String, String>) -> Self {
        let files_hash = Hash::of("files").pairs(&files).hex();
        let files = if files.len() > FILES_KEPT { BTreeMap::new() } else { files };
        Self { files, files_hash, ..self }
    }

    /// Leaves the names of its files out if they have more bytes than `room`, which is what is left for all steps of a plan.
    pub(super) fn within(self, room: &mut usize) -> Self {
        let bytes: usize = self.files.iter().map(|(name, digest)| name.len() + digest.len()).sum();
        let Some(left) = room.checked_sub(bytes) else { return Self { files: BTreeMap::new(), ..self } };
        *room = left;
        self
    }

    /// Returns the key of the result if the step is done on what has the key `parent`.
    pub(super) fn key(&self, parent: &str) -> String {
        let Self { kind, instruction, user, workdir, variables, files: _, files_hash } = self;
        let hash = Hash::of("step").field(parent).field(kind).field(instruction).field(user).field(workdir);
        hash.pairs(variables).field(files_hash).hex()
    }

    /// Says how they differ from those of the result that was built in the same place before.
    pub(super) fn difference(&self, before: &Self) -> String {
        if self.instruction != before.instruction {
            return "the instruction changed".to_owned();
        }
        if self.user != before.user {
            return format!("the user changed from {} to {}", before.user, self.user);
        }
        if self.workdir != before.workdir {
            return format!("the directory changed from {} to {}", before.workdir, self.workdir);
        }
        if let Some(change) = change("variable", &before.variables, &self.variables) {
            return change;
        }
        let are_kept = |inputs: &Self| !inputs.files.is_empty();
        if self.files_hash != before.files_hash && are_kept(self) && are_kept(before) {
            return change("file", &before.files, &self.files)
                .unwrap_or_else(|| "the files changed".to_owned());
        }
        if self.files_hash != before.files_hash {
            return "the files changed".to_owned();
        }
        "its result cannot be used any more".to_owned()
    }
}

/// Says what the first difference of two maps is, and how many others there are.
fn change(what: &str, before: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Option<String> {
    let gone = before.keys().filter(|name| !now.contains_key(*name)).map(|name| (name, "is gone"));
    let other = now.iter().filter_map(|(name, value)| match before.get(name) {
        Some(old) if old == value => None,
        Some(_) => Some((name, "changed")),
        None => Some((name, "is new")),
    });
    let mut all: Vec<(&String, &str)> = gone.chain(other).collect();
    all.sort_unstable();
    let (name, how) = all.first()?;
    let more = match all.len() - 1 {
        0 => String::new(),
        others => format!(", and {others} more"),
    };
    Some(format!("{what} {} {how}{more}", Name(name.trim_start_matches('/'))))
}

/// Name of a file or a variable, on one line and not longer than a line.
struct Name<'a>(&'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 200;
        let cut = &self.0[..self.0.floor_char_boundary(SHOWN)];
        let more = if cut.len() < self.0.len() { "…" } else { "" };
        if cut.contains(char::is_control) { write!(f, "{cut:?}{more}") } else { write!(f, "{cut}{more}") }
    }
}

/// A hash of several texts, each with its length, so that no two lists of texts are hashed as the same bytes.
pub(super) struct Hash(Sha256);

impl Hash {
    /// Begins with what the texts are of.
    pub(super) fn of(kind: &str) -> Self {
        Self(Sha256::new().chain_update([VERSION])).field(kind)
    }

    /// Adds a text.
    pub(super) fn field(self, text: &str) -> Self {
        Self(self.0.chain_update((text.len() as u64).to_be_bytes()).chain_update(text))
    }

    /// Adds pairs of texts.
    pub(super) fn pairs(self, pairs: &BTreeMap<String, String>) -> Self {
        let count = Self(self.0.chain_update((pairs.len() as u64).to_be_bytes()));
        pairs.iter().fold(count, |hash, (name, value)| hash.field(name).field(value))
    }

    /// Returns the hash in hexadecimal digits.
    pub(super) fn hex(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn run() -> Inputs {
        let text = |text: &str| text.to_owned();
        let inputs = Inputs {
            kind: text("RUN"),
            instruction: text("RUN make"),
            user: text("root"),
            workdir: text("/app"),
            ..Inputs::default()
        };
        inputs.with_variables(&map(&[("A", "1")]))
    }

    fn copy(files: &[(&str, &str)]) -> Inputs {
        let inputs =
            Inputs { kind: "COPY".to_owned(), instruction: "COPY /app/".to_owned(), ..Inputs::default() };
        inputs.with_files(map(files))
    }

    #[test]
    fn names_of_files_are_kept_as_long_as_there_is_room_and_the_key_is_the_same() {
        let (all, mut room) = (copy(&[("/app/a", "1"), ("/app/b", "2")]), 15);
        let key = all.key("base");
        let first = all.within(&mut room);
        assert_eq!((first.files.len(), room), (2, 1));
        let second = copy(&[("/app/a", "1"), ("/app/b", "2")]).within(&mut room);
        assert!(second.files.is_empty() && second.key("base") == key && room == 1);
    }

    #[test]
    fn everything_that_a_result_depends_on_is_in_its_key() {
        let key = run().key("parent");
        assert_eq!(key.len(), 64);
        assert_eq!(run().key("parent"), key);
        let others = [
            Inputs { instruction: "RUN make all".to_owned(), ..run() },
            Inputs { user: "app".to_owned(), ..run() },
            Inputs { workdir: "/".to_owned(), ..run() },
            run().with_variables(&map(&[("A", "2")])),
            run().with_variables(&map(&[("B", "1")])),
            run().with_files(map(&[("a", "1")])),
        ];
        for other in others {
            assert_ne!(other.key("parent"), key, "{other:?}");
        }
        assert_ne!(run().key("other"), key);
    }

    #[test]
    fn texts_do_not_run_into_each_other() {
        let hash = |texts: &[&str]| texts.iter().fold(Hash::of("t"), |hash, text| hash.field(text)).hex();
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_ne!(hash(&["a", ""]), hash(&["a"]));
    }

    /// Keys do not change between versions: what was built before would not be found any more.
    #[test]
    fn keys_stay() {
        let key = Inputs { kind: "RUN".to_owned(), ..Inputs::default() }.key("");
        let mut bytes = vec![VERSION];
        for text in ["step", "", "RUN", "", "", ""] {
            bytes.extend((text.len() as u64).to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        // No variables, and an empty hash of files.
        bytes.extend([0_u8; 16]);
        let expected: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(key, expected);
    }

    #[test]
    fn values_of_variables_are_not_kept() {
        let inputs = run().with_variables(&map(&[("TOKEN", "hunter2")]));
        let json = serde_json::to_string(&inputs).expect("JSON");
        assert!(!json.contains("hunter2") && json.contains("TOKEN"), "{json}");
        assert_eq!(serde_json::from_str::<Inputs>(&json).expect("inputs"), inputs);
    }

    #[test]
    fn a_difference_is_told_by_what_differs_first() {
        let before = copy(&[("/app/x.py", "1"), ("/app/y.py", "1")]);
        let told = |now: &Inputs| now.difference(&before);
        assert_eq!(told(&copy(&[("/app/x.py", "2"), ("/app/y.py", "1")])), "file app/x.py changed");
        assert_eq!(told(&copy(&[("/app/x.py", "1")])), "file app/y.py is gone");
        let added = [("/app/x.py", "1"), ("/app/y.py", "1"), ("/app/a.py", "1")];
        assert_eq!(told(&copy(&added)), "file app/a.py is new");
        assert_eq!(told(&copy(&[("/app/z.py", "1")])), "file app/x.py is gone, and 2 more");
        assert_eq!(
            told(&Inputs { instruction: "COPY /srv/".to_owned(), ..before.clone() }),
            "the instruction changed"
        );
        assert_eq!(run().with_variables(&map(&[("A", "2")])).difference(&run()), "variable A changed");
        let other = Inputs { user: "app".to_owned(), ..run() };
        assert_eq!(other.difference(&run()), "the user changed from root to app");
        let other = Inputs { workdir: "/srv".to_owned(), ..run() };
        assert_eq!(other.difference(&run()), "the directory changed from /app to /srv");
        assert_eq!(run().difference(&run()), "its result cannot be used any more");
    }

    #[test]
    fn of_many_files_only_a_hash_is_kept() {
        let many = |value: &str| {
            let files = (0..=FILES_KEPT).map(|n| (format!("f{n}"), value.to_owned())).collect();
            Inputs::default().with_files(files)
        };
        assert!(many("1").files.is_empty());
        assert_ne!(many("1").key(""), many("2").key(""));
        assert_eq!(many("2").difference(&many("1")), "the files changed");
        assert_eq!(many("2").difference(&copy(&[("a", "1")])), "the instruction changed");
    }

    #[test]
    fn names_stay_on_their_line() {
        let now = copy(&[("a\nb", "1")]);
        assert_eq!(now.difference(&copy(&[("c", "1"), ("a\nb", "2")])), "file \"a\\nb\" changed, and 1 more");
        assert!(Name(&"x".repeat(500)).to_string().ends_with("x…"));
    }
}
