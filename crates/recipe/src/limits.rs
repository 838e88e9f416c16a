// SPDX-License-Identifier: Apache-2.0
//! Limits of recipes: everything that an author can make grow has one.

/// Maximum size of a recipe, in bytes.
pub const RECIPE_BYTES: usize = 1 << 20;
/// Maximum number of instructions of a recipe.
pub const INSTRUCTIONS: usize = 500;
/// Maximum length of an instruction in bytes, joined from its lines and without its heredocs. The printed form of one that
/// is almost as long may be longer.
pub const LINE_BYTES: usize = 64 << 10;
/// Maximum number of heredocs of an instruction.
pub const HEREDOCS: usize = 100;
/// Maximum size of a heredoc, in bytes.
pub const HEREDOC_BYTES: usize = 256 << 10;
/// Maximum number of variables that all `ENV` and `ARG` of a recipe set, and that an environment has.
pub const VARIABLES: usize = 1024;
/// Maximum length of the name of a variable, in bytes.
pub const NAME_BYTES: usize = 255;
/// Maximum size of a variable in the kernel, in bytes: `NAME=VALUE` and a NUL.
pub const VARIABLE_BYTES: usize = 128 << 10;
/// Maximum size of all variables, in bytes.
pub const ENVIRONMENT_BYTES: usize = 1 << 20;
/// Maximum length of a path in the kernel, in bytes, without the NUL at its end.
pub const PATH_BYTES: usize = 4095;
/// Maximum number of variables within each other, as `${A:-${B}}`.
pub const NESTED: usize = 8;
/// Maximum number of errors that are reported.
pub const ERRORS: usize = 50;
