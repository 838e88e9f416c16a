// SPDX-License-Identifier: Apache-2.0
//! Creates and removes the kernel resources of slots, on a thread that enters the slot's network namespace.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
    path::Path,
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        link::{InfoData, InfoVeth, LinkAttribute, LinkInfo},
        neighbour::{NeighbourMessage, NeighbourState},
    },
};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::{
    NetworkError,
    conntrack::{self, Flows},
    model::Family,
    netfilter::Socket,
    nft::{self, Batch},
    plan::{GUEST_ADDRESS, GUEST_MAC, Plan, SlotSpec, TAP_ADDRESS, TAP_MAC, TAP_PREFIX},
    policy::Policy,
    rules::{self, Common, Egress, Forwarding, UPLINK},
};

fn io_failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let action = action.into();
    move |source| NetworkError::Io { action, source }
}

fn netlink_failed(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let action = action.into();
    move |source| NetworkError::Netlink { action, source }
}

/// Runs `work` on a new thread with its own runtime: namespaces belong to threads, and a thread that changed
/// its namespace must not return to a pool.
async fn on_own_thread<T, F>(work: F) -> Result<T, NetworkError>
where
    T: Send + 'static,
    F: AsyncFnOnce() -> Result<T, NetworkError> + Send + 'static,
{
    let (done, result) = tokio::sync::oneshot::channel();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let outcome =
            runtime.map_err(io_failed("start a thread for the slot")).and_then(|rt| rt.block_on(work()));
        // Sending fails only if the caller no longer waits.
        let _ = done.send(outcome);
    };
    std::thread::Builder::new()
        .name("slot".into())
        .spawn(run)
        .map_err(io_failed("start a thread for the slot"))?;
    result.await.map_err(|_| io_failed("build the slot")(io::Error::other("its thread died")))?
}

fn netfilter() -> Result<Socket, NetworkError> {
    Socket::open().map_err(io_failed("open a socket to the kernel's packet filter"))
}

/// Moves the calling thread, which must be one of [`on_own_thread`], into a network namespace.
fn enter(namespace: &File) -> Result<(), NetworkError> {
    // SAFETY: affects only this thread.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } < 0 {
        return Err(io_failed("enter a network namespace")(io::Error::last_os_error()));
    }
    Ok(())
}

fn enter_slot(slot: &SlotSpec) -> Result<(), NetworkError> {
    let pin = File::open(&slot.netns);
    enter(&pin.map_err(io_failed(format!("open the namespace of slot {}", slot.index)))?)
}

fn connect() -> Result<Handle, NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(io_failed("open a netlink socket"))?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Returns the index of a link, or `None` if there is no link of this name.
async fn link_index(handle: &Handle, name: &str) -> Result<Option<u32>, NetworkError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        // ENODEV
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(netlink_failed(format!("look for link {name}"))(error)),
    }
}

async fn existing_link(handle: &Handle, name: &str) -> Result<u32, NetworkError> {
    let missing = || io_failed(format!("find link {name}"))(io::ErrorKind::NotFound.into());
    link_index(handle, name).await?.ok_or_else(missing)
}

async fn add_address(handle: &Handle, link: u32, address: Ipv4Addr, prefix: u8) -> Result<(), NetworkError> {
    let added = handle.address().add(link, IpAddr::V4(address), prefix).execute().await;
    added.map_err(netlink_failed(format!("add address {address}")))
}

async fn set_up(handle: &Handle, link: u32) -> Result<(), NetworkError> {
    let up = LinkUnspec::new_with_index(link).up().build();
    handle.link().set(up).execute().await.map_err(netlink_failed("bring up a link"))
}

async fn add_route(
    handle: &Handle,
    link: u32,
    (to, prefix): (Ipv4Addr, u8),
    via: Ipv4Addr,
) -> Result<(), NetworkError> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, prefix).gateway(via);
    let added = handle.route().add(route.output_interface(link).build()).execute().await;
    added.map_err(netlink_failed(format!("add a route to {to}")))
}

/// Adds a permanent neighbour entry, so that the kernel sends no ARP request and nobody else can claim the
/// address. An ARP request to a guest that is not up yet would be repeated only after a second, and the
/// kernel limits the number of learnt entries for all namespaces together.
async fn pin_neighbour(
    handle: &Handle,
    link: u32,
    (address, mac): (Ipv4Addr, [u8; 6]),
) -> Result<(), NetworkError> {
    let pinned = handle.neighbours().add(link, IpAddr::V4(address)).link_layer_address(&mac);
    pinned.replace().execute().await.map_err(netlink_failed(format!("pin the hardware address of {address}")))
}

/// Deletes learnt neighbour entries; permanent entries stay.
async fn forget_neighbours(handle: &Handle) -> Result<(), NetworkError> {
    let learnt = |neighbour: &NeighbourMessage| {
        !matches!(neighbour.header.state, NeighbourState::Permanent | NeighbourState::Noarp)
    };
    let all: Result<Vec<_>, _> = handle.neighbours().get().execute().try_collect().await;
    let all = all.map_err(netlink_failed("list a slot's neighbours"))?;
    for neighbour in all.into_iter().filter(learnt) {
        match handle.neighbours().del(neighbour).execute().await {
            // The kernel has deleted the entry meanwhile.
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENOENT => {}
            forgotten => forgotten.map_err(netlink_failed("forget a neighbour"))?,
        }
    }
    Ok(())
}

/// Writes a network sysctl of the calling thread's namespace.
fn sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    fs::write(Path::new("/proc/sys/net").join(name), value).map_err(io_failed(format!("set net.{name}")))
}

/// Disables IPv6 on a link. Does nothing if the kernel has no IPv6.
fn without_ipv6(link: &str) -> Result<(), NetworkError> {
    let ipv6 = Path::new("/proc/sys/net/ipv6").try_exists();
    if !ipv6.map_err(io_failed("look for the kernel's IPv6"))? {
        return Ok(());
    }
    sysctl(&format!("ipv6/conf/{link}/disable_ipv6"), "1")
}

/// `struct ifreq` for TUNSETIFF (linux/if.h).
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Creates a persistent tap device, which stays while no program has it open.
fn make_tap(name: &str) -> io::Result<()> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    request.name.iter_mut().zip(name.bytes()).take(libc::IFNAMSIZ - 1).for_each(|(to, from)| *to = from);
    let fd = tun.as_raw_fd();
    // SAFETY: the descriptor is open, the request has the kernel's layout and outlives the calls.
    let failed = unsafe {
        libc::ioctl(fd, libc::TUNSETIFF as _, &raw mut request) < 0
            || libc::ioctl(fd, libc::TUNSETPERSIST as _, 1 as libc::c_ulong) < 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Time limit for the end of other uses of a tap device, and interval between looks.
const UNUSED_LIMIT: Duration = Duration::from_secs(5);
const UNUSED_PAUSE: Duration = Duration::from_millis(1);

/// Waits until no process has the tap device open. One that was forked while it was made has its descriptor, too, until
/// it executes its program, and a VMM would find the device busy.
async fn wait_unused(handle: &Handle, tap: u32) -> Result<(), NetworkError> {
    let begin = Instant::now();
    loop {
        let link = handle.link().get().match_index(tap).execute().try_next().await;
        let link = link.map_err(netlink_failed("look at the tap device"))?;
        // The carrier of a tap device is a process that has it open.
        let used = link.is_some_and(|link| link.attributes.contains(&LinkAttribute::Carrier(1)));
        if !used {
            return Ok(());
        }
        if begin.elapsed() > UNUSED_LIMIT {
            let error = io::Error::other("another process has the device open");
            return Err(io_failed("make the tap device")(error));
        }
        tokio::time::sleep(UNUSED_PAUSE).await;
    }
}

/// Creates the veth pair with its outer end directly in the host's namespace: moving it there later would
/// wait until every CPU has seen its removal (an RCU grace period).
async fn make_pair(handle: &Handle, slot: &SlotSpec, host: &File) -> Result<(), NetworkError> {
    let [outer_mac, inner_mac] = slot.veth_macs();
    let outer = &slot.veth_host;
    let mut pair = LinkVeth::new(UPLINK, outer).build();
    pair.attributes.push(LinkAttribute::Address(inner_mac.to_vec()));
    for attribute in &mut pair.attributes {
        let LinkAttribute::LinkInfo(parts) = attribute else { continue };
        for part in parts {
            if let LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))) = part {
                peer.attributes.push(LinkAttribute::NetNsFd(host.as_raw_fd()));
                peer.attributes.push(LinkAttribute::Address(outer_mac.to_vec()));
            }
        }
    }
    let made = handle.link().add(pair).execute().await;
    made.map_err(netlink_failed(format!("make veth pair {outer}")))
}

/// Configures the new namespace; the calling thread must be in it.
async fn build_inside(
    slot: &SlotSpec,
    (policy, common): (&Policy, &Common),
    parent: &File,
) -> Result<(), NetworkError> {
    let handle = connect()?;
    without_ipv6("all")?;
    without_ipv6("default")?;
    sysctl("ipv4/ip_forward", "1")?;
    make_pair(&handle, slot, parent).await?;
    make_tap(&slot.tap).map_err(io_failed("make the tap device"))?;
    // Install the rules before any address or route, so that no packet passes unfiltered.
    Batch::of(|batch| {
        batch.add(&rules::guard(slot));
        batch.add(&rules::slot(slot, policy, common));
        batch.add(&rules::flows(slot));
    })
    .apply(&netfilter()?)?;

    let (uplink, tap) = (existing_link(&handle, UPLINK).await?, existing_link(&handle, &slot.tap).await?);
    let named = LinkUnspec::new_with_index(tap).address(TAP_MAC.to_vec()).build();
    let named = handle.link().set(named).execute().await;
    named.map_err(netlink_failed("set the tap's hardware address"))?;
    add_address(&handle, uplink, slot.veth_slot_address, 31).await?;
    add_address(&handle, tap, TAP_ADDRESS, TAP_PREFIX).await?;
    for link in [existing_link(&handle, "lo").await?, uplink, tap] {
        set_up(&handle, link).await?;
    }
    pin_neighbour(&handle, tap, (GUEST_ADDRESS, GUEST_MAC)).await?;
    pin_neighbour(&handle, uplink, (slot.veth_host_address, slot.veth_macs()[0])).await?;
    add_route(&handle, uplink, (Ipv4Addr::UNSPECIFIED, 0), slot.veth_host_address).await?;
    wait_unused(&handle, tap).await
}

/// Builds a slot. If it fails, [`remove`] removes what was created.
pub(crate) async fn build(slot: SlotSpec, policy: Policy, common: Common) -> Result<(), NetworkError> {
    on_own_thread(async move || {
        let handle = connect()?;
        let parent =
            File::open("/proc/thread-self/ns/net").map_err(io_failed("open the host's namespace"))?;
        File::create(&slot.netns).map_err(io_failed("make the pin of the namespace"))?;
        // SAFETY: affects only this thread, which ends with this closure.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return Err(io_failed("make a network namespace")(io::Error::last_os_error()));
        }
        let pinned = mount_bind("/proc/thread-self/ns/net", &slot.netns);
        pinned.map_err(|error| io_failed("pin the network namespace")(error.into()))?;
        build_inside(&slot, (&policy, &common), &parent).await?;
        enter(&parent)?;
        let outer = existing_link(&handle, &slot.veth_host).await?;
        without_ipv6(&slot.veth_host)?;
        add_address(&handle, outer, slot.veth_host_address, 31).await?;
        set_up(&handle, outer).await?;
        pin_neighbour(&handle, outer, (slot.veth_slot_address, slot.veth_macs()[1])).await?;
        add_route(&handle, outer, (slot.host_address, 32), slot.veth_slot_address).await
    })
    .await
}

/// Replaces the policy of a slot atomically.
pub(crate) async fn set_policy(slot: SlotSpec, policy: Policy, common: Common) -> Result<(), NetworkError> {
    on_own_thread(async move || {
        enter_slot(&slot)?;
        Batch::of(|batch| batch.replace(&rules::slot(&slot, &policy, &common))).apply(&netfilter()?)
    })
    .await
}

/// Deletes the host's conntrack entries of flows from and to a slot.
fn forget_on_host(slot: &SlotSpec) -> Result<(), NetworkError> {
    let socket = netfilter()?;
    for flows in [Flows::From(slot.veth_slot_address), Flows::To(slot.host_address)] {
        conntrack::forget(&socket, flows)?;
    }
    Ok(())
}

/// Deletes the conntrack and neighbour entries of a slot, inside its namespace and on the host.
pub(crate) async fn refresh(slot: SlotSpec) -> Result<(), NetworkError> {
    on_own_thread(async move || {
        forget_on_host(&slot)?;
        enter_slot(&slot)?;
        conntrack::forget_all(&netfilter()?)?;
        let handle = connect()?;
        forget_neighbours(&handle).await?;
        let tap = existing_link(&handle, &slot.tap).await?;
        pin_neighbour(&handle, tap, (GUEST_ADDRESS, GUEST_MAC)).await
    })
    .await
}

fn remove_pin(slot: &SlotSpec) -> Result<(), NetworkError> {
    match unmount(&slot.netns, UnmountFlags::DETACH) {
        // Not mounted, or does not exist.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(io_failed("release a network namespace")(error.into())),
    }
    match fs::remove_file(&slot.netns) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_failed("remove the pin of a slot")(error))
        }
        _ => Ok(()),
    }
}

/// Removes a slot, complete or partial. Does nothing if it does not exist. The whole namespace is removed with it: no
/// slot is ever used twice.
pub(crate) async fn remove(slot: SlotSpec) -> Result<(), NetworkError> {
    on_own_thread(async move || {
        let handle = connect()?;
        if let Some(link) = link_index(&handle, &slot.veth_host).await? {
            match handle.link().del(link).execute().await {
                // The kernel has removed the link meanwhile, with its other end.
                Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => {}
                removed => removed.map_err(netlink_failed(format!("remove link {}", slot.veth_host)))?,
            }
        }
        remove_pin(&slot)?;
        forget_on_host(&slot)
    })
    .await
}

/// Number of conntrack entries reserved for the host's own flows.
const HOST_FLOWS: u64 = 65_536;
/// Maximum size of the conntrack table. This many entries take about 1 GiB of kernel memory.
const TABLE_MAX: u64 = 4 << 20;

const IP_FORWARD: &str = "ipv4/ip_forward";

/// Returns whether the host forwards packets.
fn forwards() -> Result<bool, NetworkError> {
    let text = fs::read_to_string(Path::new("/proc/sys/net").join(IP_FORWARD));
    Ok(text.map_err(io_failed(format!("read net.{IP_FORWARD}")))?.trim() != "0")
}

fn host_rules(plan: &Plan, common: &Common, forwarding: Forwarding) -> Batch {
    let (host, others) = (rules::host(plan, common), rules::others(plan));
    Batch::of(|batch| {
        batch.replace(&host);
        if forwarding == Forwarding::Ours {
            batch.replace(&others);
        }
    })
}

/// Applies the host's rules, for at most `guests` guests, and enables forwarding. Returns for whom the host
/// forwards: only for guests, if it did not forward before. The table that enforces this also marks it for
/// the next agent in this namespace.
pub(crate) async fn open_host(plan: &Plan, guests: u16, common: &Common) -> Result<Forwarding, NetworkError> {
    let (plan, common) = (plan.clone(), common.clone());
    on_own_thread(async move || {
        let socket = netfilter()?;
        let was_ours = nft::has_table(&socket, Family::Ip, &rules::others_table(&plan))?;
        let switch = common.egress == Egress::Nat && !forwards()?;
        let forwarding = if was_ours || switch { Forwarding::Ours } else { Forwarding::Everybodys };
        host_rules(&plan, &common, forwarding).apply(&socket)?;
        conntrack::make_room((HOST_FLOWS + u64::from(guests) * rules::MAX_KEPT_FLOWS).min(TABLE_MAX));
        if switch {
            sysctl(IP_FORWARD, "1")?;
        }
        Ok(forwarding)
    })
    .await
}

/// Restores the host's rules if another program removed them, for example by flushing the ruleset.
pub(crate) async fn keep_host(
    plan: &Plan,
    common: &Common,
    forwarding: Forwarding,
) -> Result<(), NetworkError> {
    let (plan, common) = (plan.clone(), common.clone());
    on_own_thread(async move || {
        let socket = netfilter()?;
        let name = rules::host_table(&plan);
        let others = || nft::has_table(&socket, Family::Ip, &rules::others_table(&plan));
        if nft::has_table(&socket, Family::Ip, &name)? && (forwarding == Forwarding::Everybodys || others()?)
        {
            return Ok(());
        }
        tracing::warn!(table = name, "another program removed the nftables table for guests; restored it");
        host_rules(&plan, &common, forwarding).apply(&socket)
    })
    .await
}

/// Removes the host's rules, if any, and disables forwarding if it was disabled before.
pub(crate) async fn close_host(plan: &Plan) -> Result<(), NetworkError> {
    let (table, others) = (rules::host_table(plan), rules::others_table(plan));
    on_own_thread(async move || {
        let socket = netfilter()?;
        if nft::has_table(&socket, Family::Ip, &others)? {
            // Before removing the rule that prevents forwarding for others.
            sysctl(IP_FORWARD, "0")?;
        }
        Batch::of(|batch| {
            batch.remove(Family::Ip, &table);
            batch.remove(Family::Ip, &others);
        })
        .apply(&socket)
    })
    .await
}
