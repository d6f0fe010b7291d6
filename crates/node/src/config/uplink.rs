//! `[uplink]` and `[[downlink]]`.

mod preset;

use super::reader::{Reader, Section, Size};
use super::resolve::{int, read_password_file, seconds};
use super::{UplinkConfig, units};
use crate::auth::Secret;
use ferrule_link::downlink::DownlinkError;
use ferrule_link::gathering::{METERED_BYTES_MAX, METERED_KEEP_ALIVE};
use ferrule_link::{Downlink, IdentityMode, Metered, Preset, Proxy, Scheme, Server, TlsConfig};
use ferrule_mqtt::Version;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Filters in one SUBSCRIBE.
const DOWNLINKS_MAX: usize = 64;

/// A text of MQTT has at most 65,535 bytes; what any broker takes is far less.
const CLIENT_ID_MAX: usize = 256;

/// Linux's IFNAMSIZ: the name and a zero.
const INTERFACE_MAX: usize = 16;

/// How long a dead link goes unnoticed, and how often an idle one is pinged.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What rows wait for on a link that is paid for: less would be no burst, more the outbox does not hand out.
const METERED_BYTES: RangeInclusive<u64> = 1024..=METERED_BYTES_MAX as u64;

/// And for how long: nothing shorter than a second is gathered for the price, and a message that is older than a day was not wanted in the
/// cloud.
const METERED_TIME_S: RangeInclusive<u64> = 1..=86_400;

/// A device that is acknowledged later than after a second sends again.
const BATCH_DELAY_MAX: Duration = Duration::from_millis(500);

/// The section, if there is one; what is probably not meant goes to `warnings`, what was decided for
/// people to `notes`.
pub(super) fn read_uplink(
    mut s: Section<'_>,
    r: &mut Reader<'_>,
    warnings: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Option<UplinkConfig> {
    let present = s.is_present();
    let preset = read_preset(&mut s, r);
    let servers = read_servers(&mut s, r, preset);
    let client_id = read_client_id(&mut s, r);
    let username: Option<String> = s.get(r, "username");
    let password = read_secret(&mut s, r, "password_file");
    let shared_key = read_shared_key(&mut s, r, preset, warnings);
    let mut tls = read_tls(s.section(r, "tls"), &servers, r);
    if let Some(preset) = preset {
        tls.alpn = preset::alpn(preset, &servers);
        preset::demand(preset, &s, &servers, tls.certificate.is_some(), shared_key.is_some(), r);
    }
    let proxy = read_proxy(&mut s, r);
    let interface = read_interface(&mut s, r);
    let metered = read_metered(s.section(r, "metered"), r);
    let keep_alive = match preset {
        _ if metered.is_some() => METERED_KEEP_ALIVE,
        Some(_) => preset::KEEP_ALIVE,
        None => KEEP_ALIVE,
    };
    let keep_alive = seconds(&mut s, r, "keep_alive", keep_alive, 1..=65_535);
    let connect_timeout = s.or(r, "connect_timeout", Duration::from_secs(10));
    if connect_timeout.is_zero() {
        s.fail(r, "connect_timeout", "`connect_timeout` is 0s: no connection would ever be made", None);
    }
    let max_inflight = int(&mut s, r, "max_inflight", preset::max_inflight(preset), 1..=65_535);
    let version = match s.or(r, "version", preset::version(preset)) {
        5 => Version::V5,
        4 => Version::V3_1_1,
        other => {
            let message = format!("`version` is {other}: it must be 5 (MQTT 5) or 4 (MQTT 3.1.1)");
            s.fail(r, "version", message, None);
            Version::V5
        }
    };
    let words = [("negotiated", IdentityMode::Negotiated), ("properties", IdentityMode::Properties)];
    let identity = s.word(r, "identity", &words, IdentityMode::Negotiated);
    // Such a broker is no Ferrule: it is told nothing that only one understands.
    let identity = if preset.is_some() && !s.has("identity") { IdentityMode::Never } else { identity };
    if version == Version::V3_1_1 && identity == IdentityMode::Properties {
        s.fail(
            r,
            "identity",
            "`identity = \"properties\"` needs `version = 5`: MQTT 3.1.1 has no user properties",
            None,
        );
    }
    let batch = s.or(r, "batch", true);
    let batch_delay = s.or(r, "batch_delay", ferrule_link::config::BATCH_DELAY);
    if batch_delay > BATCH_DELAY_MAX {
        let message = format!(
            "`batch_delay` is {}: it must be at most {}, since devices wait for it",
            units::show_duration(batch_delay),
            units::show_duration(BATCH_DELAY_MAX)
        );
        s.fail(r, "batch_delay", message, None);
    }
    let session_expiry =
        seconds(&mut s, r, "session_expiry", preset::session_expiry(preset), 1..=u64::from(u32::MAX) - 1);
    if let Some(preset) = preset {
        let known = ["version", "max_inflight", "keep_alive", "session_expiry", "identity"];
        let unset = known.into_iter().filter(|key| !s.has(key));
        let unset = unset.filter(|key| metered.is_none() || *key != "keep_alive");
        notes.push(preset::note(preset, &servers, tls.alpn, &unset.collect::<Vec<_>>()));
        if preset == Preset::AzureIotHub && version == Version::V5 {
            s.fail(r, "version", "`version` is 5: an IoT hub speaks 3.1.1 only, leave it out", None);
        }
    }
    if !batch && s.has("batch_delay") {
        s.fail(r, "batch_delay", "`batch_delay` says nothing beside `batch = false`", None);
    }
    if metered.is_some() && s.has("batch_delay") {
        warnings.push(
            "[uplink] `batch_delay` says nothing beside `metered`, whose `time` it is that a message may wait"
                .to_owned(),
        );
    }
    if version == Version::V3_1_1 && s.has("password_file") && !s.has("username") {
        // [MQTT-3.1.2-22]
        s.fail(r, "password_file", "a password needs a `username` beside it in MQTT 3.1.1", None);
    }
    s.end(
        r,
        &[
            ("password", "a password is kept in a file of its own: password_file = \"uplink.pass\""),
            (
                "proxy_password",
                "a password is kept in a file of its own: proxy_password_file = \"proxy.pass\"",
            ),
            ("ca", "it is part of `tls`: tls = { ca = \"ca.crt\" }"),
            ("cert", "it is part of `tls`: tls = { cert = \"client.crt\", key = \"client.key\" }"),
            ("key", "it is part of `tls`: tls = { cert = \"client.crt\", key = \"client.key\" }"),
        ],
    );
    if let (Some(plain), Some(_)) = (servers.iter().find(|s| !s.scheme().is_tls()), encrypted(&servers)) {
        warnings.push(format!(
            "[uplink] falls back from TLS to {plain}, which everyone on the way can read and bring about: leave it out of `url`"
        ));
    }
    if encrypted(&servers).is_some()
        && let Err(error) = tls.files().load()
    {
        // No mistake of the configuration's: a gateway whose certificate is just being replaced, or was when its power
        // failed, still has to start and take its devices' messages.
        warnings.push(format!("[uplink] cannot connect until its files can be used: {error}"));
    }
    let config = UplinkConfig {
        servers,
        username,
        password,
        tls,
        preset,
        client_id,
        shared_key,
        proxy,
        interface,
        keep_alive,
        connect_timeout,
        max_inflight,
        version,
        identity,
        batch,
        batch_delay,
        metered,
        downlinks: Vec::new(),
        session_expiry,
    };
    present.then_some(config)
}

/// `[[downlink]]`, into the uplink that they come by.
pub(super) fn read_downlinks(
    sections: Vec<Section<'_>>,
    mut uplink: Option<UplinkConfig>,
    r: &mut Reader<'_>,
) -> Option<UplinkConfig> {
    let mut filters: Vec<String> = Vec::new();
    for (number, mut s) in sections.into_iter().enumerate() {
        let filter: Option<String> = s.get(r, "filter");
        let topic: Option<String> = s.get(r, "topic");
        let acknowledged = int(&mut s, r, "qos", 1u16, 0..=1) == 1;
        if uplink.is_none() {
            r.fail(s.place(), "[[downlink]] needs the [uplink] that its messages come by", None);
        }
        if number == DOWNLINKS_MAX {
            r.fail(s.place(), format!("more than {DOWNLINKS_MAX} [[downlink]]: use `+` and `#`"), None);
        }
        match &filter {
            None if !s.has("filter") => {
                let help = "add filter = \"commands/press-7/#\": what is asked of the uplink's broker";
                r.fail(s.place(), "[[downlink]] needs `filter`", Some(help));
            }
            Some(filter) if filters.contains(filter) => {
                s.fail(r, "filter", format!("two [[downlink]] have the filter {filter:?}"), None);
            }
            _ => {}
        }
        if let Some(filter) = filter {
            if let Some(preset) = uplink.as_ref().and_then(|uplink| uplink.preset) {
                preset::downlink(preset, number, &filter, &s, r);
            }
            match Downlink::new(&filter, topic.as_deref(), acknowledged) {
                Ok(link) => uplink.iter_mut().for_each(|uplink| uplink.downlinks.push(link.clone())),
                Err(error @ DownlinkError::Filter(_)) => s.fail(r, "filter", error.to_string(), None),
                Err(error) => s.fail(r, "topic", error.to_string(), None),
            }
            filters.push(filter);
        }
        s.end(
            r,
            &[
                ("from", "the topics at the broker are its `filter`"),
                ("to", "what they are called here is its `topic`"),
                ("remap", "what the topics are called here is its `topic`, as in \"commands/$1\""),
            ],
        );
    }
    uplink
}

fn encrypted(servers: &[Server]) -> Option<&Server> {
    servers.iter().find(|server| server.scheme().is_tls())
}

fn read_servers(s: &mut Section<'_>, r: &mut Reader<'_>, preset: Option<Preset>) -> Vec<Server> {
    let texts: Option<Vec<String>> = s.get(r, "url");
    let mut servers: Vec<Server> = Vec::new();
    for text in texts.iter().flatten() {
        match text.parse() {
            Ok(server) => servers.push(preset::server(preset, text, server)),
            Err(error) => s.fail(r, "url", format!("`url`: {error}"), None),
        }
    }
    if s.is_present() && texts.as_ref().is_none_or(Vec::is_empty) && !(texts.is_none() && s.has("url")) {
        let help = "add url = \"mqtts://host\", or \"mqtt://host\" without TLS";
        s.fail(r, "url", "[uplink] needs `url`", Some(help));
    }
    servers
}

/// `tls = { ca, cert, key, server_name }`.
fn read_tls(mut s: Section<'_>, servers: &[Server], r: &mut Reader<'_>) -> TlsConfig {
    let path = |s: &mut Section<'_>, r: &mut Reader<'_>, key| {
        let path: Option<PathBuf> = s.get(r, key);
        path.map(|path| r.resolve(path, s.place_of(key)))
    };
    let ca = path(&mut s, r, "ca");
    let cert = path(&mut s, r, "cert");
    let key = path(&mut s, r, "key");
    for (one, other) in [("cert", "key"), ("key", "cert")] {
        if s.has(one) && !s.has(other) {
            let message = format!("`{one}` needs `{other}` beside it: a client certificate is both files");
            s.fail(r, one, message, None);
        }
    }
    let server_name: Option<String> = s.get(r, "server_name");
    let server_name = server_name.and_then(|name| match TlsConfig::server_name(&name) {
        Some(name) => Some(name),
        None => {
            let message = format!("`server_name`: {name:?} is neither a DNS name nor an address");
            s.fail(r, "server_name", message, None);
            None
        }
    });
    if s.is_present() && !servers.is_empty() && encrypted(servers).is_none() {
        let secure = match servers[0].scheme() {
            Scheme::Ws => "wss://",
            _ => "mqtts://",
        };
        let help = format!("write \"{secure}{}\", or remove `tls`", servers[0].host());
        r.fail(s.place(), "`tls` is given, and no `url` is over TLS", Some(&help));
    }
    s.end(
        r,
        &[
            ("certificate", "did you mean `cert`?"),
            (
                "insecure",
                "a certificate that is not checked protects from nobody: name its authority in `ca`",
            ),
            ("verify", "a certificate that is not checked protects from nobody: name its authority in `ca`"),
            ("key_password", "an encrypted key cannot be read: `openssl pkey -in client.key -out plain.key`"),
        ],
    );
    TlsConfig { ca, certificate: cert.zip(key), server_name, ..TlsConfig::default() }
}

fn read_proxy(s: &mut Section<'_>, r: &mut Reader<'_>) -> Option<Proxy> {
    let url: Option<String> = s.get(r, "proxy");
    let username: Option<String> = s.get(r, "proxy_username");
    let password = read_secret(s, r, "proxy_password_file");
    for (one, other) in [
        ("proxy_username", "proxy"),
        ("proxy_password_file", "proxy_username"),
        ("proxy_username", "proxy_password_file"),
    ] {
        if s.has(one) && !s.has(other) {
            s.fail(r, one, format!("`{one}` needs `{other}` beside it"), None);
        }
    }
    if let Some(name) = username.as_deref()
        && name.contains(':')
    {
        // RFC 7617, 2: the first colon ends the name.
        s.fail(r, "proxy_username", format!("`proxy_username`: {name:?} holds a colon"), None);
    }
    match url?.parse::<Proxy>() {
        Ok(mut proxy) => {
            proxy.credentials = username.zip(password.map(|secret| secret.as_str().to_owned()));
            Some(proxy)
        }
        Err(error) => {
            s.fail(r, "proxy", format!("`proxy`: {error}"), None);
            None
        }
    }
}

fn read_preset(s: &mut Section<'_>, r: &mut Reader<'_>) -> Option<Preset> {
    let name: String = s.get(r, "preset")?;
    let found = preset::ALL.into_iter().find(|preset| preset.name() == name);
    if found.is_none() {
        let names = preset::ALL.map(|preset| format!("{:?}", preset.name())).join(" or ");
        s.fail(r, "preset", format!("`preset` is {name:?}: it must be {names}, or be left out"), None);
    }
    found
}

fn read_client_id(s: &mut Section<'_>, r: &mut Reader<'_>) -> Option<String> {
    let id: String = s.get(r, "client_id")?;
    if id.is_empty() || id.len() > CLIENT_ID_MAX {
        let message = format!("`client_id` has {} bytes: it must have from 1 to {CLIENT_ID_MAX}", id.len());
        s.fail(r, "client_id", message, None);
    }
    Some(id)
}

/// A device's key at an IoT hub.
fn read_shared_key(
    s: &mut Section<'_>,
    r: &mut Reader<'_>,
    preset: Option<Preset>,
    warnings: &mut Vec<String>,
) -> Option<Secret> {
    let text = read_secret(s, r, "shared_key_file")?;
    match preset {
        Some(Preset::AzureIotHub) => {
            if ferrule_link::preset::key(text.as_str()).is_none() {
                let help = "the file holds one line: the device's primary key, as the hub shows it";
                s.fail(r, "shared_key_file", "`shared_key_file` holds no key in base64", Some(help));
            }
            return Some(text);
        }
        Some(Preset::AwsIotCore) => {
            warnings.push(
                "[uplink] `shared_key_file` says nothing beside `preset = \"aws-iot-core\"`".to_owned(),
            );
        }
        None => {
            let help = "other brokers' passwords are in `password_file`";
            s.fail(r, "shared_key_file", "`shared_key_file` needs `preset = \"azure-iot-hub\"`", Some(help));
        }
    }
    None
}

/// `metered = { bytes, time }`.
fn read_metered(mut s: Section<'_>, r: &mut Reader<'_>) -> Option<Metered> {
    let default = Metered::default();
    let bytes = s.or(r, "bytes", Size(default.bytes as u64)).0;
    if !METERED_BYTES.contains(&bytes) {
        let message = format!(
            "`bytes` is {}: it must be from {} to {}",
            units::show_size(bytes),
            units::show_size(*METERED_BYTES.start()),
            units::show_size(*METERED_BYTES.end())
        );
        s.fail(r, "bytes", message, None);
    }
    let time = seconds(&mut s, r, "time", default.time, METERED_TIME_S);
    let present = s.is_present();
    s.end(r, &[("delay", "how long a message may wait is its `time`")]);
    present.then_some(Metered { bytes: usize::try_from(bytes).unwrap_or(METERED_BYTES_MAX), time })
}

/// Whether there is such an interface is asked with each connection: a modem's may come later.
fn read_interface(s: &mut Section<'_>, r: &mut Reader<'_>) -> Option<String> {
    let name: String = s.get(r, "interface")?;
    let is_name = (1..INTERFACE_MAX).contains(&name.len())
        && !name.bytes().any(|b| b == b'/' || b == 0 || b.is_ascii_whitespace());
    if !is_name {
        let help = "`ip link` lists the names, as in interface = \"wwan0\"";
        s.fail(
            r,
            "interface",
            format!("`interface`: {name:?} is no name of a network interface"),
            Some(help),
        );
    }
    Some(name)
}

fn read_secret(s: &mut Section<'_>, r: &mut Reader<'_>, key: &'static str) -> Option<Secret> {
    let file: PathBuf = s.get(r, key)?;
    let place = s.place_of(key).clone();
    read_password_file(&file, &place, r).map(Secret::new)
}
