// SPDX-License-Identifier: Apache-2.0
//! Declaration of configuration keys. [`settings!`] declares a struct whose fields are keys: each field has its type,
//! the key's name, the values that it takes, its default, and a doc comment that is also the key's documentation.
//!
//! ```
//! use wrenn_settings::{Settings as _, number};
//!
//! wrenn_settings::settings! {
//!     /// Limits.
//!     struct Limits {
//!         /// Maximum number of concurrent requests.
//!         requests: usize = number("server.requests", 1..=65_536).or(512),
//!     }
//! }
//! assert_eq!(Limits::default().requests, 512);
//! assert_eq!(Limits::read(&|_| Some("7".to_owned())).requests, 7);
//! assert_eq!(Limits::keys()[0].variable(), "WRENN_SERVER_REQUESTS");
//! ```

mod docs;
mod field;
mod key;

pub use docs::table;
pub use field::{
    Field, Fixed, Group, Integer, Part, Typed, address, bytes, choice, fixed, group, number, path, seconds,
    text,
};
pub use key::{Key, Kind, Unit};

/// Function that returns the text of a key's value, or `None` if the key is not set.
pub type Values<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A struct whose fields are configuration keys.
pub trait Settings: Sized {
    /// Returns all keys, in the order of the fields.
    fn keys() -> Vec<Key>;

    /// Reads all fields. A key that is not set, or whose text [`Key::check`] refuses, has its default.
    fn read(values: Values<'_>) -> Self;
}

/// Declares a struct that implements [`Settings`], and `Default` with the default of each key.
#[macro_export]
macro_rules! settings {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $($(#[doc = $doc:literal])+ $field_vis:vis $field:ident: $type:ty = $part:expr),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        $vis struct $name {
            $($(#[doc = $doc])+ $field_vis $field: $type),+
        }

        impl Default for $name {
            fn default() -> Self {
                $crate::Settings::read(&|_| None)
            }
        }

        impl $crate::Settings for $name {
            fn keys() -> Vec<$crate::Key> {
                let mut keys = Vec::new();
                $(keys.extend($crate::Part::<$type>::keys($part, concat!($($doc),+)));)+
                keys
            }

            fn read(values: $crate::Values<'_>) -> Self {
                Self { $($field: $crate::Part::<$type>::read($part, values)),+ }
            }
        }
    };
}
