// SPDX-License-Identifier: Apache-2.0
//! Types that are one text in JSON, as they are in a recipe.

use crate::{
    mode::{Mode, ModeError},
    period::{Period, PeriodError},
    reference::{Base, BaseError},
    text::{Text, TextError},
    user::{User, UserError},
};

/// Converts types from texts by their `FromStr` and into texts by their `Display`, for serde's `try_from` and `into`.
macro_rules! texts {
    ($($name:ty, $error:ty;)*) => {
        $(
            impl TryFrom<String> for $name {
                type Error = $error;

                fn try_from(text: String) -> Result<Self, $error> {
                    text.parse()
                }
            }

            impl From<$name> for String {
                fn from(value: $name) -> Self {
                    value.to_string()
                }
            }
        )*
    };
}

texts! {
    Base, BaseError;
    Mode, ModeError;
    Period, PeriodError;
    Text, TextError;
    User, UserError;
}
