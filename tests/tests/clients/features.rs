//! What every client does, and what must come of it.

use std::collections::BTreeSet;

use crate::{Connect, LOGIN, Message, Place, Subject, V3_1, V5, Version};

/// Something that a client can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Feature {
    Qos,
    Retained,
    Wills,
    Shared,
    Sessions,
    Refusals,
    Properties,
    Requests,
    Identifiers,
    AliasesSent,
    AliasesReceived,
}

impl Feature {
    pub(crate) const ALL: [Self; 11] = [
        Self::Qos,
        Self::Retained,
        Self::Wills,
        Self::Shared,
        Self::Sessions,
        Self::Refusals,
        Self::Properties,
        Self::Requests,
        Self::Identifiers,
        Self::AliasesSent,
        Self::AliasesReceived,
    ];

    /// The first version that has it.
    pub(crate) fn since(self) -> Version {
        if self < Self::Properties { V3_1 } else { V5 }
    }

    /// (its name, what is done).
    pub(crate) fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::Qos => (
                "QoS",
                "each QoS published and subscribed to, the lower of the two received, in order; 100 kB by QoS 2",
            ),
            Self::Retained => {
                ("retained", "there for a new subscriber with the flag, without it for an old one; cleared")
            }
            Self::Wills => (
                "wills",
                "a process with a client on each transport is killed: every will comes, with (5) its user property",
            ),
            Self::Shared => ("shared", "`$share`: two members, each message at one of them, both get some"),
            Self::Sessions => {
                ("sessions", "QoS 1 and 2 while away, in order at the return; session present says so")
            }
            Self::Refusals => (
                "refusals",
                "a wrong password, a filter and (5) a topic that the user may not: the reason code arrives",
            ),
            Self::Properties => (
                "properties",
                "user properties in order, content type, response topic, correlation data, message expiry",
            ),
            Self::Requests => {
                ("request, response", "the response goes where the request says, with its data")
            }
            Self::Identifiers => ("identifiers", "overlapping subscriptions: the identifiers of both"),
            Self::AliasesSent => ("aliases sent", "a topic alias set, then used without the topic"),
            Self::AliasesReceived => {
                ("aliases received", "the broker may use aliases: the client knows the topic")
            }
        }
    }

    /// Does it; wills and refusals are apart.
    pub(crate) fn run(self, subject: &mut dyn Subject, place: &Place) {
        let run = match self {
            Self::Qos => qos,
            Self::Retained => retained,
            Self::Shared => shared,
            Self::Sessions => sessions,
            Self::Properties => properties,
            Self::Requests => requests,
            Self::Identifiers => identifiers,
            Self::AliasesSent => aliases_sent,
            Self::AliasesReceived => aliases_received,
            Self::Wills | Self::Refusals => unreachable!("they are not run on one transport"),
        };
        run(subject, place);
    }
}

/// A name for a client: of at most 23 characters, which is all that MQTT 3.1 allows, and one broker sees it once.
fn name(place: &Place, feature: &str, who: &str) -> String {
    format!("{feature}-{}-{who}", place.transport.text())
}

fn topic(place: &Place, feature: &str) -> String {
    format!("t/{}/{feature}", place.transport.text())
}

/// Connects a client with a new session.
fn connect(subject: &mut dyn Subject, who: &str, place: &Place, how: &Connect) {
    let present =
        subject.connect(who, place, how).unwrap_or_else(|code| panic!("{who}: refused with {code}"));
    assert_ne!(present, Some(true), "{who}: a session that nobody made");
}

/// Connects a client and subscribes it to these filters.
fn reader(subject: &mut dyn Subject, who: &str, place: &Place, filters: &[(&str, u8)]) {
    connect(subject, who, place, &Connect::default());
    for (filter, qos) in filters {
        assert_eq!(subject.subscribe(who, filter, *qos, None), *qos, "{who}: granted for {filter}");
    }
}

/// A client that publishes.
fn writer(subject: &mut dyn Subject, place: &Place, feature: &str) -> String {
    let who = name(place, feature, "w");
    connect(subject, &who, place, &Connect::default());
    who
}

fn publish(subject: &mut dyn Subject, who: &str, message: &Message) {
    let code = subject.publish(who, message);
    // 0x10: nobody is subscribed.
    assert!(code == 0 || code == 0x10, "{who}: {} refused with {code}", message.topic);
}

/// The next message of `who`.
fn take(subject: &mut dyn Subject, who: &str) -> Message {
    subject.take(&[who], 1).pop().unwrap().1
}

fn qos(subject: &mut dyn Subject, place: &Place) {
    let (who, topic) = (name(place, "qos", "r"), topic(place, "qos"));
    let topics = [0, 1, 2].map(|qos| (format!("{topic}/{qos}"), qos));
    let filters = [0, 1, 2].map(|n| (topics[n].0.as_str(), topics[n].1));
    reader(subject, &who, place, &filters);
    let writer = writer(subject, place, "qos");
    for (topic, granted) in &topics {
        for qos in 0..3 {
            publish(subject, &writer, &Message::new(topic, &format!("sent by {qos}"), qos));
            let expect = Message::new(topic, &format!("sent by {qos}"), qos.min(*granted));
            assert_eq!(take(subject, &who), expect);
        }
    }
    // Sent one after the other without waiting for the reader: they come in that order.
    let large = Message::new(&topics[2].0, &"x".repeat(100_000), 2);
    publish(subject, &writer, &large);
    publish(subject, &writer, &Message::new(&topics[2].0, "after it", 2));
    let got = subject.take(&[&who], 2);
    assert!(got[0].1 == large, "{} bytes of {}", got[0].1.payload.len(), got[0].1.topic);
    assert_eq!(got[1].1.payload, "after it");
    subject.disconnect(&who);
    subject.disconnect(&writer);
}

fn retained(subject: &mut dyn Subject, place: &Place) {
    let topic = topic(place, "retained");
    let [old, new, late] = ["old", "new", "late"].map(|who| name(place, "retained", who));
    reader(subject, &old, place, &[(&topic, 1)]);
    let writer = writer(subject, place, "retained");
    publish(subject, &writer, &Message::new(&topic, "kept", 1).retained());
    assert_eq!(take(subject, &old), Message::new(&topic, "kept", 1));
    reader(subject, &new, place, &[(&topic, 1)]);
    assert_eq!(take(subject, &new), Message::new(&topic, "kept", 1).retained());
    // Cleared: whoever comes then gets what is published after that, and it alone.
    publish(subject, &writer, &Message::new(&topic, "", 1).retained());
    reader(subject, &late, place, &[(&topic, 1)]);
    publish(subject, &writer, &Message::new(&topic, "live", 1));
    assert_eq!(take(subject, &late), Message::new(&topic, "live", 1));
    for who in [&old, &new, &late, &writer] {
        subject.disconnect(who);
    }
}

/// The wills of clients on each of these places, which are lost together.
pub(crate) fn wills(subject: &mut dyn Subject, places: &[Place]) {
    let reader_place = &places[0];
    let who = name(reader_place, "wills", "r");
    reader(subject, &who, reader_place, &[("t/wills/+", 2)]);
    let will = |place: &Place| {
        let mut will = Message::new(&format!("t/wills/{}", place.transport.text()), "gone", 2);
        if place.version == V5 {
            will.user = vec![("why".to_owned(), "killed".to_owned())];
        }
        will
    };
    for place in places {
        let how = Connect { will: Some(will(place)), ..Connect::default() };
        subject.connect_to_be_lost(&name(place, "wills", "l"), place, &how);
    }
    subject.lose_them();
    let mut got: Vec<Message> =
        subject.take(&[&who], places.len()).into_iter().map(|(_, will)| will).collect();
    got.sort_by(|a, b| a.topic.cmp(&b.topic));
    let mut expect: Vec<Message> = places.iter().map(will).collect();
    expect.sort_by(|a, b| a.topic.cmp(&b.topic));
    assert_eq!(got, expect);
    subject.disconnect(&who);
}

fn shared(subject: &mut dyn Subject, place: &Place) {
    let topic = topic(place, "shared");
    let end = format!("{topic}/end");
    let filter = format!("$share/group/{topic}");
    let members = ["a", "b"].map(|who| name(place, "shared", who));
    for member in &members {
        reader(subject, member, place, &[(&filter, 1), (&end, 1)]);
    }
    let writer = writer(subject, place, "shared");
    let sent: BTreeSet<String> = (0..20).map(|n| n.to_string()).collect();
    for n in &sent {
        publish(subject, &writer, &Message::new(&topic, n, 1));
    }
    publish(subject, &writer, &Message::new(&end, "end", 1));
    let whose = [members[0].as_str(), members[1].as_str()];
    // `end` comes to both.
    let got = subject.take(&whose, sent.len() + 2);
    let of_topic: Vec<_> = got.iter().filter(|(_, message)| message.topic == topic).collect();
    assert_eq!(of_topic.len(), sent.len(), "each once");
    assert_eq!(of_topic.iter().map(|(_, message)| message.payload.clone()).collect::<BTreeSet<_>>(), sent);
    let who: BTreeSet<&str> = of_topic.iter().map(|(who, _)| who.as_str()).collect();
    assert_eq!(who, whose.into(), "both get some");
    for who in members.iter().chain([&writer]) {
        subject.disconnect(who);
    }
}

fn sessions(subject: &mut dyn Subject, place: &Place) {
    let (who, topic) = (name(place, "sessions", "r"), topic(place, "sessions"));
    let how = Connect { persistent: true, ..Connect::default() };
    connect(subject, &who, place, &how);
    assert_eq!(subject.subscribe(&who, &topic, 2, None), 2);
    subject.disconnect(&who);
    let writer = writer(subject, place, "sessions");
    let messages = [0, 1, 2, 3, 4, 5].map(|n: u8| Message::new(&topic, &n.to_string(), 1 + n % 2));
    for message in &messages {
        publish(subject, &writer, message);
    }
    match subject.connect(&who, place, &how) {
        // mosquitto_sub does not tell, and cannot connect without subscribing.
        Ok(None) => assert_eq!(subject.subscribe(&who, &topic, 2, None), 2),
        // MQTT 3.1 has no flag for it.
        Ok(Some(present)) => assert!(present || place.version == V3_1, "its session is gone"),
        Err(code) => panic!("{who}: refused with {code}"),
    }
    let got: Vec<Message> =
        subject.take(&[&who], messages.len()).into_iter().map(|(_, message)| message).collect();
    // Of one QoS they are in order.
    let of =
        |messages: &[Message], qos| messages.iter().filter(|it| it.qos == qos).cloned().collect::<Vec<_>>();
    for qos in [1, 2] {
        assert_eq!(of(&got, qos), of(&messages, qos));
    }
    subject.disconnect(&who);
    // A clean start ends it: there is none at the return after that.
    connect(subject, &who, place, &Connect::default());
    subject.disconnect(&who);
    connect(subject, &who, place, &how);
    for who in [&who, &writer] {
        subject.disconnect(who);
    }
}

/// At a listener for known users only.
pub(crate) fn refusals(subject: &mut dyn Subject, place: &Place) {
    let five = place.version == V5;
    let who = name(place, "refusals", "c");
    let how = |password| Connect { login: Some((LOGIN.0, password)), ..Connect::default() };
    let code = if five { 0x86 } else { 4 };
    assert_eq!(subject.connect(&who, place, &how("wrong")), Err(code));
    connect(subject, &who, place, &how(LOGIN.1));
    assert_eq!(subject.subscribe(&who, "t/allowed", 1, None), 1);
    if place.version != V3_1 {
        // MQTT 3.1 has no code for it.
        let code = if five { 0x87 } else { 0x80 };
        assert_eq!(subject.subscribe(&who, "not/allowed", 1, None), code);
    }
    assert_eq!(subject.publish(&who, &Message::new("t/allowed", "x", 1)), 0);
    if five {
        assert_eq!(subject.publish(&who, &Message::new("not/allowed", "x", 1)), 0x87);
        // Paho's Python client sends a PUBREL all the same, and tells of its answer: there is no such publish. Its
        // Java client tells of the refusal and gives up the connection, so there is none to be ended.
        let code = subject.publish(&who, &Message::new("not/allowed", "x", 2));
        assert!(code == 0x87 || code == 0x92, "{code}");
    }
}

fn properties(subject: &mut dyn Subject, place: &Place) {
    let (who, topic) = (name(place, "properties", "r"), topic(place, "properties"));
    reader(subject, &who, place, &[(&topic, 1)]);
    let writer = writer(subject, place, "properties");
    let message = Message {
        user: [("a", "1"), ("a", "2"), ("b", "ü")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        content_type: Some("text/plain".to_owned()),
        response_topic: Some("t/response".to_owned()),
        correlation: Some("data".to_owned()),
        expiry: Some(600),
        ..Message::new(&topic, "with all of them", 1)
    };
    publish(subject, &writer, &message);
    let mut got = take(subject, &who);
    // It may have waited for a second.
    let left = got.expiry.take().expect("its expiry");
    assert!((1..=600).contains(&left), "{left}");
    assert_eq!(got, Message { expiry: None, ..message });
    for who in [&who, &writer] {
        subject.disconnect(who);
    }
}

fn requests(subject: &mut dyn Subject, place: &Place) {
    let topic = topic(place, "requests");
    let [asks, answers] = ["asks", "answers"].map(|who| name(place, "requests", who));
    let response = format!("{topic}/response");
    reader(subject, &answers, place, &[(&topic, 1)]);
    reader(subject, &asks, place, &[(&response, 1)]);
    let request = Message {
        response_topic: Some(response),
        correlation: Some("the first".to_owned()),
        ..Message::new(&topic, "what?", 1)
    };
    publish(subject, &asks, &request);
    let got = take(subject, &answers);
    let answer =
        Message { correlation: got.correlation, ..Message::new(&got.response_topic.unwrap(), "that", 1) };
    publish(subject, &answers, &answer);
    let got = take(subject, &asks);
    assert_eq!((got.payload.as_str(), got.correlation.as_deref()), ("that", Some("the first")));
    for who in [&asks, &answers] {
        subject.disconnect(who);
    }
}

fn identifiers(subject: &mut dyn Subject, place: &Place) {
    let (who, topic) = (name(place, "ids", "r"), topic(place, "ids"));
    connect(subject, &who, place, &Connect::default());
    for (filter, identifier) in [(format!("{topic}/+"), 7), (format!("{topic}/#"), 268_435_455)] {
        assert_eq!(subject.subscribe(&who, &filter, 1, Some(identifier)), 1);
    }
    let writer = writer(subject, place, "ids");
    publish(subject, &writer, &Message::new(&format!("{topic}/a"), "x", 1));
    let mut got = take(subject, &who).subscriptions;
    got.sort_unstable();
    assert_eq!(got, [7, 268_435_455], "one copy, for both");
    publish(subject, &writer, &Message::new(&format!("{topic}/a/b"), "x", 1));
    assert_eq!(take(subject, &who).subscriptions, [268_435_455]);
    for who in [&who, &writer] {
        subject.disconnect(who);
    }
}

fn aliases_sent(subject: &mut dyn Subject, place: &Place) {
    let (who, topic) = (name(place, "sent", "r"), topic(place, "sent"));
    reader(subject, &who, place, &[(&topic, 1)]);
    let writer = writer(subject, place, "sent");
    for (name, payload) in [(topic.as_str(), "sets it"), ("", "uses it"), ("", "again")] {
        publish(subject, &writer, &Message { alias: Some(3), ..Message::new(name, payload, 1) });
        assert_eq!(take(subject, &who), Message::new(&topic, payload, 1));
    }
    for who in [&who, &writer] {
        subject.disconnect(who);
    }
}

fn aliases_received(subject: &mut dyn Subject, place: &Place) {
    let (who, topic) = (name(place, "aliases", "r"), topic(place, "aliases"));
    connect(subject, &who, place, &Connect { alias_max: Some(10), ..Connect::default() });
    assert_eq!(subject.subscribe(&who, &format!("{topic}/+"), 1, None), 1);
    let writer = writer(subject, place, "aliases");
    for n in 0..3 {
        for last in ["a", "b"] {
            let message = Message::new(&format!("{topic}/{last}"), &n.to_string(), 1);
            publish(subject, &writer, &message);
            assert_eq!(take(subject, &who), message);
        }
    }
    for who in [&who, &writer] {
        subject.disconnect(who);
    }
}
