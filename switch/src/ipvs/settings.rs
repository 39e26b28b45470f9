//! What may be set for all services of a scope: the three timeouts of `ipvsadm --set`, and Linux's sysctls
//! (Documentation/networking/ipvs-sysctl.rst) with their names and defaults.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

/// The timeouts of `--set`, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP connections.
    pub tcp: u32,
    /// TCP connections of which one side has finished.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { tcp: 900, tcp_fin: 120, udp: 300 }
    }
}

macro_rules! settings {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $default:literal, $most:literal;)*) => {
        /// A setting: a number, or 0 and 1 for off and on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Setting {
            $($(#[$doc])* $variant,)*
        }

        impl Setting {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The sysctl's name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The value unless changed.
            pub fn default_value(self) -> u32 {
                match self { $(Self::$variant => $default,)* }
            }

            /// The largest value.
            pub fn most(self) -> u32 {
                match self { $(Self::$variant => $most,)* }
            }

            /// The setting of a name.
            pub fn by_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|setting| setting.name() == name)
            }
        }
    };
}

settings! {
    /// What becomes of a SYN that reuses a connection's addresses and ports: 0 it goes to the same server, 1 it is
    /// scheduled anew if the old connection has ended, 2 as 1 but FTP's data connections.
    ConnReuseMode = "conn_reuse_mode", 1, 3;
    /// Connections to a server that is gone are forgotten with their next packet, instead of dropping it.
    ExpireNodestConn = "expire_nodest_conn", 0, 1;
    /// A template whose server has weight 0 is not followed.
    ExpireQuiescentTemplate = "expire_quiescent_template", 0, 1;
    /// TCP connections may begin in the middle.
    SloppyTcp = "sloppy_tcp", 0, 1;
    /// The same of SCTP.
    SloppySctp = "sloppy_sctp", 0, 1;
    /// ICMP errors to servers' clients are translated on the way out.
    NatIcmpSend = "nat_icmp_send", 0, 1;
    /// Tunnels tell senders of their smaller MTU.
    PmtuDisc = "pmtu_disc", 1, 1;
    /// ICMP packets other than errors are scheduled, too.
    ScheduleIcmp = "schedule_icmp", 0, 1;
    /// Only a backup: nothing is scheduled while its daemon runs.
    BackupOnly = "backup_only", 0, 1;
    /// Packets that a connection has had when it is first told to backups.
    SyncThreshold = "sync_threshold", 3, 0xffff;
    /// From then on it is told again with every so many packets.
    SyncPeriod = "sync_period", 50, 0xffff;
    /// Seconds after which it is told again, at the latest; 0: by packets alone.
    SyncRefreshPeriod = "sync_refresh_period", 0, 86_400;
    /// How often it is told again within that time.
    SyncRetries = "sync_retries", 0, 3;
    /// 1: only templates and connections that no template stands for are told.
    SyncPersistMode = "sync_persist_mode", 0, 1;
    /// Seconds that `lblc` keeps an address which nobody asks for.
    LblcExpiration = "lblc_expiration", 86_400, 0x7fff_ffff;
    /// Seconds after which `lblcr` takes a server off the set of an address.
    LblcrExpiration = "lblcr_expiration", 86_400, 0x7fff_ffff;
}

/// The timeouts and settings of a scope; they may change at any time.
#[derive(Debug)]
pub struct Settings {
    timeouts: [AtomicU32; 3],
    values: [AtomicU32; Setting::ALL.len()],
}

impl Default for Settings {
    fn default() -> Self {
        let Timeouts { tcp, tcp_fin, udp } = Timeouts::default();
        Self {
            timeouts: [tcp, tcp_fin, udp].map(AtomicU32::new),
            values: std::array::from_fn(|at| AtomicU32::new(Setting::ALL[at].default_value())),
        }
    }
}

impl Settings {
    /// A setting's value.
    #[inline]
    pub fn get(&self, setting: Setting) -> u32 {
        self.values[setting as usize].load(Ordering::Relaxed)
    }

    /// Whether a setting of off and on is on.
    #[inline]
    pub fn is_on(&self, setting: Setting) -> bool {
        self.get(setting) != 0
    }

    /// Changes a setting; what is above [`Setting::most`] is taken as that.
    pub fn set(&self, setting: Setting, value: u32) {
        self.values[setting as usize].store(value.min(setting.most()), Ordering::Relaxed);
    }

    /// The timeouts.
    #[inline]
    pub fn timeouts(&self) -> Timeouts {
        let [tcp, tcp_fin, udp] = std::array::from_fn(|at| self.timeouts[at].load(Ordering::Relaxed));
        Timeouts { tcp, tcp_fin, udp }
    }

    /// Changes the timeouts; 0 leaves one as it is.
    pub fn set_timeouts(&self, new: Timeouts) {
        for (timeout, seconds) in self.timeouts.iter().zip([new.tcp, new.tcp_fin, new.udp]) {
            if seconds != 0 {
                timeout.store(seconds, Ordering::Relaxed);
            }
        }
    }
}
