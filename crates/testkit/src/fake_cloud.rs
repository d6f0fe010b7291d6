//! What the fakes of cloud providers' brokers ([`crate::fake_aws_iot`], [`crate::fake_azure_hub`]) have in common: a small MQTT server
//! that ends a connection over any breach of its [`Rules`], says in [`Fake::breaches`] which one it was, and acknowledges the rest.
//!
//! A thread a connection, plain TCP: tests put TLS before it. The rules are the providers' documented ones.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrule_mqtt::{
    Ack, Connack, Connect, Packet, Properties, PropertiesBuf, Property, Publish, QoS, ReasonCode, Suback,
    Version, decode,
};

/// What a provider demands. Each answers with the breach.
pub trait Rules: Send + Sync + 'static {
    /// Of CONNECT; else when the connection is to end by itself, in seconds since 1970.
    ///
    /// # Errors
    /// The breach, for people.
    fn connect(&self, connect: &Connect<'_>) -> Result<Option<i64>, String>;

    /// Of PUBLISH from the client called `client_id`.
    ///
    /// # Errors
    /// The breach, for people.
    fn publish(&self, client_id: &str, publish: &Publish<'_>) -> Result<(), String>;

    /// Of the filters of one SUBSCRIBE.
    ///
    /// # Errors
    /// The breach, for people.
    fn subscribe(&self, client_id: &str, filters: &[(String, QoS)]) -> Result<(), String>;

    /// PUBLISH packets that may be unacknowledged.
    fn receive_max(&self) -> u16;
}

/// A message that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// Retain flag.
    pub retain: bool,
}

#[derive(Default)]
struct State {
    taken: Vec<Taken>,
    breaches: Vec<String>,
    connects: usize,
    /// Of each client the newest connection, which ends the one before.
    sockets: HashMap<String, (TcpStream, Version)>,
    subscribed: Vec<(String, String)>,
}

/// A running one. Its threads end with the process.
pub struct Fake {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Fake {
    /// Starts one on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// When there is no free port.
    pub fn start(rules: impl Rules) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let (state, rules) = (Arc::<Mutex<State>>::default(), Arc::new(rules));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (state, rules) = (Arc::clone(&shared), Arc::clone(&rules));
                std::thread::spawn(move || {
                    let ended = serve(&socket, &*rules, &state);
                    if let Err(error) = ended
                        && error.kind() == io::ErrorKind::InvalidData
                    {
                        lock(&state).breaches.push(error.to_string());
                    }
                    // After its reason was noted. Also the clone by which the next connection of this client would end it.
                    let _ = socket.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Self { addr, state }
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it took, in order.
    #[must_use]
    pub fn taken(&self) -> Vec<Taken> {
        lock(&self.state).taken.clone()
    }

    /// Why it ended connections.
    #[must_use]
    pub fn breaches(&self) -> Vec<String> {
        lock(&self.state).breaches.clone()
    }

    /// Connections that it accepted.
    #[must_use]
    pub fn connects(&self) -> usize {
        lock(&self.state).connects
    }

    /// Filters that it granted, each with its client.
    #[must_use]
    pub fn subscribed(&self) -> Vec<(String, String)> {
        lock(&self.state).subscribed.clone()
    }

    /// Sends a message of QoS 1 to a connected client.
    ///
    /// # Errors
    /// When it is not connected.
    pub fn say(&self, client_id: &str, topic: &str, payload: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        let (socket, version) = state.sockets.get_mut(client_id).ok_or(io::ErrorKind::NotConnected)?;
        let publish = Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic,
            packet_id: 1,
            properties: Properties::EMPTY,
            payload,
        };
        socket.write_all(&crate::wire::encoded(&Packet::Publish(publish), *version)?)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn breach(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn wall_s() -> i64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs() as i64)
}

/// One connection. The error is its end; of kind `InvalidData` when it was a breach.
fn serve(mut socket: &TcpStream, rules: &dyn Rules, state: &Mutex<State>) -> io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    let (mut version, mut client_id, mut ends_s) = (None, String::new(), None);
    loop {
        let mut out = Vec::new();
        let mut used = 0;
        while let Some((packet, size)) =
            decode(&bytes[used..], version, 1 << 20).map_err(|error| breach(format!("malformed: {error}")))?
        {
            used += size;
            let spoken = version.unwrap_or(Version::V5);
            match packet {
                Packet::Connect(connect) if version.is_none() => {
                    version = Some(connect.version);
                    connect.client_id.clone_into(&mut client_id);
                    ends_s = match rules.connect(&connect) {
                        Ok(ends_s) => ends_s,
                        Err(why) => {
                            let refused = Connack {
                                session_present: false,
                                reason: ReasonCode::NOT_AUTHORIZED,
                                properties: Properties::EMPTY,
                            };
                            socket.write_all(&crate::wire::encoded(
                                &Packet::Connack(refused),
                                connect.version,
                            )?)?;
                            return Err(breach(why));
                        }
                    };
                    let mut properties = PropertiesBuf::new();
                    if connect.version == Version::V5 {
                        let receive_max = Property::ReceiveMaximum(rules.receive_max());
                        properties.push(receive_max).map_err(|error| breach(error.to_string()))?;
                    }
                    let accepted = Connack {
                        session_present: false,
                        reason: ReasonCode::SUCCESS,
                        properties: properties.as_properties(),
                    };
                    out.extend(crate::wire::encoded(&Packet::Connack(accepted), connect.version)?);
                    let mut state = lock(state);
                    state.connects += 1;
                    let newest = (socket.try_clone()?, connect.version);
                    if let Some((before, _)) = state.sockets.insert(client_id.clone(), newest) {
                        let _ = before.shutdown(std::net::Shutdown::Both); // it may be gone already
                    }
                }
                _ if version.is_none() => return Err(breach("a packet before CONNECT")),
                Packet::Publish(publish) => {
                    if publish.qos == QoS::ExactlyOnce {
                        return Err(breach("QoS 2"));
                    }
                    rules.publish(&client_id, &publish).map_err(breach)?;
                    lock(state).taken.push(Taken {
                        topic: publish.topic.to_owned(),
                        payload: publish.payload.to_vec(),
                        retain: publish.retain,
                    });
                    if publish.qos == QoS::AtLeastOnce {
                        let ack = Ack {
                            packet_id: publish.packet_id,
                            reason: ReasonCode::SUCCESS,
                            properties: Properties::EMPTY,
                        };
                        out.extend(crate::wire::encoded(&Packet::Puback(ack), spoken)?);
                    }
                }
                Packet::Subscribe(subscribe) => {
                    let filters: Vec<(String, QoS)> = subscribe
                        .filters
                        .iter()
                        .map(|(filter, options)| (filter.to_owned(), options.qos))
                        .collect();
                    rules.subscribe(&client_id, &filters).map_err(breach)?;
                    let reasons: Vec<u8> = filters.iter().map(|(_, qos)| u8::from(*qos)).collect();
                    let suback = Suback {
                        packet_id: subscribe.packet_id,
                        properties: Properties::EMPTY,
                        reasons: &reasons,
                    };
                    out.extend(crate::wire::encoded(&Packet::Suback(suback), spoken)?);
                    let granted = filters.into_iter().map(|(filter, _)| (client_id.clone(), filter));
                    lock(state).subscribed.extend(granted);
                }
                Packet::Pingreq => out.extend(crate::wire::encoded(&Packet::Pingresp, spoken)?),
                Packet::Puback(_) => {}
                Packet::Disconnect(_) => return Ok(()),
                other => return Err(breach(format!("{other:?} is not for this broker"))),
            }
        }
        bytes.drain(..used);
        socket.write_all(&out)?;
        if ends_s.is_some_and(|ends_s| wall_s() >= ends_s) {
            return Err(breach("the token has ended"));
        }
        match socket.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(size) => bytes.extend_from_slice(&buffer[..size]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
}
