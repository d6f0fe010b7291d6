//! What a run does: who publishes to whom, how, how long.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::carrier::Over;
use crate::wire::Version;

/// Who publishes to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Publisher i to subscriber i, a topic each.
    Pairs,
    /// All publishers, a topic each, to one subscriber with a wildcard.
    FanIn,
    /// One publisher to all subscribers of one topic.
    FanOut,
    /// Publishers only: a message ends with its acknowledgement.
    Publish,
}

/// What to do: the options of `ferrule-bench load`.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Plan {
    /// The broker.
    #[arg(long, default_value = "127.0.0.1:1883")]
    pub addr: SocketAddr,
    /// Where subscribers connect instead: another node.
    #[arg(long)]
    pub subscribers_at: Option<SocketAddr>,
    /// Who publishes to whom.
    #[arg(long, value_enum, default_value = "pairs")]
    pub shape: Shape,
    /// Publishers (fan-out: subscribers); for pairs, as many subscribers too.
    #[arg(long, short = 'n', default_value_t = 10)]
    pub clients: u32,
    /// QoS of publications and subscriptions.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// What carries MQTT.
    #[arg(long, value_enum, default_value = "tcp")]
    pub over: Over,
    /// MQTT 5 instead of 3.1.1.
    #[arg(long)]
    pub v5: bool,
    /// Payload, in bytes; at least 24, with --json 74.
    #[arg(long, default_value_t = 64)]
    pub size: u32,
    /// The payload is a JSON object, for rules and sinks that look into it.
    #[arg(long)]
    pub json: bool,
    /// Messages a publisher may have out.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub window: u16,
    /// Messages a second in all, at even distances; absent: as fast as the windows allow.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Publish this many messages in all, all of them measured, instead of by time.
    #[arg(long)]
    pub messages: Option<u64>,
    /// The measured time, in seconds.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// The time before it, in seconds.
    #[arg(long, default_value_t = 0.5)]
    pub warmup: f64,
    /// Without any progress for so long, in seconds, what is out is given up.
    #[arg(long, default_value_t = 3.0)]
    pub stall: f64,
    /// Subscribers' sessions outlive their connections.
    #[arg(long)]
    pub persistent: bool,
    /// User name of all clients.
    #[arg(long, requires = "password")]
    pub username: Option<String>,
    /// Their password.
    #[arg(long, requires = "username")]
    pub password: Option<String>,
    /// Client ids begin with it, topics too (`PREFIX/0`, ...).
    #[arg(long, default_value = "bench")]
    pub prefix: String,
    /// Fan-out: the topic of all subscribers but the first, to which a rule of the broker publishes again.
    #[arg(long)]
    pub again: Option<String>,
    /// Processes whose CPU time and memory are read at the start and the end of the measured part.
    #[arg(long)]
    pub watch: Vec<u32>,
}

impl Plan {
    /// The options that give this plan, as one types them; defaults are left out.
    #[must_use]
    pub fn to_args(&self) -> Vec<String> {
        let mut args = vec![format!("--addr={}", self.addr)];
        let shape =
            self.shape.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        args.extend(self.subscribers_at.iter().map(|addr| format!("--subscribers-at={addr}")));
        args.push(format!("--shape={shape}"));
        args.push(format!("--clients={}", self.clients));
        args.push(format!("--qos={}", self.qos));
        args.extend(self.over.to_arg());
        if self.v5 {
            args.push("--v5".to_owned());
        }
        args.push(format!("--size={}", self.size));
        if self.json {
            args.push("--json".to_owned());
        }
        args.push(format!("--window={}", self.window));
        if let Some(rate) = self.rate {
            args.push(format!("--rate={rate}"));
        }
        match self.messages {
            Some(messages) => args.push(format!("--messages={messages}")),
            None => args.extend([format!("--seconds={}", self.seconds), format!("--warmup={}", self.warmup)]),
        }
        args.push(format!("--stall={}", self.stall));
        if self.persistent {
            args.push("--persistent".to_owned());
        }
        if let Some((username, password)) = self.user() {
            args.extend([format!("--username={username}"), format!("--password={password}")]);
        }
        args.push(format!("--prefix={}", self.prefix));
        args.extend(self.again.iter().map(|topic| format!("--again={topic}")));
        args.extend(self.watch.iter().map(|pid| format!("--watch={pid}")));
        args
    }

    /// User name and password.
    pub(super) fn user(&self) -> Option<(&str, &str)> {
        Some((self.username.as_deref()?, self.password.as_deref()?))
    }

    pub(super) fn version(&self) -> Version {
        if self.v5 { Version::V5 } else { Version::V3 }
    }

    pub(super) fn publishers(&self) -> usize {
        if self.shape == Shape::FanOut { 1 } else { self.clients as usize }
    }

    pub(super) fn subscribers(&self) -> usize {
        match self.shape {
            Shape::Pairs | Shape::FanOut => self.clients as usize,
            Shape::FanIn => 1,
            Shape::Publish => 0,
        }
    }

    /// Deliveries that one message makes.
    pub(super) fn fan(&self) -> u64 {
        match self.shape {
            Shape::Pairs | Shape::FanIn => 1,
            Shape::FanOut => u64::from(self.clients),
            Shape::Publish => 0,
        }
    }
}
