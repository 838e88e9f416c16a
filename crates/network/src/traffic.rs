// SPDX-License-Identifier: Apache-2.0
//! Traffic of slots, from the counters of the host's ends of their veth pairs.

use std::{collections::HashMap, fs};

use crate::{NetworkError, plan::Plan};

/// Counters of all links of a network namespace: that of the process, whatever namespace the reading thread is in. `/sys/class/net`
/// shows those of the namespace that mounted it.
const COUNTERS: &str = "/proc/self/net/dev";
/// Places of the bytes that a link received, and sent, in its line.
const RECEIVED: usize = 0;
const SENT: usize = 8;

/// Bytes that the guest of a slot received and sent since the slot was built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that the guest received.
    pub received: u64,
    /// Bytes that the guest sent.
    pub sent: u64,
}

impl Traffic {
    /// Reads the counters of all slots of an agent, by their numbers. Blocking.
    pub fn of_slots(plan: &Plan) -> Result<HashMap<u16, Self>, NetworkError> {
        let failed = |source| NetworkError::Io { action: "read the counters of links".to_owned(), source };
        Ok(parse(plan, &fs::read_to_string(COUNTERS).map_err(failed)?))
    }
}

/// Parses the lines `NAME: NUMBER …` of slots. What the host's end sends, the guest receives.
fn parse(plan: &Plan, text: &str) -> HashMap<u16, Traffic> {
    let of_line = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let slot = plan.slot_of_link(name.trim_start())?;
        let counters: Vec<&str> = counters.split_whitespace().collect();
        let number = |place: usize| counters.get(place)?.parse::<u64>().ok();
        Some((slot, Traffic { received: number(SENT)?, sent: number(RECEIVED)? }))
    };
    text.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn counters_of_slots_are_read_from_the_guest_s_side() {
        let plan = Plan::new("ab12", Path::new("/n")).unwrap();
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:   12345      10    0    0    0     0          0         0    12345      10    0    0    0     0       0          0
wrab12-7:  1001      10    0    0    0     0          0         0     2002      20    0    0    0     0       0          0
 wrab12-8:18446744073709551615 10 0 0 0 0 0 0 5 20 0 0 0 0 0 0
wrab12-9:  1001      10
wrab12-10:    x      10    0    0    0     0          0         0     2002      20    0    0    0     0       0          0
wrab13-7:  1001      10    0    0    0     0          0         0     2002      20    0    0    0     0       0          0
wrab12-07: 1001      10    0    0    0     0          0         0     2002      20    0    0    0     0       0          0
";
        let expected = HashMap::from([
            (7, Traffic { received: 2002, sent: 1001 }),
            (8, Traffic { received: 5, sent: u64::MAX }),
        ]);
        assert_eq!(parse(&plan, text), expected);
        assert_eq!(parse(&plan, ""), HashMap::new());
    }

    #[test]
    fn this_machine_shows_its_counters() {
        let plan = Plan::new("ab12", Path::new("/n")).unwrap();
        assert!(Traffic::of_slots(&plan).is_ok());
    }
}
