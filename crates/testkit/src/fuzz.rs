// SPDX-License-Identifier: Apache-2.0
//! Hostile input for parsers: any bytes, and examples that were damaged.

use proptest::{
    collection::vec,
    prelude::{Just, ProptestConfig, Strategy, any, prop_oneof},
    sample::{Index, select},
};

use crate::short_or_long;

/// One change of an example, at a place in it.
#[derive(Debug, Clone)]
enum Damage {
    Replace(u8),
    Insert(Vec<u8>),
    Cut,
    /// Everything up to this place once more.
    Repeat,
}

/// Number of inputs: more in `make test-long`.
pub fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(short_or_long(200, 20_000)) }
}

/// Inputs for a parser that takes `examples`.
pub fn damaged(examples: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    damaged_bytes(examples.iter().map(|example| example.as_bytes().to_vec()).collect())
}

/// Inputs for a parser that takes `examples`, which are no text.
pub fn damaged_bytes(examples: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let damage = prop_oneof![
        4 => any::<u8>().prop_map(Damage::Replace),
        2 => vec(any::<u8>(), 1..64).prop_map(Damage::Insert),
        1 => Just(Damage::Cut),
        1 => Just(Damage::Repeat),
    ];
    let changed = (select(examples), vec((any::<Index>(), damage), 0..8)).prop_map(|(example, damages)| {
        damages.into_iter().fold(example, |bytes, (place, damage)| apply(bytes, place, damage))
    });
    prop_oneof![3 => changed, 1 => vec(any::<u8>(), 0..512)]
}

fn apply(mut bytes: Vec<u8>, place: Index, damage: Damage) -> Vec<u8> {
    if bytes.is_empty() {
        return bytes;
    }
    let at = place.index(bytes.len());
    match damage {
        Damage::Replace(byte) => bytes[at] = byte,
        Damage::Insert(more) => drop(bytes.splice(at..at, more)),
        Damage::Cut => bytes.truncate(at),
        Damage::Repeat => {
            let again = bytes[..at].to_vec();
            bytes.extend(again);
        }
    }
    bytes
}
