//! The services of a scope as workers look them up: by mark, by protocol, address and port, and in Linux's order of
//! what is tried next.
//!
//! Spread over many small immutable lists, each replaced as a whole: a look-up waits for nobody, and a change costs the
//! same among ten services and a million.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use super::service::Service;
use super::spec::{Protocol, ServiceKey};
use crate::rules::hash::mix;

const FTP: u16 = 21;
const FTP_DATA: u16 = 20;
/// The first port that anybody may listen on.
const UNPRIVILEGED: u16 = 1024;

#[derive(Clone, Debug)]
struct Place {
    hash: u64,
    service: Arc<Service>,
}

/// Services sorted by hash.
type Shard = ArcSwap<Vec<Place>>;

/// How many services of a family there are, of each kind that a look-up may leave out.
#[derive(Debug, Default)]
struct Kinds {
    marks: AtomicUsize,
    addresses: AtomicUsize,
    ftp: AtomicUsize,
    any_port: AtomicUsize,
}

/// What a packet is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The address that the client called.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The packet's mark, 0 if it has none.
    pub mark: u32,
}

/// Services by what they are known by.
#[derive(Debug)]
pub struct ServiceTable {
    shards: Box<[Shard]>,
    kinds: [Kinds; 2],
    len: AtomicUsize,
}

fn hash(key: &ServiceKey) -> u64 {
    match *key {
        ServiceKey::Address { protocol, address, port } => {
            let rest = 1 << 32 | (protocol as u64) << 16 | u64::from(port);
            match address {
                IpAddr::V4(v4) => mix(rest, u64::from(v4.to_bits())),
                IpAddr::V6(v6) => mix(mix(rest, (v6.to_bits() >> 64) as u64), v6.to_bits() as u64),
            }
        }
        ServiceKey::Mark { mark, v6 } => mix(2 << 32 | u64::from(v6), u64::from(mark)),
    }
}

impl ServiceTable {
    /// A table for up to `most` rules.
    pub(super) fn new(most: usize) -> Self {
        let shards = (most / 64).clamp(16, 1 << 14).next_power_of_two();
        let empty = Arc::new(Vec::new());
        Self {
            shards: (0..shards).map(|_| ArcSwap::new(Arc::clone(&empty))).collect(),
            kinds: Default::default(),
            len: AtomicUsize::new(0),
        }
    }

    /// Whether it has no service: the one question that packets cost where nothing is balanced.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    /// How many services.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    fn shard(&self, hash: u64) -> usize {
        (hash >> 40) as usize & (self.shards.len() - 1)
    }

    /// The service of exactly this key.
    pub fn get(&self, key: &ServiceKey) -> Option<Arc<Service>> {
        let hash = hash(key);
        let shard = self.shards[self.shard(hash)].load();
        let from = shard.partition_point(|place| place.hash < hash);
        let same = shard[from..].iter().take_while(|place| place.hash == hash);
        same.map(|place| &place.service).find(|service| service.key() == *key).map(Arc::clone)
    }

    /// The service that a packet to `asked` belongs to: that of its mark; that of its address and port; for TCP's FTP
    /// data (port 20, and from 1024 on) that of port 21; that of port 0. As `ip_vs_service_find` of Linux.
    ///
    /// What belongs to the services of ports 21 and 0 in this way is balanced only if they are persistent.
    pub fn find(&self, asked: &Asked) -> Option<Arc<Service>> {
        let v6 = asked.address.is_ipv6();
        let kinds = &self.kinds[usize::from(v6)];
        let some = |kind: &AtomicUsize| kind.load(Ordering::Relaxed) != 0;
        if asked.mark != 0
            && some(&kinds.marks)
            && let Some(service) = self.get(&ServiceKey::Mark { mark: asked.mark, v6 })
        {
            return Some(service);
        }
        if !some(&kinds.addresses) {
            return None;
        }
        let at =
            |port| self.get(&ServiceKey::Address { protocol: asked.protocol, address: asked.address, port });
        if let Some(service) = at(asked.port) {
            return Some(service);
        }
        let data = asked.port == FTP_DATA || asked.port >= UNPRIVILEGED;
        if asked.protocol == Protocol::Tcp
            && data
            && some(&kinds.ftp)
            && let Some(service) = at(FTP)
        {
            return Some(service);
        }
        if some(&kinds.any_port) { at(0) } else { None }
    }

    fn kinds(&self, key: &ServiceKey) -> impl Iterator<Item = &AtomicUsize> {
        let (kinds, port) = match key {
            ServiceKey::Address { address, port, .. } => {
                (&self.kinds[usize::from(address.is_ipv6())], Some(*port))
            }
            ServiceKey::Mark { v6, .. } => (&self.kinds[usize::from(*v6)], None),
        };
        let special = match port {
            Some(FTP) => Some(&kinds.ftp),
            Some(0) => Some(&kinds.any_port),
            _ => None,
        };
        let main = if port.is_some() { &kinds.addresses } else { &kinds.marks };
        [Some(&self.len), Some(main), special].into_iter().flatten()
    }

    /// Takes services out and puts others in, by one change of each list that is concerned. Only the control thread.
    pub(super) fn change(&self, out: &[Arc<Service>], into: &[Arc<Service>]) {
        // A sort brings together what one list gets.
        let mut work: Vec<(usize, u64, bool, &Arc<Service>)> = Vec::with_capacity(out.len() + into.len());
        for (list, enters) in [(out, false), (into, true)] {
            work.extend(list.iter().map(|service| {
                let hash = hash(&service.key());
                (self.shard(hash), hash, enters, service)
            }));
        }
        work.sort_unstable_by_key(|&(shard, hash, enters, _)| (shard, hash, enters));
        // Services enter the counts before they can be found, and leave them after that.
        for service in into {
            self.kinds(&service.key()).for_each(|kind| {
                kind.fetch_add(1, Ordering::SeqCst);
            });
        }
        for group in work.chunk_by(|a, b| a.0 == b.0) {
            let old = self.shards[group[0].0].load();
            let leaves = |place: &Place| {
                let from = group.partition_point(|&(_, hash, ..)| hash < place.hash);
                let mut same = group[from..].iter().take_while(|&&(_, hash, ..)| hash == place.hash);
                same.any(|&(_, _, enters, service)| !enters && Arc::ptr_eq(service, &place.service))
            };
            let mut new = Vec::with_capacity(old.len() + group.len());
            new.extend(old.iter().filter(|place| !leaves(place)).cloned());
            let entering = group.iter().filter(|&&(_, _, enters, _)| enters);
            new.extend(entering.map(|&(_, hash, _, service)| Place { hash, service: Arc::clone(service) }));
            new.shrink_to_fit();
            new.sort_by_key(|place| place.hash);
            self.shards[group[0].0].store(Arc::new(new));
        }
        for service in out {
            self.kinds(&service.key()).for_each(|kind| {
                kind.fetch_sub(1, Ordering::SeqCst);
            });
        }
    }

    /// All services, in no order that means anything.
    pub fn all(&self) -> Vec<Arc<Service>> {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.shards {
            all.extend(shard.load().iter().map(|place| Arc::clone(&place.service)));
        }
        all
    }
}
