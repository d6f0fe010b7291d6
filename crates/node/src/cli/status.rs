//! A [`Status`] as people read it.

use crate::control::{CertificateStatus, DrainStatus, Status};
use serde_json::{Map, Value};
use std::fmt::Write;

/// The whole text, with a line end.
pub(super) fn render(s: &Status) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_status(&mut out, s);
    out
}

fn write_status(out: &mut String, s: &Status) -> std::fmt::Result {
    writeln!(out, "ferrule-{} {} {:?}, up {}, process {}", s.role, s.version, s.id, age(s.uptime_ms), s.pid)?;
    writeln!(out, "data folder  {}", s.data_dir)?;
    for listener in &s.listeners {
        writeln!(
            out,
            "listener     {} {}, {} accepted",
            listener.protocol, listener.bind, listener.accepted
        )?;
        for certificate in &listener.certificates {
            let (names, days) = (certificate.names.join(", "), certificate.days_left);
            writeln!(out, "             certificate for {names}, {days} days left: {}", certificate.file)?;
        }
        if let Some(error) = &listener.error {
            writeln!(out, "             the certificates on disk are not in force: {error}")?;
        }
    }
    writeln!(out, "clients      {} connected, {} sessions", s.connections, s.sessions)?;
    if let Some(drain) = &s.drain {
        writeln!(out, "             {}", drained(drain))?;
    }
    if let Some(uplink) = &s.uplink {
        writeln!(
            out,
            "uplink       {}: {} for {}, {} acknowledged, {} in flight",
            uplink.url,
            uplink.state,
            age(uplink.since_ms),
            uplink.acknowledged,
            uplink.in_flight
        )?;
        if uplink.backlog > 0 {
            let (messages, size) = (uplink.backlog, bytes(uplink.backlog_bytes));
            writeln!(out, "             backlog: {messages} messages, {size}, lag {}", age(uplink.lag_ms))?;
        }
        if uplink.answer_us > 0 {
            writeln!(out, "             acknowledged after {}", micros(uplink.answer_us))?;
        }
        for CertificateStatus { subject, days_left, file, .. } in &uplink.certificates {
            writeln!(out, "             certificate of {subject}, {days_left} days left: {file}")?;
        }
        if let Some(error) = &uplink.certificate_error {
            writeln!(out, "             the certificates on disk are not in force: {error}")?;
        }
        if let Some(error) = &uplink.last_error {
            writeln!(out, "             last error: {error}")?;
        }
    }
    if let Some(store) = &s.store {
        write!(out, "store        {}: {}, ", store.path, store.state)?;
        if store.backend != "postgres" {
            write!(out, "{} used, {} free, ", bytes(store.bytes), bytes(store.free_bytes))?;
        }
        writeln!(out, "{} commits of {}", store.commits, micros(store.commit_us))?;
        if let Some(error) = &store.last_error {
            writeln!(out, "             last error: {error}")?;
        }
    }
    if let Some(cluster) = &s.cluster {
        let standing = match (cluster.live, cluster.acknowledges) {
            (true, true) => "live",
            (true, false) => "live, acknowledges nothing: it has lost touch with a member",
            (false, _) => "joining: it acknowledges nothing yet, and no SUBACK leaves",
        };
        writeln!(out, "cluster      {}: node {}, {standing}", cluster.name, cluster.node)?;
        for member in &cluster.members {
            let link = if member.linked { "linked" } else { "no link" };
            let (name, number, state) = (&member.name, member.node, &member.state);
            let addresses = member.addresses.join(" ");
            writeln!(out, "             {name} (node {number}): {state}, {link}, {addresses}")?;
            if let Some(trouble) = &member.trouble {
                writeln!(out, "               {trouble}")?;
            }
        }
        if let Some(error) = &cluster.certificate_error {
            writeln!(out, "             the certificates on disk are not in force: {error}")?;
        }
        if let Some(trouble) = &cluster.trouble {
            writeln!(out, "             {trouble}")?;
        }
    }
    if !s.outboxes.is_empty() {
        let mut table = Table::new([
            "outbox",
            "state",
            "entered",
            "recovered",
            "delivered",
            "failed",
            "in flight",
            "queued",
            "discarded",
            "bytes",
            "oldest",
        ]);
        for o in &s.outboxes {
            let mut row = vec![o.name.clone(), o.state.clone()];
            let counts = [o.entered, o.recovered, o.delivered, o.failed, o.in_flight, o.queued, o.discarded];
            row.extend(counts.map(|n| n.to_string()));
            row.extend([bytes(o.bytes), if o.queued == 0 { "-".to_owned() } else { age(o.oldest_ms) }]);
            table.row(row, notes(&o.discarded_by, o.last_error.as_deref()));
        }
        table.write(out)?;
    }
    if !s.rules.is_empty() {
        let mut table = Table::new(["rule", "state", "matched", "passed", "filtered", "failed", "rows out"]);
        for r in &s.rules {
            let mut row = vec![r.name.clone(), r.state.clone()];
            row.extend([r.matched, r.passed, r.filtered, r.failed, r.rows_out].map(|n| n.to_string()));
            table.row(row, notes(&r.failed_by, r.last_error.as_deref()));
        }
        table.write(out)?;
    }
    if let Some(error) = &s.rules_error {
        writeln!(out, "\nthe rules on disk are not in force: {error}")?;
    }
    if let Some(error) = &s.reload.error {
        writeln!(out, "\nthe configuration on disk is not in force: {error}")?;
    }
    for change in &s.reload.needs_restart {
        writeln!(out, "\n{change}")?;
    }
    if !s.counters.is_empty() {
        let mut table = Table::new(["counter", ""]);
        for (name, value) in &s.counters {
            table.row(vec![name.clone(), value.to_string()], None);
        }
        table.write(out)?;
    }
    Ok(())
}

/// How far clients are moved off.
pub(super) fn drained(drain: &DrainStatus) -> String {
    let DrainStatus { draining, rate, clients, moved, wills } = drain;
    let mut text = match (draining, clients) {
        (false, _) => "not draining any more".to_owned(),
        (true, 0) => format!("draining: no client is left, {moved} have been moved off"),
        (true, 1) => format!("draining: 1 client is left, {moved} have been moved off, {rate} a second"),
        (true, _) => {
            format!("draining: {clients} clients are left, {moved} have been moved off, {rate} a second")
        }
    };
    match wills {
        0 => {}
        1 => text += "; 1 will waits for news of its client",
        _ => text += &format!("; {wills} wills wait for news of their clients"),
    }
    text
}

/// What does not fit a column.
fn notes(by_reason: &Map<String, Value>, last_error: Option<&str>) -> Option<String> {
    let mut parts: Vec<String> = by_reason.iter().map(|(reason, n)| format!("{reason}: {n}")).collect();
    parts.extend(last_error.map(|e| format!("last error: {e}")));
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// Columns as wide as their widest cell; the first two to the left, numbers to the right.
pub(super) struct Table {
    rows: Vec<(Vec<String>, Option<String>)>,
}

impl Table {
    pub(super) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![(head.map(str::to_owned).to_vec(), None)] }
    }

    pub(super) fn row(&mut self, cells: Vec<String>, note: Option<String>) {
        self.rows.push((cells, note));
    }

    pub(super) fn write(&self, out: &mut String) -> std::fmt::Result {
        let columns = self.rows[0].0.len();
        let width = |i: usize| self.rows.iter().map(|(row, _)| row[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        writeln!(out)?;
        for (row, note) in &self.rows {
            let mut line = String::new();
            for (i, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                match i {
                    0 => write!(line, "{cell:<width$}")?,
                    1 if columns > 2 => write!(line, "  {cell:<width$}")?,
                    _ => write!(line, "  {cell:>width$}")?,
                }
            }
            writeln!(out, "{}", line.trim_end())?;
            if let Some(note) = note {
                writeln!(out, "  {note}")?;
            }
        }
        Ok(())
    }
}

/// The two largest units: `3d 4h`, `5m 2s`, `900ms`.
pub(super) fn age(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{s}s"),
        60..3_600 => format!("{}m {}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h {}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// Three digits or so: `12.3 MiB`.
pub(super) fn bytes(n: u64) -> String {
    let (mut value, mut unit) = (n as f64, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1_024.0 {
            break;
        }
        (value, unit) = (value / 1_024.0, larger);
    }
    if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") }
}

fn micros(us: u64) -> String {
    if us < 1_000 { format!("{us} us") } else { format!("{:.1} ms", us as f64 / 1_000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{
        CertificateStatus, ClusterStatus, ListenerStatus, MemberStatus, OutboxStatus, RuleStatus,
        StoreStatus, UplinkStatus,
    };

    #[test]
    fn a_whole_status() {
        let by = |reason: &str, n: u64| Map::from_iter([(reason.to_owned(), Value::from(n))]);
        let status = Status {
            role: "edge".into(),
            version: "0.1.0".into(),
            id: "press-7".into(),
            pid: 42,
            uptime_ms: 93_784_000,
            data_dir: "/var/lib/ferrule".into(),
            listeners: vec![ListenerStatus {
                bind: "0.0.0.0:8883".into(),
                protocol: "mqtts".into(),
                accepted: 7,
                certificates: vec![CertificateStatus {
                    file: "server.crt".into(),
                    names: vec!["broker.example".into(), "b2".into()],
                    days_left: 29,
                    ..CertificateStatus::default()
                }],
                error: Some("server.key: it is no key".into()),
                ..ListenerStatus::default()
            }],
            connections: 3,
            sessions: 5,
            uplink: Some(UplinkStatus {
                url: "mqtt://cloud:1883".into(),
                state: "waiting".into(),
                since_ms: 61_000,
                acknowledged: 900,
                backlog: 118,
                backlog_bytes: 30_000,
                lag_ms: 60_500,
                answer_us: 12_300,
                last_error: Some("connection refused".into()),
                certificates: vec![CertificateStatus {
                    file: "client.crt".into(),
                    subject: "CN=press-7".into(),
                    days_left: 12,
                    ..CertificateStatus::default()
                }],
                certificate_error: Some("client.key: it does not fit".into()),
                ..UplinkStatus::default()
            }),
            outboxes: vec![
                OutboxStatus {
                    name: "cloud".into(),
                    state: "down".into(),
                    entered: 1_000,
                    recovered: 20,
                    delivered: 900,
                    queued: 118,
                    discarded: 2,
                    discarded_by: by("too_large", 2),
                    bytes: 30_000,
                    oldest_ms: 60_500,
                    ..OutboxStatus::default()
                },
                OutboxStatus { name: "telemetry".into(), state: "up".into(), ..OutboxStatus::default() },
            ],
            rules: vec![RuleStatus {
                name: "overheating".into(),
                state: "running".into(),
                matched: 1_000,
                passed: 990,
                failed: 10,
                failed_by: by("null_in_target", 10),
                last_error: Some("`line` is NULL".into()),
                rows_out: 990,
                ..RuleStatus::default()
            }],
            store: Some(StoreStatus {
                state: "ok".into(),
                path: "/var/lib/ferrule/ferrule.db".into(),
                bytes: 5 << 20,
                commits: 77,
                commit_us: 12_300,
                free_bytes: 3 << 30,
                ..StoreStatus::default()
            }),
            cluster: Some(ClusterStatus {
                name: "ferrule".into(),
                node: 1,
                live: true,
                members: vec![
                    MemberStatus {
                        name: "cloud-1".into(),
                        node: 1,
                        state: "live".into(),
                        addresses: vec!["10.0.0.5:7883".into()],
                        linked: true,
                        ..MemberStatus::default()
                    },
                    MemberStatus {
                        name: "cloud-2".into(),
                        node: 2,
                        state: "live".into(),
                        addresses: vec!["10.0.0.6:7883".into()],
                        trouble: Some("connection refused".into()),
                        ..MemberStatus::default()
                    },
                ],
                ..ClusterStatus::default()
            }),
            ..Status::default()
        };
        let expected = "\
ferrule-edge 0.1.0 \"press-7\", up 1d 2h, process 42
data folder  /var/lib/ferrule
listener     mqtts 0.0.0.0:8883, 7 accepted
             certificate for broker.example, b2, 29 days left: server.crt
             the certificates on disk are not in force: server.key: it is no key
clients      3 connected, 5 sessions
uplink       mqtt://cloud:1883: waiting for 1m 1s, 900 acknowledged, 0 in flight
             backlog: 118 messages, 29.3 KiB, lag 1m 0s
             acknowledged after 12.3 ms
             certificate of CN=press-7, 12 days left: client.crt
             the certificates on disk are not in force: client.key: it does not fit
             last error: connection refused
store        /var/lib/ferrule/ferrule.db: ok, 5.0 MiB used, 3.0 GiB free, 77 commits of 12.3 ms
cluster      ferrule: node 1, live, acknowledges nothing: it has lost touch with a member
             cloud-1 (node 1): live, linked, 10.0.0.5:7883
             cloud-2 (node 2): live, no link, 10.0.0.6:7883
               connection refused

outbox     state  entered  recovered  delivered  failed  in flight  queued  discarded     bytes  oldest
cloud      down      1000         20        900       0          0     118          2  29.3 KiB   1m 0s
  too_large: 2
telemetry  up           0          0          0       0          0       0          0       0 B       -

rule         state    matched  passed  filtered  failed  rows out
overheating  running     1000     990         0      10       990
  null_in_target: 10, last error: `line` is NULL
";
        assert_eq!(render(&status), expected);
    }

    #[test]
    fn what_is_missing_is_zero_and_what_is_unknown_is_passed_over() {
        let status: Status = serde_json::from_str(r#"{"role":"edge","new":1,"outboxes":[{"name":"x"}]}"#)
            .expect("an older or newer process");
        assert!(render(&status).contains("\nx "));
    }

    #[test]
    fn ages_and_sizes() {
        for (ms, text) in
            [(0, "0ms"), (999, "999ms"), (1_000, "1s"), (3_599_999, "59m 59s"), (3_600_000, "1h 0m")]
        {
            assert_eq!(age(ms), text);
        }
        for (n, text) in [(0, "0 B"), (1_023, "1023 B"), (1_024, "1.0 KiB"), (1 << 40, "1.0 TiB")] {
            assert_eq!(bytes(n), text);
        }
    }
}
