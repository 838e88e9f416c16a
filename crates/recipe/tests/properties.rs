// SPDX-License-Identifier: Apache-2.0
//! What holds for all recipes: what is printed is parsed to the same steps, and any input is parsed or refused.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, option, prelude::*, sample::select};
use wrenn_recipe::{
    Base, Command, Context, CopyFiles, Healthcheck, Instruction, Mode, Period, Recipe, Run, Secret, Source,
    Span, Start, Step, Text, Variable, Variables, limits, parse,
};
use wrenn_testkit::fuzz;

const RECIPES: &[&str] = &[
    include_str!("recipes/code-runner.Dockerfile"),
    include_str!("recipes/entrypoint.Dockerfile"),
    include_str!("recipes/heredocs.Dockerfile"),
    include_str!("recipes/mistakes.Dockerfile"),
    include_str!("recipes/multi-stage.Dockerfile"),
    include_str!("recipes/node-npm-ci.Dockerfile"),
    include_str!("recipes/python-slim.Dockerfile"),
    include_str!("recipes/tabs.Dockerfile"),
    include_str!("recipes/unsupported.Dockerfile"),
    include_str!("recipes/windows.Dockerfile"),
    include_str!("../../../examples/web/Wrennfile"),
    "FROM uploaded:app:1\nRUN --secret=npm,target=/root/.npmrc,required=false --timeout=1m npm ci\n\
        RUN --mount=type=secret,id=key,dst=/k,required=true <<EOF\ncat /k\nEOF\nUSER app:www-data\n",
];

/// Parts of recipes that have a meaning somewhere.
const TOKENS: &[&str] = &[
    "ARG ",
    "CMD ",
    "COPY ",
    "ENTRYPOINT ",
    "ENV ",
    "FROM ",
    "HEALTHCHECK ",
    "RUN ",
    "SHELL ",
    "START ",
    "USER ",
    "WORKDIR ",
    "A",
    "A=",
    "b",
    "é",
    "/",
    ".",
    ":",
    "1",
    "$A",
    "${A",
    ":-",
    "+",
    "}",
    "$",
    "\\",
    "`",
    "'",
    "\"",
    "[",
    "]",
    "\"a\"",
    ",",
    "{",
    "<<E",
    "<<-'E'",
    "<<",
    "\nE\n",
    "\n\tE\n",
    "#",
    "#!",
    "--",
    "--chown=",
    "--timeout=1s ",
    "--secret=a ",
    "--secret=",
    "--mount=type=secret,id=a ",
    "--mount=",
    ",target=",
    ",required=",
    "uploaded:",
    " ",
    " ",
    "  ",
    "\t",
    "\u{a0}",
    "\n",
    "\n",
    "\n",
    "\r\n",
    "\\\n",
    "# escape=`\n",
    "`\n",
];

/// Words of a shell, the first of which can begin a command.
const WORDS: &[&str] = &[
    "echo",
    "#",
    "--flag",
    "[",
    "é",
    "a=b",
    "\"$HOME\"",
    "it's",
    "'x  y'",
    "\\\\",
    "\\$5",
    "&&",
    "|",
    "#!x",
    "<<<here",
    "<<",
    "${A:-b}",
    "`date`",
    "{",
    ">/dev/null",
    "a\tb",
];
/// Number of those that can begin one.
const FIRST: usize = 5;

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z_][A-Za-z0-9_]{0,6}"
}

/// A text without variables, as it stands in a recipe.
fn literal() -> impl Strategy<Value = String> {
    "[ -~é\t]{0,6}".prop_map(|text| Text::literal(text).to_string())
}

fn variable() -> impl Strategy<Value = String> {
    const OPERATORS: &[&str] = &["", ":-", "-", ":+", "+"];
    let instead = prop_oneof![
        literal().prop_map(|text| text.replace('}', "\\}")),
        name().prop_map(|name| format!("${{{name}:-x}}")),
    ];
    (name(), select(OPERATORS), instead).prop_map(|(name, operator, instead)| {
        let instead = if operator.is_empty() { "" } else { instead.as_str() };
        format!("${{{name}{operator}{instead}}}")
    })
}

fn text() -> impl Strategy<Value = Text> {
    vec(prop_oneof![literal(), variable()], 0..4).prop_map(|parts| parts.concat().parse::<Text>().unwrap())
}

/// A path that is valid, or whose variables decide that.
fn path() -> impl Strategy<Value = Text> {
    prop_oneof![
        "[a-zé '\"$\\\\{}#<-]{1,8}".prop_map(Text::literal),
        (literal(), variable())
            .prop_map(|(text, variable)| format!("{text}{variable}").parse::<Text>().unwrap()),
    ]
}

fn user() -> impl Strategy<Value = Text> {
    const USERS: &[&str] = &["root", "1000", "a-b:c", "7:8"];
    prop_oneof![
        select(USERS).prop_map(Text::literal),
        variable().prop_map(|variable| variable.parse::<Text>().unwrap())
    ]
}

fn variables() -> impl Strategy<Value = Variables> {
    let variable =
        ("[A-Za-z_][A-Za-z0-9_.-]{0,6}", text()).prop_map(|(name, value)| Variable { name, value });
    vec(variable, 1..4).prop_map(|variables| Variables { variables })
}

fn period() -> impl Strategy<Value = Period> {
    (1..86_400_000_u32).prop_map(|milliseconds| format!("{milliseconds}ms").parse::<Period>().unwrap())
}

fn shell_line() -> impl Strategy<Value = String> {
    (select(&WORDS[..FIRST]), vec(select(WORDS), 0..6))
        .prop_map(|(first, rest)| [vec![first], rest].concat().join(" "))
}

fn document_lines() -> impl Strategy<Value = String> {
    const LINES: &[&str] = &["", "EOF", "EOF1", "\tx \\", "#!/bin/sh"];
    let line = prop_oneof![shell_line(), select(LINES).prop_map(str::to_owned)];
    vec(line, 0..4).prop_map(|lines| lines.iter().map(|line| format!("{line}\n")).collect())
}

/// A command of one line.
fn inline_command() -> impl Strategy<Value = Command> {
    let exec = ("[!-~é]{1,6}", vec("[ -~é\n\t]{0,6}", 0..3))
        .prop_map(|(program, arguments)| Command::Exec([vec![program], arguments].concat()));
    prop_oneof![shell_line().prop_map(Command::Shell), exec]
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        inline_command(),
        (shell_line(), document_lines()).prop_map(|(first, rest)| Command::Shell(format!("{first}\n{rest}"))),
        document_lines().prop_map(|lines| Command::Script(format!("#!/bin/sh\n{lines}"))),
    ]
}

fn run() -> impl Strategy<Value = Instruction> {
    let secret = ("[a-z0-9_][a-z0-9_.-]{0,6}", option::of("/[a-z]{1,4}(/[a-z.]{2}x){0,2}"), any::<bool>());
    // Each of another id and at another path.
    let secrets = vec(secret, 0..3).prop_map(|all| {
        let mut found = BTreeMap::new();
        for (number, (id, target, optional)) in all.into_iter().enumerate() {
            let target = target.map(|target| format!("{target}{number}"));
            found.insert(id.clone(), Secret { id, target, optional });
        }
        found.into_values().collect::<BTreeSet<_>>()
    });
    (command(), option::of(period()), secrets)
        .prop_map(|(command, timeout, secrets)| Instruction::Run(Run { command, timeout, secrets }))
}

fn inline_file() -> impl Strategy<Value = Source> {
    const NAMES: &[&str] = &["EOF", "a.txt"];
    let line = prop_oneof![text(), select(NAMES).prop_map(Text::literal)];
    (select(NAMES), vec(line, 0..4)).prop_map(|(name, lines)| {
        let content: String = lines.iter().map(|line| format!("{line}\n")).collect();
        Source::Inline { name: name.to_owned(), content: content.parse::<Text>().unwrap() }
    })
}

fn copy() -> impl Strategy<Value = Instruction> {
    const MODES: &[&str] = &["0", "644", "4755"];
    let sources = vec(prop_oneof![path().prop_map(Source::Context), inline_file()], 1..4);
    let mode = option::of(select(MODES).prop_map(|mode| mode.parse::<Mode>().unwrap()));
    (sources, path(), option::of(user()), mode).prop_map(|(sources, destination, owner, mode)| {
        let destination = format!("{destination}/").parse::<Text>().unwrap();
        Instruction::Copy(CopyFiles { sources, destination, owner, mode })
    })
}

fn healthcheck() -> impl Strategy<Value = Instruction> {
    let periods = (option::of(period()), option::of(period()), option::of(period()));
    (inline_command(), periods, option::of(1..100_u32)).prop_map(|(command, periods, retries)| {
        let (interval, timeout, start_period) = periods;
        Instruction::Healthcheck(Healthcheck { command, interval, timeout, start_period, retries })
    })
}

/// What is started: in the middle of the recipe, or at its end.
fn start() -> impl Strategy<Value = Instruction> {
    let start = |command, after_entrypoint| Instruction::Start(Start { command, after_entrypoint });
    prop_oneof![
        command().prop_map(move |command| start(command, false)),
        inline_command().prop_map(move |command| start(command, true)),
    ]
}

fn recipe() -> impl Strategy<Value = Recipe> {
    const BASES: &[&str] = &["template:minimal", "python:3.12", "ghcr.io/a/b:c", "uploaded:app:1"];
    let from = select(BASES).prop_map(|base| Instruction::From { base: base.parse::<Base>().unwrap() });
    let other = prop_oneof![
        variables().prop_map(Instruction::Arg),
        variables().prop_map(Instruction::Env),
        path().prop_map(|path| Instruction::Workdir { path }),
        user().prop_map(|user| Instruction::User { user }),
        copy(),
        run(),
    ];
    (option::of(from), vec(other, 1..6), option::of(start()), option::of(healthcheck())).prop_map(
        |(from, others, start, check)| {
            let instructions = from.into_iter().chain(others).chain(start).chain(check);
            let span = Span { line: 1, column: 1, last_line: 1 };
            Recipe { steps: instructions.map(|instruction| Step { span, instruction }).collect() }
        },
    )
}

fn instructions(recipe: &Recipe) -> Vec<&Instruction> {
    recipe.steps.iter().map(|step| &step.instruction).collect()
}

/// Fails if a recipe is not the same after it was printed, or stored.
fn check_forms(recipe: &Recipe) -> Result<(), TestCaseError> {
    let printed = recipe.to_string();
    let parsed = parse(printed.as_bytes())
        .map_err(|errors| TestCaseError::fail(format!("{errors}\nof what was printed:\n{printed}")))?;
    prop_assert_eq!(instructions(&parsed), instructions(recipe), "{}", printed);
    prop_assert_eq!(parsed.to_string(), printed);
    let json = serde_json::to_string(recipe).unwrap();
    prop_assert_eq!(&serde_json::from_str::<Recipe>(&json).unwrap(), recipe);
    Ok(())
}

/// Fails if an input is neither parsed nor refused.
fn check_any(source: &[u8]) -> Result<(), TestCaseError> {
    let lines = source.iter().filter(|byte| **byte == b'\n').count() + 1;
    match parse(source) {
        Ok(recipe) => {
            check_forms(&recipe)?;
            // With no more than an error.
            let _ = Context::default().after(&recipe.steps);
        }
        Err(errors) => {
            prop_assert!((1..=limits::ERRORS).contains(&errors.errors.len()));
            for error in errors.errors {
                prop_assert!((1..=lines).contains(&(error.line as usize)) && error.column > 0, "{}", error);
                prop_assert!(error.message.contains(": "), "{}", error);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(fuzz::config())]

    #[test]
    fn what_is_printed_or_stored_is_the_same_recipe(recipe in recipe()) {
        check_forms(&recipe)?;
    }

    #[test]
    fn damaged_recipes_are_parsed_or_refused(source in fuzz::damaged(RECIPES)) {
        check_any(&source)?;
    }

    #[test]
    fn whatever_is_put_together_is_parsed_or_refused(tokens in vec(select(TOKENS), 0..40)) {
        check_any(tokens.concat().as_bytes())?;
    }
}
