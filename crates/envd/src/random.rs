// SPDX-License-Identifier: Apache-2.0
//! The kernel's random number generator, after a resume. Guests that go on from the same memory would otherwise
//! give the same numbers: kernels without a driver for VM generation ids do not notice that they were copied.

use std::{fs::File, io, os::fd::AsRawFd as _};

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` of linux/random.h.
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203_u32 as libc::Ioctl;
const RESEED: libc::Ioctl = 0x5207;
/// Numbers of bytes of a seed.
const SEED: std::ops::RangeInclusive<usize> = 32..=256;

/// `struct rand_pool_info`, with room for the longest seed.
#[repr(C)]
struct Pool {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    seed: [u8; 256],
}

/// Mixes a seed into the generator and has it use that at once. Needs CAP_SYS_ADMIN.
pub(crate) fn reseed(seed: &[u8]) -> io::Result<()> {
    if !SEED.contains(&seed.len()) {
        let reason = format!("a seed has {} to {} bytes, not {}", SEED.start(), SEED.end(), seed.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let mut pool = Pool {
        entropy_bits: (seed.len() * 8) as libc::c_int,
        bytes: seed.len() as libc::c_int,
        seed: [0; 256],
    };
    pool.seed[..seed.len()].copy_from_slice(seed);
    let random = File::options().write(true).open("/dev/random")?;
    // SAFETY: the structure is as the kernel reads it, and outlives the calls.
    let done = unsafe {
        libc::ioctl(random.as_raw_fd(), ADD_ENTROPY, &raw const pool) == 0
            && libc::ioctl(random.as_raw_fd(), RESEED) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_that_is_too_short_or_too_long_is_refused() {
        for length in [0, 31, 257] {
            assert_eq!(reseed(&vec![1; length]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
