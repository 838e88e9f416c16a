// SPDX-License-Identifier: Apache-2.0
//! Fields of settings: keys with the type of their value and a default, and groups of keys.

use std::{
    fmt::{self, Display},
    marker::PhantomData,
    net::SocketAddr,
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use crate::{
    Settings, Values, docs,
    key::{Key, Kind, Unit},
};

/// What a field of settings can be: a key, a group of keys, or what no key changes.
pub trait Part<T> {
    /// Returns the keys; `doc` is the field's doc comment.
    fn keys(self, doc: &'static str) -> Vec<Key>;

    /// Reads the field.
    fn read(self, values: Values<'_>) -> T;
}

/// Types of a number.
pub trait Integer: Copy + Display + FromStr + TryInto<u64> + 'static {}

impl<T: Copy + Display + FromStr + TryInto<u64> + 'static> Integer for T {}

type Parse<T> = Box<dyn Fn(&str) -> Option<T>>;

/// A key with the type of its value, yet without a default.
pub struct Typed<T> {
    name: &'static str,
    kind: Kind,
    shared_variable: Option<&'static str>,
    parse: Parse<T>,
    show: Box<dyn Fn(&T) -> String>,
}

/// A key with its default.
pub struct Field<T> {
    key: Key,
    default: T,
    parse: Parse<T>,
}

/// All keys of other settings.
#[derive(Debug)]
pub struct Group<S>(PhantomData<S>);

/// A value that no key changes.
#[derive(Debug)]
pub struct Fixed<T>(T);

/// Declares a key with any text.
pub fn text(name: &'static str) -> Typed<String> {
    Typed::new(name, Kind::Text, |value| Some(value.to_owned()), String::clone)
}

/// Declares a key with a path.
pub fn path(name: &'static str) -> Typed<PathBuf> {
    Typed::new(name, Kind::Path, |value| Some(value.into()), |path: &PathBuf| path.display().to_string())
}

/// Declares a key with an IP address and a port.
pub fn address(name: &'static str) -> Typed<SocketAddr> {
    Typed::new(name, Kind::Address, |value| value.parse().ok(), SocketAddr::to_string)
}

/// Declares a key with a number of this range.
pub fn number<T: Integer>(name: &'static str, range: RangeInclusive<T>) -> Typed<T> {
    of_unit(name, range, Unit::Plain)
}

/// Declares a key with a number of bytes.
pub fn bytes<T: Integer>(name: &'static str, range: RangeInclusive<T>) -> Typed<T> {
    of_unit(name, range, Unit::Bytes)
}

/// Declares a key with a number of seconds.
pub fn seconds(name: &'static str, range: RangeInclusive<u64>) -> Typed<Duration> {
    let kind = Kind::Number(*range.start(), *range.end(), Unit::Seconds);
    let parse = |value: &str| value.parse().ok().map(Duration::from_secs);
    Typed::new(name, kind, parse, |duration| duration.as_secs().to_string())
}

/// Declares a key with one of these words; each stands for a value.
pub fn choice<T>(name: &'static str, words: &'static [(&'static str, T)]) -> Typed<T>
where
    T: Copy + PartialEq,
{
    let kind = Kind::OneOf(words.iter().map(|(word, _)| *word).collect());
    let parse = |value: &str| words.iter().find(|(word, _)| *word == value).map(|(_, meant)| *meant);
    let show = |value: &T| words.iter().find(|(_, meant)| meant == value).map_or("", |(word, _)| *word);
    Typed::new(name, kind, parse, move |value| show(value).to_owned())
}

/// Declares that a field has all keys of other settings.
pub const fn group<S>() -> Group<S> {
    Group(PhantomData)
}

/// Declares that a field has this value, which no key changes: only who makes the settings in a program can.
pub const fn fixed<T>(value: T) -> Fixed<T> {
    Fixed(value)
}

fn of_unit<T: Integer>(name: &'static str, range: RangeInclusive<T>, unit: Unit) -> Typed<T> {
    // A type of more than 64 bits, or below zero, is no type of a key; its range would take no value.
    let end = |end: T, otherwise: u64| end.try_into().unwrap_or(otherwise);
    let kind = Kind::Number(end(*range.start(), u64::MAX), end(*range.end(), 0), unit);
    Typed::new(name, kind, |value| value.parse().ok(), T::to_string)
}

impl<T> Typed<T> {
    fn new(
        name: &'static str,
        kind: Kind,
        parse: impl Fn(&str) -> Option<T> + 'static,
        show: impl Fn(&T) -> String + 'static,
    ) -> Self {
        Self { name, kind, shared_variable: None, parse: Box::new(parse), show: Box::new(show) }
    }

    /// Names the environment variable, which other programs use too.
    #[must_use]
    pub fn shared_variable(self, name: &'static str) -> Self {
        Self { shared_variable: Some(name), ..self }
    }

    /// Sets the default.
    pub fn or(self, default: T) -> Field<T> {
        let text = (self.show)(&default);
        let key = self.key(String::new());
        debug_assert!(key.check(&text).is_ok(), "the default {text} of {} is none of its values", key.name);
        let shown = docs::value(&key.kind, &text);
        Field { key: Key { default: shown, ..key }, default, parse: self.parse }
    }

    /// Makes the field `None` if the key is not set; `meaning` says in Markdown what then holds.
    pub fn or_none(self, meaning: impl Into<String>) -> Field<Option<T>>
    where
        T: 'static,
    {
        let key = self.key(meaning.into());
        let parse = self.parse;
        Field { key, default: None, parse: Box::new(move |value| parse(value).map(Some)) }
    }

    fn key(&self, default: String) -> Key {
        let (name, kind, shared_variable) = (self.name, self.kind.clone(), self.shared_variable);
        Key { name, kind, default, doc: "", shared_variable }
    }
}

impl<T> Part<T> for Field<T> {
    fn keys(self, doc: &'static str) -> Vec<Key> {
        vec![Key { doc: doc.trim(), ..self.key }]
    }

    fn read(self, values: Values<'_>) -> T {
        let text = values(self.key.name).filter(|text| self.key.check(text).is_ok());
        text.and_then(|text| (self.parse)(&text)).unwrap_or(self.default)
    }
}

impl<S: Settings> Part<S> for Group<S> {
    fn keys(self, _doc: &'static str) -> Vec<Key> {
        S::keys()
    }

    fn read(self, values: Values<'_>) -> S {
        S::read(values)
    }
}

impl<T> Part<T> for Fixed<T> {
    fn keys(self, _doc: &'static str) -> Vec<Key> {
        Vec::new()
    }

    fn read(self, _values: Values<'_>) -> T {
        self.0
    }
}

impl<T> fmt::Debug for Typed<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Typed").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Field<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Field").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::settings! {
        struct Inner {
            /// Inner.
            rate: Option<u64> = bytes("a.rate", 1..=8).or_none("no limit"),
        }
    }

    crate::settings! {
        struct Outer {
            /// First line
            /// and second one.
            listen: SocketAddr = address("a.listen").or(SocketAddr::from(([127, 0, 0, 1], 1))),
            /// Count.
            count: u16 = number("a.count", 0..=1024).or(4),
            /// Limit.
            limit: Duration = seconds("a.limit_sec", 1..=3600).or(Duration::from_secs(180)),
            /// Word.
            word: Option<bool> = choice("a.word", &[("auto", None), ("true", Some(true))]).or(None),
            /// URL.
            url: Option<String> = text("url").shared_variable("URL").or_none("own"),
            /// Group.
            inner: Inner = group(),
            /// No key.
            own: u8 = fixed(3),
        }
    }

    fn read(pairs: &[(&str, &str)]) -> Outer {
        Outer::read(&|name| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn fields_have_their_default_or_the_value_that_is_set() {
        let none = Outer::default();
        assert_eq!((none.listen.port(), none.count, none.word, none.inner.rate), (1, 4, None, None));
        assert_eq!(none.own, 3);
        let set = read(&[("a.listen", "[::1]:2"), ("a.count", "1024"), ("a.word", "true"), ("a.rate", "8")]);
        assert_eq!((set.listen.port(), set.count, set.word, set.inner.rate), (2, 1024, Some(true), Some(8)));
        let set = read(&[("a.limit_sec", "5"), ("url", "x")]);
        assert_eq!((set.limit, set.url.as_deref()), (Duration::from_secs(5), Some("x")));
    }

    #[test]
    fn values_that_are_not_possible_are_refused() {
        for (name, value, told) in [
            ("a.listen", "9725", "not an address with a port, such as 127.0.0.1:9725"),
            ("a.count", "1025", "not a number from 0 to 1024"),
            ("a.count", "-1", "not a number from 0 to 1024"),
            ("a.rate", "0", "not a number from 1 to 8"),
            ("a.word", "false", "not one of auto, true"),
        ] {
            let keys = Outer::keys();
            let key = keys.iter().find(|key| key.name == name).expect("the key");
            assert_eq!(key.check(value), Err(told.to_owned()), "{name}={value}");
        }
        assert_eq!(read(&[("a.count", "1025")]).count, 4);
    }

    #[test]
    fn keys_have_the_variable_and_the_documentation_of_their_field() {
        let keys = Outer::keys();
        let variables: Vec<String> = keys.iter().map(Key::variable).collect();
        assert_eq!(
            variables,
            ["WRENN_A_LISTEN", "WRENN_A_COUNT", "WRENN_A_LIMIT_SEC", "WRENN_A_WORD", "URL", "WRENN_A_RATE"]
        );
        assert_eq!(keys[0].doc, "First line and second one.");
        let defaults: Vec<&str> = keys.iter().map(|key| key.default.as_str()).collect();
        assert_eq!(defaults, ["`127.0.0.1:1`", "`4`", "`180` (3 minutes)", "`auto`", "own", "no limit"]);
    }
}
