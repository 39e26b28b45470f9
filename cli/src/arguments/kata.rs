//! Commands of secure containers, and those of openEuler's Kata.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};

/// `container ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Container {
    /// Registers a container
    Add {
        /// Its ID; any unambiguous beginning of it serves in later commands
        id: String,
        /// Socket of its QEMU's monitor, QMP; without it NICs cannot be plugged in
        #[arg(long, value_name = "PATH")]
        qmp: Option<String>,
        /// The bridge that its NICs join [default: shunt0]
        #[arg(long, value_name = "BRIDGE")]
        bridge: Option<String>,
        /// Kata's agent inside: PATH, unix:PATH, hvsock:PATH[:PORT] or vsock:CID[:PORT] [default: none, DHCP tells]
        #[arg(long, value_name = "ADDRESS")]
        agent: Option<String>,
        /// Who listens at vhost-user sockets: server (shunt) or client (QEMU) [default: server]
        #[arg(long, value_name = "ROLE")]
        role: Option<String>,
        /// How QEMU gets at TAP devices: descriptor (from shunt) or name (by itself) [default: descriptor]
        #[arg(long, value_name = "HOW")]
        tap: Option<String>,
    },
    /// Forgets a container with its NICs, routes and virtual services
    Del {
        /// Its ID or the beginning of it
        id: String,
    },
    /// Lists all containers
    List,
    /// Shows a container
    Show {
        /// Its ID or the beginning of it
        id: String,
    },
}

/// A container, and JSON about it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Document {
    /// The container's ID or the beginning of it
    pub(crate) id: String,
    /// A file with JSON, or - for standard input
    pub(crate) file: PathBuf,
}

/// `kata-network ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum KataNetwork {
    /// Plugs a NIC into a running container
    AddIface(Document),
    /// Takes a NIC out of a running container
    DelIface(Document),
    /// Lists the NICs
    ListIfaces {
        /// The container's ID or the beginning of it
        id: String,
    },
    /// Adds routes inside
    AddRoute(Document),
    /// Removes routes inside: what is not given matches anything
    DelRoute(Document),
    /// Lists the routes inside
    ListRoutes {
        /// The container's ID or the beginning of it
        id: String,
    },
}

/// `kata-ipvs ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum KataIpvs {
    /// Virtual services of a container
    #[command(group = ArgGroup::new("what").required(true).args(["parameters", "restore"]))]
    Ipvsadm {
        /// What ipvsadm(8) takes, in one word; servers get translated packets (-m) unless it says otherwise
        #[arg(long, value_name = "ARGUMENTS", allow_hyphen_values = true)]
        parameters: Option<String>,
        /// Reads rules from a file, or - for standard input; all are made or none
        #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
        restore: Option<PathBuf>,
        /// In the place of the rules that are there
        #[arg(long, requires = "restore")]
        replace: bool,
        /// The container's ID or the beginning of it
        id: String,
    },
    /// Forgets connections of a container
    Cleanup {
        /// --orig-dst ADDRESS --protonum tcp|udp, in one word
        #[arg(long, value_name = "ARGUMENTS", allow_hyphen_values = true)]
        parameters: String,
        /// The container's ID or the beginning of it
        id: String,
    },
}
