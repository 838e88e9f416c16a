//! The packet filters, as text for one `nft -f -` each. Pure: the same input gives the same rules.

use crate::plan::{GUEST_ADDRESS, Plan, SlotSpec};

/// What sandboxes may reach outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// The internet, and nothing private.
    Nat,
    /// Nothing.
    None,
}

/// Networks that no guest may reach: private, shared, link-local (metadata), loopback, multicast, reserved.
const PRIVATE: &str = "{ 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, \
                       192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3 }";

/// The rules in a slot's namespace: addresses translated, sources pinned, private networks closed.
pub(crate) fn slot(slot: &SlotSpec) -> String {
    let SlotSpec { tap, host_address, veth_slot_address, .. } = slot;
    format!(
        "table ip slot {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        iifname \"eth0\" ip daddr {host_address} dnat to {GUEST_ADDRESS}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        oifname \"eth0\" ip saddr {GUEST_ADDRESS} snat to {veth_slot_address}
    }}
    chain spoofing {{
        type filter hook prerouting priority raw
        iifname \"{tap}\" ip saddr != {GUEST_ADDRESS} drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop
        ct state established,related accept
        iifname \"eth0\" oifname \"{tap}\" ct status dnat accept
        iifname \"{tap}\" ip daddr {PRIVATE} drop
        iifname \"{tap}\" oifname \"eth0\" accept
    }}
    chain input {{
        type filter hook input priority filter; policy drop
        ct state established,related accept
        iifname \"lo\" accept
    }}
}}
"
    )
}

/// The host's rules for all slots of an agent: no guest reaches the host, another guest or a private
/// network, nobody outside reaches a guest.
pub(crate) fn host(plan: &Plan, egress: Egress) -> String {
    let (table, links) = (host_table(plan), plan.link_prefix());
    let leaving = match egress {
        Egress::Nat => "accept",
        Egress::None => "drop",
    };
    format!(
        "table ip {table}
delete table ip {table}
table ip {table} {{
    chain input {{
        type filter hook input priority filter - 10
        iifname \"{links}*\" ct state established,related accept
        iifname \"{links}*\" drop
    }}
    chain forward {{
        type filter hook forward priority filter - 10
        oifname \"{links}*\" ct state established,related accept
        oifname \"{links}*\" drop
        iifname \"{links}*\" ip daddr {PRIVATE} drop
        iifname \"{links}*\" {leaving}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        iifname \"{links}*\" oifname != \"{links}*\" masquerade
    }}
}}
"
    )
}

/// The name of the table of [`host`].
pub(crate) fn host_table(plan: &Plan) -> String {
    format!("wrenn_{}", plan.instance())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn plan() -> Plan {
        Plan::new("t1", Path::new("/n")).unwrap()
    }

    #[test]
    fn sources_are_pinned_and_private_networks_closed_before_anything_leaves() {
        let text = slot(&plan().slot(3).unwrap());
        assert!(text.contains("ip daddr 10.11.0.3 dnat to 169.254.0.21"));
        assert!(text.contains("snat to 10.12.0.7"));
        assert!(text.contains("iifname \"tap0\" ip saddr != 169.254.0.21 drop"));
        let (private, accept) = (text.find("192.168.0.0/16"), text.find("oifname \"eth0\" accept"));
        assert!(private.unwrap() < accept.unwrap());
    }

    #[test]
    fn without_egress_nothing_is_forwarded() {
        let (nat, none) = (host(&plan(), Egress::Nat), host(&plan(), Egress::None));
        assert!(nat.contains("iifname \"wrt1-*\" accept"));
        assert!(none.contains("iifname \"wrt1-*\" drop") && !none.contains("\" accept"));
    }
}
