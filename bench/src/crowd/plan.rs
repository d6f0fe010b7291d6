//! What a crowd does: how many, from where, for how long.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, ValueEnum};

use crate::carrier::Over;

/// Whom the last part reaches, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Reach {
    /// There is no last part.
    None,
    /// A message to each client's own topic.
    Own,
    /// One message to a topic of all, to which each then has a second subscription.
    Common,
}

/// The options of `ferrule-bench crowd`.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct CrowdPlan {
    /// The broker; several addresses of it take turns.
    #[arg(long, default_value = "127.0.0.1:1883")]
    pub addr: Vec<SocketAddr>,
    /// What carries MQTT.
    #[arg(long, value_enum, default_value = "tcp")]
    pub over: Over,
    /// Connections begin with a PROXY header, version 2.
    #[arg(long)]
    pub proxy_header: bool,
    /// Clients.
    #[arg(long, short = 'n', default_value_t = 1000)]
    pub clients: u32,
    /// Connections that are being made at once: below the accept backlog of 100 that mosquitto asks for.
    #[arg(long, default_value_t = 64)]
    pub connecting: u32,
    /// Local addresses to connect from, in turns; absent: the kernel chooses address and port.
    #[arg(long)]
    pub source: Vec<IpAddr>,
    /// Local ports, FIRST-LAST, for --source; one that somebody else uses is passed over.
    #[arg(long, default_value = "10000-65535", value_parser = ports)]
    pub ports: (u16, u16),
    /// Keep alive in seconds; each client pings after three quarters of it. 0: off.
    #[arg(long, default_value_t = 20)]
    pub keep_alive: u16,
    /// How long the crowd does nothing but keep alive, in seconds.
    #[arg(long, default_value_t = 30.0)]
    pub hold: f64,
    /// Whom the last part reaches.
    #[arg(long, value_enum, default_value = "own")]
    pub reach: Reach,
    /// QoS of subscriptions and of the message.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub qos: u8,
    /// Messages to topics of their own that may be undelivered at once.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub window: u32,
    /// Without any progress for so long, in seconds, a part ends.
    #[arg(long, default_value_t = 10.0)]
    pub timeout: f64,
    /// Client ids and topics begin with it: another one for each load machine.
    #[arg(long, default_value = "crowd")]
    pub prefix: String,
    /// A process whose memory and CPU time are read.
    #[arg(long)]
    pub watch: Option<u32>,
}

impl CrowdPlan {
    /// The options that give this plan, as one types them.
    #[must_use]
    pub fn to_args(&self) -> Vec<String> {
        let reach =
            self.reach.to_possible_value().map_or_else(String::new, |name| name.get_name().to_owned());
        let mut args: Vec<String> = self.addr.iter().map(|addr| format!("--addr={addr}")).collect();
        args.extend(self.over.to_arg());
        if self.proxy_header {
            args.push("--proxy-header".to_owned());
        }
        args.extend([
            format!("--clients={}", self.clients),
            format!("--connecting={}", self.connecting),
            format!("--keep-alive={}", self.keep_alive),
            format!("--hold={}", self.hold),
            format!("--reach={reach}"),
            format!("--qos={}", self.qos),
            format!("--window={}", self.window),
            format!("--timeout={}", self.timeout),
            format!("--prefix={}", self.prefix),
        ]);
        if !self.source.is_empty() {
            args.push(format!("--ports={}-{}", self.ports.0, self.ports.1));
        }
        args.extend(self.source.iter().map(|source| format!("--source={source}")));
        args.extend(self.watch.iter().map(|pid| format!("--watch={pid}")));
        args
    }
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let parse = |text: &str| text.parse::<u16>().map_err(|error| error.to_string());
    let (first, last) = text.split_once('-').ok_or("FIRST-LAST")?;
    let (first, last) = (parse(first)?, parse(last)?);
    if first == 0 || first > last {
        Err("FIRST is not 0 and not above LAST".to_owned())
    } else {
        Ok((first, last))
    }
}
