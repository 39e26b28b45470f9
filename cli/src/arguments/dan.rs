//! `dan ...`

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use shunt_client::dan::DIRECTORY;
use shunt_switch::config::Mac;

/// `dan ...`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Dan {
    /// Writes a port into a sandbox's file, as a NIC
    Put(Box<DanPut>),
    /// Shows a sandbox's file
    Show {
        /// The sandbox's id
        sandbox: String,
        /// Where the files are: dan_conf of Kata's configuration
        #[arg(long, value_name = "DIR", default_value = DIRECTORY)]
        directory: PathBuf,
    },
    /// Removes a NIC from a sandbox's file, and the file with the last one
    Del {
        /// The sandbox's id
        sandbox: String,
        /// The NIC's name in the guest
        name: String,
        /// Where the files are: dan_conf of Kata's configuration
        #[arg(long, value_name = "DIR", default_value = DIRECTORY)]
        directory: PathBuf,
    },
}

/// `dan put ...`
#[derive(Clone, Debug, Args)]
pub(crate) struct DanPut {
    /// The sandbox's id
    pub(crate) sandbox: String,
    /// The port: a vhost-user one of role client, or the TAP of a netdev one
    pub(crate) port: String,
    /// The NIC's name in the guest
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    pub(crate) name: String,
    /// An address with the length of its network's prefix; may be given several times
    #[arg(long, value_name = "CIDR")]
    pub(crate) address: Vec<IpNet>,
    /// A gateway: the default route of its family leads there; may be given twice
    #[arg(long, value_name = "ADDR")]
    pub(crate) gateway: Vec<IpAddr>,
    /// A route; may be given several times
    #[arg(long, value_name = "CIDR[=GATEWAY]", value_parser = route)]
    pub(crate) route: Vec<(IpNet, Option<IpAddr>)>,
    /// The NIC's MAC address [default: the port's]
    #[arg(long, value_name = "MAC", value_parser = mac)]
    pub(crate) mac: Option<Mac>,
    /// Where the files are: dan_conf of Kata's configuration
    #[arg(long, value_name = "DIR", default_value = DIRECTORY)]
    pub(crate) directory: PathBuf,
}

fn mac(text: &str) -> Result<Mac, String> {
    shunt_switch::config::spec::mac("mac", text).map_err(|invalid| invalid.to_string())
}

fn route(text: &str) -> Result<(IpNet, Option<IpAddr>), String> {
    let (to, via) = text.split_once('=').map_or((text, None), |(to, via)| (to, Some(via)));
    let wrong = || "it must be a network, perhaps with \"=\" and a gateway of its family".to_owned();
    let to: IpNet = to.parse().map_err(|_| wrong())?;
    let via = via.map(|via| via.parse::<IpAddr>().map_err(|_| wrong())).transpose()?;
    match via.is_none_or(|via| via.is_ipv4() == to.addr().is_ipv4()) {
        true => Ok((to, via)),
        false => Err(wrong()),
    }
}
