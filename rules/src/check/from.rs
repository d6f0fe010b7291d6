//! What FROM names: topic filters, events, and topics that rules keep away from.

use crate::diagnostic::nearest;
use crate::events;

/// Topics that only Ferrule itself publishes to, also behind a delay (`$delayed/60/$SYS/x`).
pub(crate) fn forbidden_topic(mut topic: &str) -> bool {
    while let Some((_, delayed)) = topic.strip_prefix("$delayed/").and_then(|rest| rest.split_once('/')) {
        topic = delayed;
    }
    ["$SYS", "$ferrule"]
        .iter()
        .any(|name| topic.strip_prefix(name).is_some_and(|r| r.is_empty() || r.starts_with('/')))
}

/// What to say of an event in FROM that is none.
pub(super) fn no_event(filter: &str) -> Option<(String, String)> {
    if !filter.starts_with(events::PREFIX) || events::is_known(filter) {
        return None;
    }
    let near = nearest(filter, events::topics()).map(|near| format!("did you mean `{near}`?"));
    let all = || "docs/rules.md has the list: `$events/client/connected`, ...".to_owned();
    Some((format!("there is no event `{filter}`"), near.unwrap_or_else(all)))
}

/// Other sources than topics that EMQX has.
pub(super) const SOURCES: [&str; 2] = ["$bridges/", "$sources/"];

/// What is wrong with a topic filter in FROM: MQTT 5.0 section 4.7.
pub(super) fn filter_problem(filter: &str) -> Option<(String, Option<String>)> {
    let wrong = |message: &str| Some((message.to_owned(), None));
    if filter.is_empty() || filter.len() > 65_535 {
        return wrong("a topic filter has 1 to 65,535 bytes");
    }
    if filter.contains('\0') {
        return wrong("a topic filter cannot hold NUL");
    }
    for source in SOURCES {
        if filter.starts_with(source) {
            let name = filter.strip_prefix(source).unwrap_or_default().replace(':', "/");
            let hint = format!(
                "let that broker or connector publish to this one, say below `from/{name}`, and write \
                 FROM \"from/{name}/#\""
            );
            let message = format!("`{source}...` is not there: no connector brings messages in");
            return Some((message, Some(hint)));
        }
    }
    if filter.starts_with(events::PREFIX) {
        return no_event(filter).map(|(message, hint)| (message, Some(hint)));
    }
    if filter.starts_with("$share/") || filter.starts_with("$exclusive/") {
        let hint = "write the filter alone; a rule sees every message once".to_owned();
        return Some(("a rule cannot share a subscription".to_owned(), Some(hint)));
    }
    let last = filter.split('/').count() - 1;
    for (i, level) in filter.split('/').enumerate() {
        if level.contains('#') && (level != "#" || i != last) {
            let hint = "`#` stands alone in the last level".to_owned();
            return Some((format!("`{filter}` is no topic filter"), Some(hint)));
        }
        if level.contains('+') && level != "+" {
            let hint = "`+` stands alone in its level".to_owned();
            return Some((format!("`{filter}` is no topic filter"), Some(hint)));
        }
    }
    None
}

/// Whether a valid filter matches a topic: MQTT 5.0 sections 4.7.1 and 4.7.2.
pub(crate) fn filter_matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Whether some topic matches both of two valid filters.
pub(super) fn filters_meet(a: &str, b: &str) -> bool {
    let wild = |f: &str| f.starts_with(['+', '#']);
    if (wild(a) && b.starts_with('$')) || (wild(b) && a.starts_with('$')) {
        return false;
    }
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(x), Some(y)) if x == y || x == "+" || y == "+" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_and_meet() {
        for (filter, topic, expected) in [
            ("a/b", "a/b", true),
            ("a/+", "a/b", true),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("#", "a/b", true),
            ("+", "/a", false),
            ("/+", "/a", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
        ] {
            assert_eq!(filter_matches(filter, topic), expected, "{filter} {topic}");
        }
        for (a, b, expected) in [
            ("a/+/c", "a/b/+", true),
            ("a/#", "a", true),
            ("a/#", "+/b/c", true),
            ("a/b", "a/b/c", false),
            ("a/+", "b/+", false),
            ("#", "$SYS/x", false),
            ("$SYS/#", "$SYS/+", true),
        ] {
            assert_eq!(filters_meet(a, b), expected, "{a} {b}");
            assert_eq!(filters_meet(b, a), expected, "{b} {a}");
        }
    }
}
