//! `[uplink] preset`.

use super::*;
use ferrule_link::Alpn;

#[test]
fn presets_are_other_defaults() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("device.key"), "MDEyMzQ1Njc4OWFiY2RlZg==\n").unwrap();
    std::fs::write(dir.path().join("bad.key"), "not base64\n").unwrap();
    let read = |url: &str, lines: &str| {
        let text = format!("{LISTENER}[uplink]\nurl = \"{url}\"\n{lines}");
        EdgeConfig::parse("e", &text, dir.path(), &Overrides::default())
    };
    let errors = |url: &str, lines: &str| {
        let errors = read(url, lines).unwrap_err().errors;
        errors.into_iter().map(|error| error.message).collect::<Vec<_>>()
    };
    let pair = "tls = { cert = \"c\", key = \"k\" }";

    let aws = format!("preset = \"aws-iot-core\"\n{pair}\n");
    let config = read("mqtts://a.iot.eu-central-1.amazonaws.com", &aws).unwrap();
    let uplink = config.uplink.unwrap();
    assert_eq!((uplink.servers[0].port(), uplink.tls.alpn), (443, Alpn::Named(b"x-amzn-mqtt-ca")));
    assert_eq!(
        (uplink.version, uplink.identity, uplink.max_inflight),
        (Version::V5, IdentityMode::Never, 100)
    );
    assert_eq!(
        (uplink.keep_alive, uplink.session_expiry),
        (Duration::from_secs(60), Duration::from_secs(3_600))
    );
    let note = &config.broker.notes[0];
    for part in
        ["aws-iot-core", ":443", "x-amzn-mqtt-ca", "max_inflight = 100", "keep_alive = \"60s\"", "128 KiB"]
    {
        assert!(note.contains(part), "{part} is not in: {note}");
    }
    // What is written wins, and is no part of what the preset did.
    let config = read("mqtts://a:8883", &format!("{aws}keep_alive = \"90s\"\nversion = 4\n")).unwrap();
    let uplink = config.uplink.unwrap();
    assert_eq!((uplink.servers[0].port(), uplink.tls.alpn), (8883, Alpn::Off));
    assert_eq!((uplink.version, uplink.keep_alive), (Version::V3_1_1, Duration::from_secs(90)));
    assert!(!config.broker.notes[0].contains("version") && !config.broker.notes[0].contains("keep_alive"));
    assert_eq!(
        errors("mqtts://a", "preset = \"aws-iot-core\""),
        ["`preset = \"aws-iot-core\"` needs the thing's certificate"]
    );
    let many: String = (0..9).map(|n| format!("[[downlink]]\nfilter = \"a/{n}\"\n")).collect();
    assert_eq!(
        errors("mqtts://a", &format!("{aws}{many}")),
        ["more than 8 [[downlink]]: AWS takes no more filters at once"]
    );

    let azure = "preset = \"azure-iot-hub\"\nshared_key_file = \"device.key\"\n";
    let downlink =
        "[[downlink]]\nfilter = \"devices/press-7/messages/devicebound/#\"\ntopic = \"commands\"\n";
    let config = read("mqtts://hub.azure-devices.net", &format!("{azure}{downlink}")).unwrap();
    let uplink = config.uplink.unwrap();
    assert_eq!((uplink.servers[0].port(), uplink.tls.alpn), (8883, Alpn::Off));
    assert_eq!((uplink.version, uplink.identity), (Version::V3_1_1, IdentityMode::Never));
    assert_eq!(uplink.shared_key.unwrap().as_str(), "MDEyMzQ1Njc4OWFiY2RlZg==");
    assert!(config.broker.notes[0].contains("version = 4"));
    assert_eq!(
        errors("mqtts://a", &format!("{azure}version = 5\n[[downlink]]\nfilter = \"commands/#\"\n")),
        [
            "`version` is 5: an IoT hub speaks 3.1.1 only, leave it out",
            "`filter`: an IoT hub ends the connection over it"
        ]
    );
    assert_eq!(
        errors("mqtts://a", "preset = \"azure-iot-hub\""),
        ["`preset = \"azure-iot-hub\"` needs the device's key or certificate"]
    );
    assert_eq!(
        errors("mqtts://a", "preset = \"azure-iot-hub\"\nshared_key_file = \"bad.key\""),
        ["`shared_key_file` holds no key in base64"]
    );
    assert_eq!(
        errors("mqtts://a", "shared_key_file = \"device.key\""),
        ["`shared_key_file` needs `preset = \"azure-iot-hub\"`"]
    );
}
