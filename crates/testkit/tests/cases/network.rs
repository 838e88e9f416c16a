// SPDX-License-Identifier: Apache-2.0
//! Network access of real guests: the internet and nothing else. The host runs in a network namespace without
//! an uplink, and further namespaces simulate the rest of the world, so no packet leaves the machine even if
//! the policy fails.

mod mirror;
mod names;
mod space;
mod world;

use std::{collections::BTreeSet, fs, net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _, future, stream};
use serde_json::{Value, json};
use wrenn_testkit::{Setup, Stack, wait_until};

pub(crate) use self::mirror::with_mirror;
use self::{
    names::{A, AAAA, FOUR, SIX},
    space::{apart, links},
    world::{ECHO, HOST, INTERNET, METADATA, NEIGHBOUR, ROLL_CALL, SERVICES, World},
};
use super::{
    fleet::{create_many, delete_many},
    hosts::quick_driver,
    support::{end, pause, resume, sh},
};

const GUEST: &str = include_str!("network/guest.py");
/// Number of guests that run at once, all with the same IP and MAC address.
fn many() -> usize {
    if wrenn_testkit::in_lab() { 3 } else { 6 }
}

/// Addresses of a sandbox's network slot.
#[derive(Debug)]
struct Slot {
    /// Address at which the host reaches the guest.
    host: Ipv4Addr,
    /// Addresses of the link between host and slot.
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

/// Runs the guest's program as root and returns its output.
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

/// Addresses from which a guest must get no answer.
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

/// Source addresses with which a guest must not be able to send anything.
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

/// Fails unless only the internet answered the attacker, and unless the attacker tried everything.
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

/// Fails if the other guest received anything but requests of its agent.
fn check_watch(said: &str, own: &Slot) -> Result<()> {
    let sources: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("source ")).collect();
    let fine = !said.contains("heard") && sources == [own.link[0].to_string()];
    anyhow::ensure!(fine, "the other guest heard {said}");
    Ok(())
}

async fn attack(stack: &Stack, attacker: &str, victim: &str) -> Result<()> {
    let (own, other) = (slot(stack, attacker)?, slot(stack, victim)?);
    let port = stack.url().rsplit(':').next().unwrap_or_default().to_owned();
    // Ports of the simulated services, of the API and of envd.
    let ports = format!("{},{port},49983", joined(&SERVICES));
    let (forbidden, forged) = (joined(&forbidden(&own, &other)), joined(&forged(&own, &other)));
    let watched = async {
        // Without the port of envd, which is in use.
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

/// Lets two guests attack each other as root with scans, false ARP and forged packets; only the internet may
/// answer, and only with packets from the host's address may they reach it.
async fn attack_each_other(stack: &Stack, world: &World, ids: [&str; 2]) -> Result<()> {
    let [one, two] = ids;
    for (attacker, victim) in [(one, two), (two, one)] {
        attack(stack, attacker, victim).await.with_context(|| format!("{attacker} attacks {victim}"))?;
        world.only_honest()?;
    }
    Ok(())
}

/// Returns the MAC and IP address of a guest.
async fn addresses(stack: &Stack, id: &str) -> Result<(String, String)> {
    let script =
        "cat /sys/class/net/e*/address; ip -4 -o addr show scope link; ip -4 -o addr show scope global";
    let said = stack.api.exec(id, &["sh", "-c", script]).await?;
    let text = said["stdout"].as_str().unwrap_or_default().to_owned();
    let mac = text.lines().next().unwrap_or_default().to_owned();
    let inet = text.split_whitespace().skip_while(|word| *word != "inet").nth(1).unwrap_or_default();
    Ok((mac, inet.to_owned()))
}

/// All guests have the same IP and MAC address inside. They reach the internet at the same time, and the host
/// reaches each at an address of its own.
async fn talk_at_once(stack: &Stack, world: &World, ids: &[String]) -> Result<()> {
    let port = ROLL_CALL.to_string();
    let out =
        ids.iter().map(async |id| guest(stack, id, &["report", &INTERNET.to_string(), &port, id]).await);
    let meanwhile = async {
        let called = world.roll_call(many()).await?;
        // All of them have a connection open now, from the same address and port inside.
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
    // If a guest fails, the case fails at once instead of waiting for the others.
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

/// A connection to the internet from before a pause ends after it, and new ones work.
async fn connect_over_a_pause(stack: &Stack, id: &str) -> Result<()> {
    let converse = format!(
        "import socket
s = socket.create_connection(('{INTERNET}', {ECHO}), 10)
s.sendall(b'x'); assert s.recv(1) == b'x'"
    );
    let script = format!(
        "cat > /tmp/c.py <<'END'
{converse}
s.settimeout(None); open('/tmp/connected', 'w').write('x')
try:
    s.recv(1); text = 'end'
except OSError as error:
    text = type(error).__name__
open('/tmp/told', 'w').write(text)
END
setsid python3 /tmp/c.py > /tmp/c.log 2>&1 &
for i in $(seq 200); do [ -e /tmp/connected ] && exit 0; sleep 0.1; done; cat /tmp/c.log; exit 1"
    );
    sh(stack, id, &script).await?;
    pause(stack, id).await?;
    resume(stack, id).await?;
    let told = async || sh(stack, id, "cat /tmp/told").await.ok();
    let told = wait_until("the end of the connection", Duration::from_secs(20), told).await?;
    anyhow::ensure!(["ConnectionResetError", "BrokenPipeError"].contains(&&*told), "{told}");
    sh(stack, id, &format!("cat > /tmp/d.py <<'END'\n{converse}\nEND\npython3 /tmp/d.py")).await?;
    Ok(())
}

/// While one of the host's resolvers swallows what it is asked, a guest finds the addresses of names by the other one, and asks
/// the silent one no more often than it is configured to. `domain` is that of names that were not asked for before.
async fn resolve(stack: &Stack, world: &World, id: &str, silent: usize, domain: &str) -> Result<()> {
    for (index, resolver) in world.resolvers.iter().enumerate() {
        resolver.keep_silent(index == silent);
    }
    let said = guest(stack, id, &["resolve", domain]).await?;
    let mut both = [FOUR.to_string(), SIX.to_string()];
    both.sort();
    for found in [format!("both {}", both.join(" ")), format!("six {SIX}")] {
        anyhow::ensure!(said.lines().any(|line| line == found), "it did not find {found}: {said}");
    }
    let attempts = said.lines().find_map(|line| line.strip_prefix("attempts ")?.parse::<usize>().ok());
    let attempts = attempts.context("it may ask as often as it likes")?;
    for (first, kind) in [("both", A), ("both", AAAA), ("six", AAAA)] {
        let name = format!("{first}.{domain}");
        let asked = world.resolvers.each_ref().map(|resolver| resolver.times_asked(&name, kind));
        println!("  resolver {silent} is silent: {name}, type {kind}, was asked for {asked:?} times");
        anyhow::ensure!(asked[1 - silent] > 0 && asked[silent] <= attempts, "{name} {kind}: {asked:?}");
        // Else it was not asked first, and this shows nothing.
        anyhow::ensure!(silent > 0 || asked[0] > 0, "{name} {kind}: {asked:?}");
    }
    println!("  {}", said.lines().filter(|line| line.starts_with("took")).collect::<Vec<_>>().join(", "));
    Ok(())
}

async fn reach(stack: &Stack, world: &World) -> Result<()> {
    let ids = create_many(stack, many()).await?;
    with_program(stack, &ids).await?;
    attack_each_other(stack, world, [&ids[0], &ids[1]]).await?;
    talk_at_once(stack, world, &ids).await.context("all guests at once")?;
    resolve(stack, world, &ids[0], 0, "before.test").await.context("names, with a silent first resolver")?;
    connect_over_a_pause(stack, &ids[0]).await.context("over a pause")?;
    resolve(stack, world, &ids[0], 0, "after.test").await.context("names, after the pause")?;
    resolve(stack, world, &ids[0], 1, "turned.test").await.context("names, with a silent second resolver")?;
    delete_many(stack, &ids).await
}

/// Attacks between two guests, connections of all guests at once, and names while a resolver of the host is silent. One
/// Wrenn for all, because in a lab most of the time is its start.
pub(crate) async fn guests_reach_the_internet_and_nothing_else() -> Result<()> {
    apart(async || {
        let world = World::new()?;
        let stack = Stack::start_with(Setup { env: quick_driver(), ..Setup::default() }).await?;
        let result = reach(&stack, &world).await;
        end(stack, result).await?;
        let left: Vec<_> = links()?.into_iter().filter(|name| name.starts_with("wr")).collect();
        anyhow::ensure!(left.is_empty(), "links are left: {left:?}");
        Ok(())
    })
    .await
}
