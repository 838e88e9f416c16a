// SPDX-License-Identifier: Apache-2.0
//! Parses recipes: what each instruction means, and where it may stand.

mod command;
mod copy;
mod ending;
mod from;
mod healthcheck;
mod options;
mod refused;
mod run;
mod state;
mod value;
mod variables;

use std::collections::BTreeMap;

use crate::{
    error::{RecipeError, RecipeErrorCode as Code, RecipeErrors},
    limits,
    lines::{self, Line},
    place::Place,
    step::{Instruction, Recipe, Step},
};
use ending::Ending;

/// Parses a recipe. All errors that can be found are returned, up to [`limits::ERRORS`]. Lines may end as on Windows, and the
/// recipe may begin with a byte order mark.
pub fn parse(source: &[u8]) -> Result<Recipe, RecipeErrors> {
    let source = lines::read(readable(source)?);
    let mut parser = Parser { errors: source.errors, ..Parser::default() };
    // An ARG before FROM is for FROM. Without a FROM, it is one like others.
    let first = source.lines.iter().position(|line| line.keyword != "ARG");
    let from = first.filter(|first| source.lines[*first].keyword == "FROM");
    for (at, line) in source.lines.iter().enumerate() {
        let parsed = match (line.keyword.as_str(), from) {
            ("FROM", Some(from)) if at == from => parser.base(line),
            ("FROM", _) => Err(vec![from::misplaced(line, from.is_some())]),
            ("ARG", Some(from)) if at < from => parser.global(line),
            _ => parser.instruction(line),
        };
        parsed.unwrap_or_else(|errors| parser.refuse(errors));
    }
    parser.finish()
}

/// Checks size and encoding.
fn readable(source: &[u8]) -> Result<&str, RecipeErrors> {
    if source.len() > limits::RECIPE_BYTES {
        let message = format!(
            "the recipe has {} bytes: at most {}; put files into the uploaded context",
            source.len(),
            limits::RECIPE_BYTES
        );
        return Err(RecipeError::of_recipe(Place { line: 1, column: 1 }, Code::Limit, message).into());
    }
    str::from_utf8(source).map_err(|error| {
        let place = Place::after(&String::from_utf8_lossy(&source[..error.valid_up_to()]));
        RecipeError::of_recipe(place, Code::Character, "this is not UTF-8: save the recipe as UTF-8").into()
    })
}

#[derive(Default)]
struct Parser {
    steps: Vec<Step>,
    errors: RecipeErrors,
    /// Values of the ARG before FROM.
    globals: BTreeMap<String, String>,
    /// Number of variables that were set.
    variables: usize,
    /// Shell that SHELL names.
    shell: Option<Vec<String>>,
    ending: Ending,
}

impl Parser {
    fn base(&mut self, line: &Line) -> Result<(), Vec<RecipeError>> {
        let instruction = from::from(line, &self.globals)?;
        self.steps.push(Step { span: line.span(), instruction });
        Ok(())
    }

    fn global(&mut self, line: &Line) -> Result<(), Vec<RecipeError>> {
        let set = variables::declared(line, &self.globals)?;
        self.count(line, set.variables.len())?;
        let globals = &self.globals;
        let mut all = globals.clone();
        let get = |name: &str| globals.get(name).map(String::as_str);
        set.set(&get, &mut all).map_err(|message| line.wrong(Code::Limit, message))?;
        self.globals = all;
        Ok(())
    }

    fn instruction(&mut self, line: &Line) -> Result<(), Vec<RecipeError>> {
        let shell = self.shell.as_deref();
        let instruction = match line.keyword.as_str() {
            "ARG" => Instruction::Arg(variables::declared(line, &self.globals)?),
            "ENV" => Instruction::Env(variables::assigned(line)?),
            "WORKDIR" => state::workdir(line)?,
            "USER" => state::user(line)?,
            "COPY" => copy::copy(line)?,
            "RUN" => run::run(line, shell)?,
            "START" => self.ending.start(line, shell)?,
            "CMD" => return self.ending.cmd(line, shell),
            "ENTRYPOINT" => return self.ending.entrypoint(line, shell),
            "HEALTHCHECK" => return self.ending.healthcheck(line),
            "SHELL" => {
                self.shell = Some(command::shell(line)?);
                return Ok(());
            }
            "EXPOSE" => return state::expose(line),
            _ => return Err(vec![refused::refused(line)]),
        };
        if let Instruction::Arg(set) | Instruction::Env(set) = &instruction {
            self.count(line, set.variables.len())?;
        }
        self.steps.push(Step { span: line.span(), instruction });
        Ok(())
    }

    fn count(&mut self, line: &Line, variables: usize) -> Result<(), RecipeError> {
        self.variables += variables;
        if self.variables <= limits::VARIABLES {
            return Ok(());
        }
        let message =
            format!("the recipe sets more than {} variables: put some into a file", limits::VARIABLES);
        Err(line.wrong(Code::Limit, message))
    }

    fn refuse(&mut self, errors: Vec<RecipeError>) {
        errors.into_iter().for_each(|error| self.errors.push(error));
    }

    fn finish(mut self) -> Result<Recipe, RecipeErrors> {
        match self.ending.finish(self.shell.as_deref()) {
            Ok(last) => self.steps.extend(last),
            Err(error) => self.errors.push(error),
        }
        if self.steps.is_empty() && self.errors.errors.is_empty() {
            let message = "the recipe has no step: write one, such as RUN apt-get update";
            self.errors.push(RecipeError::of_recipe(Place { line: 1, column: 1 }, Code::Missing, message));
        }
        if self.errors.errors.is_empty() {
            Ok(Recipe { steps: self.steps })
        } else {
            Err(self.errors.sorted())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::{printed, refused};

    #[test]
    fn all_errors_are_reported_in_the_order_of_their_places() {
        let source = "FROM python\nCMD a\n  RNU b\nENV A=1 2=3 \\\n  B\nCOPY ../a /b\nUSER a b\nSTART c\n";
        let expected =
            ["2:1 conflict", "3:3 unknown_instruction", "4:9 name", "5:3 missing", "6:6 path", "7:6 user"];
        assert_eq!(refused(source), expected);
        let errors = parse("RNU a\n".repeat(60).as_bytes()).unwrap_err();
        assert!(errors.errors.len() == limits::ERRORS && errors.more);
    }

    #[test]
    fn recipes_are_utf_8_of_a_limited_size() {
        assert_eq!(
            parse(b"RUN a\nRUN \xc3\xa4\xff").unwrap_err().to_string().split(':').next(),
            Some("line 2, column 6, recipe")
        );
        let long = vec![b'\n'; limits::RECIPE_BYTES + 1];
        assert_eq!(parse(&long).unwrap_err().errors[0].code, Code::Limit);
        for empty in ["", "\n# c\n", "EXPOSE 80"] {
            assert_eq!(refused(empty), ["1:1 missing"]);
        }
    }

    #[test]
    fn the_number_of_variables_is_limited() {
        let line = "ENV".to_owned() + &" A=1".repeat(limits::VARIABLES);
        assert_eq!(printed(&line).len(), line.len() + 1);
        assert_eq!(refused(&format!("{line}\nARG B=1")), ["2:1 limit"]);
    }

    #[test]
    fn a_shell_runs_the_shell_forms_after_it() {
        let source = "RUN a\nSHELL [\"/bin/bash\", \"-c\"]\nRUN --timeout=1s a b\nRUN [\"a\"]\nSTART c\nHEALTHCHECK CMD d";
        let expected = "RUN a\nRUN --timeout=1s [\"/bin/bash\",\"-c\",\"a b\"]\nRUN [\"a\"]\n\
            START [\"/bin/bash\",\"-c\",\"c\"]\nHEALTHCHECK CMD [\"/bin/bash\",\"-c\",\"d\"]\n";
        assert_eq!(printed(source), expected);
        for wrong in ["SHELL", "SHELL []", "SHELL bash", "SHELL ['bash']", "SHELL [\"a\\u0000\"]"] {
            let code = if wrong == "SHELL" { "1:1 missing" } else { "1:7 array" };
            assert_eq!(refused(wrong), [code], "{wrong}");
        }
    }
}
