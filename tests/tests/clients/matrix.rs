//! Which clients there are, where they come from, and what they lack.

use std::path::Path;

use ferrule_testkit::proc::Launch;
use ferrule_testkit::servers;

use crate::driver::Library;
use crate::features::Feature;
use crate::mosquitto::Programs;
use crate::{Subject, Tcp, Tls, Transport, Version, Ws, Wss};

/// Somebody's client.
pub(crate) struct Client {
    /// As the tests call it.
    pub(crate) name: &'static str,
    /// As people call it.
    pub(crate) title: &'static str,
    /// (package, version), as they stand in `pinned`; no version: the system's.
    pub(crate) packages: &'static [(&'static str, &'static str)],
    /// The file that the versions are pinned in.
    pub(crate) pinned: (&'static str, &'static str),
    start: fn() -> Box<dyn Subject>,
    transports: &'static [Transport],
    /// Why it has no others.
    pub(crate) no_transport: &'static str,
    /// Does everything by every transport; else the QoS alone by those besides TCP.
    pub(crate) thorough: bool,
    /// What it lacks of what its versions have, and why; of that version alone, or of all.
    lacks: &'static [(Feature, Option<Version>, &'static str)],
}

impl Client {
    pub(crate) fn start(&self) -> Box<dyn Subject> {
        (self.start)()
    }

    pub(crate) fn transports(&self) -> impl Iterator<Item = Transport> {
        self.transports.iter().copied()
    }

    /// What the page says where it does something.
    pub(crate) fn does(&self, feature: Feature) -> &'static str {
        let everywhere = self.thorough || matches!(feature, Feature::Qos | Feature::Wills);
        if everywhere || feature == Feature::Refusals { "yes" } else { "by TCP" }
    }

    /// Why it does not do something; empty where that version of MQTT has nothing of the kind.
    pub(crate) fn lacks(&self, feature: Feature, version: Version) -> Option<&'static str> {
        if version < feature.since() {
            return Some("");
        }
        let lacks =
            self.lacks.iter().find(|(what, of, _)| *what == feature && of.is_none_or(|of| of == version));
        lacks.map(|(.., why)| *why)
    }
}

pub(crate) fn client(name: &str) -> &'static Client {
    CLIENTS.iter().find(|client| client.name == name).unwrap_or_else(|| panic!("no client {name}"))
}

/// A library by this command line: program and arguments.
fn library(args: Vec<String>) -> Box<dyn Subject> {
    Box::new(Library::start(Box::new(move |launch: Launch| launch.args(&args))))
}

/// A file that `tests/clients/install.sh` has built.
fn built(folder: &str, file: &str) -> String {
    servers::client(folder, file).to_str().unwrap().to_owned()
}

/// Clients that were asked for and cannot be had: (name, why).
pub(crate) const ABSENT: &[(&str, &str)] =
    &[("MQTTX's command line", "npm has no package of it. It is MQTT.js underneath, which is above.")];

/// A Java library. Few starts are worth the second compiler.
fn java(library: &str) -> Box<dyn Subject> {
    let (jar, lib) = (built("java", "target/driver.jar"), built("java", "target/lib"));
    let options =
        ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xshare:auto", "-Xmx128m"];
    let mut args = vec!["java".to_owned()];
    args.extend(options.map(str::to_owned));
    args.extend(["-cp".to_owned(), format!("{jar}:{lib}/*"), "Driver".to_owned(), library.to_owned()]);
    self::library(args)
}

pub(crate) const CLIENTS: &[Client] = &[
    Client {
        name: "mosquitto_clients",
        title: "mosquitto_pub, mosquitto_sub",
        packages: &[("mosquitto-clients", "")],
        pinned: ("Debian", ""),
        start: || Box::<Programs>::default(),
        transports: &[Tcp, Tls],
        no_transport: "Debian's are built without WebSocket",
        thorough: false,
        lacks: &[
            (Feature::Identifiers, None, "no: one for all filters of a process"),
            (Feature::AliasesSent, None, "no: one message a process"),
            (Feature::AliasesReceived, None, "no"),
        ],
    },
    Client {
        name: "paho_python",
        title: "Eclipse Paho, Python",
        packages: &[("paho-mqtt", "2.1.0")],
        pinned: ("tests/servers/install.sh", include_str!("../../servers/install.sh")),
        start: || {
            let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python/driver.py");
            library([servers::python(), driver].map(|path| path.to_str().unwrap().to_owned()).to_vec())
        },
        transports: &[Tcp, Tls, Ws, Wss],
        no_transport: "",
        thorough: true,
        lacks: &[(Feature::AliasesReceived, None, "no: hands on an empty topic")],
    },
    Client {
        name: "mqttjs",
        title: "MQTT.js, in Node.js",
        packages: &[("mqtt", "5.16.0")],
        pinned: (
            "tests/clients/mqttjs/package-lock.json",
            include_str!("../../clients/mqttjs/package-lock.json"),
        ),
        start: || library(vec!["node".to_owned(), built("mqttjs", "driver.js")]),
        transports: &[Tcp, Tls, Ws, Wss],
        no_transport: "",
        thorough: true,
        lacks: &[],
    },
    Client {
        name: "paho_go",
        title: "Eclipse Paho, Go",
        packages: &[("github.com/eclipse/paho.mqtt.golang", "1.5.1")],
        pinned: ("tests/clients/go/go.mod", include_str!("../../clients/go/go.mod")),
        start: || library(vec![built("go", "driver")]),
        transports: &[Tcp, Tls, Ws, Wss],
        no_transport: "",
        thorough: true,
        lacks: &[],
    },
    Client {
        name: "paho_golang",
        title: "Eclipse Paho, Go, MQTT 5",
        packages: &[("github.com/eclipse/paho.golang", "0.23.0")],
        pinned: ("tests/clients/go/go.mod", include_str!("../../clients/go/go.mod")),
        start: || library(vec![built("go", "driver")]),
        transports: &[Tcp, Tls, Ws, Wss],
        no_transport: "",
        thorough: true,
        lacks: &[
            (Feature::Identifiers, None, "no: hands on one of several"),
            (Feature::AliasesReceived, None, "no: hands on an empty topic"),
        ],
    },
    Client {
        name: "rumqttc",
        title: "rumqttc",
        packages: &[("rumqttc", "0.25.1")],
        pinned: ("tests/clients/rumqttc/Cargo.lock", include_str!("../../clients/rumqttc/Cargo.lock")),
        start: || library(vec![built("rumqttc", "driver")]),
        transports: &[Tcp, Tls, Ws, Wss],
        no_transport: "",
        thorough: true,
        lacks: &[(Feature::AliasesReceived, None, "no: hands on an empty topic")],
    },
    Client {
        name: "paho_java",
        title: "Eclipse Paho, Java",
        packages: &[("org.eclipse.paho.client.mqttv3", "1.2.5"), ("org.eclipse.paho.mqttv5.client", "1.2.5")],
        pinned: ("tests/clients/java/pom.xml", include_str!("../../clients/java/pom.xml")),
        start: || java("paho"),
        transports: &[Tcp, Tls, Ws, Wss],
        no_transport: "",
        // It sleeps for 0.3 s in each of its connects.
        thorough: false,
        lacks: &[
            (Feature::AliasesSent, None, "no call for it: by itself"),
            (Feature::AliasesReceived, None, "no: hands on an empty topic"),
        ],
    },
    Client {
        name: "hivemq",
        title: "HiveMQ MQTT Client, Java",
        packages: &[("hivemq-mqtt-client", "1.3.3")],
        pinned: ("tests/clients/java/pom.xml", include_str!("../../clients/java/pom.xml")),
        start: || java("hivemq"),
        transports: &[Tcp, Tls, Ws, Wss],
        no_transport: "",
        thorough: true,
        lacks: &[
            (Feature::Identifiers, None, "no: keeps them to itself"),
            (Feature::AliasesSent, None, "no call for it: by itself"),
        ],
    },
];
