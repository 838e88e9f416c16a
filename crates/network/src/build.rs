//! Slots in the kernel: built on a thread that enters a namespace of its own, and torn down.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, RawFd},
    path::Path,
    process::{Command, Stdio},
};

use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::{
    NetworkError,
    plan::{GUEST_ADDRESS, Plan, SlotSpec, TAP_ADDRESS, TAP_PREFIX},
    rules::{self, Egress},
};

fn io_failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let action = action.into();
    move |source| NetworkError::Io { action, source }
}

fn netlink_failed(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let action = action.into();
    move |source| NetworkError::Netlink { action, source }
}

/// Runs `work` on a thread of its own with a runtime of its own: namespaces belong to threads, and a thread
/// that changed its namespace must not go back to a pool.
async fn on_own_thread<F>(work: F) -> Result<(), NetworkError>
where
    F: AsyncFnOnce() -> Result<(), NetworkError> + Send + 'static,
{
    let (done, result) = tokio::sync::oneshot::channel();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let outcome =
            runtime.map_err(io_failed("start a thread for the slot")).and_then(|rt| rt.block_on(work()));
        // Nobody waits any more: there is nobody to tell.
        let _ = done.send(outcome);
    };
    std::thread::Builder::new()
        .name("slot".into())
        .spawn(run)
        .map_err(io_failed("start a thread for the slot"))?;
    result.await.map_err(|_| io_failed("build the slot")(io::Error::other("its thread died")))?
}

fn connect() -> Result<Handle, NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(io_failed("open a netlink socket"))?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The number of a link; `None` when there is none of this name.
async fn link_index(handle: &Handle, name: &str) -> Result<Option<u32>, NetworkError> {
    use futures::TryStreamExt;
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

/// The guest's hardware address is known: nobody has to ask for it, which would cost a second where the
/// first question came before the guest was up, and nobody else can claim it.
async fn pin_neighbour(handle: &Handle, tap: u32, slot: &SlotSpec) -> Result<(), NetworkError> {
    let invalid = || io_failed("pin the guest's hardware address")(io::ErrorKind::InvalidInput.into());
    let bytes: Result<Vec<u8>, _> =
        slot.guest_mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    let mac = bytes.map_err(|_| invalid())?;
    let pinned = handle.neighbours().add(tap, IpAddr::V4(GUEST_ADDRESS)).link_layer_address(&mac);
    pinned.replace().execute().await.map_err(netlink_failed("pin the guest's hardware address"))
}

/// Writes a sysctl of the calling thread's namespace.
fn sysctl(name: &str, value: &str) -> Result<(), NetworkError> {
    fs::write(Path::new("/proc/sys/net").join(name), value).map_err(io_failed(format!("set net.{name}")))
}

/// `struct ifreq` as TUNSETIFF takes it (linux/if.h).
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Makes a tap device that stays without a program at its other end.
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

/// Applies rules in the calling thread's namespace, all or nothing.
fn nft(rules: &str) -> Result<(), NetworkError> {
    let fail = || io_failed("apply packet filter rules with nft (Debian: apt-get install nftables)");
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(fail())?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes()).map_err(fail())?;
    }
    let output = child.wait_with_output().map_err(fail())?;
    if output.status.success() {
        return Ok(());
    }
    Err(fail()(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())))
}

/// What is done inside the new namespace.
async fn build_inside(slot: &SlotSpec, parent: RawFd) -> Result<(), NetworkError> {
    let handle = connect()?;
    let pair = LinkVeth::new("eth0", &slot.veth_host).build();
    let made = handle.link().add(pair).execute().await;
    made.map_err(netlink_failed(format!("make veth pair {}", slot.veth_host)))?;
    let outer = existing_link(&handle, &slot.veth_host).await?;
    let moved =
        handle.link().set(LinkUnspec::new_with_index(outer).setns_by_fd(parent).build()).execute().await;
    moved.map_err(netlink_failed(format!("move {} to the host", slot.veth_host)))?;
    make_tap(&slot.tap).map_err(io_failed("make the tap device"))?;

    sysctl("ipv6/conf/all/disable_ipv6", "1")?;
    sysctl("ipv6/conf/default/disable_ipv6", "1")?;
    sysctl("ipv4/ip_forward", "1")?;
    let (eth0, tap) = (existing_link(&handle, "eth0").await?, existing_link(&handle, &slot.tap).await?);
    add_address(&handle, eth0, slot.veth_slot_address, 31).await?;
    add_address(&handle, tap, TAP_ADDRESS, TAP_PREFIX).await?;
    for link in [existing_link(&handle, "lo").await?, eth0, tap] {
        set_up(&handle, link).await?;
    }
    pin_neighbour(&handle, tap, slot).await?;
    // Closed before it leads anywhere.
    nft(&rules::slot(slot))?;
    add_route(&handle, eth0, (Ipv4Addr::UNSPECIFIED, 0), slot.veth_host_address).await
}

/// Builds a slot. What is there when it fails, [`remove`] takes away.
pub(crate) async fn build(slot: &SlotSpec) -> Result<(), NetworkError> {
    let inner = slot.clone();
    on_own_thread(async move || {
        let parent =
            File::open("/proc/thread-self/ns/net").map_err(io_failed("open the host's namespace"))?;
        File::create(&inner.netns).map_err(io_failed("make the pin of the namespace"))?;
        // SAFETY: affects this thread alone, which ends with this closure.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return Err(io_failed("make a network namespace")(io::Error::last_os_error()));
        }
        let pinned = mount_bind("/proc/thread-self/ns/net", &inner.netns);
        pinned.map_err(|error| io_failed("pin the network namespace")(error.into()))?;
        build_inside(&inner, parent.as_raw_fd()).await
    })
    .await?;
    let handle = connect()?;
    let outer = existing_link(&handle, &slot.veth_host).await?;
    sysctl(&format!("ipv6/conf/{}/disable_ipv6", slot.veth_host), "1")?;
    add_address(&handle, outer, slot.veth_host_address, 31).await?;
    set_up(&handle, outer).await?;
    add_route(&handle, outer, (slot.host_address, 32), slot.veth_slot_address).await
}

/// Removes whatever there is of a slot; nothing is fine.
pub(crate) async fn remove(slot: &SlotSpec) -> Result<(), NetworkError> {
    let handle = connect()?;
    if let Some(link) = link_index(&handle, &slot.veth_host).await? {
        let removed = handle.link().del(link).execute().await;
        removed.map_err(netlink_failed(format!("remove link {}", slot.veth_host)))?;
    }
    match unmount(&slot.netns, UnmountFlags::DETACH) {
        // Not mounted, or not there.
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

/// Applies the host's rules.
pub(crate) async fn open_host(plan: &Plan, egress: Egress) -> Result<(), NetworkError> {
    let text = rules::host(plan, egress);
    on_own_thread(async move || {
        nft(&text)?;
        if egress == Egress::Nat { sysctl("ipv4/ip_forward", "1") } else { Ok(()) }
    })
    .await
}

/// Removes the host's rules; none is fine.
pub(crate) async fn close_host(plan: &Plan) -> Result<(), NetworkError> {
    let table = rules::host_table(plan);
    // Declared first, so that the removal of a missing table is no error.
    on_own_thread(async move || nft(&format!("table ip {table}\ndelete table ip {table}\n"))).await
}
