//! The manual pages: those of the command lines, and the one of `shunt-cni`, which has none.

use std::io::{self, Write};
use std::path::Path;

use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::arguments::Arguments;

/// What `shunt-cni` takes from its environment.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("CNI_COMMAND", "ADD, DEL, CHECK, GC, STATUS or VERSION"),
    ("CNI_CONTAINERID", "the container; with a \"dan\" directory, Kata's sandbox"),
    ("CNI_NETNS", "its network namespace, a path; needed for ADD and CHECK"),
    ("CNI_IFNAME", "its device"),
    ("CNI_ARGS", "pairs KEY=VALUE, separated by \";\": IP, MAC and K8S_POD_NAME are looked at"),
    ("CNI_PATH", "where IPAM plugins are looked for, directories separated by \":\""),
    ("SHUNT_CONTROL", "shuntd's control socket, unless the configuration's \"control\" names it"),
];

/// The keys of its configuration beside those of the protocol.
const KEYS: &[(&str, &str)] = &[
    ("bridge", "the bridge that the container joins, which must exist; shunt0"),
    (
        "attachment",
        "tap (a device in the container's namespace; the default), vhost-user (a socket) or host-tap (a persistent device on the host)",
    ),
    ("role", "with vhost-user: who listens, server is shunt (the default) or client (the default with dan)"),
    ("queues", "queues, or queue pairs; 1"),
    ("mtu", "46 to 9600; 1500"),
    ("mac", "for all containers of the network; rather leave it to the runtime"),
    ("bandwidth", "as the capability of that name, for every container of the network"),
    (
        "guard",
        "whether the container may send from its own addresses only; true where shunt knows of addresses",
    ),
    ("ipMasq", "whether what it sends elsewhere than to its bridge's interface is masqueraded; false"),
    (
        "publishAt",
        "addresses at which ports are published that come without hostIP; any address of the switch",
    ),
    (
        "ipam",
        "{\"type\": \"shunt\"} gives addresses from the networks of the bridge's interface (keys interface, ranges, routes); any other type is an IPAM plugin in CNI_PATH; without it, layer 2 only",
    ),
    ("dns", "nameservers, domain, search and options of the result; what the IPAM plugin says"),
    ("dan", "a directory of files {sandbox}.json for Kata's runtime-rs"),
    ("control", "shuntd's control socket"),
    ("stateDir", "what is attached; /var/lib/shunt/cni"),
    ("socketDir", "vhost-user sockets; /run/shunt-cni"),
];

/// Codes of the document on standard output when it fails.
const CODES: &[(&str, &str)] = &[
    ("1", "the configuration's cniVersion is not spoken, or older than the command"),
    ("2", "an unknown key"),
    ("3", "CHECK: nothing is attached under these names"),
    ("4", "an environment variable is missing or wrong; the container has such a device already"),
    ("5", "a file or device does not do what it should"),
    ("6", "the configuration is not JSON of the right form"),
    ("7", "a value breaks a rule; there is no such IPAM plugin"),
    ("11", "shuntd is not reachable: later it may be"),
    ("50", "STATUS: no bridge, no interface, no address left"),
    ("51", "STATUS: shuntd is not reachable, and containers may be cut off"),
    ("100", "shuntd refused; details are its words"),
    ("101", "CHECK: something is not as it was made; details say what"),
    ("102", "an IPAM plugin failed without saying how"),
];

const ABOUT: &str = "Connects containers to shunt, for runtimes that speak the Container Network Interface";
const LONG_ABOUT: &str = "Connects containers to shunt, for podman, containerd, CRI-O and every other runtime that speaks \
the Container Network Interface, versions 0.3.0 to 1.1.0. A call is one command in the environment, one network \
configuration (JSON, at most 16 MiB) on standard input, and one document on standard output: the result, or an error with \
code, msg and details. It asks the shuntd of this machine through its control socket, as root or a member of that socket's \
group. What is made for a container is written to stateDir before it is made: DEL and GC undo all of it however a call \
ended. capabilities: portMappings, bandwidth, mac, ips, aliases, dns.";

fn list(page: &mut Roff, section: &str, rows: &[(&str, &str)]) {
    page.control("SH", [section]);
    for (name, text) in rows {
        page.control("TP", []);
        page.text([bold(*name)]);
        page.text([roman(*text)]);
    }
}

fn shunt_cni(to: &mut dyn Write) -> io::Result<()> {
    let version = Arg::new("version").long("version").action(ArgAction::SetTrue);
    let command = Command::new("shunt-cni")
        .about(ABOUT)
        .long_about(LONG_ABOUT)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(version.help("Print the version, and those of the protocol that are spoken"));
    let man = Man::new(command);
    man.render_title(to)?;
    man.render_name_section(to)?;
    man.render_synopsis_section(to)?;
    man.render_description_section(to)?;
    man.render_options_section(to)?;
    let mut page = Roff::default();
    list(&mut page, "ENVIRONMENT", ENVIRONMENT);
    list(&mut page, "CONFIGURATION", KEYS);
    list(&mut page, "ERROR CODES", CODES);
    page.control("SH", ["EXIT STATUS"]);
    page.text([roman("0 on success, 1 on failure, 2 where it is called by hand.")]);
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("shuntd"), roman("(1), "), bold("shuntctl"), roman("(1), docs/cni.md")]);
    page.to_writer(to)
}

/// Writes all pages into a directory.
///
/// # Errors
/// It cannot be written to.
pub(crate) fn write(directory: &Path) -> io::Result<()> {
    let daemon = shunt_switch::config::arguments::Arguments::command();
    [Arguments::command(), daemon]
        .into_iter()
        .try_for_each(|command| clap_mangen::generate_to(command, directory))?;
    let mut page = Vec::new();
    shunt_cni(&mut page)?;
    std::fs::write(directory.join("shunt-cni.1"), page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names in the first column of the table that follows a line of docs/cni.md.
    fn table(page: &str, heading: &str) -> Vec<String> {
        let (_, rest) = page.split_once(&format!("\n{heading}\n")).unwrap();
        let rows =
            rest.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
        let first = |line: &str| line.split('|').nth(1).unwrap().trim().trim_matches('`').to_owned();
        rows.skip(2).map(first).collect()
    }

    #[test]
    fn the_page_of_the_plugin_names_what_its_documentation_names() {
        let documentation = include_str!("../../docs/cni.md");
        let names =
            |rows: &[(&str, &str)]| rows.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(names(KEYS), table(documentation, "### The configuration"));
        assert_eq!(names(CODES), table(documentation, "## What goes wrong"));
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        let page = std::fs::read_to_string(directory.path().join("shunt-cni.1")).unwrap();
        assert!(page.starts_with(".ie") && page.contains(".TH shunt-cni 1"), "{page}");
        for text in ["CNI_COMMAND", "publishAt", ".SH \"ERROR CODES\"", "102", "version"] {
            assert!(page.contains(text), "{text}: {page}");
        }
    }
}
