// SPDX-License-Identifier: Apache-2.0
//! Numbers of block devices, as the kernel encodes them.

use std::fmt;

/// Device number: major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Numbers {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl Numbers {
    /// Decodes the kernel's format (`huge_encode_dev`).
    pub(super) fn unpack(device: u64) -> Self {
        let major = (device >> 8) & 0xfff;
        let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
        Self { major: major as u32, minor: minor as u32 }
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}
