// SPDX-License-Identifier: Apache-2.0
//! Random numbers that a seed repeats.

use std::{
    env,
    hash::{BuildHasher as _, Hasher as _, RandomState},
};

use anyhow::{Context, Result};
use wrenn_testkit::short_or_long;

/// Generator of random numbers (SplitMix64).
#[derive(Debug)]
pub(super) struct Dice(u64);

/// Returns the seed of the environment's `SEED`; without one the same each time, and in long tests another one.
pub(super) fn seed() -> Result<u64> {
    match env::var("SEED") {
        Ok(seed) => seed.parse().with_context(|| format!("SEED={seed} is no number")),
        Err(_) => Ok(short_or_long(1, RandomState::new().build_hasher().finish() % 1_000_000_000)),
    }
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    /// One of `all`, which are not none.
    pub(super) fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }

    /// One of `all` with its weight; the sum of the weights is not 0.
    pub(super) fn weighted<T>(&mut self, all: Vec<(u64, T)>) -> T {
        let mut left = self.below(all.iter().map(|(weight, _)| weight).sum());
        let mut chosen = None;
        for (weight, thing) in all {
            if left < weight {
                chosen = Some(thing);
                break;
            }
            left -= weight;
        }
        chosen.expect("the weights are those that were summed up")
    }
}
