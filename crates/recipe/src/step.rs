// SPDX-License-Identifier: Apache-2.0
//! Steps of a recipe with their types.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{limits, mode::Mode, period::Period, place::Span, reference::Base, secret::Secret, text::Text};

/// A recipe: the steps that build a template, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The steps. `FROM`, if there is one, is the first; a `START` that comes from `CMD` or `ENTRYPOINT`, and `HEALTHCHECK`,
    /// are the last ones.
    pub steps: Vec<Step>,
}

/// A step of a recipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Where it stands in the recipe.
    pub span: Span,
    /// What it says.
    pub instruction: Instruction,
}

/// What a step says. Texts with variables are expanded by [`Context::apply`](crate::Context::apply).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Instruction {
    /// Names what the template starts from.
    From {
        /// A template or an image.
        base: Base,
    },
    /// Sets variables for the steps that follow, but not for sandboxes.
    Arg(Variables),
    /// Sets variables for the steps that follow and for sandboxes.
    Env(Variables),
    /// Makes a directory and enters it.
    Workdir {
        /// Its path, relative to the working directory before it.
        path: Text,
    },
    /// Changes the user of the steps that follow, and of sandboxes.
    User {
        /// A [`User`](crate::User) once its variables are expanded.
        user: Text,
    },
    /// Copies files.
    Copy(CopyFiles),
    /// Runs a command and waits for its end.
    Run(Run),
    /// Starts a process that goes on running.
    Start(Start),
    /// Says how to know that what was started is ready.
    Healthcheck(Healthcheck),
}

impl Instruction {
    /// Returns the word that the instruction begins with in a recipe.
    pub const fn keyword(&self) -> &'static str {
        match self {
            Self::From { .. } => "FROM",
            Self::Arg(_) => "ARG",
            Self::Env(_) => "ENV",
            Self::Workdir { .. } => "WORKDIR",
            Self::User { .. } => "USER",
            Self::Copy(_) => "COPY",
            Self::Run(_) => "RUN",
            Self::Start(Start { after_entrypoint: true, .. }) => "CMD",
            Self::Start(_) => "START",
            Self::Healthcheck(_) => "HEALTHCHECK",
        }
    }
}

/// Variables that are set together: no value sees another one of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variables {
    /// The variables in the order of the recipe. The last one of a name counts.
    pub variables: Vec<Variable>,
}

/// A variable that is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Text,
}

impl Variables {
    /// Adds the variables to those that are set already; `get` returns the value of a variable before. The error says what is
    /// too large.
    pub(crate) fn set<'v, F>(&self, get: &F, already: &mut BTreeMap<String, String>) -> Result<(), String>
    where
        F: Fn(&str) -> Option<&'v str>,
    {
        let mut size: usize = already.iter().map(|(name, value)| name.len() + value.len()).sum();
        for Variable { name, value } in &self.variables {
            let limit = limits::VARIABLE_BYTES - limits::NAME_BYTES - 2;
            let Some(value) = value.expand(get, limit) else {
                return Err(format!("the value of {name} has more than {limit} bytes: put it into a file"));
            };
            // Also what is replaced counts, as all are in memory while they are expanded.
            size += name.len() + value.len();
            already.insert(name.clone(), value);
            if size > limits::ENVIRONMENT_BYTES || already.len() > limits::VARIABLES {
                return Err(format!(
                    "there are more than {} variables, or they have more than {} bytes: put some into a file",
                    limits::VARIABLES,
                    limits::ENVIRONMENT_BYTES
                ));
            }
        }
        Ok(())
    }
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// A text for `/bin/sh -c`, which expands variables itself. If it has several lines, it ends with a line break.
    Shell(String),
    /// A program and its arguments, of which nothing is expanded.
    Exec(Vec<String>),
    /// A file to run, which begins with `#!`.
    Script(String),
}

/// Runs a command and waits for its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The command.
    pub command: Command,
    /// How long it may take, if that is not the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Period>,
    /// The secrets that are files while it runs, each of another id.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub secrets: BTreeSet<Secret>,
}

/// Starts a process that goes on running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The command.
    pub command: Command,
    /// Whether the command is the arguments of the image's entrypoint, if that has one: the recipe says `CMD` and no
    /// `ENTRYPOINT`.
    #[serde(default)]
    pub after_entrypoint: bool,
}

/// Says how to know that what was started is ready. What is not given has a default that the builder knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    /// The command, which ends with 0 if all is well.
    pub command: Command,
    /// Time between two runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Period>,
    /// How long a run may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Period>,
    /// Time after the start in which failures do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period: Option<Period>,
    /// Number of failures in a row that end the waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

/// Copies files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyFiles {
    /// What is copied, at least one.
    pub sources: Vec<Source>,
    /// Where to, relative to the working directory. A directory if it ends with `/`.
    pub destination: Text,
    /// Whose the files become: a [`User`](crate::User) once its variables are expanded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Text>,
    /// Mode of the files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// What is copied; `T` is `String` once its variables are expanded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source<T = Text> {
    /// A path in the uploaded context, or a pattern of paths with `*`, `?` and `[…]`.
    Context(T),
    /// A file in the recipe.
    Inline {
        /// Its name, if it is copied into a directory.
        name: String,
        /// What is in it.
        content: T,
    },
}

#[cfg(test)]
mod tests {
    use crate::parse;

    /// Steps are stored in this form: a change needs a migration.
    #[test]
    fn steps_in_json() {
        let source = "FROM template:py:1\nARG V=1\nENV A=\"b c\" D=${V:-x}\nWORKDIR /app\nUSER me:us\n\
            COPY --chown=1:2 --chmod=755 a <<EOF /x/\n$V\nEOF\nRUN --timeout=90s --secret=b,a,target=/c x\nRUN [\"a\"]\n\
            RUN <<EOF\n#!/bin/sh\nEOF\nCMD y\nHEALTHCHECK --retries=3 CMD z";
        let recipe = parse(source.as_bytes()).unwrap();
        let steps: Vec<String> =
            recipe.steps.iter().map(|step| serde_json::to_string(&step.instruction).unwrap()).collect();
        assert_eq!(
            steps,
            [
                r#"{"kind":"from","base":"template:py:1"}"#,
                r#"{"kind":"arg","variables":[{"name":"V","value":"1"}]}"#,
                r#"{"kind":"env","variables":[{"name":"A","value":"b c"},{"name":"D","value":"${V:-x}"}]}"#,
                r#"{"kind":"workdir","path":"/app"}"#,
                r#"{"kind":"user","user":"me:us"}"#,
                r#"{"kind":"copy","sources":[{"context":"a"},{"inline":{"name":"EOF","content":"${V}\n"}}],"destination":"/x/","owner":"1:2","mode":"0755"}"#,
                r#"{"kind":"run","command":{"shell":"x"},"timeout":"1m30s","secrets":["a,target=/c","b"]}"#,
                r#"{"kind":"run","command":{"exec":["a"]}}"#,
                r##"{"kind":"run","command":{"script":"#!/bin/sh\n"}}"##,
                r#"{"kind":"start","command":{"shell":"y"},"after_entrypoint":true}"#,
                r#"{"kind":"healthcheck","command":{"shell":"z"},"retries":3}"#,
            ]
        );
        let json = serde_json::to_string(&recipe).unwrap();
        assert_eq!(serde_json::from_str::<crate::Recipe>(&json).unwrap(), recipe);
    }
}
