//! `[[listener]]`: where clients come in, by what transport, and what they show there.

use super::Anonymous;
use super::document::{Place, Value};
use super::limits::read_limits;
use super::reader::{Kind, Reader, Section, quote, text};
use ferrule_broker::ClientLimits;
use ferrule_net::EntranceLimits;
use ferrule_transport::tls::{NameFrom, ServerFiles};
use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// One `[[listener]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    /// What connections know it by: its place at the start, or what a reload gave it. No other listener of the process has or had it.
    pub number: u16,
    /// Where to listen.
    pub bind: Bind,
    /// The path of a WebSocket listener; `None`: MQTT over the stream itself.
    pub websocket: Option<String>,
    /// Certificates; `None`: no TLS.
    pub tls: Option<ServerFiles>,
    /// Which name of a client's certificate is its user name; such a client needs no password.
    pub username_from: Option<NameFrom>,
    /// Who must begin with a PROXY header; `None`: nobody.
    pub proxies: Option<Vec<IpNet>>,
    /// Mode of a Unix socket's file; default 0660: the broker's user and its group.
    pub unix_mode: u32,
    /// The only users that may come in here; `None`: all.
    pub users: Option<Vec<String>>,
    /// Who may come without a name.
    pub anonymous: Anonymous,
    /// What one client may use that comes in here.
    pub clients: ClientLimits,
    /// What its connections may use together.
    pub entrance: EntranceLimits,
}

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bind {
    /// An address and a port; port 0 takes a free one.
    Tcp(SocketAddr),
    /// `unix:` and a path.
    Unix(PathBuf),
    /// `systemd:` and the `FileDescriptorName=` of a socket unit, whose sockets systemd has bound.
    Systemd(String),
}

/// Where WebSocket clients of other brokers look, unless told.
const PATH_DEFAULT: &str = "/mqtt";

/// The broker's user and its group.
const UNIX_MODE_DEFAULT: u32 = 0o660;

impl ListenerConfig {
    /// Plain MQTT for clients without a name on this machine.
    #[must_use]
    pub fn plain(bind: SocketAddr, clients: ClientLimits) -> Self {
        Self {
            number: 0,
            bind: Bind::Tcp(bind),
            websocket: None,
            tls: None,
            username_from: None,
            proxies: None,
            unix_mode: UNIX_MODE_DEFAULT,
            users: None,
            anonymous: Anonymous::Loopback,
            clients,
            entrance: EntranceLimits::default(),
        }
    }

    /// `mqtt`, `mqtts`, `ws` or `wss`.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        match (self.websocket.is_some(), self.tls.is_some()) {
            (false, false) => "mqtt",
            (false, true) => "mqtts",
            (true, false) => "ws",
            (true, true) => "wss",
        }
    }
}

impl Bind {
    /// Whether only this machine reaches it: not known of what systemd bound.
    fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
            Self::Systemd(_) => false,
        }
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Systemd(name) => write!(f, "systemd:{name}"),
        }
    }
}

impl Kind for Bind {
    const EXPECTED: &'static str = "an address and a port like \"127.0.0.1:1883\", or \"unix:/path\"";

    fn read(value: &Value) -> Option<Self> {
        let text = text(value)?;
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() && !path.contains('\0') => Some(Self::Unix(path.into())),
            Some(("systemd", name)) if !name.is_empty() => Some(Self::Systemd(name.to_owned())),
            _ => text.parse().ok().map(Self::Tcp),
        }
    }

    fn show(&self) -> String {
        quote(&self.to_string())
    }
}

/// Reads all of them; without one, `plain` stands in. What a listener does not say of its clients is as `clients` says.
pub(super) fn read_all(
    root: &mut Section<'_>,
    plain: Option<SocketAddr>,
    clients: &ClientLimits,
    r: &mut Reader<'_>,
) -> Vec<ListenerConfig> {
    let sections = root.sections(r, "listener");
    if sections.is_empty() {
        if let Some(bind) = plain {
            return vec![ListenerConfig::plain(bind, *clients)];
        }
        if !root.has("listener") {
            let help = "add [[listener]] and below it bind = \"127.0.0.1:1883\"";
            r.fail(&Place::Nowhere, "there is no [[listener]]", Some(help));
        }
    }
    let mut listeners: Vec<ListenerConfig> = Vec::new();
    for section in sections {
        let taken = |bind: &Bind| {
            let is_free = matches!(bind, Bind::Tcp(address) if address.port() == 0);
            !is_free && listeners.iter().any(|listener| listener.bind == *bind)
        };
        if let Some(listener) = read(section, taken, clients, r) {
            // No file has so many.
            let number = u16::try_from(listeners.len()).unwrap_or(u16::MAX);
            listeners.push(ListenerConfig { number, ..listener });
        }
    }
    listeners
}

fn read(
    mut s: Section<'_>,
    taken: impl Fn(&Bind) -> bool,
    clients: &ClientLimits,
    r: &mut Reader<'_>,
) -> Option<ListenerConfig> {
    let mut bind: Option<Bind> = s.get(r, "bind");
    if let Some(Bind::Unix(path)) = &mut bind {
        *path = r.resolve(std::mem::take(path), s.place_of("bind"));
    }
    if !s.has("bind") {
        r.fail(s.place(), "a listener needs `bind`", Some("add bind = \"127.0.0.1:1883\""));
    }
    if let Some(bind) = bind.as_ref().filter(|bind| taken(bind)) {
        s.fail(r, "bind", format!("two listeners on {bind}"), None);
    }
    let websocket = read_protocol(&mut s, r);
    let alpn = if websocket.is_some() { "http/1.1" } else { "mqtt" };
    let tls = s.section(r, "tls");
    let tls = if tls.is_present() { read_tls(tls, alpn, r) } else { None };
    let proxies = read_proxies(&mut s, r);
    let username_from = read_username_from(&mut s, tls.as_ref(), proxies.is_some(), r);
    let unix_mode = read_unix_mode(&mut s, bind.as_ref(), r);
    let users: Option<Vec<String>> = s.get(r, "users");
    let anonymous = read_anonymous(&mut s, bind.as_ref(), r);
    let (clients, entrance) = read_limits(&mut s, clients, r);
    s.end(
        r,
        &[
            ("port", "it is part of `bind`: bind = \"0.0.0.0:1883\""),
            ("cert", "it is part of `tls`: tls = { cert = \"server.crt\", key = \"server.key\" }"),
            ("key", "it is part of `tls`: tls = { cert = \"server.crt\", key = \"server.key\" }"),
            ("proxy_protocol", "say from whom: proxy_protocol_from = [\"10.0.0.0/8\"]"),
        ],
    );
    Some(ListenerConfig {
        number: 0,
        bind: bind?,
        websocket,
        tls,
        username_from,
        proxies,
        unix_mode,
        users,
        anonymous,
        clients,
        entrance,
    })
}

/// The path of a WebSocket listener.
fn read_protocol(s: &mut Section<'_>, r: &mut Reader<'_>) -> Option<String> {
    let protocol = s.or(r, "protocol", "mqtt".to_owned());
    let is_websocket = match protocol.as_str() {
        "mqtt" => false,
        "ws" => true,
        "mqtts" | "wss" => {
            let plain = protocol.trim_end_matches('s').replace('w', "ws");
            let help = format!(
                "write protocol = \"{plain}\" and tls = {{ cert = \"server.crt\", key = \"server.key\" }}"
            );
            s.fail(r, "protocol", "TLS is a key of its own", Some(&help));
            protocol == "wss"
        }
        other => {
            s.fail(r, "protocol", format!("expected protocol \"mqtt\" or \"ws\", found {other:?}"), None);
            false
        }
    };
    let path: Option<String> = s.get(r, "path");
    if path.is_some() && !is_websocket {
        s.fail(r, "path", "`path` is for `protocol = \"ws\"`", None);
    }
    if path.as_ref().is_some_and(|path| !path.starts_with('/') || path.contains(['?', '#', ' '])) {
        s.fail(r, "path", "a path begins with `/` and has no `?`, `#` or blank", None);
    }
    is_websocket.then(|| path.unwrap_or_else(|| PATH_DEFAULT.to_owned()))
}

fn read_tls(mut s: Section<'_>, alpn: &str, r: &mut Reader<'_>) -> Option<ServerFiles> {
    let paths = |s: &mut Section<'_>, r: &mut Reader<'_>, key: &'static str| -> Vec<PathBuf> {
        let paths: Option<Vec<String>> = s.get(r, key);
        if paths.as_ref().is_none_or(Vec::is_empty) {
            let help = "`cert` makes both: ferrule-edge cert --dir certs --server NAME";
            s.fail(r, key, format!("`tls` needs `{key}`: a file in PEM form"), Some(help));
        }
        let place = s.place_of(key).clone();
        paths.unwrap_or_default().into_iter().map(|path| r.resolve(path.into(), &place)).collect()
    };
    let (certs, keys) = (paths(&mut s, r, "cert"), paths(&mut s, r, "key"));
    if certs.len() != keys.len() && !certs.is_empty() && !keys.is_empty() {
        let message =
            format!("{} in `cert`, {} in `key`: each certificate has a key", certs.len(), keys.len());
        s.fail(r, "key", message, None);
    }
    let file = |s: &mut Section<'_>, r: &mut Reader<'_>, key: &'static str| -> Option<PathBuf> {
        let path: Option<PathBuf> = s.get(r, key);
        path.map(|path| r.resolve(path, s.place_of(key)))
    };
    let (client_ca, crl) = (file(&mut s, r, "client_ca"), file(&mut s, r, "crl"));
    let words = [("required", true), ("optional", false)];
    // Without `client_ca` nobody is asked for a certificate.
    let client_required = s.word(r, "client", &words, true) && client_ca.is_some();
    for key in ["crl", "client"] {
        if s.has(key) && client_ca.is_none() {
            s.fail(r, key, format!("`{key}` is about clients' certificates: it needs `client_ca`"), None);
        }
    }
    let tls12 = s.or(r, "tls12", true);
    s.end(r, &[("ca", "did you mean `client_ca`?"), ("ca_file", "did you mean `client_ca`?")]);
    Some(ServerFiles {
        certificates: certs.into_iter().zip(keys).collect(),
        client_ca,
        crl,
        client_required,
        tls12,
        alpn: vec![alpn.as_bytes().to_vec()],
    })
}

fn read_proxies(s: &mut Section<'_>, r: &mut Reader<'_>) -> Option<Vec<IpNet>> {
    let texts: Option<Vec<String>> = s.get(r, "proxy_protocol_from");
    let mut networks = Vec::new();
    for text in texts.iter().flatten() {
        let network: Option<IpNet> =
            text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        match network {
            Some(network) => networks.push(network),
            None => {
                let message = format!("expected an address or a network like \"10.0.0.0/8\", found {text:?}");
                s.fail(r, "proxy_protocol_from", message, None);
            }
        }
    }
    (!networks.is_empty()).then_some(networks)
}

fn read_username_from(
    s: &mut Section<'_>,
    tls: Option<&ServerFiles>,
    behind_proxy: bool,
    r: &mut Reader<'_>,
) -> Option<NameFrom> {
    let words = [("password", None), ("cn", Some(NameFrom::Cn)), ("san", Some(NameFrom::San))];
    let from = s.word(r, "username_from", &words, None);
    if from.is_some() && !behind_proxy && tls.is_none_or(|tls| tls.client_ca.is_none()) {
        let help = "add client_ca to `tls`, or proxy_protocol_from if a proxy checks certificates";
        s.fail(r, "username_from", "nobody here has a certificate that was checked", Some(help));
    }
    if from == Some(NameFrom::San) && tls.is_none() && behind_proxy {
        s.fail(r, "username_from", "a PROXY header carries the certificate's CN alone: \"cn\"", None);
    }
    from
}

fn read_unix_mode(s: &mut Section<'_>, bind: Option<&Bind>, r: &mut Reader<'_>) -> u32 {
    let Some(text) = s.get::<String>(r, "unix_mode") else { return UNIX_MODE_DEFAULT };
    if matches!(bind, Some(Bind::Tcp(_) | Bind::Systemd(_))) {
        s.fail(r, "unix_mode", "`unix_mode` is for `bind = \"unix:...\"`", None);
    }
    let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.unwrap_or_else(|| {
        s.fail(r, "unix_mode", format!("expected a mode like \"0660\", found {text:?}"), None);
        UNIX_MODE_DEFAULT
    })
}

fn read_anonymous(s: &mut Section<'_>, bind: Option<&Bind>, r: &mut Reader<'_>) -> Anonymous {
    let anonymous = s.or(r, "anonymous", false);
    let anywhere = s.or(r, "anonymous_anywhere", false);
    if anonymous && !anywhere && bind.is_some_and(|bind| !bind.is_local()) {
        let help = "bind to 127.0.0.1, or add `anonymous_anywhere = true` if everyone who reaches the port may come in";
        s.fail(r, "anonymous", "`anonymous = true` on an address that other machines reach", Some(help));
    }
    if anywhere && !anonymous {
        s.fail(r, "anonymous_anywhere", "`anonymous_anywhere` without `anonymous = true` does nothing", None);
    }
    match (anonymous, anywhere) {
        (false, _) => Anonymous::Nobody,
        (true, false) => Anonymous::Loopback,
        (true, true) => Anonymous::Anyone,
    }
}
