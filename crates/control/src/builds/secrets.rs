// SPDX-License-Identifier: Apache-2.0
//! Secrets of a build: whether those of a request are the ones that its recipe needs, and their way into the sandbox and out of it.

use wrenn_api::BuildSecrets;
use wrenn_recipe::{Context, Instruction, Recipe, Run, is_secret_id};

use super::{
    guest::Guest,
    log::Log,
    mask::trimmed,
    plan::Place,
    stop::{Failure, Stop},
};
use crate::error::Fault;

/// Maximum number of secrets of a build, and of bytes of one and of all.
const SECRETS_MAX: usize = 32;
const VALUE_MAX: usize = 64 << 10;
const ALL_MAX: usize = 512 << 10;
/// Minimum number of bytes of one: a shorter one would be found everywhere in the log.
const VALUE_MIN: usize = 4;

/// Fails unless the secrets of a request are such that they can be kept, and those that the steps of the recipe need.
pub(super) fn check(recipe: &Recipe, given: &BuildSecrets) -> Result<(), Fault> {
    let given = &given.0;
    if given.len() > SECRETS_MAX {
        return Err(Fault::invalid(format!("secrets: there are {}: at most {SECRETS_MAX}", given.len())));
    }
    let mut problems: Vec<String> = given.iter().filter_map(|(id, value)| wrong(id, value)).collect();
    if given.values().map(String::len).sum::<usize>() > ALL_MAX {
        problems.push(format!("secrets: together they have more than {ALL_MAX} bytes"));
    }
    let used = |id: &str| runs(recipe).any(|(_, run)| run.secrets.iter().any(|secret| secret.id == id));
    let unused = given.keys().filter(|id| is_secret_id(id) && !used(id));
    problems.extend(
        unused.map(|id| format!("secrets: no step uses {id}: leave it out, or add --secret={id} to a RUN")),
    );
    for (line, run) in runs(recipe) {
        let lacking = run.secrets.iter().filter(|secret| !secret.optional && !given.contains_key(&secret.id));
        problems.extend(lacking.map(|secret| {
            let id = &secret.id;
            format!("line {line}, RUN: it needs the secret {id}, which is not given: add it to `secrets`")
        }));
    }
    if problems.is_empty() { Ok(()) } else { Err(Fault::invalid(problems.join("\n"))) }
}

/// Returns what is wrong with a secret, without its value.
fn wrong(id: &str, value: &str) -> Option<String> {
    if !is_secret_id(id) {
        return Some(
            "secrets: an id has 1 to 64 letters, digits, '_', '.' or '-', and begins with none of the last two".to_owned(),
        );
    }
    if value.len() > VALUE_MAX {
        return Some(format!("secrets: {id} has {} bytes: at most {VALUE_MAX}", value.len()));
    }
    if trimmed(value).len() < VALUE_MIN {
        let message = format!(
            "secrets: {id} has less than {VALUE_MIN} bytes, which would be blanked everywhere in the log: use a longer one"
        );
        return Some(message);
    }
    value.contains('\0').then(|| format!("secrets: {id} has a NUL, which no text has"))
}

/// Commands of a recipe with their lines.
fn runs(recipe: &Recipe) -> impl Iterator<Item = (u32, &Run)> {
    recipe.steps.iter().filter_map(|step| match &step.instruction {
        Instruction::Run(run) => Some((step.span.line, run)),
        _ => None,
    })
}

/// Puts the secrets of a step into the sandbox.
pub(super) async fn put(
    guest: &Guest,
    place: Place,
    run: &Run,
    context: &Context,
    values: &BuildSecrets,
) -> Result<(), Stop> {
    let user = context.user.to_string();
    for secret in &run.secrets {
        match values.0.get(&secret.id) {
            Some(value) => {
                guest.put_secret(secret, &user, value).await.map_err(|fault| Stop::in_step(place, fault))?;
            }
            None if secret.optional => {}
            None => {
                let what =
                    format!("needs the secret {}, which is not there: ask for the build again", secret.id);
                return Err(Failure::of_step(place, &what).into());
            }
        }
    }
    Ok(())
}

/// Removes the secrets of a step from its sandbox, whatever has become of it. A sandbox that does not do so is deleted.
pub(super) async fn remove<T>(
    guest: &Guest,
    log: &mut Log,
    place: Place,
    done: Result<T, Stop>,
) -> Result<T, Stop> {
    let Err(fault) = guest.remove_secrets().await else { return done };
    log.say(place.number, "the secrets of this step cannot be removed, so its sandbox is deleted");
    guest.delete().await;
    // Why the step failed tells more.
    done.and(Err(Stop::in_step(place, fault)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn told(recipe: &str, given: &[(&str, &str)]) -> String {
        let recipe = wrenn_recipe::parse(recipe.as_bytes()).expect("a recipe");
        let given = given.iter().map(|(id, value)| ((*id).to_owned(), (*value).to_owned()));
        match check(&recipe, &BuildSecrets(given.collect::<BTreeMap<_, _>>())) {
            Ok(()) => "fine".to_owned(),
            Err(fault) => fault.message,
        }
    }

    #[test]
    fn what_steps_need_is_given_and_nothing_else() {
        let recipe =
            "FROM minimal\nRUN a\nRUN --secret=one --secret=two,required=false b\nRUN --secret=one c";
        assert_eq!(told(recipe, &[("one", "value")]), "fine");
        assert_eq!(told(recipe, &[("one", "value"), ("two", "value")]), "fine");
        assert_eq!(told("RUN a", &[]), "fine");
        let lacks = told(recipe, &[("three", "value")]);
        let lines: Vec<_> = lacks.lines().collect();
        assert_eq!(lines.len(), 3, "{lacks}");
        assert!(lines[0].contains("no step uses three"), "{lacks}");
        assert!(lines[1].starts_with("line 3, RUN: it needs the secret one"), "{lacks}");
        assert!(lines[2].starts_with("line 4, RUN: it needs the secret one"), "{lacks}");
    }

    #[test]
    fn secrets_that_cannot_be_kept_are_refused_without_their_values() {
        let recipe = "RUN --secret=one a";
        let (long, longest) = ("hunter2".repeat(10_000), "x".repeat(VALUE_MAX));
        assert_eq!(told(recipe, &[("one", longest.as_str())]), "fine");
        for (value, part) in [
            ("abc", "less than 4"),
            ("abc\n\n", "less than 4"),
            ("", "less than 4"),
            (long.as_str(), "at most 65536"),
            ("hunter2\0", "NUL"),
        ] {
            let message = told(recipe, &[("one", value)]);
            assert!(message.contains(part) && !message.contains("hunter2"), "{message}");
        }
        let odd = told(recipe, &[("one", "value"), ("../x hunter2", "value")]);
        assert!(odd.contains("an id has 1 to 64") && !odd.contains("hunter2"), "{odd}");
        let all: Vec<String> = (0..9).map(|number| format!("s{number}")).collect();
        let recipe = format!("RUN --secret={} a", all.join(","));
        let given: Vec<_> = all.iter().map(|id| (id.as_str(), longest.as_str())).collect();
        assert!(told(&recipe, &given).contains("together they have more than 524288"));
        let many: Vec<String> = (0..=SECRETS_MAX).map(|number| format!("s{number}")).collect();
        let given: Vec<_> = many.iter().map(|id| (id.as_str(), "value")).collect();
        assert!(told("RUN a", &given).contains("at most 32"));
    }
}
