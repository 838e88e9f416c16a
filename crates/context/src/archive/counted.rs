// SPDX-License-Identifier: Apache-2.0
//! Input that ends with an error when it is longer than a limit: counted where it comes out of a decompressor, it bounds what
//! a small archive can become.

use std::io::{self, Read};

/// Input that is counted.
pub(super) struct Counted<R> {
    input: R,
    left: u64,
    exceeded: bool,
}

impl<R> Counted<R> {
    pub(super) const fn new(input: R, limit: u64) -> Self {
        Self { input, left: limit, exceeded: false }
    }

    /// Returns whether there was more than the limit.
    pub(super) const fn is_exceeded(&self) -> bool {
        self.exceeded
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        match self.left.checked_sub(read as u64) {
            Some(left) => {
                self.left = left;
                Ok(read)
            }
            None => {
                self.exceeded = true;
                Err(io::Error::other("it is larger than the limit"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_up_to_the_limit_is_read_and_longer_one_is_not() {
        for (limit, exceeded) in [(0, true), (9, true), (10, false), (11, false)] {
            let mut input = Counted::new(&[7_u8; 10][..], limit);
            let outcome = io::copy(&mut input, &mut io::sink());
            assert_eq!((outcome.is_err(), input.is_exceeded()), (exceeded, exceeded), "{limit}");
        }
    }
}
