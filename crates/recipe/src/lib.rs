// SPDX-License-Identifier: Apache-2.0
//! Recipes of templates: [`parse()`] makes typed steps of a recipe's text, and `to_string` makes the text of steps again.
//! Nothing here reads a file or runs a command.
//!
//! A recipe is a subset of a Dockerfile of one stage, with `START`, `RUN --timeout` and `RUN --secret` in addition. What it
//! has of a Dockerfile means what it means there; what it does not have is refused with what to write instead, and never
//! read as something else. Two things come out in another shape:
//!
//! - `SHELL` makes the shell form of what follows the exec form of that shell.
//! - `CMD`, `ENTRYPOINT` and `HEALTHCHECK` are about the finished template, so their steps are the last ones.
//!
//! `EXPOSE` makes no step and is not refused: what it says is true of every sandbox, whose ports can all be reached.
//!
//! ```
//! let recipe = wrenn_recipe::parse(b"FROM python:3.12-slim\nRUN --timeout=5m pip install flask\n").unwrap();
//! assert_eq!(recipe.steps[1].to_string(), "RUN --timeout=5m pip install flask");
//! assert_eq!(recipe.steps[1].canonical(), "RUN pip install flask");
//! ```

#[cfg(test)]
mod cases;
mod context;
mod error;
mod exec;
mod json;
pub mod limits;
mod lines;
mod mode;
mod name;
mod parse;
mod path;
mod period;
mod place;
mod print;
mod reference;
mod secret;
mod step;
mod text;
mod uploaded;
mod user;
mod words;

pub use context::{Action, Context, Copied};
pub use error::{RecipeError, RecipeErrorCode, RecipeErrors};
pub use mode::{Mode, ModeError};
pub use parse::parse;
pub use path::names;
pub use period::{Period, PeriodError};
pub use place::Span;
pub use reference::{Base, BaseError, ImageReference, ImageReferenceError};
pub use secret::{Secret, SecretError, is_secret_id};
pub use step::{
    Command, CopyFiles, Healthcheck, Instruction, Recipe, Run, Source, Start, Step, Variable, Variables,
};
pub use text::{Text, TextError};
pub use uploaded::{UploadedImage, UploadedImageError};
pub use user::{Account, User, UserError};
