// SPDX-License-Identifier: Apache-2.0
//! The plan of a build: for each step of its recipe what it does, and the key of its result. Pure: the same recipe on the same
//! base with the same files has the same keys.

use std::collections::BTreeMap;

use wrenn_api::ErrorCode;
use wrenn_recipe::{Account, Action, Command, Context, Copied, Instruction, Recipe, Step, User};

use super::inputs::{Hash, Inputs};
use crate::templates::Sizes;

/// Maximum length of what is shown of a step, in characters.
const SHOWN: usize = 400;
/// Maximum number of bytes of names and digests of files that a plan keeps to be compared.
const NAMES_KEPT: usize = 16 << 20;
/// Maximum length of an argument in Linux, in bytes.
const ARGUMENT_MAX: usize = (128 << 10) - 1;

/// The plan of a build.
#[derive(Debug)]
pub(super) struct Plan {
    /// Key of what the first step is done on.
    pub(super) base: String,
    /// The steps in their order, numbered from 1.
    pub(super) steps: Vec<Planned>,
    /// Key of the template: of all that it is made of.
    pub(super) key: String,
    /// Whether a process is to run in sandboxes of the template: it is a snapshot with memory then, and else an image.
    pub(super) has_start: bool,
    /// State after the last step, which is that of sandboxes of the template.
    pub(super) context: Context,
}

/// A step of the plan.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) place: Place,
    /// What it says.
    pub(super) text: String,
    pub(super) work: Work,
    /// Whether its command may read secrets: nothing of the memory that it leaves is kept.
    pub(super) has_secrets: bool,
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Its number, from 1.
    pub(super) number: u32,
    /// Its line in the recipe.
    pub(super) line: u32,
}

/// What a step does.
#[derive(Debug)]
pub(super) enum Work {
    /// Nothing that is left in the sandbox.
    Nothing,
    /// It changes the disk. Its result is a layer, which is kept by its key.
    Layer(Box<Link>),
    /// It starts or checks a process. What follows depends on it, but it has no result of its own.
    Process,
}

/// What the result of a step depends on.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) key: String,
    /// Key of what it is done on.
    pub(super) parent: String,
    pub(super) inputs: Inputs,
}

/// Why a recipe cannot be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// [`ErrorCode::Unsupported`] or [`ErrorCode::InvalidRequest`].
    pub(super) code: ErrorCode,
    /// Line, cause and remedy.
    pub(super) message: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step {} (line {})", self.number, self.line)
    }
}

impl Planned {
    /// Returns the layer that is its result.
    pub(super) const fn layer(&self) -> Option<&Link> {
        match &self.work {
            Work::Layer(link) => Some(link),
            Work::Nothing | Work::Process => None,
        }
    }
}

/// Returns the key of what the first step is done on. Sizes are in it, because layers hold memory.
pub(super) fn base_key((kind, identity): (&str, &str), sizes: Sizes) -> String {
    let sizes = [sizes.vcpus, sizes.memory_mb, sizes.disk_size_mb].map(|size| size.to_string());
    let hash = Hash::of("base").field(kind).field(identity);
    sizes.iter().fold(hash, |hash, size| hash.field(size)).hex()
}

/// Plans a recipe that is built on what has the key `base`, in the state `context`. `select` finds the files of a `COPY`: names
/// with their digests. All that stands against it is told at once.
pub(super) fn plan(
    recipe: &Recipe,
    base: String,
    context: Context,
    select: impl FnMut(&Copied) -> Result<BTreeMap<String, String>, String>,
) -> Result<Plan, Vec<Problem>> {
    plan_in(recipe, base, context, select, true)
}

/// Plans a recipe as [`plan`] before it is known what it is built on. The keys mean nothing, and what may be wrong only because
/// variables of the base are not known does not stand against it.
pub(super) fn sketch(
    recipe: &Recipe,
    select: impl FnMut(&Copied) -> Result<BTreeMap<String, String>, String>,
) -> Result<Plan, Vec<Problem>> {
    plan_in(recipe, String::new(), Context::default(), select, false)
}

fn plan_in(
    recipe: &Recipe,
    base: String,
    mut context: Context,
    mut select: impl FnMut(&Copied) -> Result<BTreeMap<String, String>, String>,
    is_known: bool,
) -> Result<Plan, Vec<Problem>> {
    let has_start = recipe.steps.iter().any(|step| matches!(step.instruction, Instruction::Start(_)));
    let (mut key, mut steps, mut problems) = (base.clone(), Vec::new(), Vec::new());
    let (mut room, mut is_started) = (NAMES_KEPT, false);
    for (number, step) in (1..).zip(&recipe.steps) {
        if let Some(problem) = too_long(step) {
            problems.push(problem);
        }
        let place = Place { number, line: step.span.line };
        let has_secrets = has_secrets(step);
        if has_secrets && is_started {
            let message = "a step with secrets ends in another sandbox, in which what START has started does not run: write the \
                           START behind it";
            problems.push(Problem::of(step, ErrorCode::InvalidRequest, message));
        }
        is_started |= matches!(step.instruction, Instruction::Start(_));
        // What a variable stands for is told by the base.
        let is_open = !is_known && step.to_string().contains('$');
        let action = match context.apply(step) {
            Ok(action) => action,
            Err(_) if is_open => {
                steps.push(Planned { place, text: shown(step), work: Work::Nothing, has_secrets });
                continue;
            }
            Err(error) => {
                problems.push(Problem { code: ErrorCode::InvalidRequest, message: error.to_string() });
                continue;
            }
        };
        let inputs = inputs(step, &action, &context, has_start, &mut select);
        let work = match inputs.map(|inputs| inputs.map(|inputs| Link::after(&key, inputs.within(&mut room))))
        {
            Ok(None) => Work::Nothing,
            Ok(Some(link)) => {
                key.clone_from(&link.key);
                if is_process(&action) { Work::Process } else { Work::Layer(Box::new(link)) }
            }
            Err(_) if is_open => Work::Nothing,
            Err(message) => {
                problems.push(Problem::of(step, ErrorCode::InvalidRequest, &message));
                continue;
            }
        };
        steps.push(Planned { place, text: shown(step), work, has_secrets });
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let kind = if has_start { "snapshot" } else { "image" };
    let key = Hash::of("template").field(kind).field(&key).hex();
    Ok(Plan { base, steps, key, has_start, context })
}

impl Link {
    fn after(parent: &str, inputs: Inputs) -> Self {
        Self { key: inputs.key(parent), parent: parent.to_owned(), inputs }
    }
}

impl Problem {
    fn of(step: &Step, code: ErrorCode, message: &str) -> Self {
        let (line, column, keyword) = (step.span.line, step.span.column, step.instruction.keyword());
        Self { code, message: format!("line {line}, column {column}, {keyword}: {message}") }
    }
}

/// Returns what the result of a step depends on; `None` if it has none.
fn inputs(
    step: &Step,
    action: &Action<'_>,
    context: &Context,
    has_start: bool,
    select: &mut impl FnMut(&Copied) -> Result<BTreeMap<String, String>, String>,
) -> Result<Option<Inputs>, String> {
    let of_step = |instruction: String| Inputs {
        kind: step.instruction.keyword().to_owned(),
        instruction,
        user: context.user.to_string(),
        ..Inputs::default()
    };
    let of_command = |variables: &BTreeMap<String, String>| {
        let inputs = Inputs { workdir: context.workdir.clone(), ..of_step(step.canonical()) };
        inputs.with_variables(variables)
    };
    Ok(match action {
        Action::Nothing => None,
        Action::MakeDirectory(path) => Some(of_step(format!("WORKDIR {path}"))),
        Action::FindUser(user) if is_given(user) => None,
        Action::FindUser(user) => Some(of_step(format!("USER {user}"))),
        Action::Copy(copied) => Some(of_step(copy(copied, context)).with_files(select(copied)?)),
        Action::Run(_) => Some(of_command(&context.variables())),
        Action::Start(_) => Some(of_command(&context.env)),
        Action::Check(_) if has_start => Some(of_command(&context.env)),
        // There is nothing that could be checked.
        Action::Check(_) => None,
    })
}

/// Returns whether a user needs no account, and its group no entry: both exist, or are numbers.
pub(super) fn is_given(user: &User) -> bool {
    let is_given = |account: &Account| match account {
        Account::Id(_) => true,
        Account::Name(name) => name == "root",
    };
    is_given(&user.account) && user.group.as_ref().is_none_or(is_given)
}

fn has_secrets(step: &Step) -> bool {
    matches!(&step.instruction, Instruction::Run(run) if !run.secrets.is_empty())
}

const fn is_process(action: &Action<'_>) -> bool {
    matches!(action, Action::Start(_) | Action::Check(_))
}

/// The text of a `COPY` without its sources, of which only what is in them counts.
fn copy(copied: &Copied, context: &Context) -> String {
    let owner = copied.owner.as_ref().unwrap_or(&context.user);
    let mode = copied.mode.map(|mode| format!(" --chmod={mode}")).unwrap_or_default();
    let slash = if copied.into_directory { "/" } else { "" };
    format!("COPY --chown={owner}{mode} {}{slash}", copied.destination)
}

/// Returns what stands against a step whose command Linux does not take.
fn too_long(step: &Step) -> Option<Problem> {
    let command = match &step.instruction {
        Instruction::Run(run) => &run.command,
        Instruction::Start(start) => &start.command,
        Instruction::Healthcheck(check) => &check.command,
        _ => return None,
    };
    let longest = match command {
        Command::Shell(text) => text.len(),
        Command::Exec(words) => words.iter().map(String::len).max().unwrap_or_default(),
        // It is a file.
        Command::Script(_) => 0,
    };
    if longest <= ARGUMENT_MAX {
        return None;
    }
    let message = format!(
        "the command has more than {ARGUMENT_MAX} bytes, which Linux does not take: write a heredoc that begins with #!, \
         which is run as a file"
    );
    Some(Problem::of(step, ErrorCode::InvalidRequest, &message))
}

/// Returns what is shown of a step.
fn shown(step: &Step) -> String {
    let text = step.to_string();
    let last = text.char_indices().nth(SHOWN - 1);
    match last {
        Some((end, last)) if end + last.len_utf8() < text.len() => format!("{}…", &text[..end]),
        _ => text,
    }
}

#[cfg(test)]
mod tests;
