//! Makes the dictionary that batches are compressed with, from generated data of gateways: `cargo run -p ferrule-batch --example
//! train -- FILE`. The same program makes the same file. No test and no benchmark sends what is generated here.
//!
//! What gateways send differs in everything but habits: readings as JSON objects, camel or snake case, times as RFC 3339 or in
//! milliseconds, names of quantities and units, topics by site, line and device. So each sample draws a gateway with habits of its
//! own, and then a few of its messages.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a tool for the command line")]

use ferrule_batch::{Encoder, Item, dictionary};
use ferrule_mqtt::Properties;
use ferrule_store::{Boot, MessageId};

/// Bytes of a dictionary: more hardly helps one message, and every edge keeps it in memory.
const SIZE: usize = 16 * 1024;

/// Gateways that are drawn.
const SAMPLES: usize = 6_000;

const QUANTITIES: &[&str] = &[
    "temperature",
    "humidity",
    "pressure",
    "voltage",
    "current",
    "power",
    "energy",
    "frequency",
    "speed",
    "rpm",
    "torque",
    "vibration",
    "level",
    "flow",
    "co2",
    "battery",
    "rssi",
    "position",
    "weight",
    "count",
    "latitude",
    "longitude",
    "altitude",
    "acceleration_x",
    "acceleration_y",
    "acceleration_z",
    "setpoint",
    "output",
    "noise",
    "illuminance",
    "ph",
    "conductivity",
    "uptime",
    "cycle_time",
    "good_count",
    "reject_count",
    "oil_temperature",
    "load",
    "fan_speed",
    "signal",
    "temp",
    "hum",
    "press",
    "volt",
    "amp",
    "value",
];
const UNITS: &[&str] = &[
    "C", "°C", "%", "bar", "hPa", "V", "A", "kW", "kWh", "Hz", "rpm", "mm/s", "l/min", "ppm", "dBm", "kg",
    "lux",
];
const STATES: &[&str] = &[
    "running",
    "idle",
    "stopped",
    "fault",
    "ok",
    "warning",
    "alarm",
    "online",
    "offline",
    "open",
    "closed",
    "auto",
    "manual",
    "maintenance",
    "on",
    "off",
    "good",
    "bad",
    "active",
    "inactive",
];
const STATE_NAMES: &[&str] = &["status", "state", "mode", "quality", "alarm", "health"];
const TIMES: &[&str] = &["ts", "timestamp", "time", "t", "datetime", "measured_at", "eventTime", "created"];
const IDS: &[&str] =
    &["device", "deviceId", "device_id", "id", "sensor", "sensorId", "machine", "asset", "name", "serial"];
const PLACES: &[&str] =
    &["site", "line", "area", "zone", "building", "room", "location", "plant", "cell", "location_id"];
const THINGS: &[&str] = &[
    "sensor",
    "press",
    "pump",
    "motor",
    "robot",
    "meter",
    "plc",
    "valve",
    "boiler",
    "chiller",
    "conveyor",
    "gateway",
    "inverter",
    "machine",
    "device",
    "compressor",
    "oven",
    "tank",
    "station",
    "node",
];
const TOPICS: &[&str] = &[
    "factory/{place}/{thing}/{what}",
    "plant/{place}/line/{n}/{thing}/telemetry",
    "devices/{thing}/messages/events/",
    "sensors/{thing}/{what}",
    "building/{place}/floor/{n}/room/{m}/{what}",
    "site/{place}/{thing}/data",
    "telemetry/{thing}",
    "v1/devices/{thing}/telemetry",
    "{place}/{thing}/status",
    "energy/meter/{n}/{what}",
    "machines/{thing}/state",
    "zigbee2mqtt/{thing}",
    "tele/{thing}/SENSOR",
    "home/{place}/{what}",
    "data/{place}/{thing}",
    "iot/{thing}/up",
    "application/{n}/device/{thing}/event/up",
    "enterprise/{place}/area/line/{thing}",
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

/// What one gateway's messages have in common.
struct Habits {
    topic: String,
    client: String,
    user: Option<String>,
    spaces: bool,
    camel: bool,
    fields: Vec<Field>,
}

enum Field {
    Time(&'static str, bool),
    Id(&'static str),
    Place(&'static str, String),
    Quantity(String, usize, f64),
    Measured(String, &'static str),
    State(&'static str),
    Sequence,
}

fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + &part[..1].to_uppercase() + &part[1..])
}

fn habits(random: &mut Random) -> Habits {
    let thing = match random.below(4) {
        0 => format!("{}-{}", random.of(THINGS), random.below(100)),
        1 => format!("{}-{:04}", random.of(THINGS), random.below(10_000)),
        2 => format!("{}_{}", random.of(THINGS), random.below(1_000)),
        _ => format!("{:012x}", random.next() >> 16),
    };
    let place = format!("{}-{}", random.of(PLACES), random.below(20) + 1);
    let topic = random
        .of(TOPICS)
        .replace("{place}", &place)
        .replace("{thing}", &thing)
        .replace("{what}", random.of(QUANTITIES))
        .replace("{n}", &random.below(50).to_string())
        .replace("{m}", &random.below(400).to_string());
    let mut fields = Vec::new();
    if random.below(4) > 0 {
        fields.push(Field::Id(random.of(IDS)));
    }
    if random.below(3) == 0 {
        fields.push(Field::Place(random.of(PLACES), place));
    }
    if random.below(8) > 0 {
        fields.insert(random.below(fields.len() + 1), Field::Time(random.of(TIMES), random.below(2) == 0));
    }
    let is_camel = random.below(3) == 0;
    for _ in 0..=random.below(6) {
        let name = random.of(QUANTITIES);
        let name = if is_camel { camel(name) } else { name.to_owned() };
        let scale = [1.0, 10.0, 100.0, 1_000.0][random.below(4)];
        fields.push(match random.below(6) {
            0 => Field::Measured(name, random.of(UNITS)),
            _ => Field::Quantity(name, random.below(4), scale),
        });
    }
    if random.below(2) == 0 {
        fields.push(Field::State(random.of(STATE_NAMES)));
    }
    if random.below(3) == 0 {
        fields.push(Field::Sequence);
    }
    let user = (random.below(3) == 0)
        .then(|| random.of(&["sensors", "devices", "gateway", "plc", "mqtt"]).to_owned());
    Habits { topic, client: thing, user, spaces: random.below(4) == 0, camel: is_camel, fields }
}

fn payload(habits: &Habits, number: u64, at_ms: i64, random: &mut Random) -> String {
    let (colon, comma) = if habits.spaces { (": ", ", ") } else { (":", ",") };
    let time = |ms: i64| {
        // 2025-MM-DD: near enough to a calendar for a dictionary.
        let day = ms / 86_400_000;
        format!(
            "2026-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            day / 28 % 12 + 1,
            day % 28 + 1,
            ms / 3_600_000 % 24,
            ms / 60_000 % 60,
            ms / 1_000 % 60,
            ms % 1_000
        )
    };
    let parts: Vec<String> = habits
        .fields
        .iter()
        .map(|field| match field {
            Field::Time(name, true) => format!("\"{name}\"{colon}\"{}\"", time(at_ms)),
            Field::Time(name, false) => format!("\"{name}\"{colon}{at_ms}"),
            Field::Id(name) => format!("\"{name}\"{colon}\"{}\"", habits.client),
            Field::Place(name, place) => format!("\"{name}\"{colon}\"{place}\""),
            Field::Quantity(name, digits, scale) => {
                let value = random.below(10_000) as f64 / 10_000.0 * scale;
                format!("\"{name}\"{colon}{value:.digits$}")
            }
            Field::Measured(name, unit) => {
                let value = random.below(10_000) as f64 / 100.0;
                format!("\"{name}\"{colon}{{\"value\"{colon}{value}{comma}\"unit\"{colon}\"{unit}\"}}")
            }
            Field::State(name) if random.below(3) == 0 => format!("\"{name}\"{colon}true"),
            Field::State(name) => format!("\"{name}\"{colon}\"{}\"", random.of(STATES)),
            Field::Sequence => format!("\"{}\"{colon}{number}", if habits.camel { "msgId" } else { "seq" }),
        })
        .collect();
    format!("{{{}}}", parts.join(comma))
}

fn main() {
    let file = std::env::args().nth(1).unwrap_or_else(|| "dictionary.zdict".to_owned());
    let mut random = Random(20_260_101);
    let mut encoder = Encoder::new(usize::MAX, false).unwrap();
    let (mut samples, mut sizes) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        let habits = habits(&mut random);
        let boot = Boot::new(random.next());
        let mut number = random.next() % 1_000_000;
        let mut at_ms = 1_767_225_600_000 + (random.next() % 31_536_000_000) as i64;
        for _ in 0..[1, 1, 1, 2, 4][random.below(5)] {
            number += 1;
            at_ms += random.below(1_000) as i64;
            let payload = payload(&habits, number, at_ms - 3, &mut random);
            let item = Item {
                acknowledged: true,
                retain: false,
                topic: &habits.topic,
                id: MessageId { boot, class: 0, seq: number },
                client_id: &habits.client,
                username: habits.user.as_deref(),
                at_ms,
                synced: true,
                age_ms: random.below(60) as u64,
                hops: 1,
                late: false,
                properties: Properties::EMPTY,
                payload: payload.as_bytes(),
            };
            assert!(encoder.push(&item));
        }
        let body = &encoder.finish()[2..];
        samples.extend_from_slice(body);
        sizes.push(body.len());
    }
    let trained = zstd::dict::from_continuous(&samples, &sizes, SIZE).unwrap();
    std::fs::write(&file, &trained).unwrap();
    println!(
        "{file}: {} bytes from {} bytes of samples, check {:#010x}",
        trained.len(),
        samples.len(),
        dictionary::check(&trained)
    );
}
