//! What real guests reach: the internet, and nothing else. The host side is a network namespace of its own
//! without an uplink, the world around it stands in further ones: no packet leaves the machine, even where the
//! policy fails.

mod space;
mod world;

use std::{collections::BTreeSet, fs, net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _, future, stream};
use serde_json::{Value, json};
use wrenn_testkit::{Setup, Stack, wait_until};

use self::{
    space::{apart, links},
    world::{HOST, INTERNET, METADATA, NEIGHBOUR, ROLL_CALL, SERVICES, World},
};
use super::{
    fleet::{create_many, delete_many},
    hosts::quick_driver,
    support::end,
};

const GUEST: &str = include_str!("network/guest.py");
/// At once, with one address and one hardware address.
fn many() -> usize {
    if wrenn_testkit::in_lab() { 3 } else { 6 }
}

/// The addresses of a sandbox's network, as the design numbers them.
#[derive(Debug)]
struct Slot {
    /// Where the host reaches the guest.
    host: Ipv4Addr,
    /// The ends of the link between host and slot.
    link: [Ipv4Addr; 2],
}

fn slot(stack: &Stack, id: &str) -> Result<Slot> {
    let path = stack.state_dir.join("agent/sandboxes").join(id).join("journal.json");
    let text = fs::read_to_string(path)?;
    let mut entries = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let step = entries.find(|entry| entry["step"] == "slot").with_context(|| format!("no slot in {text}"))?;
    let index = u32::try_from(step["index"].as_u64().context("no index")?)?;
    let of = |network: u32, offset: u32| Ipv4Addr::from(network + offset);
    let (hosts, links) = (0x0a0b_0000, 0x0a0c_0000);
    Ok(Slot { host: of(hosts, index), link: [of(links, 2 * index), of(links, 2 * index + 1)] })
}

/// Runs the guest's program as root; its output.
async fn guest(stack: &Stack, id: &str, args: &[&str]) -> Result<String> {
    let all = [&["python3", "/tmp/guest.py"], args].concat();
    let body = json!({"cmd": "sudo", "args": all, "timeout_sec": 120});
    let ran = stack.api.post(&format!("/v1/sandboxes/{id}/exec"), &body).await?.expect(200)?.json();
    anyhow::ensure!(ran["exit_code"] == 0, "{args:?} in {id}: {ran}");
    Ok(ran["stdout"].as_str().unwrap_or_default().to_owned())
}

async fn with_program(stack: &Stack, ids: &[String]) -> Result<()> {
    for id in ids {
        stack.api.write(id, "/tmp/guest.py", GUEST.into()).await?.expect(204)?;
    }
    Ok(())
}

fn joined<T: ToString>(things: &[T]) -> String {
    things.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Where a guest must get no answer from.
fn forbidden(own: &Slot, other: &Slot) -> Vec<Ipv4Addr> {
    let samples = [
        HOST,
        METADATA,
        NEIGHBOUR,
        [192, 168, 77, 1].into(),
        [169, 254, 169, 1].into(),
        [169, 254, 0, 22].into(),
        [10, 0, 0, 1].into(),
        [10, 99, 0, 5].into(),
        [10, 255, 255, 254].into(),
        [172, 16, 5, 5].into(),
        [100, 64, 0, 9].into(),
        [198, 18, 0, 1].into(),
        [192, 168, 77, 255].into(),
        [224, 0, 0, 1].into(),
        [255, 255, 255, 255].into(),
    ];
    let slots = [own, other].into_iter().flat_map(|slot| [slot.host, slot.link[0], slot.link[1]]);
    slots.chain(samples).collect()
}

/// Names in which a guest must send nothing.
fn forged(own: &Slot, other: &Slot) -> Vec<Ipv4Addr> {
    let others = [
        HOST,
        NEIGHBOUR,
        [203, 0, 113, 10].into(),
        [10, 0, 0, 7].into(),
        [127, 0, 0, 1].into(),
        [169, 254, 0, 22].into(),
        [169, 254, 0, 20].into(),
        [0, 0, 0, 0].into(),
    ];
    let slots = [own, other].into_iter().flat_map(|slot| [slot.host, slot.link[0], slot.link[1]]);
    slots.chain(others).collect()
}

/// Fails unless the internet, and only it, answered the attacker; it had all its means.
fn check_attack(said: &str) -> Result<()> {
    let answers = said.lines().filter_map(|line| line.strip_prefix("answer "));
    let ours = [format!("tcp {INTERNET} "), format!("udp {INTERNET} ")];
    let (fine, bad): (Vec<_>, Vec<_>) =
        answers.partition(|line| ours.iter().any(|begin| line.starts_with(begin)));
    anyhow::ensure!(bad.is_empty(), "answered: {bad:#?}");
    let wanted = [format!("tcp {INTERNET} 7 open"), format!("udp {INTERNET} 7 'hello'")];
    let missing = wanted.iter().find(|line| !fine.contains(&line.as_str()));
    anyhow::ensure!(missing.is_none(), "no {missing:?} in {fine:?}");
    let heard: Vec<_> = said.lines().filter(|line| line.starts_with("heard")).collect();
    anyhow::ensure!(heard.is_empty(), "the attacker heard {heard:#?}");
    let conversed = [
        format!("conversed {INTERNET} 7 fence"),
        "conversed 169.254.0.53 53 name".to_owned(),
        "conversed 169.254.0.54 53 name".to_owned(),
    ];
    let missing = conversed.iter().find(|line| !said.contains(line.as_str()));
    anyhow::ensure!(missing.is_none(), "no {missing:?} in {said}");
    let number = |what: &str| {
        said.lines().find_map(|line| line.strip_prefix(what)?.trim().parse::<u32>().ok()).unwrap_or(0)
    };
    let (knocked, frames) = (number("knocked"), number("frames"));
    println!("  knocked at {knocked} places twice, sent {frames} frames");
    anyhow::ensure!(knocked > 100 && frames > 900, "only {knocked} knocks and {frames} frames");
    Ok(())
}

/// Fails unless its agent is all that the other guest heard.
fn check_watch(said: &str, own: &Slot) -> Result<()> {
    let sources: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("source ")).collect();
    let fine = !said.contains("heard") && sources == [own.link[0].to_string()];
    anyhow::ensure!(fine, "the other guest heard {said}");
    Ok(())
}

async fn attack(stack: &Stack, attacker: &str, victim: &str) -> Result<()> {
    let (own, other) = (slot(stack, attacker)?, slot(stack, victim)?);
    let port = stack.url().rsplit(':').next().unwrap_or_default().to_owned();
    // The services that the world has, the API, and the guests' own daemon.
    let ports = format!("{},{port},49983", joined(&SERVICES));
    let (forbidden, forged) = (joined(&forbidden(&own, &other)), joined(&forged(&own, &other)));
    let watched = async {
        // The daemon's port is taken.
        guest(stack, victim, &["watch", &joined(&SERVICES)]).await
    };
    let attacked = async {
        let ready = async || stack.api.read(victim, "/tmp/ready").await.ok().filter(|r| r.status == 200);
        wait_until("a watch in the other guest", Duration::from_secs(60), ready).await?;
        let said =
            guest(stack, attacker, &["attack", &INTERNET.to_string(), &forbidden, &forged, &ports]).await;
        stack.api.write(victim, "/tmp/stop", Vec::new()).await?.expect(204)?;
        said
    };
    let (watched, attacked) = future::join(watched, attacked).await;
    check_attack(&attacked?)?;
    check_watch(&watched?, &other)
}

/// A hostile guest scans, lies and forges, as root; it reaches the internet, in the host's name.
async fn attack_each_other(stack: &Stack, world: &World, ids: [&str; 2]) -> Result<()> {
    let [one, two] = ids;
    for (attacker, victim) in [(one, two), (two, one)] {
        attack(stack, attacker, victim).await.with_context(|| format!("{attacker} attacks {victim}"))?;
        world.only_honest()?;
    }
    Ok(())
}

/// What a guest has for addresses.
async fn addresses(stack: &Stack, id: &str) -> Result<(String, String)> {
    let script =
        "cat /sys/class/net/e*/address; ip -4 -o addr show scope link; ip -4 -o addr show scope global";
    let said = stack.api.exec(id, &["sh", "-c", script]).await?;
    let text = said["stdout"].as_str().unwrap_or_default().to_owned();
    let mac = text.lines().next().unwrap_or_default().to_owned();
    let inet = text.split_whitespace().skip_while(|word| *word != "inet").nth(1).unwrap_or_default();
    Ok((mac, inet.to_owned()))
}

/// All guests have the same address and hardware address: they get out and are reached side by side, each by
/// an address of its own.
async fn talk_at_once(stack: &Stack, world: &World, ids: &[String]) -> Result<()> {
    let port = ROLL_CALL.to_string();
    let out =
        ids.iter().map(async |id| guest(stack, id, &["report", &INTERNET.to_string(), &port, id]).await);
    let meanwhile = async {
        let called = world.roll_call(many()).await?;
        // All of them hold a connection now, from one address and port inside.
        let names: BTreeSet<_> = called.iter().map(|guest| guest.name.clone()).collect();
        anyhow::ensure!(names == ids.iter().cloned().collect(), "{names:?} are not {ids:?}");
        let peers: BTreeSet<_> = called.iter().map(|guest| guest.peer).collect();
        let fine = peers.len() == many() && peers.iter().all(|peer| peer.ip() == HOST);
        anyhow::ensure!(fine, "the internet sees {peers:?}");
        let asked = stream::iter(ids).map(|id| addresses(stack, id)).buffer_unordered(many());
        let inside: Vec<_> = asked.try_collect().await?;
        let same = ("02:fc:00:00:00:05".to_owned(), "169.254.0.21/30".to_owned());
        anyhow::ensure!(inside.iter().all(|own| *own == same), "inside they are {inside:?}");
        for guest in called {
            guest.dismiss().await?;
        }
        Ok(())
    };
    // A guest that fails ends it at once; nobody waits for one that does not come.
    let (said, ()) = future::try_join(future::try_join_all(out), meanwhile).await?;
    for (id, text) in ids.iter().zip(&said) {
        anyhow::ensure!(text.trim() == format!("goodbye {id}"), "{id} was told {text:?}");
    }
    let slots = ids.iter().map(|id| slot(stack, id)).collect::<Result<Vec<_>>>()?;
    let expected: BTreeSet<_> = slots.iter().map(|slot| format!("{} > {INTERNET}", slot.link[1])).collect();
    let seen: BTreeSet<_> = World::guests_seen()?.into_iter().collect();
    println!("  the host saw {seen:?}");
    anyhow::ensure!(expected.len() == many() && seen.is_superset(&expected), "{seen:?} is not {expected:?}");
    world.only_honest()
}

async fn reach(stack: &Stack, world: &World) -> Result<()> {
    let ids = create_many(stack, many()).await?;
    with_program(stack, &ids).await?;
    attack_each_other(stack, world, [&ids[0], &ids[1]]).await?;
    talk_at_once(stack, world, &ids).await.context("all guests at once")?;
    delete_many(stack, &ids).await
}

/// What two of several guests try, and what all of them do at once: one Wrenn for both, because in a lab its
/// start is most of the time.
pub(crate) async fn guests_reach_the_internet_and_nothing_else() -> Result<()> {
    apart(async || {
        let world = World::new()?;
        let stack = Stack::start_with(Setup { env: quick_driver(), open_files: None }).await?;
        let result = reach(&stack, &world).await;
        end(stack, result).await?;
        let left: Vec<_> = links()?.into_iter().filter(|name| name.starts_with("wr")).collect();
        anyhow::ensure!(left.is_empty(), "links are left: {left:?}");
        Ok(())
    })
    .await
}
