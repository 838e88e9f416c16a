// SPDX-License-Identifier: Apache-2.0
//! Permits of connections, limited in total and per address. If none is free, the connection that has been
//! idle for the longest is closed.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::connection::Connection;

/// All permits.
#[derive(Debug, Clone)]
pub(super) struct Places {
    all: usize,
    per_address: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    connections: HashMap<u64, Arc<Connection>>,
    per_address: HashMap<IpAddr, usize>,
}

/// Address that counts as one client: an IPv4 address, or a /64 of IPv6, which is assigned to one machine.
fn address(peer: SocketAddr) -> IpAddr {
    match peer.ip().to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
        ip @ IpAddr::V4(_) => ip,
    }
}

impl Taken {
    fn remove(&mut self, number: u64) -> Option<Arc<Connection>> {
        let connection = self.connections.remove(&number)?;
        let of = address(connection.peer());
        if let Some(count) = self.per_address.get_mut(&of) {
            *count -= 1;
            if *count == 0 {
                self.per_address.remove(&of);
            }
        }
        metrics::gauge!("wrenn_http_connections").set(self.connections.len() as f64);
        Some(connection)
    }

    /// Closes the connection that has been idle for the longest, of one address or of all; false if none is
    /// idle.
    fn make_room(&mut self, of: Option<IpAddr>) -> bool {
        let candidates = self.connections.iter().filter(|(_, connection)| match of {
            Some(of) => address(connection.peer()) == of,
            None => true,
        });
        let idle = candidates.filter_map(|(number, connection)| Some((connection.idle_since()?, *number)));
        let Some((_, number)) = idle.min() else { return false };
        if let Some(connection) = self.remove(number) {
            connection.close();
        }
        true
    }
}

impl Places {
    pub(super) fn new(all: usize, per_address: usize) -> Self {
        Self { all, per_address, taken: Arc::default() }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a permit for a new connection.
    pub(super) fn take(&self, connection: &Arc<Connection>) -> Option<Place> {
        let mut taken = self.taken();
        let of = address(connection.peer());
        let full = taken.per_address.get(&of).is_some_and(|count| *count >= self.per_address);
        if full && !taken.make_room(Some(of)) {
            return None;
        }
        if taken.connections.len() >= self.all && !taken.make_room(None) {
            return None;
        }
        taken.next += 1;
        let number = taken.next;
        taken.connections.insert(number, connection.clone());
        *taken.per_address.entry(of).or_default() += 1;
        metrics::gauge!("wrenn_http_connections").set(taken.connections.len() as f64);
        drop(taken);
        Some(Place { places: self.clone(), number })
    }
}

/// Permit of a connection; dropping it releases it.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Arc<Connection> {
        Arc::new(Connection::new(text.parse().expect("an address")))
    }

    #[test]
    fn the_longest_idle_connection_makes_room_and_one_in_work_does_not() {
        let places = Places::new(2, 2);
        let (first, second, third, fourth) =
            (from("10.0.0.1:1"), from("10.0.0.1:2"), from("10.0.0.1:3"), from("10.0.0.1:4"));
        let _first = places.take(&first).expect("a place");
        let _second = places.take(&second).expect("a place");
        let work = first.work();
        let _third = places.take(&third).expect("the place of the second");
        assert!(second.idle_since().is_some() && second.is_closed() && !first.is_closed());
        let third_work = third.work();
        assert!(places.take(&fourth).is_none());
        drop((work, third_work));
        assert!(places.take(&fourth).is_some());
        assert!(first.is_closed() && !third.is_closed());
    }

    #[test]
    fn one_address_takes_only_its_share() {
        let places = Places::new(3, 2);
        let connections: Vec<_> = (1..=3).map(|port| from(&format!("[2001:db8::{port}]:{port}"))).collect();
        let _places: Vec<_> = connections.iter().map(|connection| places.take(connection)).collect();
        let closed: Vec<bool> = connections.iter().map(|connection| connection.is_closed()).collect();
        assert_eq!(closed, [true, false, false]);
        let other = from("[2001:db8:0:1::1]:1");
        let place = places.take(&other);
        assert!(place.is_some());
        drop(place);
        assert_eq!(places.taken().per_address.len(), 1);
    }
}
