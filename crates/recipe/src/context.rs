// SPDX-License-Identifier: Apache-2.0
//! The state that steps change for those after them, and what is left to do in a step once its variables are expanded.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    error::{RecipeError, RecipeErrorCode as Code},
    limits,
    mode::Mode,
    path,
    step::{CopyFiles, Healthcheck, Instruction, Run, Source, Start, Step},
    text::Text,
    user::User,
};

/// Why a step cannot be done.
type Refusal = (Code, String);

/// The state in force at a step. The first one is that of the base; the last one is that of sandboxes of the template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Variables of `ARG`. A variable of the environment with the same name hides one.
    pub args: BTreeMap<String, String>,
    /// Working directory, absolute.
    pub workdir: String,
    /// User.
    pub user: User,
}

/// What is to do in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<'a> {
    /// Nothing: the step changed the context only, or names the base.
    Nothing,
    /// Make the directory, which is absolute, unless it exists.
    MakeDirectory(String),
    /// Find the user, which is now that of the context.
    FindUser(User),
    /// Copy files.
    Copy(Copied),
    /// Run the command with [`Context::variables`].
    Run(&'a Run),
    /// Start the process.
    Start(&'a Start),
    /// Wait until the check succeeds.
    Check(&'a Healthcheck),
}

/// Files to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// What is copied.
    pub sources: Vec<Source<String>>,
    /// Where to: an absolute path.
    pub destination: String,
    /// Whether the destination is a directory even if it does not exist yet.
    pub into_directory: bool,
    /// Whose the files become.
    pub owner: Option<User>,
    /// Mode of the files.
    pub mode: Option<Mode>,
}

impl Default for Context {
    /// The state of an image that says nothing: no variables, `/`, `root`.
    fn default() -> Self {
        Self { env: BTreeMap::new(), args: BTreeMap::new(), workdir: "/".to_owned(), user: User::root() }
    }
}

impl Context {
    /// Expands a step and changes the state as it says. Commands run in the state that is then in force.
    pub fn apply<'a>(&mut self, step: &'a Step) -> Result<Action<'a>, RecipeError> {
        let action = self.action(&step.instruction);
        action.map_err(|(code, message)| {
            RecipeError::new(step.span.place(), step.instruction.keyword(), code, message)
        })
    }

    /// Returns the state after all steps, which is that of sandboxes of the template.
    pub fn after(mut self, steps: &[Step]) -> Result<Self, RecipeError> {
        steps.iter().try_for_each(|step| self.apply(step).map(drop))?;
        Ok(self)
    }

    /// Returns the variables of a `RUN`: the environment, and `ARG`.
    pub fn variables(&self) -> BTreeMap<String, String> {
        let mut variables = self.args.clone();
        variables.extend(self.env.clone());
        variables
    }

    fn action<'a>(&mut self, instruction: &'a Instruction) -> Result<Action<'a>, Refusal> {
        let (env, args) = (&self.env, &self.args);
        let get = |name: &str| env.get(name).or_else(|| args.get(name)).map(String::as_str);
        let of_path = |message| (Code::Path, message);
        match instruction {
            Instruction::From { .. } => Ok(Action::Nothing),
            Instruction::Arg(variables) => {
                let mut set = args.clone();
                variables.set(&get, &mut set).map_err(|message| (Code::Limit, message))?;
                self.args = set;
                Ok(Action::Nothing)
            }
            Instruction::Env(variables) => {
                let mut set = env.clone();
                variables.set(&get, &mut set).map_err(|message| (Code::Limit, message))?;
                self.env = set;
                Ok(Action::Nothing)
            }
            Instruction::Workdir { path } => {
                let path = expanded(path, &get)?;
                path::check(&path).map_err(of_path)?;
                let workdir = path::joined(&self.workdir, &path);
                path::check(&workdir).map_err(of_path)?;
                self.workdir.clone_from(&workdir);
                Ok(Action::MakeDirectory(workdir))
            }
            Instruction::User { user } => {
                let user = expanded_user(user, &get)?;
                self.user = user.clone();
                Ok(Action::FindUser(user))
            }
            Instruction::Copy(copy) => copied(copy, &self.workdir, &get).map(Action::Copy),
            Instruction::Run(run) => Ok(Action::Run(run)),
            Instruction::Start(start) => Ok(Action::Start(start)),
            Instruction::Healthcheck(check) => Ok(Action::Check(check)),
        }
    }
}

fn copied<'v, F>(copy: &CopyFiles, workdir: &str, get: &F) -> Result<Copied, Refusal>
where
    F: Fn(&str) -> Option<&'v str>,
{
    let of_path = |message| (Code::Path, message);
    let sources = copy.sources.iter().map(|source| expanded_source(source, get));
    let sources = sources.collect::<Result<Vec<_>, _>>()?;
    let written = expanded(&copy.destination, get)?;
    path::check_destination(&written, sources.len()).map_err(of_path)?;
    let destination = path::joined(workdir, &written);
    path::check(&destination).map_err(of_path)?;
    let owner = copy.owner.as_ref().map(|owner| expanded_user(owner, get)).transpose()?;
    let into_directory = path::is_directory(&written);
    Ok(Copied { sources, destination, into_directory, owner, mode: copy.mode })
}

fn expanded_source<'v, F>(source: &Source, get: &F) -> Result<Source<String>, Refusal>
where
    F: Fn(&str) -> Option<&'v str>,
{
    match source {
        Source::Context(path) => {
            let path = expanded(path, get)?;
            path::check_source(&path).map_err(|message| (Code::Path, message))?;
            Ok(Source::Context(path))
        }
        Source::Inline { name, content } => {
            Ok(Source::Inline { name: name.clone(), content: expanded(content, get)? })
        }
    }
}

fn expanded_user<'v, F>(user: &Text, get: &F) -> Result<User, Refusal>
where
    F: Fn(&str) -> Option<&'v str>,
{
    expanded(user, get)?.parse::<User>().map_err(|error| (Code::User, error.to_string()))
}

fn expanded<'v, F>(text: &Text, get: &F) -> Result<String, Refusal>
where
    F: Fn(&str) -> Option<&'v str>,
{
    text.expand(get, limits::HEREDOC_BYTES).ok_or_else(|| {
        let limit = limits::HEREDOC_BYTES;
        (
            Code::Limit,
            format!("the text has more than {limit} bytes once its variables are replaced: shorten them"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    fn base() -> Context {
        let env = BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]);
        Context { env, ..Context::default() }
    }

    fn after(source: &str) -> Result<Context, RecipeError> {
        base().after(&parse(source.as_bytes()).unwrap().steps)
    }

    #[test]
    fn steps_change_the_state_for_those_after_them() {
        let source = "ARG V=1\nENV PATH=/opt/$V:$PATH A=x\nENV A=y B=$A V=2\nARG C=$V$NONE D=${NONE:-d}\n\
            WORKDIR /a\nWORKDIR b/../$B\nUSER $D:7";
        let context = after(source).unwrap();
        let env: Vec<_> = context.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(env, ["A=y", "B=x", "PATH=/opt/1:/bin", "V=2"]);
        assert_eq!((context.workdir.as_str(), context.user.to_string().as_str()), ("/a/x", "d:7"));
        let variables = context.variables();
        let of_run = ["C", "D", "V"].map(|name| variables[name].as_str());
        assert_eq!(of_run, ["2", "d", "2"], "ENV hides ARG");
    }

    #[test]
    fn a_step_is_left_with_nothing_to_expand() {
        let recipe = parse(
            b"ENV D=/x U=1000\nWORKDIR w\nCOPY --chown=$U --chmod=600 a$D <<N $D/\n$U\nN\nCOPY a b\nRUN c",
        )
        .unwrap();
        let mut context = base();
        let mut actions = Vec::new();
        for step in &recipe.steps {
            actions.push(context.apply(step).unwrap());
        }
        let [
            Action::Nothing,
            Action::MakeDirectory(made),
            Action::Copy(first),
            Action::Copy(second),
            Action::Run(_),
        ] = actions.as_slice()
        else {
            panic!("{actions:?}")
        };
        assert_eq!(made, "/w");
        let inline = Source::Inline { name: "N".to_owned(), content: "1000\n".to_owned() };
        assert_eq!(first.sources, [Source::Context("a/x".to_owned()), inline]);
        assert_eq!((first.destination.as_str(), first.into_directory), ("/x", true));
        assert_eq!(
            (first.owner.clone(), first.mode),
            (Some("1000".parse().unwrap()), Some("600".parse().unwrap()))
        );
        assert_eq!((second.destination.as_str(), second.into_directory), ("/w/b", false));
    }

    #[test]
    fn what_is_wrong_only_once_it_is_expanded_is_refused_with_its_step() {
        for (last, code) in [
            ("USER $P", Code::User),
            ("WORKDIR $NONE", Code::Path),
            ("COPY $P /x", Code::Path),
            ("COPY a$NONE $NONE", Code::Path),
            ("COPY a b x$NONE", Code::Path),
            ("COPY --chown=$P a b", Code::User),
        ] {
            let error = after(&format!("ENV P=/p\n{last}")).unwrap_err();
            assert_eq!((error.line, error.column, error.code), (2, 1, code), "{last}");
        }
    }

    #[test]
    fn variables_cannot_grow_without_limit() {
        let double = "ENV A=$A$A\n".repeat(40);
        assert_eq!(after(&format!("ENV A=x\n{double}")).unwrap_err().code, Code::Limit);
        let many = "ENV".to_owned() + &(0..200).map(|n| format!(" A{n}=$A")).collect::<String>();
        let source = format!("ENV A={}\n{many}", "x".repeat(60_000));
        assert_eq!(after(&source).unwrap_err().code, Code::Limit);
        let workdir = format!("WORKDIR {}\n", "x".repeat(4000)).repeat(2);
        assert_eq!(after(&workdir).unwrap_err().code, Code::Path);
    }
}
