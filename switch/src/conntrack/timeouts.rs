//! How long connections live without packets, by protocol and state. Names and defaults are those of Linux
//! (`net.netfilter.nf_conntrack_*`, Documentation/networking/nf_conntrack-sysctl.rst), and they may be changed at any time.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

/// The longest timeout: entries keep seconds in 24 bits. 92 days.
pub const LONGEST: u32 = 8_000_000;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $seconds:literal;)*) => {
        /// A timeout.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Timeout {
            $($(#[$doc])* $variant,)*
        }

        impl Timeout {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The sysctl's name without `nf_conntrack_`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Seconds, unless changed.
            pub fn default_seconds(self) -> u32 {
                match self { $(Self::$variant => $seconds,)* }
            }
        }
    };
}

kinds! {
    /// TCP, SYN seen.
    TcpSynSent = "tcp_timeout_syn_sent", 120;
    /// TCP, SYN and its answer seen.
    TcpSynRecv = "tcp_timeout_syn_recv", 60;
    /// TCP, both sides talk.
    TcpEstablished = "tcp_timeout_established", 432_000;
    /// TCP, one side has finished.
    TcpFinWait = "tcp_timeout_fin_wait", 120;
    /// TCP, and that was acknowledged.
    TcpCloseWait = "tcp_timeout_close_wait", 60;
    /// TCP, both sides have finished.
    TcpLastAck = "tcp_timeout_last_ack", 30;
    /// TCP, and that was acknowledged.
    TcpTimeWait = "tcp_timeout_time_wait", 120;
    /// TCP, reset.
    TcpClose = "tcp_timeout_close", 10;
    /// UDP.
    Udp = "udp_timeout", 30;
    /// UDP, both sides talk.
    UdpStream = "udp_timeout_stream", 120;
    /// Queries of ICMP.
    Icmp = "icmp_timeout", 30;
    /// Queries of ICMPv6.
    Icmpv6 = "icmpv6_timeout", 30;
    /// Other protocols.
    Generic = "generic_timeout", 600;
}

impl Timeout {
    /// By name: as the sysctl is called (`nf_conntrack_tcp_timeout_established`), or shorter
    /// (`tcp_timeout_established`, `tcp_established`, `udp`).
    pub fn from_name(name: &str) -> Option<Self> {
        let plain = |name: &str| name.replace("timeout", "").replace("__", "_").trim_matches('_').to_owned();
        let name = name.strip_prefix("nf_conntrack_").unwrap_or(name);
        Self::ALL.iter().copied().find(|kind| kind.name() == name || plain(kind.name()) == name)
    }
}

/// The timeouts in force.
pub struct Timeouts([AtomicU32; Timeout::ALL.len()]);

impl Default for Timeouts {
    fn default() -> Self {
        Self(std::array::from_fn(|i| AtomicU32::new(Timeout::ALL[i].default_seconds())))
    }
}

impl Timeouts {
    /// Seconds.
    #[inline]
    pub fn get(&self, kind: Timeout) -> u32 {
        self.0[kind as usize].load(Ordering::Relaxed)
    }

    /// Changes one; false if it is not 1 to [`LONGEST`] seconds. A connection follows when it is next looked at, which
    /// is when its old timeout has passed, and within nine minutes.
    #[must_use]
    pub fn set(&self, kind: Timeout, seconds: u32) -> bool {
        let good = (1..=LONGEST).contains(&seconds);
        if good {
            self.0[kind as usize].store(seconds, Ordering::Relaxed);
        }
        good
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_every_form() {
        for name in ["nf_conntrack_tcp_timeout_established", "tcp_timeout_established", "tcp_established"] {
            assert_eq!(Timeout::from_name(name), Some(Timeout::TcpEstablished));
        }
        assert_eq!(Timeout::from_name("udp"), Some(Timeout::Udp));
        assert_eq!(Timeout::from_name("udp_stream"), Some(Timeout::UdpStream));
        assert_eq!(Timeout::from_name("generic"), Some(Timeout::Generic));
        assert_eq!(Timeout::from_name("tcp"), None);
        assert_eq!(Timeout::from_name(""), None);
    }

    #[test]
    fn timeouts_are_changed_within_bounds() {
        let timeouts = Timeouts::default();
        assert_eq!(timeouts.get(Timeout::TcpEstablished), 432_000);
        assert!(timeouts.set(Timeout::Udp, 1) && timeouts.set(Timeout::Udp, LONGEST));
        assert!(!timeouts.set(Timeout::Udp, 0) && !timeouts.set(Timeout::Udp, LONGEST + 1));
        assert_eq!(timeouts.get(Timeout::Udp), LONGEST);
    }
}
