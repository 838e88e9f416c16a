// SPDX-License-Identifier: Apache-2.0
//! Requests to the device-mapper control device (linux/dm-ioctl.h).
//!
//! A message is `struct dm_ioctl` (312 bytes, integers in host byte order), followed by the data of the
//! command. All responses of the kernel are parsed with bounds checks.

use std::{fs::File, io, os::fd::AsRawFd};

use super::{
    numbers::Numbers,
    table::{Target, TargetStatus},
};

const CONTROL: &str = "/dev/mapper/control";
/// Interface version: the oldest with everything used here; all kernels since 2.6 support it.
const VERSION: [u32; 3] = [4, 0, 0];
const HEADER: usize = 312;
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const OPEN_COUNT: usize = 24;
const FLAGS: usize = 28;
const EVENT: usize = 32;
const DEVICE: usize = 40;
const NAME: usize = 48;
const NAME_LENGTH: usize = 128;
const UUID: usize = 176;
const UUID_LENGTH: usize = 129;
const SPEC: usize = 40;
const SPEC_KIND: usize = 24;

const READ_ONLY: u32 = 1;
const ACTIVE_PRESENT: u32 = 1 << 5;
const BUFFER_FULL: u32 = 1 << 8;
const NO_FLUSH: u32 = 1 << 11;
/// Flags for udev in the upper half of the event number. They tell udev not to scan the content, which is
/// written by a guest, and not to create device nodes, which this crate does.
const UDEV: u32 = (0x1 | 0x2 | 0x4 | 0x8 | 0x40) << 16;

/// Initial and maximum buffer size for a response.
const ROOM: usize = 16 << 10;
const ROOM_MAX: usize = 8 << 20;

/// Commands of device-mapper.
#[derive(Debug, Clone, Copy)]
enum Command {
    Version = 0,
    List = 2,
    Create = 3,
    Remove = 4,
    Suspend = 6,
    Status = 7,
    Load = 9,
    Deps = 11,
    TableStatus = 12,
}

/// State of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) numbers: Numbers,
    /// Number of open handles by programs, mounts and other devices.
    pub(crate) open_count: u32,
    /// Whether it has an active table; a device without one was not completed.
    pub(crate) active: bool,
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed response of device-mapper")
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(malformed)?;
    Ok(u32::from_ne_bytes(*field))
}

fn u64_at(bytes: &[u8], at: usize) -> io::Result<u64> {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(malformed)?;
    Ok(u64::from_ne_bytes(*field))
}

/// Reads the zero-terminated string at `at`.
fn text_at(bytes: &[u8], at: usize) -> io::Result<String> {
    let rest = bytes.get(at..).ok_or_else(malformed)?;
    let end = rest.iter().position(|&byte| byte == 0).ok_or_else(malformed)?;
    Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
}

/// Encodes a request: header, `data`, and buffer space for the response.
fn request(name: &str, uuid: &str, flags: u32, data: &[u8], room: usize) -> io::Result<Vec<u8>> {
    if name.len() >= NAME_LENGTH || uuid.len() >= UUID_LENGTH {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the device's name is too long"));
    }
    let size = HEADER + room.max(data.len());
    let mut bytes = vec![0; size];
    for (index, part) in VERSION.iter().enumerate() {
        bytes[index * 4..][..4].copy_from_slice(&part.to_ne_bytes());
    }
    bytes[DATA_SIZE..][..4].copy_from_slice(&(size as u32).to_ne_bytes());
    bytes[DATA_START..][..4].copy_from_slice(&(HEADER as u32).to_ne_bytes());
    bytes[FLAGS..][..4].copy_from_slice(&flags.to_ne_bytes());
    bytes[EVENT..][..4].copy_from_slice(&UDEV.to_ne_bytes());
    bytes[NAME..][..name.len()].copy_from_slice(name.as_bytes());
    bytes[UUID..][..uuid.len()].copy_from_slice(uuid.as_bytes());
    bytes[HEADER..][..data.len()].copy_from_slice(data);
    Ok(bytes)
}

/// Returns the data after the header of a response, as far as the kernel filled it.
fn answer(bytes: &[u8]) -> io::Result<&[u8]> {
    let (start, size) = (u32_at(bytes, DATA_START)? as usize, u32_at(bytes, DATA_SIZE)? as usize);
    bytes.get(start..size.min(bytes.len())).ok_or_else(malformed)
}

fn info(bytes: &[u8]) -> io::Result<Info> {
    Ok(Info {
        numbers: Numbers::unpack(u64_at(bytes, DEVICE)?),
        open_count: u32_at(bytes, OPEN_COUNT)?,
        active: u32_at(bytes, FLAGS)? & ACTIVE_PRESENT != 0,
    })
}

/// Encodes a table as `struct dm_target_spec`s, each followed by its parameters.
fn encode_table(targets: &[Target]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for target in targets {
        let (kind, parameters) = (target.kind(), target.parameters());
        // The next entry is aligned; this entry has its offset.
        let size = (SPEC + parameters.len() + 1).next_multiple_of(8);
        let begin = bytes.len();
        bytes.resize(begin + size, 0);
        let spec = &mut bytes[begin..];
        spec[..8].copy_from_slice(&target.start.to_ne_bytes());
        spec[8..16].copy_from_slice(&target.length.to_ne_bytes());
        spec[20..24].copy_from_slice(&(size as u32).to_ne_bytes());
        spec[SPEC_KIND..][..kind.len()].copy_from_slice(kind.as_bytes());
        spec[SPEC..][..parameters.len()].copy_from_slice(parameters.as_bytes());
    }
    bytes
}

/// Decodes the status of a table. Offsets count from the first target, not from each.
fn decode_status(data: &[u8], count: u32) -> io::Result<Vec<TargetStatus>> {
    let (mut found, mut at) = (Vec::new(), 0);
    for _ in 0..count {
        let kind_end = at + SPEC;
        let kind = data.get(at + SPEC_KIND..kind_end).ok_or_else(malformed)?;
        let kind: Vec<u8> = kind.iter().copied().take_while(|&byte| byte != 0).collect();
        found.push(TargetStatus {
            kind: String::from_utf8_lossy(&kind).into_owned(),
            text: text_at(data, at + SPEC)?,
        });
        let next = u32_at(data, at + 20)? as usize;
        if next <= at && found.len() < count as usize {
            return Err(malformed());
        }
        at = next;
    }
    Ok(found)
}

/// Decodes a list of `struct dm_name_list`s, each with the offset of the next.
fn decode_list(data: &[u8]) -> io::Result<Vec<(String, Numbers)>> {
    let (mut found, mut at) = (Vec::new(), 0);
    // Without devices the kernel returns nothing, or one entry with device 0.
    while !data.is_empty() {
        let device = u64_at(data, at)?;
        if device == 0 {
            break;
        }
        found.push((text_at(data, at + 12)?, Numbers::unpack(device)));
        match u32_at(data, at + 8)? as usize {
            0 => break,
            next => at += next,
        }
    }
    Ok(found)
}

/// Decodes dependencies: a count, then device numbers.
fn decode_deps(data: &[u8]) -> io::Result<Vec<Numbers>> {
    let count = u32_at(data, 0)? as usize;
    let numbers = |index| u64_at(data, 8 + index * 8).map(Numbers::unpack);
    // Each entry takes eight bytes, so a count beyond the data fails before memory is allocated for it.
    (0..count).map(numbers).collect()
}

/// Returns whether the error means that there is no such device.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENXIO)
}

/// Open control device.
#[derive(Debug)]
pub(crate) struct Control(File);

impl Control {
    pub(crate) fn open() -> io::Result<Self> {
        let control = Self(File::options().read(true).write(true).open(CONTROL)?);
        control.call(Command::Version, "", "", 0, &[])?;
        Ok(control)
    }

    fn send(&self, command: Command, message: &mut [u8]) -> io::Result<()> {
        // `_IOWR(0xfd, command, struct dm_ioctl)`
        let number = (3 << 30) | ((HEADER as u32) << 16) | (0xfd << 8) | command as u32;
        // SAFETY: the message starts with a header that has its length, which limits what the kernel reads
        // and writes.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), number as _, message.as_mut_ptr()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends a command; enlarges the buffer until the response fits.
    fn call(&self, command: Command, name: &str, uuid: &str, flags: u32, data: &[u8]) -> io::Result<Vec<u8>> {
        let mut room = ROOM;
        loop {
            let mut message = request(name, uuid, flags, data, room)?;
            self.send(command, &mut message)?;
            if u32_at(&message, FLAGS)? & BUFFER_FULL == 0 {
                return Ok(message);
            }
            room *= 4;
            if room > ROOM_MAX {
                return Err(malformed());
            }
        }
    }

    /// Creates a device without a table.
    pub(crate) fn create(&self, name: &str, uuid: &str) -> io::Result<Numbers> {
        Ok(info(&self.call(Command::Create, name, uuid, 0, &[])?)?.numbers)
    }

    /// Loads the table that becomes active with [`Self::resume`].
    pub(crate) fn load(&self, name: &str, targets: &[Target], read_only: bool) -> io::Result<()> {
        let data = encode_table(targets);
        let mut message = request(name, "", if read_only { READ_ONLY } else { 0 }, &data, 0)?;
        message[TARGET_COUNT..][..4].copy_from_slice(&(targets.len() as u32).to_ne_bytes());
        self.send(Command::Load, &mut message)
    }

    pub(crate) fn resume(&self, name: &str) -> io::Result<()> {
        self.call(Command::Suspend, name, "", 0, &[]).map(drop)
    }

    /// Removes a device that is not open.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        self.call(Command::Remove, name, "", 0, &[]).map(drop)
    }

    /// Returns the state of a device, or `None` if there is no such device.
    pub(crate) fn info(&self, name: &str) -> io::Result<Option<Info>> {
        match self.call(Command::Status, name, "", 0, &[]) {
            Ok(message) => info(&message).map(Some),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the status of each target of a device.
    pub(crate) fn status(&self, name: &str) -> io::Result<Vec<TargetStatus>> {
        let message = self.call(Command::TableStatus, name, "", NO_FLUSH, &[])?;
        decode_status(answer(&message)?, u32_at(&message, TARGET_COUNT)?)
    }

    /// Lists the devices to which a device's table refers.
    pub(crate) fn deps(&self, name: &str) -> io::Result<Vec<Numbers>> {
        decode_deps(answer(&self.call(Command::Deps, name, "", 0, &[])?)?)
    }

    /// Lists all devices of this machine.
    pub(crate) fn list(&self) -> io::Result<Vec<(String, Numbers)>> {
        decode_list(answer(&self.call(Command::List, "", "", 0, &[])?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::table::Kind, *};

    /// Responses of Linux 6.1 on x86-64, without headers.
    const LIST: &str = "00fd000000000000200000007265632d6261736500000000000000000000000001fd000000000000\
                        000000007265632d736e6170000000000000000000000000";
    const SNAPSHOT: &str = "000000000000000000100000000000000000000038000000736e617073686f740000000000000000\
                            31362f3230343820313600";
    const BASE: &str = "0000000000000000000800000000000000000000300000006c696e6561720000000000000000000000\
                        000000000000000008000000000000000800000000000000000000600000007a65726f000000000000\
                        00000000000000";
    const DEPS: &str = "0200000000000000010700000000000000fd000000000000";

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[at * 2..][..2], 16).unwrap()).collect()
    }

    #[test]
    fn recorded_answers_are_read() {
        let numbers = |major, minor| Numbers { major, minor };
        let list = vec![("rec-base".to_owned(), numbers(253, 0)), ("rec-snap".to_owned(), numbers(253, 1))];
        assert_eq!(decode_list(&bytes(LIST)).unwrap(), list);
        assert_eq!(decode_list(&[]).unwrap(), []);
        assert_eq!(decode_list(&[0; 16]).unwrap(), []);
        let status = |kind: &str, text: &str| TargetStatus { kind: kind.into(), text: text.into() };
        assert_eq!(decode_status(&bytes(SNAPSHOT), 1).unwrap(), [status("snapshot", "16/2048 16")]);
        assert_eq!(decode_status(&bytes(BASE), 2).unwrap(), [status("linear", ""), status("zero", "")]);
        assert_eq!(decode_deps(&bytes(DEPS)).unwrap(), [numbers(7, 1), numbers(253, 0)]);
    }

    #[test]
    fn answers_that_are_cut_off_or_wrong_fail_and_do_nothing_else() {
        for hex in [LIST, SNAPSHOT, BASE, DEPS] {
            let whole = bytes(hex);
            for end in 0..whole.len() {
                let _ = (decode_list(&whole[..end]), decode_deps(&whole[..end]));
                let _ = decode_status(&whole[..end], 2);
            }
            for at in 0..whole.len() {
                let mut wrong = whole.clone();
                wrong[at] = 0xff;
                let _ = (decode_list(&wrong), decode_deps(&wrong), decode_status(&wrong, 2));
            }
        }
        assert!(decode_status(&bytes(SNAPSHOT), 2).is_err());
        assert!(decode_deps(&[0xff; 16]).is_err());
        // Invalid and circular offsets.
        let mut circle = bytes(BASE);
        circle[20..24].copy_from_slice(&0_u32.to_ne_bytes());
        assert!(decode_status(&circle, 2).is_err());
    }

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let linear = Kind::Linear { device: Numbers { major: 7, minor: 3 }, offset: 0 };
        let targets = [
            Target { start: 0, length: 2048, kind: linear },
            Target { start: 2048, length: 8, kind: Kind::Zero },
        ];
        let table = encode_table(&targets);
        assert_eq!((u64_at(&table, 8).unwrap(), u32_at(&table, 20).unwrap()), (2048, 48));
        assert_eq!((&table[24..30], &table[40..45]), (&b"linear"[..], &b"7:3 0"[..]));
        assert_eq!((u64_at(&table, 48).unwrap(), &table[72..76], table.len()), (2048, &b"zero"[..], 96));
        let message = request("name", "uuid", READ_ONLY, &table, 0).unwrap();
        assert_eq!(
            (message.len(), u32_at(&message, 12).unwrap(), u32_at(&message, 16).unwrap()),
            (408, 408, 312)
        );
        assert_eq!((&message[48..53], &message[176..181]), (&b"name\0"[..], &b"uuid\0"[..]));
        assert!(request(&"n".repeat(128), "", 0, &[], 0).is_err());
        for (packed, major, minor) in [(0xfd01, 253, 1), (0x703, 7, 3), (0x0010_fd2c, 253, 300)] {
            assert_eq!(Numbers::unpack(packed), Numbers { major, minor });
        }
    }
}
