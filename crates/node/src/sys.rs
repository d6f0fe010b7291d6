//! `$SYS` topics: what a node knows of itself, under the names that mosquitto's and EMQX's users know.
//!
//! Every `sys_interval` the workers' counts are summed up, as `status` has them, and each worker gets the topics: it keeps the last
//! value for whoever subscribes, and tells its own subscribers. What names the node (`$SYS/brokers/<id>/...`) goes to subscribers at the other
//! nodes of its cluster as well, who would else have to know which node a load balancer has taken them to. Nothing of it goes to the store, and
//! nobody else may publish there. Who may read is the access lists' matter: `$SYS/#` has to be named, since `#` does not match it
//! [MQTT-4.7.2-1].
//!
//! Counts are of publishes; mosquitto's `messages/...`, which count packets of every kind, are not there.

use crate::control::Status;
use crate::hub::HubMessage;
use crate::memory;
use ferrule_broker::SysTopic;
use ferrule_net::{Inbox, Mail};
use std::sync::Arc;

/// What is not in one snapshot.
#[derive(Debug, Default)]
pub struct Sys {
    connections_max: u64,
}

impl Sys {
    /// All topics, from a snapshot; `resident`: bytes of memory, when they are known.
    pub fn topics(&mut self, status: &Status, resident: Option<u64>, now_ms: i64) -> Vec<SysTopic> {
        self.connections_max = self.connections_max.max(status.connections);
        let count = |name: &str| status.counters.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let dropped = ["slow", "pool", "full", "full_bytes", "too_large", "expired", "shared"]
            .map(|reason| count(&format!("dropped_{reason}")))
            .iter()
            .sum::<u64>();
        let (connected, sessions) = (status.connections, status.sessions.max(status.connections));
        let version = format!("ferrule-{} {}", status.role, status.version);
        let seconds = status.uptime_ms / 1_000;
        let datetime = jiff::Timestamp::from_millisecond(now_ms).unwrap_or_default();
        let mut topics: Vec<SysTopic> = Vec::new();
        let node = format!("$SYS/brokers/{}", status.id);
        let mut add = |topic: String, value: String| {
            let everywhere = topic.strip_prefix(&node).is_some_and(|rest| rest.starts_with('/'));
            topics.push(SysTopic { topic: topic.into(), value: value.into_bytes().into(), everywhere });
        };

        let mut broker = |name: &str, value: String| add(format!("$SYS/broker/{name}"), value);
        broker("version", version.clone());
        broker("uptime", format!("{seconds} seconds"));
        for (name, value) in [
            ("clients/total", sessions),
            ("clients/connected", connected),
            ("clients/active", connected),
            ("clients/disconnected", sessions - connected),
            ("clients/inactive", sessions - connected),
            ("clients/maximum", self.connections_max),
            ("publish/messages/received", count("received")),
            ("publish/messages/sent", count("sent")),
            ("publish/messages/dropped", dropped),
            ("bytes/received", count("bytes_in")),
            ("bytes/sent", count("bytes_out")),
            ("retained messages/count", status.retained),
            ("subscriptions/count", status.subscriptions),
        ] {
            broker(name, value.to_string());
        }
        if let Some(resident) = resident {
            broker("heap/current", resident.to_string());
        }

        add("$SYS/brokers".to_owned(), live_nodes(status));
        for (name, value) in [
            ("version", status.version.clone()),
            ("sysdescr", version),
            ("uptime", status.uptime_ms.to_string()),
            ("datetime", datetime.to_string()),
        ] {
            add(format!("{node}/{name}"), value);
        }
        for (name, value) in [
            ("stats/connections/count", connected),
            ("stats/connections/max", self.connections_max),
            ("stats/sessions/count", sessions),
            ("stats/subscriptions/count", status.subscriptions),
            ("stats/retained/count", status.retained),
            ("metrics/bytes/received", count("bytes_in")),
            ("metrics/bytes/sent", count("bytes_out")),
            ("metrics/messages/received", count("received")),
            ("metrics/messages/sent", count("sent")),
            ("metrics/messages/acked", count("acknowledged")),
            ("metrics/messages/dropped", dropped),
        ] {
            add(format!("{node}/{name}"), value.to_string());
        }
        topics
    }

    /// Gives all workers a new snapshot's topics.
    pub fn tell(&mut self, status: &Status, now_ms: i64, inboxes: &[Inbox<HubMessage>]) {
        let topics: Arc<[SysTopic]> = self.topics(status, memory::resident(), now_ms).into();
        inboxes.iter().for_each(|inbox| inbox.post(Mail::App(HubMessage::Sys(Arc::clone(&topics)))));
    }
}

/// The ids of the nodes that serve; if none is known to, of this one.
fn live_nodes(status: &Status) -> String {
    let members = status.cluster.iter().flat_map(|cluster| &cluster.members);
    let live: Vec<_> = members.filter(|member| member.state == "live").map(|member| &*member.name).collect();
    if live.is_empty() { status.id.clone() } else { live.join(",") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::control::{ClusterStatus, MemberStatus};

    #[test]
    fn what_other_nodes_hear_names_this_one() {
        let member = |name: &str, state: &str| MemberStatus {
            name: name.to_owned(),
            state: state.to_owned(),
            ..MemberStatus::default()
        };
        let members = vec![member("a", "live"), member("b", "live"), member("c", "joining")];
        let cluster = Some(ClusterStatus { members, ..ClusterStatus::default() });
        let status = Status { id: "b".to_owned(), cluster, ..Status::default() };
        let topics = Sys::default().topics(&status, None, 0);
        for SysTopic { topic, value, everywhere } in &topics {
            assert_eq!(*everywhere, topic.starts_with("$SYS/brokers/b/"), "{topic}");
            assert!(&**topic != "$SYS/brokers" || value == "a,b", "{value:?}");
        }
        assert!(topics.iter().any(|said| said.everywhere) && topics.iter().any(|said| !said.everywhere));
    }

    #[test]
    fn names_that_others_users_know() {
        let mut status = Status {
            role: "edge".to_owned(),
            version: "1.2.3".to_owned(),
            id: "edge-1".to_owned(),
            uptime_ms: 61_500,
            connections: 7,
            sessions: 9,
            ..Status::default()
        };
        for (name, value) in
            [("received", 100), ("dropped_slow", 2), ("dropped_expired", 3), ("bytes_in", 5_000)]
        {
            status.counters.insert(name.to_owned(), value.into());
        }
        let mut sys = Sys::default();
        let get = |topics: &[SysTopic], name: &str| {
            let found = topics.iter().find(|said| &*said.topic == name);
            let SysTopic { value, .. } = found.unwrap_or_else(|| panic!("no {name}"));
            String::from_utf8(value.to_vec()).unwrap()
        };
        sys.topics(&status, None, 0);
        status.connections = 4;
        let topics = sys.topics(&status, Some(1 << 20), 0);
        for (name, value) in [
            ("$SYS/broker/version", "ferrule-edge 1.2.3"),
            ("$SYS/broker/uptime", "61 seconds"),
            ("$SYS/broker/clients/total", "9"),
            ("$SYS/broker/clients/connected", "4"),
            ("$SYS/broker/clients/disconnected", "5"),
            ("$SYS/broker/clients/maximum", "7"),
            ("$SYS/broker/publish/messages/received", "100"),
            ("$SYS/broker/publish/messages/dropped", "5"),
            ("$SYS/broker/heap/current", "1048576"),
            ("$SYS/brokers", "edge-1"),
            ("$SYS/brokers/edge-1/uptime", "61500"),
            ("$SYS/brokers/edge-1/datetime", "1970-01-01T00:00:00Z"),
            ("$SYS/brokers/edge-1/stats/connections/max", "7"),
            ("$SYS/brokers/edge-1/metrics/bytes/received", "5000"),
        ] {
            assert_eq!(get(&topics, name), value, "{name}");
        }
    }
}
