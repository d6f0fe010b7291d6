//! `[uplink] preset`: what a provider's broker makes of the defaults, and what of it is refused here instead of there. Their rules
//! for single messages are in [`ferrule_link::preset`].

use super::super::reader::{Reader, Section};
use ferrule_link::preset::AWS_ALPN;
use ferrule_link::{Alpn, Preset, Scheme, Server};
use std::time::Duration;

pub(super) const ALL: [Preset; 2] = [Preset::AwsIotCore, Preset::AzureIotHub];

/// AWS takes 30 s to 20 minutes, Azure up to 29 minutes.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Filters in one SUBSCRIBE that AWS takes.
const AWS_FILTERS_MAX: usize = 8;

pub(super) fn version(preset: Option<Preset>) -> u64 {
    if preset == Some(Preset::AzureIotHub) { 4 } else { 5 }
}

/// AWS lets 100 be unacknowledged, which MQTT 3.1.1 cannot say; Azure's throttling makes more of little use.
pub(super) fn max_inflight(preset: Option<Preset>) -> u16 {
    if preset.is_some() { 100 } else { 1_024 }
}

/// AWS keeps a session for an hour, unless the account's quota was raised.
pub(super) fn session_expiry(preset: Option<Preset>) -> Duration {
    match preset {
        Some(Preset::AwsIotCore) => Duration::from_secs(3_600),
        _ => ferrule_link::config::SESSION_EXPIRY,
    }
}

/// AWS is reached at 443, which firewalls let through, unless a port is written.
pub(super) fn server(preset: Option<Preset>, text: &str, server: Server) -> Server {
    let written = text.trim_end_matches('/').ends_with(":8883");
    if preset == Some(Preset::AwsIotCore)
        && server.scheme() == Scheme::Mqtts
        && server.port() == 8883
        && !written
    {
        return Server::with_scheme(Scheme::Mqtts, server.host(), 443);
    }
    server
}

/// By a name of its own AWS tells MQTT from HTTPS at 443; at 8883 there is nothing else.
pub(super) fn alpn(preset: Preset, servers: &[Server]) -> Alpn {
    match preset {
        Preset::AwsIotCore if servers.iter().any(|server| server.port() != 8883) => Alpn::Named(AWS_ALPN),
        _ => Alpn::Off,
    }
}

/// What the provider does not let in.
pub(super) fn demand(
    preset: Preset,
    s: &Section<'_>,
    servers: &[Server],
    certificate: bool,
    shared_key: bool,
    r: &mut Reader<'_>,
) {
    let name = preset.name();
    if let Some(server) = servers.iter().find(|server| !server.scheme().is_tls()) {
        let message = format!("`preset = \"{name}\"` needs TLS, and {server} is without");
        s.fail(r, "url", message, Some("write \"mqtts://\""));
    }
    let logs_in = certificate || s.has("password_file") || shared_key;
    match preset {
        Preset::AwsIotCore if !logs_in => {
            let help = "add tls = { cert = \"device.pem.crt\", key = \"private.pem.key\" }";
            s.fail(r, "preset", "`preset = \"aws-iot-core\"` needs the thing's certificate", Some(help));
        }
        Preset::AzureIotHub if !logs_in && !s.has("shared_key_file") => {
            let help = "add shared_key_file = \"device.key\", or tls = { cert = \"device.crt\", key = \"device.key\" }";
            s.fail(
                r,
                "preset",
                "`preset = \"azure-iot-hub\"` needs the device's key or certificate",
                Some(help),
            );
        }
        _ => {}
    }
}

/// What the provider does not let anybody subscribe to.
pub(super) fn downlink(preset: Preset, number: usize, filter: &str, s: &Section<'_>, r: &mut Reader<'_>) {
    match preset {
        Preset::AwsIotCore if number == AWS_FILTERS_MAX => {
            r.fail(
                s.place(),
                format!("more than {AWS_FILTERS_MAX} [[downlink]]: AWS takes no more filters at once"),
                None,
            );
        }
        Preset::AwsIotCore => {}
        Preset::AzureIotHub => {
            let own = filter.strip_prefix("devices/").and_then(|rest| rest.split_once('/'));
            if own.is_none_or(|(_, rest)| rest != "messages/devicebound/#") && !filter.starts_with("$iothub/")
            {
                let help =
                    "write filter = \"devices/DEVICE/messages/devicebound/#\", the client id for DEVICE";
                s.fail(r, "filter", "`filter`: an IoT hub ends the connection over it", Some(help));
            }
        }
    }
}

/// What the preset did, for people; `unset` are the keys that nobody wrote.
pub(super) fn note(preset: Preset, servers: &[Server], alpn: Alpn, unset: &[&str]) -> String {
    let mut did: Vec<String> = servers.iter().map(|server| format!("url {server}")).collect();
    did.push(match alpn {
        Alpn::Named(name) => format!("ALPN {}", String::from_utf8_lossy(name)),
        _ => "no ALPN".to_owned(),
    });
    for key in unset {
        did.push(match *key {
            "version" => format!("version = {}", version(Some(preset))),
            "max_inflight" => format!("max_inflight = {}", max_inflight(Some(preset))),
            "keep_alive" => format!("keep_alive = \"{}s\"", KEEP_ALIVE.as_secs()),
            "session_expiry" => format!("session_expiry = \"{}s\"", session_expiry(Some(preset)).as_secs()),
            _ => "no word of Ferrule, so no batches and no identity".to_owned(),
        });
    }
    did.push(format!("messages of at most {} KiB", preset.payload_max() / 1024));
    format!("[uplink] preset = \"{}\": {}", preset.name(), did.join(", "))
}
