// SPDX-License-Identifier: Apache-2.0
//! Recipes as people write them, in `recipes/`: each with how it is printed, or with the places at which it is refused.

use std::{fs, path::Path};

use wrenn_recipe::parse;

#[test]
fn recipes_are_parsed_or_refused_as_expected() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recipes");
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let recipes: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "Dockerfile")).collect();
    assert!(recipes.len() >= 10, "{recipes:?}");
    for path in recipes {
        let outcome = match parse(&fs::read(&path).unwrap()) {
            Ok(recipe) => recipe.to_string(),
            Err(errors) => {
                let places = errors.errors.iter();
                places
                    .map(|error| format!("refused {}:{} {}\n", error.line, error.column, error.code))
                    .collect()
            }
        };
        let expected = fs::read_to_string(path.with_extension("expected")).unwrap();
        assert_eq!(outcome, expected, "{}", path.display());
    }
}

#[test]
fn errors_say_what_to_write_instead() {
    for recipe in ["mistakes", "multi-stage", "unsupported"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/recipes/{recipe}.Dockerfile"));
        for error in parse(&fs::read(path).unwrap()).unwrap_err().errors {
            let (cause, remedy) = error.message.split_once(": ").unwrap_or_default();
            assert!(!cause.is_empty() && !remedy.is_empty(), "{error}");
        }
    }
}
