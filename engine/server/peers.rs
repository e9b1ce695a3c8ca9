//! Connections by who holds them: one client alone cannot take all there are.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// How many connections each peer has.
pub struct Peers {
    max_each: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection of a peer, for as long as it lives.
pub struct Place {
    peers: Arc<Peers>,
    peer: IpAddr,
}

impl Peers {
    pub fn new(max_each: usize) -> Arc<Self> {
        Arc::new(Self { max_each, open: Mutex::default() })
    }

    /// Counts a connection from this address; `None` where its peer has as many as it may.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let peer = peer(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(peer).or_default();
        if *count >= self.max_each {
            return None;
        }
        *count += 1;
        Some(Place { peers: Arc::clone(self), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.peers.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = open.entry(self.peer) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Who has an address: of IPv6, a network of 64 bits belongs to one client.
fn peer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_its_own_places() {
        let peers = Peers::new(2);
        let enter = |address: &str| peers.enter(address.parse().unwrap());
        let held = [enter("10.0.0.1"), enter("::ffff:10.0.0.1")];
        assert!(held.iter().all(Option::is_some));
        assert!(enter("10.0.0.1").is_none());
        let others =
            [enter("10.0.0.2"), enter("2001:db8::1"), enter("2001:db8::2:3:4:5"), enter("2001:db8:0:1::1")];
        assert!(others.iter().all(Option::is_some));
        assert!(enter("2001:db8::9").is_none());
        drop(held);
        assert!(enter("10.0.0.1").is_some());
        drop(others);
        assert!(peers.open.lock().unwrap().is_empty());
    }
}
