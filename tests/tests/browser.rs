//! MQTT.js in a real browser (Chromium), over ws:// and wss://, by MQTT 3.1.1 and 5.
#![allow(clippy::unwrap_used, reason = "tests")]

use ferrule_testkit::{Browser, Certs, Config, Node};
use ferrule_tests::mosquitto::{Reach, messages};
use ferrule_tests::{PATIENCE, script};

/// The clients that the script makes: one for each URL and version.
const CLIENTS: [&str; 4] = ["ws-4", "ws-5", "wss-4", "wss-5"];

/// An edge with plain MQTT, `ws` and `wss`; and what the script is asked for: those steps there.
fn edge_and_query(certs: &Certs, steps: &str) -> (Node, String) {
    // Ports that stay over a restart.
    let [ws, wss] = [(); 2].map(|()| ferrule_testkit::port::free_addr());
    let listener = |addr, tls: &str| {
        format!("[[listener]]\nbind = \"{addr}\"\nprotocol = \"ws\"\nanonymous = true\n{tls}\n")
    };
    let config = Config::edge().extra(&listener(ws, "")).extra(&listener(wss, &certs.tls("")));
    // By the name in the certificate.
    let query =
        format!("steps={steps}&urls=ws://localhost:{}/mqtt,wss://localhost:{}/mqtt", ws.port(), wss.port());
    (Node::start(&config), query)
}

#[test]
fn mqttjs_publishes_and_subscribes() {
    let certs = Certs::local(&[]);
    let (edge, query) = edge_and_query(&certs, "round");
    let folder = tempfile::tempdir().unwrap();
    let reach = Reach::tcp(edge.addr());
    let mut answers = reach.subscribe(folder.path(), "mqttv5", "-F t/%t=%p -C 4 -W 60 -q 2 -t answers/#");
    let mut browser = Browser::open(&script("mqttjs.js"), &query, &certs);
    for client in CLIENTS {
        browser.wait_said(PATIENCE, &format!("ready {client}"));
        let mut publisher = reach.publisher("mqttv311", &format!("-q 2 -t t/{client}/ask -m"));
        assert!(publisher.arg("from mosquitto").status().unwrap().success());
        browser.wait_said(PATIENCE, &format!("done {client}"));
    }
    let mut got = messages(&mut answers);
    got.sort();
    assert_eq!(got, CLIENTS.map(|client| format!("t/answers/{client}=from-the-browser")));
}

#[test]
fn mqttjs_comes_back_to_its_session_after_a_kill_of_the_broker() {
    let certs = Certs::local(&[]);
    let (mut edge, query) = edge_and_query(&certs, "reconnect");
    let mut browser = Browser::open(&script("mqttjs.js"), &query, &certs);
    let mut all = |said: &str| {
        CLIENTS.iter().for_each(|client| browser.wait_said(PATIENCE, &format!("{said} {client}")));
    };
    all("ready");
    edge.kill9();
    all("lost");
    edge.restart();
    all("back");
    for client in CLIENTS {
        let mut publisher =
            Reach::tcp(edge.addr()).publisher("mqttv5", &format!("-q 1 -t t/{client}/ask -m"));
        assert!(publisher.arg("from mosquitto").status().unwrap().success());
    }
    all("done");
}

#[test]
fn a_browser_refuses_a_certificate_of_an_authority_that_it_does_not_know() {
    let [known, other] = [Certs::local(&[]), Certs::local(&[])];
    let (_edge, query) = edge_and_query(&other, "round");
    let browser = Browser::open(&script("mqttjs.js"), &query, &known);
    // The plain ones come in, the others do not.
    ferrule_testkit::until(PATIENCE, "both wss clients fail", || {
        let said = browser.said();
        let failed = |name: &str| said.iter().any(|line| line.starts_with(&format!("failed {name}: ")));
        assert!(!failed("ws-4") && !failed("ws-5"), "{said:?}");
        (failed("wss-4") && failed("wss-5")).then_some(())
    });
    // ERR_CERT_AUTHORITY_INVALID
    assert!(browser.log().contains("net_error -202"), "{}", browser.log());
}
