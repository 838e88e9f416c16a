// SPDX-License-Identifier: Apache-2.0
//! File of a sandbox's rings, beside its journal: `metrics`, in a format with a version. Nothing depends on it, so one that cannot be
//! read is given up with a warning.
//!
//! After [`MARK`] and the version come the tiers, each with its points and the sums of its open window. Numbers are written in as
//! many bytes as they need, 7 bits in each; most are the difference to the point before, so that a day takes some twenty KiB.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use wrenn_os::atomic_file;

use super::{
    rings::{Rings, SHAPES, Tier, Window},
    sample::{CPU_MAX, Sample},
};
use crate::sandbox::usage::Figures;

/// Beginning of every file.
const MARK: &[u8] = b"wrenn metrics\n";
/// Version of the format.
const VERSION: u8 = 2;
/// Maximum size of a file in bytes: more than all points take with the largest numbers.
const MAX_BYTES: u64 = 192 << 10;
/// Most bytes that a number takes, that a difference of numbers of 32 bits takes, and that a sample takes.
const NUMBER_MAX: usize = 10;
const SMALL_MAX: usize = 5;
const SAMPLE_MAX: usize = 6 * NUMBER_MAX + 4 * SMALL_MAX;
const _: () =
    assert!((1200 + 240 + 288) * SAMPLE_MAX + 3 * (SAMPLE_MAX + 8 * NUMBER_MAX) < MAX_BYTES as usize);

/// Reason why a file is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Unusable {
    #[error("it is of version {0}, and this agent reads version {VERSION}")]
    Version(u8),
    #[error("it is damaged")]
    Damaged,
}

/// Reads the rings in a sandbox's directory. They are empty if there are none that can be read.
pub(super) fn read(dir: &Path) -> Rings {
    match load(&path(dir)) {
        Ok(rings) => rings,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Rings::default(),
        Err(error) => {
            tracing::warn!(dir = %dir.display(), %error, "the metrics of a sandbox cannot be read: they begin anew");
            Rings::default()
        }
    }
}

/// Writes rings into a sandbox's directory. They are lost if that cannot be done, as when the sandbox was removed.
pub(super) fn write(dir: &Path, rings: &[u8]) {
    match atomic_file::write(&path(dir), rings, 0o600, None) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(dir = %dir.display(), %error, "the metrics of a sandbox cannot be kept");
        }
        _ => {}
    }
}

/// Returns the content of a file with these rings.
pub(super) fn encode(rings: &Rings) -> Vec<u8> {
    let mut bytes = [MARK, &[VERSION]].concat();
    for Tier { closed, open, .. } in &rings.tiers {
        put(&mut bytes, closed.len() as u64);
        let mut before = Sample::default();
        for point in closed {
            put_sample(&mut bytes, &before, point);
            before = *point;
        }
        put(&mut bytes, open.as_ref().map_or(0, |window| window.samples));
        if let Some(window) = open {
            put_sample(&mut bytes, &before, &window.last);
            let of_guest = [window.told, window.guest_mem_kib, window.guest_disk_kib];
            let sums = [window.cpu, window.mem_bytes, window.disk_bytes].into_iter().chain(of_guest);
            sums.for_each(|sum| put(&mut bytes, sum));
        }
    }
    bytes
}

fn path(dir: &Path) -> PathBuf {
    dir.join("metrics")
}

fn load(path: &Path) -> io::Result<Rings> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    decode(&bytes).map_err(|unusable| io::Error::new(io::ErrorKind::InvalidData, unusable))
}

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Writes the difference of two numbers, the sign of which is its last bit.
fn put_change(bytes: &mut Vec<u8>, before: u64, now: u64) {
    let change = now.wrapping_sub(before) as i64;
    put(bytes, ((change << 1) ^ (change >> 63)) as u64);
}

/// Writes a sample that is later than the one before.
fn put_sample(bytes: &mut Vec<u8>, before: &Sample, sample: &Sample) {
    put(bytes, sample.time_ms.wrapping_sub(before.time_ms));
    put(bytes, sample.cpu.into());
    put_change(bytes, before.mem_bytes, sample.mem_bytes);
    put_change(bytes, before.disk_bytes, sample.disk_bytes);
    put_change(bytes, before.net_rx_bytes, sample.net_rx_bytes);
    put_change(bytes, before.net_tx_bytes, sample.net_tx_bytes);
    for (before, now) in figures(&before.guest).into_iter().zip(figures(&sample.guest)) {
        put_change(bytes, before.into(), now.into());
    }
}

/// Figures of a guest in the order of the file.
fn figures(guest: &Figures) -> [u32; 4] {
    [guest.mem_used, guest.mem_total, guest.disk_used, guest.disk_total]
}

fn decode(bytes: &[u8]) -> Result<Rings, Unusable> {
    let after_mark = bytes.strip_prefix(MARK).ok_or(Unusable::Damaged)?;
    let (&version, rest) = after_mark.split_first().ok_or(Unusable::Damaged)?;
    if version != VERSION {
        return Err(Unusable::Version(version));
    }
    let (mut reader, mut rings) = (Reader(rest), Rings::default());
    for (tier, shape) in rings.tiers.iter_mut().zip(&SHAPES) {
        let mut before = Sample::default();
        for _ in 0..reader.number_up_to(shape.points as u64 - 1)? {
            before = reader.sample(&before)?;
            tier.closed.push_back(before);
        }
        // No two samples have the same time.
        let samples = reader.number_up_to(shape.window_ms)?;
        if samples > 0 {
            let last = reader.sample(&before)?;
            let cpu = reader.number_up_to(samples * u64::from(CPU_MAX))?;
            let (mem_bytes, disk_bytes) = (reader.number()?, reader.number()?);
            let told = reader.number_up_to(samples)?;
            let (guest_mem_kib, guest_disk_kib) = (reader.number()?, reader.number()?);
            tier.open = Some(Window {
                samples,
                cpu,
                mem_bytes,
                disk_bytes,
                told,
                guest_mem_kib,
                guest_disk_kib,
                last,
            });
        }
    }
    if reader.0.is_empty() { Ok(rings) } else { Err(Unusable::Damaged) }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self) -> Result<u64, Unusable> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Unusable::Damaged)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if bits > u64::MAX >> shift {
                return Err(Unusable::Damaged);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Unusable::Damaged)
    }

    fn number_up_to(&mut self, max: u64) -> Result<u64, Unusable> {
        self.number().and_then(|number| if number <= max { Ok(number) } else { Err(Unusable::Damaged) })
    }

    fn changed(&mut self, before: u64) -> Result<u64, Unusable> {
        let change = self.number()?;
        Ok(before.wrapping_add((change >> 1) ^ (change & 1).wrapping_neg()))
    }

    fn changed_small(&mut self, before: u32) -> Result<u32, Unusable> {
        u32::try_from(self.changed(before.into())?).map_err(|_| Unusable::Damaged)
    }

    fn sample(&mut self, before: &Sample) -> Result<Sample, Unusable> {
        let passed = self.number()?;
        let time_ms = before.time_ms.checked_add(passed).filter(|_| passed > 0).ok_or(Unusable::Damaged)?;
        Ok(Sample {
            time_ms,
            cpu: self.number_up_to(CPU_MAX.into())? as u16,
            mem_bytes: self.changed(before.mem_bytes)?,
            disk_bytes: self.changed(before.disk_bytes)?,
            net_rx_bytes: self.changed(before.net_rx_bytes)?,
            net_tx_bytes: self.changed(before.net_tx_bytes)?,
            guest: Figures {
                mem_used: self.changed_small(before.guest.mem_used)?,
                mem_total: self.changed_small(before.guest.mem_total)?,
                disk_used: self.changed_small(before.guest.disk_used)?,
                disk_total: self.changed_small(before.guest.disk_total)?,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use wrenn_testkit::fuzz;

    use super::{super::rings::tests::any_rings, *};

    /// Samples every so many milliseconds.
    fn filled(number: u64, every: u64, sample: impl Fn(u64) -> Sample) -> Rings {
        let mut rings = Rings::default();
        (1..=number).for_each(|place| rings.add(Sample { time_ms: place * every, ..sample(place) }));
        rings
    }

    fn idle(place: u64) -> Sample {
        let traffic = place / 2 * 100;
        let (net_rx_bytes, net_tx_bytes) = (traffic, traffic);
        Sample {
            cpu: 120,
            mem_bytes: 90 << 20,
            disk_bytes: 300 << 20,
            net_rx_bytes,
            net_tx_bytes,
            guest: Figures {
                mem_used: 60 << 10,
                mem_total: 500 << 10,
                disk_used: 1 << 20,
                disk_total: 5 << 20,
            },
            time_ms: 0,
        }
    }

    #[test]
    fn what_is_written_is_read_and_what_cannot_be_read_is_given_up() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        assert_eq!(read(dir.path()), Rings::default(), "there is none");
        let rings = filled(5000, 500, idle);
        write(dir.path(), &encode(&rings));
        assert_eq!(read(dir.path()), rings);
        let whole = fs::read(path(dir.path()))?;
        let (short, long) = (&whole[..whole.len() - 1], [&whole[..], b"\0"].concat());
        for damaged in [short, &long, b"", b"\0", &b"\xff".repeat(1 << 18)] {
            fs::write(path(dir.path()), damaged)?;
            assert_eq!(read(dir.path()), Rings::default(), "{} bytes", damaged.len());
        }
        write(dir.path(), &whole);
        assert_eq!(read(dir.path()), rings);
        fs::remove_dir_all(dir.path())?;
        write(dir.path(), &whole);
        assert!(!dir.path().try_exists()?, "a sandbox that was removed gets no file");
        Ok(())
    }

    #[test]
    fn a_file_of_another_version_is_not_guessed() {
        let mut bytes = encode(&filled(3, 500, idle));
        assert!(decode(&bytes).is_ok());
        bytes[MARK.len()] = VERSION + 1;
        assert_eq!(decode(&bytes), Err(Unusable::Version(VERSION + 1)));
        assert_eq!(decode(b"{\"journal\":2}\n"), Err(Unusable::Damaged));
    }

    #[test]
    fn files_are_small() {
        let day = 2 * 90_000;
        let size = encode(&filled(day, 500, idle)).len();
        assert!((1..24 << 10).contains(&size), "{size} bytes of an idle sandbox");
        // Every number is as long as it can be.
        let wild = |place: u64| {
            let far = (place % 2) << 63;
            let (net_rx_bytes, net_tx_bytes, kib) = (far, far, (place % 2) as u32 * u32::MAX);
            let guest = Figures { mem_used: kib, mem_total: kib, disk_used: kib, disk_total: kib };
            let (cpu, mem_bytes, disk_bytes) = (CPU_MAX, far, far);
            Sample { cpu, mem_bytes, disk_bytes, net_rx_bytes, net_tx_bytes, guest, time_ms: 0 }
        };
        let rings = filled(2000, 1 << 50, wild);
        let bytes = encode(&rings);
        assert!((bytes.len() as u64) < MAX_BYTES, "{} bytes", bytes.len());
        assert_eq!(decode(&bytes), Ok(rings));
    }

    /// Times ascend, and nothing exceeds its bounds.
    fn is_sound(rings: &Rings) -> bool {
        rings.tiers.iter().all(|tier| {
            let last = tier.open.iter().map(|window| window.last);
            let points: Vec<_> = tier.closed.iter().copied().chain(last).collect();
            points.is_sorted_by(|one, next| one.time_ms < next.time_ms)
                && points.iter().all(|point| point.cpu <= CPU_MAX)
                && points.len() <= tier.shape.points
                && tier.open.iter().all(|window| window.samples > 0)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..fuzz::config() })]

        #[test]
        fn rings_are_read_as_they_were_written(rings in any_rings()) {
            let read = decode(&encode(&rings));
            prop_assert!(read.as_ref().is_ok_and(is_sound));
            prop_assert_eq!(read, Ok(rings));
        }
    }

    proptest! {
        #![proptest_config(fuzz::config())]

        /// Whatever a file has, its reader does not break, nor does what adds to what it read.
        #[test]
        fn whatever_a_file_has_is_read_or_given_up(
            bytes in fuzz::damaged_bytes([0, 1, 3, 130, 700].map(|number| encode(&filled(number, 500, idle))).to_vec()),
            later in 0..u64::MAX,
        ) {
            let Ok(mut rings) = decode(&bytes) else { return Ok(()) };
            prop_assert!(is_sound(&rings));
            let again = decode(&encode(&rings));
            prop_assert_eq!(again.as_ref(), Ok(&rings));
            let mut all = [1, 7200, u32::MAX].map(|range| rings.range(range)).concat();
            rings.add(Sample { time_ms: later, ..idle(1) });
            all.extend([1, 7200, u32::MAX].map(|range| rings.range(range)).concat());
            prop_assert!(all.iter().all(|point| point.cpu <= CPU_MAX));
        }
    }
}
