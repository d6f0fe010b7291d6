//! `docs/clients.md`, made of the clients that there are, what they lack, and the tests.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use crate::features::Feature;
use crate::matrix::{ABSENT, CLIENTS, Client};
use crate::{TESTS, Transport, Version};

const HEAD: &str = "# Clients

Other people's clients do the same things with a broker, by every version of MQTT and every transport that they
have, and the same must come of it: `make e2e E2E=clients`, in `tests/tests/clients`; the programs that drive the
libraries are in `tests/clients`. This page is made of what the tests do by
`FERRULE_WRITE_REPORT=1 cargo test --release --workspace --test clients page`; a test compares.
";

/// Tests of the same clients elsewhere.
const TAIL: &str = "
## Elsewhere
MQTT.js in a browser, over `ws` and `wss`, through a kill of the broker too: `tests/tests/browser.rs`. mosquitto's and
Paho's clients over TLS 1.2 and 1.3, with certificates of their own, ALPN and Unix sockets: `tests/tests/transports.rs`;
through proxies: `tests/tests/proxies.rs`. Files of lines by `mosquitto_pub -l`: `tests/tests/interop.rs`.
";

fn versions(client: &Client) -> impl Iterator<Item = (Version, &'static str)> {
    TESTS.iter().filter(|(name, ..)| *name == client.name).map(|(_, version, test)| (*version, *test))
}

fn list<'a>(all: impl Iterator<Item = &'a str>) -> String {
    all.collect::<Vec<_>>().join(", ")
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("\n## Which\n| client | version | MQTT | transports | tests |\n|---|---|---|---|---|\n");
    for client in CLIENTS {
        let packages = client.packages.iter().map(|(package, version)| match *version {
            "" => format!("{}'s `{package}`", client.pinned.0),
            _ => format!("`{package}` {version}"),
        });
        let mut transports = list(client.transports().map(Transport::text));
        if !client.no_transport.is_empty() {
            let _ = write!(transports, " ({})", client.no_transport);
        }
        let tests: Vec<String> = versions(client).map(|(_, test)| format!("`{test}`")).collect();
        let _ = writeln!(
            page,
            "| {} | {} | {} | {transports} | {} |",
            client.title,
            packages.collect::<Vec<_>>().join(", "),
            list(versions(client).map(|(version, _)| version.text())),
            tests.join(", "),
        );
    }
    page.push_str(
        "\n`mosquitto_rr`, by every version, over TCP and TLS: \
         `mosquitto::mosquitto_rr_gets_the_response_to_its_request`.\n",
    );
    for (name, why) in ABSENT {
        let _ = writeln!(page, "\n**{name}** is not there: {why}");
    }
    page.push_str("\n## What they do\n| | |\n|---|---|\n");
    for feature in Feature::ALL {
        let (name, done) = feature.told();
        let _ = writeln!(page, "| {name} | {done} |");
    }
    page.push_str(
        "\nOn every transport of the client; where it says *by TCP*, on the others the QoS alone, as each step is a \
         process\nor begins with a sleep. Refusals: by TCP.\n",
    );
    for version in Version::ALL {
        let features = || Feature::ALL.into_iter().filter(move |feature| feature.since() <= version);
        let _ = writeln!(page, "\n## MQTT {}", version.text());
        let names: Vec<&str> = features().map(|feature| feature.told().0).collect();
        let _ = writeln!(page, "| client | {} |", names.join(" | "));
        let _ = writeln!(page, "|---|{}", "---|".repeat(names.len()));
        for client in CLIENTS.iter().filter(|client| versions(client).any(|(of, _)| of == version)) {
            let cells: Vec<&str> = features()
                .map(|feature| client.lacks(feature, version).unwrap_or(client.does(feature)))
                .collect();
            let _ = writeln!(page, "| {} | {} |", client.title, cells.join(" | "));
        }
    }
    page.push_str(TAIL);
    page
}

#[test]
fn every_client_has_tests_and_the_versions_are_those_that_are_pinned() {
    let tested: BTreeSet<&str> = TESTS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(tested, CLIENTS.iter().map(|client| client.name).collect());
    for client in CLIENTS {
        let (file, text) = client.pinned;
        for (package, version) in client.packages.iter().filter(|(_, version)| !version.is_empty()) {
            // The version stands soon after the name.
            let pinned = text.match_indices(package).any(|(at, name)| {
                let behind = &text[at + name.len()..];
                let words = behind.split(|c: char| c.is_whitespace() || "\"'=<>/@".contains(c));
                words
                    .filter(|word| !word.is_empty())
                    .take(6)
                    .any(|word| word.trim_matches(|c| "v,".contains(c)) == *version)
            });
            assert!(pinned, "{file} does not pin {package} {version}");
        }
    }
}

#[test]
fn the_page_of_clients_is_that_of_the_tests() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/clients.md");
    if std::env::var_os("FERRULE_WRITE_REPORT").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).is_ok_and(|text| text == page()),
        "run `FERRULE_WRITE_REPORT=1 cargo test --release --workspace --test clients page`"
    );
}
