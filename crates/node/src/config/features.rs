//! What the broker does beyond the standard: `[protocol]`, `[[rewrite]]`, `[[auto_subscribe]]`.

use super::reader::{Reader, Section};
use ferrule_broker::features::fill;
use ferrule_broker::{Action, AutoSubscription, Features, Rewrite, Rewrites};
use ferrule_mqtt::topic;
use ferrule_store::record::Subscription;

/// Rules: each publish and each filter may be compared with all of them.
const REWRITES_MAX: usize = 1_000;

/// Subscriptions that every client has: they count as its own.
const AUTO_SUBSCRIPTIONS_MAX: usize = 100;

pub(super) fn read_features(root: &mut Section<'_>, r: &mut Reader<'_>) -> Features {
    let mut s = root.section(r, "protocol");
    let text = |text: String| Some(text.into_boxed_str()).filter(|text| !text.is_empty());
    let response_information = text(s.or(r, "response_information", String::new()));
    if response_information.as_ref().is_some_and(|text| fill(text, "x", Some("x")).is_none()) {
        let message = "`response_information` has a `${...}` other than ${clientid} and ${username}";
        s.fail(r, "response_information", message, None);
    }
    let server_reference = text(s.or(r, "server_reference", String::new()));
    for (key, value) in
        [("response_information", &response_information), ("server_reference", &server_reference)]
    {
        if value.as_ref().is_some_and(|text| text.len() > 1_024 || text.contains('\0')) {
            s.fail(r, key, format!("`{key}` has at most 1,024 bytes, and no NUL"), None);
        }
    }
    let check_payload_format = s.or(r, "check_payload_format", false);
    s.end(r, &[]);
    Features {
        response_information,
        server_reference,
        check_payload_format,
        rewrites: read_rewrites(root, r),
        auto_subscribe: read_auto_subscribe(root, r),
    }
}

fn read_rewrites(root: &mut Section<'_>, r: &mut Reader<'_>) -> Rewrites {
    let mut rules = Vec::new();
    for mut s in root.sections(r, "rewrite") {
        let words = [("all", Action::All), ("publish", Action::Publish), ("subscribe", Action::Subscribe)];
        let action = s.word(r, "action", &words, Action::All);
        let source: Option<String> = s.get(r, "source_topic");
        let expression: Option<String> = s.get(r, "re");
        let destination: Option<String> = s.get(r, "dest_topic");
        for key in ["source_topic", "re", "dest_topic"].into_iter().filter(|key| !s.has(key)) {
            r.fail(s.place(), format!("a [[rewrite]] needs `{key}`"), None);
        }
        if let (Some(source), Some(expression), Some(destination)) = (source, expression, destination) {
            match Rewrite::new(action, &source, &expression, &destination) {
                Ok(rule) => rules.push(rule),
                Err(problem) => {
                    r.fail(s.place(), format!("this [[rewrite]] cannot be used: {problem}"), None)
                }
            }
        }
        if rules.len() > REWRITES_MAX {
            r.fail(s.place(), format!("there are more than {REWRITES_MAX} [[rewrite]]"), None);
        }
        s.end(r, &[("from", "did you mean `source_topic`?"), ("to", "did you mean `dest_topic`?")]);
    }
    Rewrites::new(&rules)
}

fn read_auto_subscribe(root: &mut Section<'_>, r: &mut Reader<'_>) -> Vec<AutoSubscription> {
    let mut subscriptions: Vec<AutoSubscription> = Vec::new();
    for mut s in root.sections(r, "auto_subscribe") {
        let filter: Option<String> = s.get(r, "topic");
        let mut small = |s: &mut Section<'_>, key| s.number(r, key, 0, 0..=2) as u8;
        let (qos, retain_handling) = (small(&mut s, "qos"), small(&mut s, "retain_handling"));
        let no_local = s.or(r, "no_local", false);
        let retain_as_published = s.or(r, "retain_as_published", false);
        let options = Subscription { qos, no_local, retain_as_published, retain_handling, id: None };
        let Some(filter) = filter else {
            if !s.has("topic") {
                r.fail(s.place(), "an [[auto_subscribe]] needs `topic`", None);
            }
            continue;
        };
        let filled = fill(&filter, "x", Some("x"));
        let problem = match filled.as_deref().map(topic::validate_filter) {
            None => Some("has a `${...}` other than ${clientid} and ${username}".to_owned()),
            Some(Err(error)) => Some(format!("is no topic filter: {error}")),
            Some(Ok(())) if topic::exclusive(&filter).is_some() => {
                Some("is exclusive: every client cannot be the only one".to_owned())
            }
            // [MQTT-3.8.3-4]
            Some(Ok(())) if no_local && topic::shared(&filter).is_some() => {
                Some("is shared, and `no_local` is for subscriptions of one's own".to_owned())
            }
            Some(Ok(())) if subscriptions.iter().any(|known| *known.filter == filter) => {
                Some("is there twice".to_owned())
            }
            Some(Ok(())) => None,
        };
        if let Some(problem) = problem {
            s.fail(r, "topic", format!("{filter:?} {problem}"), None);
        }
        subscriptions.push(AutoSubscription { filter: filter.into(), options });
        if subscriptions.len() > AUTO_SUBSCRIPTIONS_MAX {
            r.fail(
                s.place(),
                format!("there are more than {AUTO_SUBSCRIPTIONS_MAX} [[auto_subscribe]]"),
                None,
            );
        }
        s.end(r, &[("filter", "did you mean `topic`?")]);
    }
    subscriptions
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use crate::config::{EdgeConfig, Overrides};
    use std::path::Path;

    const LISTENER: &str = "[[listener]]\nbind = \"127.0.0.1:0\"\nanonymous = true\n";

    fn parse(text: &str) -> Result<EdgeConfig, String> {
        EdgeConfig::parse("edge.toml", &format!("{LISTENER}{text}"), Path::new(""), &Overrides::default())
            .map_err(|errors| errors.to_string())
    }

    #[test]
    fn what_can_be_switched_on() {
        let text = "
            [protocol]
            response_information = 'reply/${clientid}'
            server_reference = 'other.example'
            check_payload_format = true
            [[rewrite]]
            action = 'publish'
            source_topic = 'x/#'
            re = '^x/y/(.+)$'
            dest_topic = 'z/y/x/$1'
            [[auto_subscribe]]
            topic = 'to/${clientid}'
            qos = 1
            retain_handling = 2
        ";
        let features = parse(text).unwrap().broker.features;
        assert_eq!(features.response_information.as_deref(), Some("reply/${clientid}"));
        assert_eq!(features.server_reference.as_deref(), Some("other.example"));
        assert!(features.check_payload_format);
        let [auto] = &features.auto_subscribe[..] else { panic!("{features:?}") };
        assert_eq!((&*auto.filter, auto.options.qos, auto.options.retain_handling), ("to/${clientid}", 1, 2));
        let off = parse("").unwrap().broker.features;
        assert_eq!((&off.response_information, &off.server_reference), (&None, &None));
    }

    #[test]
    fn what_cannot_be_meant_is_told() {
        for (text, told) in [
            ("[protocol]\nresponse_information = 'a/${name}'", "other than ${clientid} and ${username}"),
            ("[[rewrite]]\nre = 'a'\ndest_topic = 'b'", "a [[rewrite]] needs `source_topic`"),
            ("[[rewrite]]\nsource_topic = 'a'\nre = '('\ndest_topic = 'b'", "is not a regular expression"),
            ("[[rewrite]]\nfrom = 'a'", "did you mean `source_topic`?"),
            ("[[auto_subscribe]]\nqos = 1", "an [[auto_subscribe]] needs `topic`"),
            ("[[auto_subscribe]]\ntopic = 'a'\nqos = 3", "qos"),
            ("[[auto_subscribe]]\ntopic = 'a/#/b'", "is no topic filter"),
            ("[[auto_subscribe]]\ntopic = '$exclusive/a'", "cannot be the only one"),
            ("[[auto_subscribe]]\ntopic = '$share/g/a'\nno_local = true", "is shared"),
            ("[[auto_subscribe]]\ntopic = 'a'\n[[auto_subscribe]]\ntopic = 'a'", "is there twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(told), "{text}\n{error}");
        }
    }
}
