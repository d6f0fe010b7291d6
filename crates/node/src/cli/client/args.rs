//! mosquitto_pub's and mosquitto_sub's flags, and what they mean together.

use super::connection::{Options, WillArgs};
use super::properties::{Command, Given};
use super::wire::{Target, Tls};
use clap::{ArgAction, Args};
use ferrule_mqtt::topic::{validate_filter, validate_name};
use ferrule_mqtt::{PropertiesBuf, Property, QoS, Version};
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A port of MQTT, and of MQTT over TLS.
const PORT: u16 = 1883;
const PORT_TLS: u16 = 8883;

/// What both commands take.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub(in crate::cli) struct CommonArgs {
    /// Print this
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// The broker's host
    #[arg(short = 'h', long, default_value = "localhost")]
    host: String,
    /// Its port [default: 1883, with TLS 8883]
    #[arg(short = 'p', long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The broker's Unix socket, instead of host and port
    #[arg(long, value_name = "PATH", conflicts_with = "port")]
    unix: Option<PathBuf>,
    /// User, password, host, port and topic at once: mqtt(s)://[USER[:PASSWORD]@]HOST[:PORT]/TOPIC
    #[arg(short = 'L', long)]
    url: Option<String>,
    /// The local address to come from
    #[arg(short = 'A', value_name = "ADDRESS")]
    bind_address: Option<IpAddr>,
    /// Keep the session when the connection ends; needs -i
    #[arg(short = 'c', long)]
    disable_clean_session: bool,
    /// The client id [default: the broker's choice]
    #[arg(short = 'i', long, allow_hyphen_values = true)]
    id: Option<String>,
    /// The client id is this and the process's number
    #[arg(short = 'I', long, allow_hyphen_values = true, conflicts_with = "id")]
    id_prefix: Option<String>,
    /// Seconds
    #[arg(short = 'k', long, default_value_t = 60)]
    keepalive: u16,
    /// Quality of service
    #[arg(short = 'q', long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// User name
    #[arg(short = 'u', long, allow_hyphen_values = true)]
    username: Option<String>,
    /// Password
    #[arg(short = 'P', long, allow_hyphen_values = true)]
    pw: Option<OsString>,
    /// mqttv5, mqttv311 or mqttv31
    #[arg(short = 'V', long, default_value = "mqttv311", value_parser = version)]
    protocol_version: Version,
    /// Seconds that the session lives on after its connection; -1 for ever (MQTT 5)
    #[arg(short = 'x', long, allow_hyphen_values = true, value_parser = expiry)]
    session_expiry_interval: Option<u32>,
    /// A property of a packet: COMMAND NAME VALUE, and for user-property COMMAND user-property NAME VALUE (MQTT 5)
    #[arg(short = 'D', long, num_args = 3..=4, value_names = ["COMMAND", "NAME", "VALUE"], allow_hyphen_values = true, action = ArgAction::Append)]
    property: Vec<String>,
    /// Tell every packet
    #[arg(short = 'd', long)]
    debug: bool,
    /// No errors on standard error
    #[arg(long)]
    quiet: bool,
    /// Accepted, and always so
    #[arg(long)]
    nodelay: bool,
    /// Packets of QoS 1 and 2 in flight
    #[arg(short = 'M', long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    max_inflight: u16,
    /// Whose servers' certificates are good: TLS
    #[arg(long, value_name = "FILE")]
    cafile: Option<PathBuf>,
    /// The system's authorities' are: TLS
    #[arg(long)]
    tls_use_os_certs: bool,
    /// The certificate to show
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The server's certificate may be for any name: whoever has one of the authority can be in between
    #[arg(long)]
    insecure: bool,
    /// The protocol asked for in the handshake
    #[arg(long, value_name = "PROTOCOL")]
    tls_alpn: Option<String>,
    /// Accepted: TLS 1.2 and 1.3 are spoken, whichever the broker has
    #[arg(long, value_name = "VERSION", value_parser = ["tlsv1.2", "tlsv1.3"])]
    tls_version: Option<String>,
    /// The topic of the will
    #[arg(long, value_name = "TOPIC")]
    will_topic: Option<String>,
    /// Its payload
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, requires = "will_topic")]
    will_payload: Option<OsString>,
    /// Its quality of service
    #[arg(long, value_name = "QOS", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2), requires = "will_topic")]
    will_qos: u8,
    /// The will is retained
    #[arg(long, requires = "will_topic")]
    will_retain: bool,
}

/// Arguments of `pub`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(in crate::cli) struct PubArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// The topic
    #[arg(short = 't', long, allow_hyphen_values = true)]
    pub(super) topic: Option<String>,
    /// The payload
    #[arg(short = 'm', long, allow_hyphen_values = true, group = "what")]
    pub(super) message: Option<OsString>,
    /// A file is the payload
    #[arg(short = 'f', long, group = "what")]
    pub(super) file: Option<PathBuf>,
    /// Each line of standard input is a payload
    #[arg(short = 'l', long, group = "what")]
    pub(super) stdin_line: bool,
    /// All of standard input is the payload
    #[arg(short = 's', long, group = "what")]
    pub(super) stdin_file: bool,
    /// An empty payload
    #[arg(short = 'n', long, group = "what")]
    pub(super) null_message: bool,
    /// The message is retained
    #[arg(short = 'r', long)]
    pub(super) retain: bool,
    /// Publish it so often
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) repeat: u64,
    /// Seconds between two
    #[arg(long, default_value_t = 0.0, value_parser = seconds)]
    pub(super) repeat_delay: f64,
}

/// Arguments of `sub`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true, disable_version_flag = true)]
pub(in crate::cli) struct SubArgs {
    #[command(flatten)]
    pub(super) common: CommonArgs,
    /// What to subscribe to; may be given several times
    #[arg(short = 't', long, allow_hyphen_values = true)]
    pub(super) topic: Vec<String>,
    /// What to unsubscribe from; may be given several times
    #[arg(short = 'U', long, allow_hyphen_values = true)]
    pub(super) unsubscribe: Vec<String>,
    /// Messages of these topics are not shown; may be given several times
    #[arg(short = 'T', long, allow_hyphen_values = true)]
    pub(super) filter_out: Vec<String>,
    /// End after so many messages
    #[arg(short = 'C', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
    /// End after so many seconds, with exit code 27
    #[arg(short = 'W', value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) timeout: Option<u64>,
    /// End when the subscriptions are acknowledged
    #[arg(short = 'E')]
    pub(super) exit_subscribed: bool,
    /// How to print a message: %t topic, %p payload, %x and %X in hexadecimal, %l length, %q QoS, %r retain, %m packet id, %I and %U time,
    /// @X strftime's, %j and %J JSON; MQTT 5: %A %C %D %E %F %P %R %S
    #[arg(short = 'F', value_name = "FORMAT", allow_hyphen_values = true)]
    pub(super) format: Option<String>,
    /// Print the topic before the payload
    #[arg(short = 'v', long)]
    pub(super) verbose: bool,
    /// No line end after a payload
    #[arg(short = 'N')]
    pub(super) no_line_end: bool,
    /// JSON on several lines
    #[arg(long)]
    pub(super) pretty: bool,
    /// Print so many of a hundred messages, drawn at random
    #[arg(long, value_name = "PERCENT", default_value_t = 100.0, value_parser = percent)]
    pub(super) random_filter: f64,
    /// No messages that were retained
    #[arg(short = 'R')]
    pub(super) no_retained: bool,
    /// Only messages that were retained; end with the first that was not
    #[arg(long, conflicts_with = "no_retained")]
    pub(super) retained_only: bool,
    /// Clear the retained messages that come
    #[arg(long)]
    pub(super) remove_retained: bool,
}

fn version(text: &str) -> Result<Version, String> {
    match text {
        "mqttv31" | "31" => Ok(Version::V3_1),
        "mqttv311" | "311" => Ok(Version::V3_1_1),
        "mqttv5" | "5" => Ok(Version::V5),
        _ => Err("expected mqttv5, mqttv311 or mqttv31".to_owned()),
    }
}

fn expiry(text: &str) -> Result<u32, String> {
    match text {
        "-1" | "∞" => Ok(u32::MAX),
        _ => text.parse().map_err(|_| "expected seconds, or -1".to_owned()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected seconds".to_owned())?;
    // As a Duration it must fit.
    if (0.0..1e9).contains(&seconds) { Ok(seconds) } else { Err("expected seconds".to_owned()) }
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent| (0.1..=100.0).contains(percent));
    percent.ok_or_else(|| "expected a number from 0.1 to 100".to_owned())
}

/// Of a number that clap has checked.
pub(super) fn qos(number: u8) -> QoS {
    QoS::try_from(number).unwrap_or_default()
}

/// What the flags come to.
pub(super) struct Plan {
    pub(super) options: Options,
    pub(super) qos: QoS,
    pub(super) max_inflight: u16,
    pub(super) debug: bool,
    pub(super) quiet: bool,
    /// `-L`'s.
    pub(super) topic: Option<String>,
    pub(super) given: Given,
}

/// `-L`, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Url {
    tls: bool,
    user: Option<String>,
    password: Option<String>,
    host: String,
    port: Option<u16>,
    topic: String,
}

fn url(text: &str) -> Result<Url, String> {
    let (tls, rest) = match text.split_once("://") {
        Some(("mqtt", rest)) => (false, rest),
        Some(("mqtts", rest)) => (true, rest),
        _ => return Err("Error: unsupported URL scheme: expected mqtt:// or mqtts://".to_owned()),
    };
    let (authority, topic) =
        rest.split_once('/').ok_or("Error: Invalid URL for -L argument specified - topic missing.")?;
    let (login, address) = match authority.rsplit_once('@') {
        Some((login, address)) => (Some(login), address),
        None => (None, authority),
    };
    let (user, password) = match login.map(|login| login.split_once(':').ok_or(login)) {
        None => (None, None),
        Some(Ok((user, password))) => (Some(user.to_owned()), Some(password.to_owned())),
        Some(Err(user)) => (Some(user.to_owned()), None),
    };
    // An IPv6 address is in brackets.
    let (host, port) = match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let port = port.map(|port| port.parse().map_err(|_| format!("Error: Invalid port given: {port}")));
    Ok(Url { tls, user, password, host: host.to_owned(), port: port.transpose()?, topic: topic.to_owned() })
}

impl CommonArgs {
    /// # Errors
    /// What does not go together, in words.
    pub(super) fn plan(&self) -> Result<Plan, String> {
        let url = self.url.as_deref().map(url).transpose()?;
        let with_tls = self.cafile.is_some()
            || self.tls_use_os_certs
            || self.cert.is_some()
            || self.insecure
            || url.as_ref().is_some_and(|url| url.tls);
        let tls = with_tls.then(|| Tls {
            ca: self.cafile.clone(),
            certificate: self.cert.clone().zip(self.key.clone()),
            any_name: self.insecure,
            alpn: self.tls_alpn.clone(),
        });
        let version = self.protocol_version;
        let client_id = match (&self.id, &self.id_prefix) {
            (Some(id), _) => id.clone(),
            (None, Some(prefix)) => format!("{prefix}-{}", std::process::id()),
            // 3.1 knows no empty one.
            (None, None) if version == Version::V3_1 => format!("ferrule-{}", std::process::id()),
            (None, None) => String::new(),
        };
        if self.disable_clean_session && self.id.is_none() && self.id_prefix.is_none() {
            return Err("Error: You must provide a client id if you are using the -c option.".to_owned());
        }
        if self.will_topic.as_ref().is_some_and(|topic| validate_name(topic).is_err()) {
            return Err("Error: Invalid will topic, does it contain '+' or '#'?".to_owned());
        }
        let given = Given::read(&self.property)?;
        if version != Version::V5 && (!given.is_empty() || self.session_expiry_interval.is_some()) {
            return Err("Error: -D and -x are MQTT 5's: add -V mqttv5.".to_owned());
        }
        let mut properties = given.of(Command::Connect).clone();
        let expiry_s = self.session_expiry_interval.or(self.disable_clean_session.then_some(u32::MAX));
        if let (Version::V5, Some(expiry_s)) = (version, expiry_s) {
            properties.push(Property::SessionExpiryInterval(expiry_s)).map_err(|e| e.to_string())?;
        }
        let will = self.will_topic.as_ref().map(|topic| WillArgs {
            topic: topic.clone(),
            payload: self.will_payload.clone().map(OsStringExt::into_vec).unwrap_or_default(),
            qos: qos(self.will_qos),
            retain: self.will_retain,
            properties: given.of(Command::Will).clone(),
        });
        let default_port = if with_tls { PORT_TLS } else { PORT };
        let target = match (&self.unix, &url) {
            (Some(path), _) => Target::Unix(path.clone()),
            (None, url) => Target::Tcp {
                host: url.as_ref().map_or_else(|| self.host.clone(), |url| url.host.clone()),
                port: self.port.or(url.as_ref().and_then(|url| url.port)).unwrap_or(default_port),
                from: self.bind_address,
            },
        };
        let (user, password, topic) = match url {
            Some(url) => (url.user, url.password, Some(url.topic)),
            None => (None, None, None),
        };
        let options = Options {
            target,
            tls,
            version,
            client_id,
            username: self.username.clone().or(user),
            password: self.pw.clone().map(OsStringExt::into_vec).or(password.map(String::into_bytes)),
            clean: !self.disable_clean_session,
            keep_alive_s: self.keepalive,
            will,
            properties,
            disconnect: given.of(Command::Disconnect).clone(),
        };
        Ok(Plan {
            options,
            qos: qos(self.qos),
            max_inflight: self.max_inflight,
            debug: self.debug,
            quiet: self.quiet,
            topic,
            given,
        })
    }
}

impl PubArgs {
    /// The plan and the topic.
    pub(super) fn plan(&self) -> Result<(Plan, String, PropertiesBuf), String> {
        let plan = self.common.plan()?;
        let topic = self.topic.clone().or(plan.topic.clone());
        let topic = topic.ok_or("Error: Both topic and message must be supplied.")?;
        if validate_name(&topic).is_err() {
            return Err(format!("Error: Invalid publish topic '{topic}', does it contain '+' or '#'?"));
        }
        let properties = plan.given.of(Command::Publish).clone();
        Ok((plan, topic, properties))
    }
}

impl SubArgs {
    /// The plan and the filters.
    pub(super) fn plan(&self) -> Result<(Plan, Vec<String>), String> {
        let plan = self.common.plan()?;
        let mut topics = self.topic.clone();
        topics.extend(plan.topic.clone());
        if topics.is_empty() && self.unsubscribe.is_empty() {
            return Err("Error: You must specify a topic to subscribe to.".to_owned());
        }
        for filter in topics.iter().chain(&self.unsubscribe).chain(&self.filter_out) {
            if validate_filter(filter).is_err() {
                return Err(format!(
                    "Error: Invalid subscription topic '{filter}', are all '+' and '#' wildcards correct?"
                ));
            }
        }
        Ok((plan, topics))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let read = |text| url(text).map(|u| (u.tls, u.user, u.password, u.host, u.port, u.topic));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(read("mqtt://h/a/b"), Ok((false, None, None, "h".into(), None, "a/b".into())));
        assert_eq!(
            read("mqtts://u:p@ss@[::1]:99/t"),
            Ok((true, some("u"), some("p@ss"), "::1".into(), Some(99), "t".into()))
        );
        assert_eq!(read("mqtt://u@h:1/t"), Ok((false, some("u"), None, "h".into(), Some(1), "t".into())));
        for wrong in ["h/t", "http://h/t", "mqtt://h", "mqtt://h:x/t"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
