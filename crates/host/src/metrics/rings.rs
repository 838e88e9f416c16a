// SPDX-License-Identifier: Apache-2.0
//! Samples of a day in three tiers, each with longer averages than the one before. Pure.
//!
//! A tier divides the time into windows. The samples of the window that is open are summed as they come, and become a point when a
//! sample of a later window comes; so no point is read again to make another one, and time without samples is a gap between points.
//! Bytes that are counted, as those of the network, are not averaged: a point has those of its last sample, as it has its time.

use std::collections::VecDeque;

use super::sample::Sample;
use crate::sandbox::usage::Figures;

/// Form of a tier.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Length of a window in milliseconds.
    pub(super) window_ms: u64,
    /// Maximum number of points, that of the open window included.
    pub(super) points: usize,
    /// Time in seconds of so many points.
    seconds: u32,
}

/// The tiers: 10 minutes of samples as they are, because no two are of the same millisecond, 2 hours of averages of 30 seconds, and
/// a day of averages of 5 minutes.
pub(super) static SHAPES: [Shape; 3] = [
    Shape { window_ms: 1, points: 1200, seconds: 600 },
    Shape { window_ms: 30_000, points: 240, seconds: 7200 },
    Shape { window_ms: 300_000, points: 288, seconds: 86_400 },
];

/// Samples of one sandbox: 108 KiB, which are allocated at once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rings {
    pub(super) tiers: [Tier; 3],
}

const _: () = assert!(size_of::<Sample>() * (1200 + 240 + 288) == 108 << 10);

/// Points of one tier. Their times ascend.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tier {
    pub(super) shape: &'static Shape,
    /// Points of the windows before the open one.
    pub(super) closed: VecDeque<Sample>,
    pub(super) open: Option<Window>,
}

/// Sums of the samples of a window.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Number of samples, at least one.
    pub(super) samples: u64,
    pub(super) cpu: u64,
    pub(super) mem_bytes: u64,
    pub(super) disk_bytes: u64,
    /// Number of samples with figures of the guest, and the sums of what it uses in KiB.
    pub(super) told: u64,
    pub(super) guest_mem_kib: u64,
    pub(super) guest_disk_kib: u64,
    /// The last sample, with the last figures.
    pub(super) last: Sample,
}

impl Default for Rings {
    fn default() -> Self {
        Self { tiers: SHAPES.each_ref().map(Tier::new) }
    }
}

impl Rings {
    /// Adds a sample. If it is not later than the newest one, the clock was set back: what is not before it is forgotten.
    pub(super) fn add(&mut self, sample: Sample) {
        self.tiers.iter_mut().for_each(|tier| tier.add(sample));
    }

    /// Returns the newest sample.
    pub(super) fn newest(&self) -> Option<&Sample> {
        self.tiers[0].newest()
    }

    /// Returns the points of so many seconds up to the newest one, the oldest first, of the finest tier that reaches so far.
    pub(super) fn range(&self, seconds: u32) -> Vec<Sample> {
        let finest = SHAPES.iter().position(|shape| seconds <= shape.seconds);
        let tier = &self.tiers[finest.unwrap_or(SHAPES.len() - 1)];
        let Some(newest) = tier.newest() else { return Vec::new() };
        let before = newest.time_ms.saturating_sub(u64::from(seconds) * 1000);
        tier.points().filter(|point| point.time_ms > before).collect()
    }
}

impl Tier {
    fn new(shape: &'static Shape) -> Self {
        Self { shape, closed: VecDeque::with_capacity(shape.points - 1), open: None }
    }

    fn add(&mut self, sample: Sample) {
        self.forget_from(sample.time_ms);
        let window_ms = self.shape.window_ms;
        let number = |sample: &Sample| sample.time_ms / window_ms;
        match &mut self.open {
            Some(window) if number(&window.last) == number(&sample) => window.add(sample),
            open => {
                if let Some(full) = open.replace(Window::of(sample)) {
                    self.close(&full);
                }
            }
        }
    }

    /// Makes a window a point, instead of the oldest one if there is no more room.
    fn close(&mut self, window: &Window) {
        if self.closed.len() + 1 == self.shape.points {
            self.closed.pop_front();
        }
        self.closed.push_back(window.average());
    }

    /// Forgets the points that are not before this time.
    fn forget_from(&mut self, time_ms: u64) {
        if self.open.as_ref().is_some_and(|window| window.last.time_ms >= time_ms) {
            self.open = None;
        }
        while self.closed.back().is_some_and(|point| point.time_ms >= time_ms) {
            self.closed.pop_back();
        }
    }

    fn newest(&self) -> Option<&Sample> {
        self.open.as_ref().map(|window| &window.last).or(self.closed.back())
    }

    fn points(&self) -> impl Iterator<Item = Sample> {
        self.closed.iter().copied().chain(self.open.as_ref().map(Window::average))
    }
}

impl Window {
    fn of(sample: Sample) -> Self {
        let Sample { cpu, mem_bytes, disk_bytes, guest, .. } = sample;
        Self {
            samples: 1,
            cpu: u64::from(cpu),
            mem_bytes,
            disk_bytes,
            told: u64::from(guest.are_known()),
            guest_mem_kib: guest.mem_used.into(),
            guest_disk_kib: guest.disk_used.into(),
            last: sample,
        }
    }

    // What a file says is added to, too, so that nothing may overflow.
    fn add(&mut self, sample: Sample) {
        self.samples += 1;
        self.cpu = self.cpu.saturating_add(u64::from(sample.cpu));
        self.mem_bytes = self.mem_bytes.saturating_add(sample.mem_bytes);
        self.disk_bytes = self.disk_bytes.saturating_add(sample.disk_bytes);
        let guest = if sample.guest.are_known() {
            self.told += 1;
            self.guest_mem_kib = self.guest_mem_kib.saturating_add(sample.guest.mem_used.into());
            self.guest_disk_kib = self.guest_disk_kib.saturating_add(sample.guest.disk_used.into());
            sample.guest
        } else {
            self.last.guest
        };
        self.last = Sample { guest, ..sample };
    }

    fn average(&self) -> Sample {
        Sample {
            cpu: (self.cpu / self.samples) as u16,
            mem_bytes: self.mem_bytes / self.samples,
            disk_bytes: self.disk_bytes / self.samples,
            guest: self.guest(),
            ..self.last
        }
    }

    /// What the guest uses on average, of the totals that it said last.
    fn guest(&self) -> Figures {
        let Figures { mem_total, disk_total, .. } = self.last.guest;
        let average = |sum: u64, total: u32| {
            let average = sum.checked_div(self.told).unwrap_or_default();
            average.min(total.into()) as u32
        };
        Figures {
            mem_used: average(self.guest_mem_kib, mem_total),
            mem_total,
            disk_used: average(self.guest_disk_kib, disk_total),
            disk_total,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::ops::Range;

    use proptest::{collection::vec, prelude::*};

    use super::{super::sample::CPU_MAX, *};

    /// A time at which windows of all tiers begin.
    pub(in crate::metrics) const BEGIN: u64 = 1_800_000_000_000;

    /// All samples of a tier's windows.
    #[derive(Debug, Clone)]
    struct Model(&'static Shape, VecDeque<Vec<Sample>>);

    /// All samples of the windows of each tier.
    #[derive(Debug, Clone)]
    pub(in crate::metrics) struct Models([Model; 3]);

    impl Default for Models {
        fn default() -> Self {
            Self(SHAPES.each_ref().map(|shape| Model(shape, VecDeque::new())))
        }
    }

    impl Models {
        pub(in crate::metrics) fn add(&mut self, sample: Sample) {
            self.0.iter_mut().for_each(|model| model.add(sample));
        }

        /// The longest range of each tier in seconds, and its points.
        pub(in crate::metrics) fn ranges(&self) -> [(u32, Vec<Sample>); 3] {
            self.0.each_ref().map(|model| {
                let (seconds, mut points) = (model.0.seconds, model.points());
                let newest = points.last().map_or(0, |point| point.time_ms);
                points.retain(|point| point.time_ms > newest.saturating_sub(u64::from(seconds) * 1000));
                (seconds, points)
            })
        }
    }

    impl Model {
        fn add(&mut self, sample: Sample) {
            let Self(shape, windows) = self;
            let before = windows.len();
            while windows.back().is_some_and(|window| window[window.len() - 1].time_ms >= sample.time_ms) {
                windows.pop_back();
            }
            let is_open = windows.len() == before;
            let number = |sample: &Sample| sample.time_ms / shape.window_ms;
            match windows.back_mut() {
                Some(window) if is_open && number(&window[0]) == number(&sample) => window.push(sample),
                _ => windows.push_back(vec![sample]),
            }
            if windows.len() > shape.points {
                windows.pop_front();
            }
        }

        fn points(&self) -> Vec<Sample> {
            let average = |window: &Vec<Sample>, of: fn(&Sample) -> u64| {
                window.iter().map(|sample| u128::from(of(sample))).sum::<u128>() / window.len() as u128
            };
            let guest = |window: &Vec<Sample>| {
                let told = || window.iter().map(|sample| sample.guest).filter(Figures::are_known);
                let (number, last) = (told().count() as u64, told().next_back().unwrap_or_default());
                let average = |of: fn(&Figures) -> u32, total: u32| {
                    let sum = told().map(|guest| u64::from(of(&guest))).sum::<u64>();
                    (sum / number.max(1)).min(total.into()) as u32
                };
                Figures {
                    mem_used: average(|guest| guest.mem_used, last.mem_total),
                    disk_used: average(|guest| guest.disk_used, last.disk_total),
                    ..last
                }
            };
            let point = |window: &Vec<Sample>| Sample {
                cpu: average(window, |sample| sample.cpu.into()) as u16,
                mem_bytes: average(window, |sample| sample.mem_bytes) as u64,
                disk_bytes: average(window, |sample| sample.disk_bytes) as u64,
                guest: guest(window),
                ..window[window.len() - 1]
            };
            self.1.iter().map(point).collect()
        }
    }

    /// Figures of a guest, in which no more is used than there is.
    fn figures(memory: [u32; 2], disk: [u32; 2]) -> Figures {
        let [mem_used, mem_total] = [memory[0].min(memory[1]), memory[0].max(memory[1]).max(1)];
        let [disk_used, disk_total] = [disk[0].min(disk[1]), disk[0].max(disk[1])];
        Figures { mem_used, mem_total, disk_used, disk_total }
    }

    /// As many samples with the milliseconds before each: twice a second, with pauses, and with a clock that is set back.
    pub(in crate::metrics) fn life(samples: Range<usize>) -> impl Strategy<Value = Vec<(i64, Sample)>> {
        let passes = prop_oneof![
            200 => 400..700_i64,
            1 => 0..4 * 3_600_000_i64,
            1 => -1_200_000..=0_i64,
        ];
        let told = proptest::option::of((any::<[u32; 2]>(), any::<[u32; 2]>()));
        let guest = told.prop_map(|told| match told {
            Some((memory, disk)) => figures(memory, disk),
            None => Figures::default(),
        });
        let used = (0..=CPU_MAX, any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>(), guest);
        let sample = used.prop_map(|(cpu, memory, disk, net_rx_bytes, net_tx_bytes, guest)| Sample {
            time_ms: 0,
            cpu,
            mem_bytes: u64::from(memory) << 12,
            disk_bytes: u64::from(disk) << 9,
            net_rx_bytes,
            net_tx_bytes,
            guest,
        });
        vec((passes, sample), samples)
    }

    /// Rings after these samples.
    fn rings_of(life: &[(i64, Sample)], mut each: impl FnMut(Sample)) -> Rings {
        let (mut rings, mut time_ms) = (Rings::default(), BEGIN);
        for (passes, sample) in life {
            time_ms = time_ms.saturating_add_signed(*passes);
            let sample = Sample { time_ms, ..*sample };
            rings.add(sample);
            each(sample);
        }
        rings
    }

    /// Rings of some life.
    pub(in crate::metrics) fn any_rings() -> impl Strategy<Value = Rings> {
        life(0..3000).prop_map(|life| rings_of(&life, drop))
    }

    /// A sample so many milliseconds after the beginning.
    fn at(ms: u64, cpu: u16) -> Sample {
        let mem_bytes = u64::from(cpu) * 10;
        Sample { time_ms: BEGIN + ms, cpu, mem_bytes, net_rx_bytes: ms, ..Sample::default() }
    }

    fn cpus(points: &[Sample]) -> Vec<u16> {
        points.iter().map(|point| point.cpu).collect()
    }

    #[test]
    fn a_range_has_the_points_of_the_finest_tier_that_reaches_so_far() {
        let mut rings = Rings::default();
        assert!([1, 600, 601, 7200, 86_400, u32::MAX].iter().all(|range| rings.range(*range).is_empty()));
        // A day and more, of which every window of five minutes is used more than the one before.
        for half in 0..2 * 90_000_u64 {
            rings.add(at(half * 500, (half / 600) as u16));
        }
        for (range, points) in [
            (300, 600),
            (600, 1200),
            (601, 21),
            (3600, 120),
            (7200, 240),
            (21_600, 72),
            (86_400, 288),
            (u32::MAX, 288),
        ] {
            let found = rings.range(range);
            assert_eq!(found.len(), points, "{range}");
            assert_eq!(found.last().map(|point| point.time_ms), Some(BEGIN + 89_999_500), "{range}");
        }
        assert_eq!(cpus(&rings.range(86_400)), (12..300_u16).collect::<Vec<_>>());
    }

    #[test]
    fn a_pause_is_a_gap_and_distorts_no_average() {
        let mut rings = Rings::default();
        for (ms, cpu) in [(0, 100), (500, 300), (29_500, 500)] {
            rings.add(at(ms, cpu));
        }
        // The window that was open is continued if the pause ends in it, and else is what it was.
        rings.add(at(29_900, 700));
        rings.add(at(7_000_000, 900));
        let points = rings.range(7200);
        assert_eq!(cpus(&points), [400, 900]);
        assert_eq!(points[0], at(29_900, 400), "with the time and the traffic of its last sample");
        assert_eq!(cpus(&rings.range(86_400)), [400, 900]);
        assert_eq!(cpus(&rings.range(600)), [900], "from before the pause there is nothing of ten minutes");
        assert_eq!(rings.newest(), Some(&at(7_000_000, 900)));
    }

    #[test]
    fn a_guest_that_says_nothing_for_a_while_does_not_use_nothing() {
        let mut rings = Rings::default();
        let with = |ms, guest| Sample { guest, ..at(ms, 100) };
        for (ms, guest) in [
            (0, figures([100, 1000], [10, 50])),
            (500, figures([300, 1000], [30, 60])),
            (1000, Figures::default()),
        ] {
            rings.add(with(ms, guest));
        }
        let average = rings.range(7200);
        assert_eq!(average.first().map(|point| point.guest), Some(figures([200, 1000], [20, 60])));
        let single = rings.range(600);
        assert_eq!(single.last().map(|point| point.guest), Some(Figures::default()), "not known then");
        rings.add(with(40_000, Figures::default()));
        let unknown = rings.range(7200);
        assert_eq!(unknown.last().map(|point| point.guest), Some(Figures::default()));
    }

    #[test]
    fn a_clock_that_is_set_back_leaves_times_that_ascend() {
        let mut rings = Rings::default();
        for (ms, cpu) in [(0, 100), (31_000, 200), (62_000, 300), (62_500, 500)] {
            rings.add(at(ms, cpu));
        }
        rings.add(at(62_200, 700));
        assert_eq!(cpus(&rings.range(600)), [100, 200, 300, 700]);
        // An average of what was and of what was not cannot be taken apart.
        assert_eq!(cpus(&rings.range(7200)), [100, 200, 700]);
        rings.add(at(0, 900));
        assert!([600, 7200, 86_400].iter().all(|range| cpus(&rings.range(*range)) == [900]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Sums and rings give what all samples would.
        #[test]
        fn points_are_those_of_all_samples(samples in life(0..3000)) {
            let mut models = Models::default();
            let rings = rings_of(&samples, |sample| models.add(sample));
            for (tier, model) in rings.tiers.iter().zip(&models.0) {
                let points: Vec<_> = tier.points().collect();
                prop_assert!(points.is_sorted_by(|one, next| one.time_ms < next.time_ms));
                prop_assert!(points.len() <= tier.shape.points);
                prop_assert_eq!(points, model.points());
                prop_assert_eq!(tier.closed.capacity(), tier.shape.points - 1, "it grew");
            }
        }
    }
}
