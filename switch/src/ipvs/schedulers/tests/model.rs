//! The schedulers once more, as plainly as can be and as slow: lists, linear searches, no shortcuts.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use crate::ipvs::spec::{Scheduler, SchedulerFlags};

#[derive(Clone, Debug, Default)]
pub(super) struct Server {
    pub(super) address: u32,
    weight: i64,
    last_weight: i64,
    upper: u64,
    pub(super) active: i64,
    pub(super) inactive: i64,
    overloaded: bool,
    available: bool,
}

impl Server {
    fn usable(&self) -> bool {
        self.weight > 0 && !self.overloaded
    }

    fn overhead(&self) -> i64 {
        self.active * 256 + self.inactive
    }
}

/// A service's servers and what its scheduler remembers; servers are known by their addresses.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) scheduler: Scheduler,
    pub(super) flags: u8,
    /// Also deleted ones.
    pub(super) servers: HashMap<u32, Server>,
    /// The last added one first.
    pub(super) list: Vec<u32>,
    rr: Option<u32>,
    last: Option<u32>,
    round: i64,
    first: i64,
    step: i64,
    cached: HashMap<u32, u32>,
    sets: HashMap<u32, Vec<u32>>,
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// SipHash-1-3 of four bytes, after the description of SipHash (Aumasson, Bernstein), cut to 32 bits.
fn sip13(word: u32, key: u64) -> u32 {
    let (mut a, mut b) = (0x736f6d6570736575 ^ key, 0x646f72616e646f6d ^ key);
    let (mut c, mut d) = (0x6c7967656e657261 ^ key, 0x7465646279746573_u64 ^ key);
    let last = u64::from_le_bytes([
        word as u8,
        (word >> 8) as u8,
        (word >> 16) as u8,
        (word >> 24) as u8,
        0,
        0,
        0,
        4,
    ]);
    for (round, input) in [Some(last), None, None, None].into_iter().enumerate() {
        d ^= input.unwrap_or(0);
        a = a.wrapping_add(b);
        c = c.wrapping_add(d);
        b = b.rotate_left(13);
        d = d.rotate_left(16);
        b ^= a;
        d ^= c;
        a = a.rotate_left(32);
        c = c.wrapping_add(b);
        a = a.wrapping_add(d);
        b = b.rotate_left(17);
        d = d.rotate_left(21);
        b ^= c;
        d ^= a;
        c = c.rotate_left(32);
        if round == 0 {
            a ^= last;
            c ^= 0xff;
        }
    }
    (a ^ b ^ c ^ d) as u32
}

impl Model {
    pub(super) fn new(scheduler: Scheduler, flags: u8) -> Self {
        let mut model = Self {
            scheduler,
            flags,
            servers: HashMap::new(),
            list: Vec::new(),
            rr: None,
            last: None,
            round: 0,
            first: 0,
            step: 1,
            cached: HashMap::new(),
            sets: HashMap::new(),
        };
        model.begin();
        model
    }

    fn weights(&mut self) {
        let weights =
            || self.list.iter().map(|number| self.servers[number].weight).filter(|&weight| weight > 0);
        self.step = weights().fold(0, gcd).max(1);
        self.first = weights().max().unwrap_or(0) - (self.step - 1);
        self.last = None;
    }

    fn begin(&mut self) {
        self.rr = None;
        self.weights();
        self.round = self.first;
        self.cached.clear();
        self.sets.clear();
    }

    pub(super) fn schedule_by(&mut self, scheduler: Scheduler, flags: u8) {
        self.flags = flags;
        if scheduler != self.scheduler {
            self.scheduler = scheduler;
            self.begin();
        }
    }

    fn changed(&mut self) {
        if self.scheduler == Scheduler::Wrr {
            self.weights();
            if self.round > self.first || self.round == 0 {
                self.round = self.first;
            } else if self.step > 1 {
                self.round = self.round / self.step * self.step + 1;
            }
        }
    }

    fn set(&mut self, number: u32, weight: i64, upper: u64, add: bool) {
        let server = self.servers.entry(number).or_default();
        server.address = number;
        if upper == 0 || upper > server.upper {
            server.overloaded = false;
        }
        (server.weight, server.upper) = (weight, upper);
        if add || weight != 0 {
            server.last_weight = weight;
        }
        server.available = true;
    }

    pub(super) fn add(&mut self, number: u32, weight: i64, upper: u64) -> bool {
        if self.list.contains(&number) {
            return false;
        }
        self.set(number, weight, upper, true);
        self.list.insert(0, number);
        self.changed();
        true
    }

    pub(super) fn edit(&mut self, number: u32, weight: i64, upper: u64) -> bool {
        if !self.list.contains(&number) {
            return false;
        }
        self.set(number, weight, upper, false);
        self.changed();
        true
    }

    pub(super) fn delete(&mut self, number: u32) -> bool {
        let Some(at) = self.list.iter().position(|&there| there == number) else {
            return false;
        };
        if self.rr == Some(number) {
            self.rr = at.checked_sub(1).map(|before| self.list[before]);
        }
        self.list.remove(at);
        self.servers.get_mut(&number).expect("known").available = false;
        self.changed();
        true
    }

    pub(super) fn count(&mut self, number: u32) {
        let server = self.servers.get_mut(&number).expect("known");
        server.inactive += 1;
        if server.upper != 0 && (server.active + server.inactive) as u64 >= server.upper {
            server.overloaded = true;
        }
    }

    pub(super) fn discount(&mut self, number: u32) {
        let server = self.servers.get_mut(&number).expect("known");
        server.inactive -= 1;
        // The lower threshold is three quarters of the upper one.
        if server.upper == 0 || ((server.active + server.inactive) * 4) < server.upper as i64 * 3 {
            server.overloaded = false;
        }
    }

    fn get(&self, number: &u32) -> &Server {
        &self.servers[number]
    }

    /// The first server of the list that none other is better than.
    fn best(
        &self,
        list: &[u32],
        takes_part: impl Fn(&Server) -> bool,
        better: impl Fn(&Server, &Server) -> bool,
    ) -> Option<u32> {
        let mut best: Option<&Server> = None;
        for server in list.iter().map(|number| self.get(number)).filter(|server| takes_part(server)) {
            if best.is_none_or(|best| better(server, best)) {
                best = Some(server);
            }
        }
        best.map(|best| best.address)
    }

    fn wlc(&self, list: &[u32]) -> Option<u32> {
        self.best(list, Server::usable, |a, b| a.overhead() * b.weight < b.overhead() * a.weight)
    }

    fn sed(&self) -> Option<u32> {
        self.best(&self.list, Server::usable, |a, b| (a.active + 1) * b.weight < (b.active + 1) * a.weight)
    }

    fn too_busy(&self, number: u32) -> bool {
        self.get(&number).active > self.get(&number).weight
            && self.list.iter().any(|other| self.get(other).active * 2 < self.get(other).weight)
    }

    /// The choice for a client's address and port that called `destination`; addresses are IPv4's.
    pub(super) fn choose(&mut self, source: u32, port: u16, destination: u32) -> Option<u32> {
        let list = self.list.clone();
        let port = if self.flags & SchedulerFlags::PORT != 0 { u32::from(port) } else { 0 };
        match self.scheduler {
            Scheduler::Rr => {
                let start =
                    self.rr.map_or(0, |last| 1 + list.iter().position(|&at| at == last).expect("listed"));
                let mut order = (0..list.len()).map(|offset| list[(start + offset) % list.len()]);
                let chosen = order.find(|number| self.get(number).usable())?;
                self.rr = Some(chosen);
                Some(chosen)
            }
            Scheduler::Wrr => self.wrr(),
            Scheduler::Lc => self.best(&list, Server::usable, |a, b| a.overhead() < b.overhead()),
            Scheduler::Wlc => self.wlc(&list),
            Scheduler::Sed => self.sed(),
            Scheduler::Nq => {
                let idle = |number: &&u32| self.get(number).usable() && self.get(number).active == 0;
                list.iter().find(idle).copied().or_else(|| self.sed())
            }
            Scheduler::Fo => self.best(&list, Server::usable, |a, b| a.weight > b.weight),
            Scheduler::Ovf => {
                let takes_part = |server: &Server| server.usable() && server.active <= server.weight;
                self.best(&list, takes_part, |a, b| a.weight > b.weight)
            }
            Scheduler::Dh => {
                let place = destination.wrapping_mul(0x61c88647) >> 24;
                let number = list.get(place as usize % list.len().max(1))?;
                self.get(number).usable().then_some(*number)
            }
            Scheduler::Sh => {
                let mut dealt = list
                    .iter()
                    .flat_map(|number| std::iter::repeat_n(*number, self.get(number).weight.max(1) as usize))
                    .cycle();
                let table: Vec<u32> = (0..256).map_while(|_| dealt.next()).collect();
                let hash = source.wrapping_add(port).wrapping_mul(0x61c88647) >> 24;
                self.look_up(&table, hash, |try_| (hash + (hash + try_) % 256) % 256)
            }
            Scheduler::Mh => {
                let table = self.maglev();
                let place = |offset| sip13(source.wrapping_add(port).wrapping_add(offset), 2654435761) % 4093;
                let hash = place(0);
                self.look_up(&table, hash, |try_| place((hash + try_) % 4093))
            }
            Scheduler::Lblc => {
                if let Some(&known) = self.cached.get(&destination)
                    && self.get(&known).available
                    && self.get(&known).weight > 0
                    && !self.too_busy(known)
                {
                    return Some(known);
                }
                let chosen = self.wlc(&list)?;
                self.cached.insert(destination, chosen);
                Some(chosen)
            }
            Scheduler::Lblcr => {
                let set = self.sets.get(&destination).cloned().unwrap_or_default();
                let alive: Vec<u32> =
                    set.iter().copied().filter(|number| self.get(number).available).collect();
                if let Some(least) = self.wlc(&alive)
                    && !self.too_busy(least)
                {
                    return Some(least);
                }
                let chosen = self.wlc(&list)?;
                if !set.contains(&chosen) {
                    self.sets.entry(destination).or_default().insert(0, chosen);
                }
                Some(chosen)
            }
            Scheduler::Twos => None,
        }
    }

    fn look_up(&self, table: &[u32], hash: u32, other: impl Fn(u32) -> u32) -> Option<u32> {
        let first = *table.get(hash as usize)?;
        if self.get(&first).usable() {
            return Some(first);
        }
        if self.flags & SchedulerFlags::FALLBACK == 0 {
            return None;
        }
        (0..table.len() as u32)
            .map(|offset| table[other(offset) as usize])
            .find(|number| self.get(number).usable())
    }

    fn maglev(&self) -> Vec<u32> {
        let weights: Vec<(u32, i64)> = self
            .list
            .iter()
            .map(|number| (*number, self.get(number).last_weight))
            .filter(|&(_, weight)| weight > 0)
            .collect();
        let divisor = weights.iter().fold(0, |divisor, &(_, weight)| gcd(divisor, weight));
        let Some(largest) = weights.iter().map(|&(_, weight)| weight / divisor).max() else {
            return Vec::new();
        };
        let mut shift = 0;
        while largest >> shift >= 64 {
            shift += 1;
        }
        let mut table = vec![None; 4093];
        let mut left = 4093;
        let mut wishes: Vec<(u32, i64, u32, u32)> = weights
            .iter()
            .map(|&(number, weight)| {
                let address = super::address_bits(number).wrapping_add(80);
                let turns = ((weight / divisor) >> shift).max(1);
                (number, turns, sip13(address, 2654435761) % 4093, sip13(address, 2654446892) % 4092 + 1)
            })
            .collect();
        loop {
            for (number, turns, next, skip) in &mut wishes {
                for _ in 0..*turns {
                    while table[*next as usize].is_some() {
                        *next = (*next + *skip) % 4093;
                    }
                    table[*next as usize] = Some(*number);
                    left -= 1;
                    if left == 0 {
                        return table.into_iter().flatten().collect();
                    }
                }
            }
        }
    }

    fn wrr(&mut self) -> Option<u32> {
        if self.first == 0 {
            return None;
        }
        // Round after round, each with a lower weight, without leaving any out. Whoever began in the middle of the list
        // asks those up to there in the last round, too.
        let list = self.list.clone();
        let begin = self.last.map(|last| list.iter().position(|&there| there == last).expect("listed"));
        let (mut at, mut final_round, mut again, mut until) =
            (begin.map_or(0, |at| at + 1), false, false, None);
        loop {
            for (place, number) in list.iter().enumerate().skip(at) {
                let server = self.get(number);
                if !server.overloaded && server.weight >= self.round {
                    self.last = Some(*number);
                    return Some(*number);
                }
                if Some(place) == until {
                    self.last = Some(*number);
                    return None;
                }
            }
            at = 0;
            self.round -= self.step;
            if self.round <= 0 {
                self.round = self.first;
                if final_round || begin.is_none() {
                    self.last = None;
                    return None;
                }
                again = true;
            }
            final_round = self.round <= self.step;
            if final_round && again {
                until = begin;
            }
        }
    }
}
