//! A network namespace with one cable to the machine, and the packets on it dropped: a real blackhole, for root.
//!
//! The namespace's end of a veth pair is the address of the node that runs in it. A blackhole replaces both ends' neighbour
//! entries by a MAC address that nobody has: the kernel sends, nothing arrives, nothing says so. (A link that is down or a
//! blackhole route answers with an error at once, which is another fault.)
//!
//! ```text
//!   machine  10.99.N.1  ft<pid>-<n>a =====veth===== ft<pid>-<n>b  10.99.N.2  namespace ft<pid>-<n>
//! ```
//! The names carry the pid of the test process; namespaces of processes that are gone are removed by the next one.
//!
//! A [`Switch`] has several of them in one network, with the machine, and loses what goes from one to another in the same manner.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::proc::output;

/// A MAC address (locally administered) that no interface here has.
const NOBODY: &str = "02:00:00:00:00:99";

/// What went over a cable since it was made, as the machine's end counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets from the machine.
    pub packets_in: u64,
    /// Their bytes, Ethernet's headers (14 each) among them.
    pub bytes_in: u64,
    /// Packets from the namespace.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

/// A namespace. Removed, with its cables, when dropped.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    outside: Ipv4Addr,
    inside: Ipv4Addr,
}

impl NetNs {
    /// Makes one; None, with a line on standard error, when this process is not root.
    ///
    /// # Panics
    /// When a command of `ip` fails.
    #[must_use]
    pub fn new() -> Option<Self> {
        let (name, third) = new_name()?;
        let netns =
            Self { name, outside: Ipv4Addr::new(10, 99, third, 1), inside: Ipv4Addr::new(10, 99, third, 2) };
        let NetNs { name, outside, inside } = &netns;
        let (near, far) = (netns.near(), netns.far());
        ip(&format!("netns add {name}"));
        ip(&format!("link add {near} type veth peer name {far} netns {name}"));
        // No word of IPv6, which nobody speaks here and the counters would count.
        ip(&format!("link set dev {near} addrgenmode none"));
        ip(&format!("-n {name} link set dev {far} addrgenmode none"));
        ip(&format!("addr add {outside}/30 dev {near}"));
        ip(&format!("link set {near} up"));
        ip(&format!("-n {name} addr add {inside}/30 dev {far}"));
        ip(&format!("-n {name} link set {far} up"));
        ip(&format!("-n {name} link set lo up"));
        Some(netns)
    }

    /// Its name, for `Config::netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What went over the first cable.
    ///
    /// # Panics
    /// When the kernel has no such counters.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let count = |name: &str| {
            let path = format!("/sys/class/net/{}/statistics/{name}", self.near());
            let text = std::fs::read_to_string(&path).expect("Linux counts for every interface");
            text.trim().parse().expect("a number")
        };
        Traffic {
            packets_in: count("tx_packets"),
            bytes_in: count("tx_bytes"),
            packets_out: count("rx_packets"),
            bytes_out: count("rx_bytes"),
        }
    }

    /// From now on packets are on the first cable as they are on a wire: none larger than its MTU, of which the kernel would make
    /// several for a real one.
    ///
    /// # Panics
    /// When a command of `ip` fails.
    pub fn as_on_a_wire(&self) {
        ip(&format!("link set dev {} gso_max_segs 1", self.near()));
        ip(&format!("-n {} link set dev {} gso_max_segs 1", self.name, self.far()));
    }

    /// A second cable, for what is not to be counted on the first; the namespace's address on it.
    ///
    /// # Panics
    /// When a command of `ip` fails, as at the second call.
    #[must_use]
    pub fn second_cable(&self) -> IpAddr {
        let Self { name, outside, inside } = self;
        let (near, far) = (format!("{name}c"), format!("{name}d"));
        let beside = |address: &Ipv4Addr| {
            let [first, second, third, last] = address.octets();
            Ipv4Addr::new(first, second - 1, third, last)
        };
        ip(&format!("link add {near} type veth peer name {far} netns {name}"));
        ip(&format!("addr add {}/30 dev {near}", beside(outside)));
        ip(&format!("link set {near} up"));
        ip(&format!("-n {name} addr add {}/30 dev {far}", beside(inside)));
        ip(&format!("-n {name} link set {far} up"));
        IpAddr::V4(beside(inside))
    }

    /// The machine's address on the first cable.
    #[must_use]
    pub fn machine(&self) -> IpAddr {
        IpAddr::V4(self.outside)
    }

    /// The address of what runs in it.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        IpAddr::V4(self.inside)
    }

    fn near(&self) -> String {
        format!("{}a", self.name)
    }

    fn far(&self) -> String {
        format!("{}b", self.name)
    }

    /// Drops every packet, both ways, silently.
    ///
    /// # Panics
    /// When a command of `ip` fails.
    pub fn blackhole(&self) {
        let Self { name, outside, inside } = self;
        ip(&format!("neigh replace {inside} lladdr {NOBODY} dev {} nud permanent", self.near()));
        ip(&format!("-n {name} neigh replace {outside} lladdr {NOBODY} dev {} nud permanent", self.far()));
    }

    /// Loses `percent` of the packets, each way and each for itself; false, with a line on standard error, where there is no nftables to do it.
    /// (The queueing discipline that is made for this, netem, is not in every kernel; nftables' dice are in most.)
    #[must_use]
    pub fn lose(&self, percent: u32) -> bool {
        let dice = |hook: &str| {
            format!(
                "chain {hook} {{ type filter hook {hook} priority 0; numgen random mod 100 < {percent} drop; }};"
            )
        };
        let table = format!("table ip loss {{ {} {} }}", dice("input"), dice("output"));
        let done = Command::new("ip").args(["netns", "exec", &self.name, "nft", &table]).output();
        let said = match done {
            Ok(done) if done.status.success() => return true,
            Ok(done) => String::from_utf8_lossy(&done.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        eprintln!(
            "skipped: no nftables that can drop packets by chance; type: apt-get install -y nftables ({said})"
        );
        false
    }

    /// Ends [`Self::lose`].
    ///
    /// # Panics
    /// When `nft` fails.
    pub fn lose_none(&self) {
        output(Command::new("ip").args(["netns", "exec", &self.name, "nft", "delete table ip loss"]));
    }

    /// Lets packets through again.
    ///
    /// # Panics
    /// When a command of `ip` fails.
    pub fn heal(&self) {
        let Self { name, outside, inside } = self;
        ip(&format!("neigh del {inside} dev {}", self.near()));
        ip(&format!("-n {name} neigh del {outside} dev {}", self.far()));
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status(); // removed by the next run if this fails
    }
}

/// A name that nobody has, and the third number of an address; None when this process is not root.
fn new_name() -> Option<(String, u8)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !crate::is_root() {
        eprintln!("skipped: needs root (network namespaces)");
        return None;
    }
    let pid = std::process::id();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    if number == 0 {
        remove_stale();
    }
    Some((format!("ft{pid}-{number}"), u8::try_from((pid + number) % 250).expect("below 250")))
}

/// One network of several namespaces and of the machine, which has the last address: a bridge in a namespace of its own, so that
/// the machine's firewall has no say in what passes.
///
/// ```text
///   namespace A, 10.97.N.1 ---+
///   namespace B, 10.97.N.2 ---+--- bridge in the namespace ft<pid>-<n> --- machine, 10.97.N.254
/// ```
/// Removed when dropped.
#[derive(Debug)]
pub struct Switch {
    name: String,
    third: u8,
    plugged: AtomicU32,
}

/// Who is plugged into a [`Switch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plug {
    /// None is the machine.
    netns: Option<String>,
    device: String,
    addr: Ipv4Addr,
}

impl Plug {
    /// Its address.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        IpAddr::V4(self.addr)
    }

    /// Bytes that it has sent and received so far, Ethernet's headers among them. On a cable like this the kernel sends as few and large packets as the sender's
    /// buffers allow: larger ones than on a wire.
    ///
    /// # Panics
    /// When `ip` fails, or says it in another way.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        let netns = self.netns.iter().flat_map(|netns| ["-n", netns]);
        let said =
            output(Command::new("ip").args(netns).args(["-s", "-j", "link", "show", "dev", &self.device]));
        let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        let count = |way: &str| said[0]["stats64"][way]["bytes"].as_u64().expect("it counts bytes");
        (count("tx"), count("rx"))
    }

    /// `ip` in its namespace.
    fn ip(&self, args: &str) {
        match &self.netns {
            Some(netns) => ip(&format!("-n {netns} {args}")),
            None => ip(args),
        }
    }

    /// From now on nothing of what it sends arrives there, and nothing says so. The way back is another one.
    ///
    /// # Panics
    /// When a command of `ip` fails.
    pub fn lose_to(&self, there: &Self) {
        self.ip(&format!("neigh replace {} lladdr {NOBODY} dev {} nud permanent", there.addr, self.device));
    }

    /// Ends [`Self::lose_to`].
    ///
    /// # Panics
    /// When a command of `ip` fails, as when nothing is lost.
    pub fn reach(&self, there: &Self) {
        self.ip(&format!("neigh del {} dev {}", there.addr, self.device));
    }
}

impl Switch {
    /// Makes one; None, with a line on standard error, when this process is not root.
    ///
    /// # Panics
    /// When a command of `ip` fails.
    #[must_use]
    pub fn new() -> Option<Self> {
        let (name, third) = new_name()?;
        let switch = Self { name, third, plugged: AtomicU32::new(0) };
        let (name, machine) = (&switch.name, switch.machine());
        let near = &machine.device;
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link add bridge type bridge"));
        ip(&format!("-n {name} link set bridge up"));
        ip(&format!("link add {near} type veth peer name machine netns {name}"));
        ip(&format!("-n {name} link set machine master bridge up"));
        ip(&format!("addr add {}/24 dev {near}", machine.addr));
        ip(&format!("link set {near} up"));
        Some(switch)
    }

    /// The machine's own plug.
    #[must_use]
    pub fn machine(&self) -> Plug {
        Plug { netns: None, device: format!("{}s", self.name), addr: self.addr(254) }
    }

    fn addr(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 97, self.third, last)
    }

    /// Plugs a namespace in.
    ///
    /// # Panics
    /// When a command of `ip` fails, as when it is plugged in already.
    #[must_use]
    pub fn plug(&self, netns: &NetNs) -> Plug {
        let Self { name, .. } = self;
        let number = self.plugged.fetch_add(1, Ordering::Relaxed) + 1;
        let addr = self.addr(u8::try_from(number).expect("a few namespaces"));
        let netns = netns.name().to_owned();
        ip(&format!("-n {netns} link add switch type veth peer name port{number} netns {name}"));
        ip(&format!("-n {name} link set port{number} master bridge up"));
        ip(&format!("-n {netns} addr add {addr}/24 dev switch"));
        // No word of IPv6, as above.
        ip(&format!("-n {netns} link set switch addrgenmode none"));
        ip(&format!("-n {netns} link set switch up"));
        Plug { netns: Some(netns), device: "switch".into(), addr }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status(); // removed by the next run if this fails
    }
}

fn ip(args: &str) {
    output(Command::new("ip").args(args.split(' ')));
}

/// Removes the namespaces of test processes that were killed.
fn remove_stale() {
    let list = output(Command::new("ip").args(["netns", "list"]));
    for name in list.lines().filter_map(|line| line.split_whitespace().next()) {
        let pid = name.strip_prefix("ft").and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid);
        if pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            let _ = Command::new("ip").args(["netns", "del", name]).status(); // another process may be removing it too
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::proc::Launch;

    #[test]
    fn a_switch_loses_one_way_alone() {
        use std::io::ErrorKind::{ConnectionRefused, TimedOut};
        let Some(switch) = Switch::new() else { return };
        let (one, two) = (NetNs::new().unwrap(), NetNs::new().unwrap());
        let (first, second) = (switch.plug(&one), switch.plug(&two));
        let machine = switch.machine();
        // Nobody listens: an answer is a refusal.
        let reach = |plug: &Plug| {
            let addr = std::net::SocketAddr::new(plug.addr(), 9);
            std::net::TcpStream::connect_timeout(&addr, std::time::Duration::from_millis(300))
                .unwrap_err()
                .kind()
        };
        assert_eq!((reach(&first), reach(&second)), (ConnectionRefused, ConnectionRefused));
        machine.lose_to(&first);
        assert_eq!((reach(&first), reach(&second)), (TimedOut, ConnectionRefused));
        machine.reach(&first);
        assert_eq!(reach(&first), ConnectionRefused);
        second.lose_to(&machine); // its answers
        assert_eq!((reach(&first), reach(&second)), (ConnectionRefused, TimedOut));
        second.reach(&machine);
        assert_eq!(reach(&second), ConnectionRefused);
        first.lose_to(&second);
        first.reach(&second);
        assert!(first.bytes().0 > 0 && first.bytes().1 > 0);
    }

    #[test]
    fn a_blackhole_drops_pings_and_heals() {
        let Some(netns) = NetNs::new() else { return };
        // No ping(8) here: a connect within the time says the same. Nobody listens, so an answer is a refusal.
        let reach = || {
            let addr = std::net::SocketAddr::new(netns.addr(), 9);
            std::net::TcpStream::connect_timeout(&addr, std::time::Duration::from_millis(300))
                .unwrap_err()
                .kind()
        };
        assert_eq!(reach(), std::io::ErrorKind::ConnectionRefused);
        netns.blackhole();
        assert_eq!(reach(), std::io::ErrorKind::TimedOut);
        netns.heal();
        assert_eq!(reach(), std::io::ErrorKind::ConnectionRefused);

        let folder = tempfile::tempdir().unwrap();
        let mut inside = Launch::new("ip", "ip", folder.path().join("log"))
            .args(["-4", "addr"])
            .netns(netns.name())
            .start();
        assert!(inside.wait(std::time::Duration::from_secs(10)).success());
        assert!(inside.log().contains(&netns.addr().to_string()), "{}", inside.log());
    }
}
