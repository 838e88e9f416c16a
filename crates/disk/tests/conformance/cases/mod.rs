// SPDX-License-Identifier: Apache-2.0
//! List of test cases by subject.

mod basics;
mod disk_pressure;
mod dm;
mod flatten;
mod life;

use std::{
    fs::File,
    future::Future,
    io::{Seek as _, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
    pin::Pin,
};

use crate::fixture::{Kind, Shared};

type Run = fn(Shared) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Test case.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// Whether the store is on a small file system, which the case fills.
    pub(crate) small: bool,
    pub(crate) run: Run,
}

macro_rules! cases {
    ($small:literal: $($module:ident::$name:ident),* $(,)?) => {
        [$((stringify!($name), Case { small: $small, run: |shared| Box::pin($module::$name(shared)) })),*]
    };
}

/// Lists the cases of a backend.
pub(crate) fn all(kind: Kind) -> Vec<(&'static str, Case)> {
    let mut all = Vec::from(cases![false:
        basics::clones_are_equal_and_independent,
        basics::a_file_becomes_an_image_without_a_copy,
        basics::refusals_leave_nothing,
        basics::images_do_not_change,
        basics::images_go_when_nothing_needs_them,
        life::a_volume_comes_back_with_what_was_written,
        life::a_copy_is_equal_and_independent,
        life::reclaim_takes_what_nobody_claims,
        life::a_deleted_file_is_noticed,
        life::many_come_and_go_at_once,
        flatten::a_flattened_volume_is_an_image_with_the_same_files,
        flatten::corrupt_file_systems_are_refused_or_repaired,
    ]);
    all.extend(cases![true:
        disk_pressure::little_room_is_noticed_before_it_is_gone,
        disk_pressure::a_flatten_leaves_the_reserve,
    ]);
    if kind == Kind::Dm {
        all.extend(cases![true: disk_pressure::what_is_not_written_yet_has_its_room]);
        all.extend(cases![false:
            dm::a_busy_device_stays_whole,
            dm::a_busy_device_holds_up_no_other_volume,
            dm::no_image_goes_while_a_record_is_unreadable,
            dm::foreign_devices_are_not_touched,
            dm::interrupted_mappings_are_made_again,
            dm::images_have_one_loop_device_while_they_are_used,
            dm::a_table_has_a_tail_of_zeros,
        ]);
    }
    all
}

pub(crate) const MIB: u64 = 1 << 20;

/// Writes an image of 16 MiB with 1 MiB of `fill` at 4 MiB.
fn image(path: &Path, fill: u8) {
    let file = File::create(path).unwrap();
    file.set_len(16 * MIB).unwrap();
    file.write_all_at(&vec![fill; MIB as usize], 4 * MIB).unwrap();
}

fn byte_at(path: &Path, offset: u64) -> u8 {
    let mut byte = [0];
    File::open(path).unwrap().read_exact_at(&mut byte, offset).unwrap();
    byte[0]
}

/// Writes and syncs.
fn write_at(path: &Path, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.write_all_at(bytes, offset)?;
    file.sync_all()
}

/// Returns the length of a file or block device.
fn length(path: &Path) -> u64 {
    File::open(path).unwrap().seek(SeekFrom::End(0)).unwrap()
}
