//! rumqttc as the tests drive it: ../README.md says how.
#![forbid(unsafe_code)]

mod v3;
mod v5;

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;

use rumqttc::{TlsConfiguration, Transport};
use serde_json::{Value, json};

/// What went wrong, in words.
type Fault = Box<dyn Error>;

/// A client of one of the library's two halves. Each call returns when it is acknowledged, with the code.
trait Client {
    fn subscribe(&mut self, command: &Value) -> Result<u8, Fault>;
    fn publish(&mut self, command: &Value) -> Result<u8, Fault>;
    fn disconnect(&mut self) -> Result<u8, Fault>;
}

/// What comes of a CONNECT: a client and whether it had a session, or the code of the refusal.
type Connected = Result<(Box<dyn Client>, bool), u8>;

fn heard(client: &str, message: Value) {
    println!("{}", json!({ "client": client, "message": message }));
}

fn text(of: &Value, name: &str) -> String {
    of[name].as_str().unwrap_or_default().to_owned()
}

fn number(of: &Value, name: &str) -> Option<u32> {
    of[name].as_u64().and_then(|number| number.try_into().ok())
}

fn qos(of: &Value) -> u8 {
    number(of, "qos").and_then(|qos| qos.try_into().ok()).unwrap_or_default()
}

/// Where to: host and port as the library wants them, which for WebSocket is the URL, and the transport.
fn place(command: &Value) -> Result<(String, u16, Transport), Fault> {
    let url = text(command, "url");
    let (scheme, rest) = url.split_once("://").ok_or("no scheme")?;
    let (host, port) = rest.split('/').next().and_then(|at| at.rsplit_once(':')).ok_or("no port")?;
    let port = port.parse()?;
    Ok(match scheme {
        "mqtt" => (host.to_owned(), port, Transport::Tcp),
        "mqtts" => (host.to_owned(), port, Transport::Tls(tls(command)?)),
        "ws" => (url, port, Transport::Ws),
        _ => (url.clone(), port, Transport::Wss(tls(command)?)),
    })
}

fn tls(command: &Value) -> Result<TlsConfiguration, Fault> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_pemfile::certs(&mut BufReader::new(File::open(text(command, "ca"))?)) {
        roots.add(certificate?)?;
    }
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConfiguration::Rustls(Arc::new(config)))
}

/// Runs a command: (code, whether there was a session).
fn run(clients: &mut HashMap<String, Box<dyn Client>>, command: &Value) -> Result<(u8, bool), Fault> {
    let name = text(command, "client");
    let what = text(command, "do");
    if what == "connect" {
        let connect = if command["version"] == "5" { v5::connect } else { v3::connect };
        return Ok(match connect(&name, command)? {
            Ok((client, present)) => {
                clients.insert(name, client);
                (0, present)
            }
            Err(code) => (code, false),
        });
    }
    let client = clients.get_mut(&name).ok_or("no such client")?;
    let code = match what.as_str() {
        "subscribe" => client.subscribe(command),
        "publish" => client.publish(command),
        "disconnect" => client.disconnect(),
        _ => Err(format!("what is {what}?").into()),
    };
    Ok((code?, false))
}

fn main() {
    rustls::crypto::ring::default_provider().install_default().expect("it is the first");
    let mut clients = HashMap::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let command: Value = serde_json::from_str(&line).expect("a command is JSON");
        let answer = match run(&mut clients, &command) {
            Ok((code, present)) => json!({ "id": command["id"], "code": code, "session_present": present }),
            Err(error) => json!({ "id": command["id"], "error": error.to_string() }),
        };
        println!("{answer}");
    }
}
