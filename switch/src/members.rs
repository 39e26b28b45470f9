//! The members of bridges, ports and interfaces, by number; and which frames of a burst go to which of them.
#![forbid(unsafe_code)]

/// Ports that one switch can have; port numbers are below it.
pub const MAX_PORTS: usize = 1024;
/// Interfaces that one switch can have. To its bridge an interface is one more member, with a number behind those of
/// ports: see [`interface_number`].
pub const MAX_INTERFACES: usize = 1024;
/// Numbers of whatever can be a member of a bridge.
pub const MEMBERS: usize = MAX_PORTS + MAX_INTERFACES;

/// The number by which a bridge and its FDB know an interface.
#[inline]
pub fn interface_number(index: u16) -> u16 {
    MAX_PORTS as u16 + index
}

/// The index of the interface that a member's number stands for; `None` for a port.
#[inline]
pub fn interface_index(number: u16) -> Option<u16> {
    number.checked_sub(MAX_PORTS as u16)
}

/// Which frames of a burst leave by which port. Made once by a worker, used again and again.
pub struct Verdict {
    masks: Box<[u64; MEMBERS]>,
    touched: Vec<u16>,
}

impl Default for Verdict {
    fn default() -> Self {
        Self { masks: Box::new([0; MEMBERS]), touched: Vec::with_capacity(MEMBERS) }
    }
}

impl Verdict {
    /// Lets frames go to a member, too.
    #[inline]
    pub fn send(&mut self, frames: u64, member: u16) {
        let mask = &mut self.masks[usize::from(member) % MEMBERS];
        if *mask == 0 {
            // Capacity for every member is there: this never allocates.
            self.touched.push(member);
        }
        *mask |= frames;
    }

    /// Takes out, one after the other, each member that frames go to, with the mask of these frames.
    #[inline]
    pub fn take(&mut self) -> Option<(u16, u64)> {
        let member = self.touched.pop()?;
        Some((member, std::mem::take(&mut self.masks[usize::from(member) % MEMBERS])))
    }
}
