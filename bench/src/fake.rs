//! A broker for the generator's own tests: exact topics and `prefix/+`, all QoS, and faults on demand.
//!
//! A thread a connection; deliveries go straight to the subscribers' sockets under one lock. It does not check anything.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// What it does wrong, on every n-th delivery, counted over all subscribers.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    None,
    /// Acknowledged and not delivered.
    Drop(u64),
    /// Delivered twice.
    Repeat(u64),
    /// Delivered after the next one.
    Swap(u64),
    /// The publisher's connection ends.
    Close(u64),
    /// CONNACK 5.
    Refuse,
}

struct Subscriber {
    filter: String,
    qos: u8,
    v5: bool,
    socket: TcpStream,
    /// A frame that waits for the next one.
    held: Vec<u8>,
}

struct Hub {
    fault: Fault,
    subscribers: Vec<Subscriber>,
    deliveries: u64,
}

pub(crate) struct Fake(SocketAddr);

impl Fake {
    /// Starts it on a free port; its threads end with the test process.
    pub(crate) fn start(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback listener");
        let addr = listener.local_addr().expect("a loopback listener");
        let hub = Arc::new(Mutex::new(Hub { fault, subscribers: Vec::new(), deliveries: 0 }));
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let hub = Arc::clone(&hub);
                std::thread::spawn(move || serve(socket, &hub));
            }
        });
        Self(addr)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.0
    }
}

/// Ends when the socket does.
fn serve(mut socket: TcpStream, hub: &Mutex<Hub>) -> Option<()> {
    let mut v5 = false;
    loop {
        let (first, body) = frame(&mut socket)?;
        let mut hub = hub.lock().unwrap_or_else(PoisonError::into_inner);
        let text = |at: usize| {
            let length = usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
            String::from_utf8_lossy(&body[at + 2..at + 2 + length]).into_owned()
        };
        match first >> 4 {
            1 => {
                v5 = body[6] == 5;
                let code = if matches!(hub.fault, Fault::Refuse) { 5 } else { 0 };
                let answer: &[u8] = if v5 { &[0x20, 6, 0, code, 3, 0x21, 0, 3] } else { &[0x20, 2, 0, code] };
                socket.write_all(answer).ok()?;
            }
            8 => {
                let at = 2 + usize::from(v5);
                let qos = *body.last()?;
                let subscriber = Subscriber {
                    filter: text(at),
                    qos,
                    v5,
                    socket: socket.try_clone().ok()?,
                    held: Vec::new(),
                };
                hub.subscribers.push(subscriber);
                let answer: &[u8] = if v5 { &[0x90, 4, 0, 1, 0, qos] } else { &[0x90, 3, 0, 1, qos] };
                socket.write_all(answer).ok()?;
            }
            3 => {
                let topic = text(0);
                let qos = (first >> 1) & 3;
                let mut at = 2 + topic.len();
                if qos > 0 {
                    let kind = if qos == 1 { 0x40 } else { 0x50 };
                    socket.write_all(&[kind, 2, body[at], body[at + 1]]).ok()?;
                    at += 2;
                }
                at += usize::from(v5);
                hub.deliver(&topic, qos, &body[at..])?;
            }
            5 => socket.write_all(&[0x62, 2, body[0], body[1]]).ok()?,
            6 => socket.write_all(&[0x70, 2, body[0], body[1]]).ok()?,
            14 => return None,
            _ => {}
        }
    }
}

impl Hub {
    fn deliver(&mut self, topic: &str, qos: u8, payload: &[u8]) -> Option<()> {
        for subscriber in &mut self.subscribers {
            let matches = match subscriber.filter.strip_suffix('+') {
                Some(prefix) => topic.starts_with(prefix),
                None => topic == subscriber.filter,
            };
            if !matches {
                continue;
            }
            self.deliveries += 1;
            let turn = |every| self.deliveries.is_multiple_of(every);
            let frame = publish(topic, qos.min(subscriber.qos), self.deliveries, subscriber.v5, payload);
            let mut out = Vec::new();
            match self.fault {
                Fault::Drop(every) if turn(every) => continue,
                Fault::Repeat(every) if turn(every) => out.extend([frame.clone(), frame].concat()),
                // The 10th waits for the 11th, the 100th for the end: so the 1st of every ten waits for the 2nd.
                Fault::Swap(every) if turn(every) || self.deliveries % every == 1 => {
                    if self.deliveries % every == 1 {
                        subscriber.held = frame;
                    } else {
                        out = frame;
                    }
                }
                Fault::Close(every) if turn(every) => return None,
                _ => out = frame,
            }
            if !out.is_empty() {
                out.append(&mut subscriber.held);
            }
            // A subscriber that has gone is nobody's fault.
            let _ = subscriber.socket.write_all(&out);
        }
        Some(())
    }
}

fn publish(topic: &str, qos: u8, number: u64, v5: bool, payload: &[u8]) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend_from_slice(topic.as_bytes());
    if qos > 0 {
        body.extend((number as u16).max(1).to_be_bytes());
    }
    if v5 {
        body.push(0);
    }
    body.extend_from_slice(payload);
    assert!(body.len() < 128, "one length byte is enough for these tests");
    [&[0x30 | (qos << 1), body.len() as u8], &body[..]].concat()
}

fn frame(socket: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    socket.read_exact(&mut head).ok()?;
    assert!(head[1] < 128, "one length byte is enough for these tests");
    let mut body = vec![0; usize::from(head[1])];
    socket.read_exact(&mut body).ok()?;
    Some((head[0], body))
}
