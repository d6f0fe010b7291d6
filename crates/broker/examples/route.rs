//! Messages from one publisher to one subscriber through a shard, for a profiler: `route 0|1 MESSAGES`.
//!
//! `valgrind --tool=callgrind` on two numbers of messages tells the instructions of one: the difference, divided.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for developers")]

use ferrule_broker::hook::{Everyone, NoHook};
use ferrule_broker::shard::Parts;
use ferrule_broker::{Limits, Place, Shard};
use ferrule_outbox::Policy;
use ferrule_store::{MemoryStore, Now, Restored};
use std::time::Instant;

/// Messages in one turn: what a busy worker reads of one connection.
const TURN: u64 = 32;

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>().unwrap());
    let (qos, messages) = (args.next().unwrap_or(0) as u8, args.next().unwrap_or(1_000_000));
    assert!(qos < 2, "QoS 2 needs more than two packets");
    let mut now = Now { mono_us: 1, wall_ms: 1 };
    let (hook, store, gate) = (NoHook, MemoryStore::new(), Box::new(Everyone));
    let parts = Parts {
        hook,
        store,
        gate,
        limits: Limits::default(),
        features: std::sync::Arc::default(),
        policy: Policy::EDGE,
        seed: 1,
        place: Place::ALONE,
    };
    let mut shard = Shard::new(parts, &Restored::default(), now);
    let peer = "127.0.0.1".parse().unwrap();
    let (p, s) = (shard.open(peer, 0, now).unwrap(), shard.open(peer, 0, now).unwrap());
    let taken = [
        shard.receive(p, b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01p", now),
        shard.receive(s, b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01s", now),
        shard.receive(s, &[b"\x82\x16\0\x01\0\x11floor/+/temperatu".as_slice(), &[qos]].concat(), now),
    ];
    assert_eq!(taken, [15, 15, 24]);
    shard.output(s).unwrap().clear();
    let (mut dirty, mut out, mut acks) = (Vec::new(), 0, Vec::new());
    let mut input = Vec::new();
    let start = Instant::now();
    let mut packet_id = 0_u16;
    for _ in 0..messages / TURN {
        now.mono_us += 10;
        input.clear();
        for _ in 0..TURN {
            let topic = b"floor/17/temperatu";
            input.extend_from_slice(&[
                0x30 | qos << 1,
                2 + topic.len() as u8 + 64 + if qos > 0 { 2 } else { 0 },
                0,
                topic.len() as u8,
            ]);
            input.extend_from_slice(topic);
            if qos > 0 {
                packet_id = packet_id % 65_535 + 1;
                input.extend_from_slice(&packet_id.to_be_bytes());
            }
            input.extend_from_slice(&[b'x'; 64]);
        }
        assert_eq!(shard.receive(p, &input, now), input.len());
        if qos > 0 {
            assert_eq!(shard.receive(s, &acks, now), acks.len());
            acks.clear();
        }
        shard.end_turn(now);
        shard.take_dirty(&mut dirty);
        for conn in dirty.drain(..) {
            let bytes = shard.output(conn).unwrap();
            out += bytes.len();
            if conn == s && qos > 0 {
                for packet in bytes.chunks_exact(4 + 18 + 2 + 64) {
                    acks.extend_from_slice(&[0x40, 2, packet[22], packet[23]]);
                }
            }
            bytes.clear();
            shard.wrote(conn, now);
        }
    }
    let took = start.elapsed();
    println!(
        "QoS {qos}: {messages} messages, {out} bytes out, {:.0} ns a message",
        took.as_nanos() as f64 / messages as f64
    );
    println!("{:?}", shard.stats());
}
