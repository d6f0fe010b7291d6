//! Access: which topics a client may publish to, subscribe to and be sent.
//!
//! # Design
//!
//! - [`AccessLists`] are compiled once per user to an [`AclTemplate`], and filled in at CONNECT to an [`Acl`]. Lists
//!   without placeholders need no filling in, and all of that user's connections share one.
//! - A name put in for `${clientid}` or `${username}` is the client's choice, so it must not change the filter's shape:
//!   one with `+`, `#` or `/` (or with `$` where it would begin the filter) fills in nothing, and its line then matches
//!   nothing.
//! - `$ferrule/#` is nobody's but Ferrule's: whatever the lists say, an edge has `$ferrule/<its id>/#` and others nothing.
//! - A filter that overlaps `deny` without lying inside it may be subscribed to; [`Acl::may_receive`] withholds at
//!   delivery what `deny` matches.
//!
//! A check walks the lists: cost grows with their length, which the configuration file bounds.

use crate::config::AccessLists;
use ferrule_broker::features::fill;
use ferrule_mqtt::topic;
use std::sync::Arc;

/// What the topics between Ferrule nodes begin with.
const OWN_PREFIX: &str = "$ferrule/";

/// Who a connection acts as.
#[derive(Debug, Clone)]
pub struct Principal {
    /// The name that was proven; `None` for a client without one.
    pub username: Option<Arc<str>>,
    /// Whether it speaks for devices behind it.
    pub role: Role,
    /// What it may do.
    pub acl: Arc<Acl>,
}

/// Whether a connection speaks for devices behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// No.
    Device,
    /// Yes: a gateway.
    Edge {
        /// The one edge id that it may speak for.
        edge_id: Arc<str>,
    },
}

/// What one client may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    /// `None`: everything but $-topics.
    publish: Option<Filters>,
    subscribe: Option<Filters>,
    deny: Filters,
    /// `$ferrule/<edge id>/#`.
    own: Option<Box<str>>,
    /// The number of the keys that it came with.
    issued: u64,
}

type Filters = Box<[Box<str>]>;

/// What one user's clients may do, before their names are filled in.
#[derive(Debug, Clone)]
pub struct AclTemplate {
    lists: AccessLists,
    edge_id: Option<Arc<str>>,
    issued: u64,
    /// The one result, when nothing is to be filled in.
    fixed: Option<Arc<Acl>>,
}

// === impl AclTemplate ===

impl AclTemplate {
    /// From lists whose filters passed [`check_filter`]; `edge_id` for a user of role edge; `issued`: the number of the keys that it is of.
    #[must_use]
    pub fn new(lists: AccessLists, edge_id: Option<Arc<str>>, issued: u64) -> Self {
        let all = lists.publish.iter().chain(&lists.subscribe).flatten().chain(&lists.deny);
        let is_fixed = !all.into_iter().any(|filter| filter.contains("${"));
        let mut template = Self { lists, edge_id, issued, fixed: None };
        template.fixed = is_fixed.then(|| template.fill("", None));
        template
    }

    /// For one client.
    #[must_use]
    pub fn fill(&self, client_id: &str, username: Option<&str>) -> Arc<Acl> {
        if let Some(acl) = &self.fixed {
            return Arc::clone(acl);
        }
        let fill = |list: &Vec<String>| -> Filters {
            list.iter().filter_map(|filter| fill(filter, client_id, username).map(Into::into)).collect()
        };
        Arc::new(Acl {
            publish: self.lists.publish.as_ref().map(fill),
            subscribe: self.lists.subscribe.as_ref().map(fill),
            deny: fill(&self.lists.deny),
            own: self.edge_id.as_ref().map(|id| format!("{OWN_PREFIX}{id}/#").into()),
            issued: self.issued,
        })
    }
}

// === impl Acl ===

impl Acl {
    /// Whether a message may be published to `name`, a valid topic name.
    #[must_use]
    pub fn may_publish(&self, name: &str) -> bool {
        // What is delayed is published to the topic behind.
        let name = topic::delayed(name).map_or(name, |(_, topic)| topic);
        if is_reserved(name) {
            return self.owns(name);
        }
        if name.starts_with(SYS_PREFIX) {
            return false; // The node's own.
        }
        let allowed = match &self.publish {
            None => !name.starts_with('$'),
            Some(list) => list.iter().any(|filter| topic::matches(filter, name)),
        };
        allowed && !self.is_denied(name)
    }

    /// Whether `filter`, a valid topic filter, may be subscribed to: one filter of the list covers it, and none of
    /// `deny` does. Of `$share/g/f` and `$exclusive/f` it is `f` that counts.
    #[must_use]
    pub fn may_subscribe(&self, filter: &str) -> bool {
        let plain = topic::plain(filter);
        if is_reserved(plain) {
            return self.owns(plain);
        }
        let allowed = match &self.subscribe {
            None => !plain.starts_with('$'),
            Some(list) => list.iter().any(|wide| topic::covers(wide, plain)),
        };
        allowed && !self.deny.iter().any(|wide| topic::covers(wide, plain))
    }

    /// Whether a message of the topic `name` may be delivered. Subscriptions were checked when they were made; this
    /// withholds what `deny` cuts out of them.
    #[must_use]
    pub fn may_receive(&self, name: &str) -> bool {
        if is_reserved(name) {
            return self.owns(name);
        }
        !self.is_denied(name)
    }

    /// Whether a filter that may be subscribed to can match the topic `name`, `deny` aside: asked where a subscription is older than
    /// these lists.
    #[must_use]
    pub fn may_read(&self, name: &str) -> bool {
        if is_reserved(name) {
            return self.owns(name);
        }
        match &self.subscribe {
            None => !name.starts_with('$'),
            Some(list) => list.iter().any(|filter| topic::matches(filter, name)),
        }
    }

    /// The number of the keys that it came with.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.issued
    }

    /// Whether [`Acl::may_receive`] holds for every topic that a permitted subscription matches: the common case, in
    /// which deliveries need no check.
    #[must_use]
    pub fn receives_all(&self) -> bool {
        self.deny.is_empty()
    }

    fn is_denied(&self, name: &str) -> bool {
        self.deny.iter().any(|filter| topic::matches(filter, name))
    }

    /// Names and filters alike.
    fn owns(&self, filter: &str) -> bool {
        self.own.as_ref().is_some_and(|own| topic::covers(own, filter))
    }
}

/// What a node says of itself.
const SYS_PREFIX: &str = "$SYS/";

/// Whether a name or filter lies in Ferrule's own space. A wildcard in the first level does not reach it
/// [MQTT-4.7.2-1].
fn is_reserved(filter: &str) -> bool {
    filter.starts_with(OWN_PREFIX) || filter == "$ferrule"
}

/// Checks one filter of an access list: a plain filter, in which `${clientid}` and `${username}` may stand.
///
/// # Errors
/// What is wrong with it, to be put after the filter.
pub fn check_filter(filter: &str) -> Result<(), String> {
    let filled =
        fill(filter, "x", Some("x")).ok_or("has a `${...}` other than ${clientid} and ${username}")?;
    topic::validate_filter(&filled).map_err(|e| format!("is no topic filter: {e}"))?;
    if filled.starts_with(topic::SHARED_PREFIX) || filled.starts_with(topic::EXCLUSIVE_PREFIX) {
        return Err("must be plain: of $share/g/f and $exclusive/f it is f that is checked".to_owned());
    }
    if is_reserved(&filled) {
        return Err("is closed: $ferrule/# is Ferrule's own".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A list of allowed filters, a list of denied ones, what is asked for, and whether it is granted.
    type Case = (Option<&'static [&'static str]>, &'static [&'static str], &'static str, bool);

    fn list(filters: &[&str]) -> Vec<String> {
        filters.iter().map(|&f| f.to_owned()).collect()
    }

    fn acl(publish: Option<&[&str]>, subscribe: Option<&[&str]>, deny: &[&str]) -> Arc<Acl> {
        let lists =
            AccessLists { publish: publish.map(list), subscribe: subscribe.map(list), deny: list(deny) };
        AclTemplate::new(lists, None, 0).fill("sensor-1", Some("ann"))
    }

    #[test]
    fn publishing() {
        let cases: &[Case] = &[
            (None, &[], "a/b", true),
            (None, &[], "$SYS/x", false),
            (None, &[], "$ferrule/x", false),
            (None, &["a/#"], "a/b", false),
            (None, &["a/#"], "b", true),
            (Some(&["a/#"]), &[], "a/b/c", true),
            (Some(&["a/#"]), &[], "b", false),
            (Some(&[]), &[], "a", false),
            (Some(&["#"]), &[], "$SYS/x", false),
            // The node alone speaks there.
            (Some(&["$SYS/#"]), &[], "$SYS/x", false),
            (Some(&["a/#", "b"]), &["a/secret"], "a/secret", false),
            (Some(&["a/#", "b"]), &["a/secret"], "a/other", true),
            (Some(&["d/${clientid}/#"]), &[], "d/sensor-1/t", true),
            (Some(&["d/${clientid}/#"]), &[], "d/sensor-2/t", false),
            (Some(&["d/${username}-${clientid}"]), &[], "d/ann-sensor-1", true),
        ];
        for (publish, deny, name, expected) in cases {
            assert_eq!(acl(*publish, None, deny).may_publish(name), *expected, "{publish:?} {deny:?} {name}");
        }
    }

    #[test]
    fn subscribing() {
        let cases: &[Case] = &[
            (None, &[], "#", true),
            (None, &[], "$SYS/#", false),
            (None, &[], "$ferrule/#", false),
            (None, &[], "$share/g/#", true),
            (None, &[], "$share/g/$SYS/#", false),
            (None, &[], "$share/g/$ferrule/#", false),
            (None, &[], "$exclusive/a/b", true),
            (None, &[], "$exclusive/$ferrule/a", false),
            (Some(&["a/#"]), &[], "a/+/c", true),
            (Some(&["a/#"]), &[], "$share/g/a/b", true),
            (Some(&["a/#"]), &[], "$share/g/b", false),
            (Some(&["a/+"]), &[], "a/#", false),
            (Some(&["a/+", "a/b/#"]), &[], "a/b", true),
            // Together they cover it, but neither does alone.
            (Some(&["a/b", "a/c"]), &[], "a/+", false),
            (Some(&["#"]), &[], "$SYS/a", false),
            (Some(&["$SYS/#"]), &[], "$SYS/a/+", true),
            (None, &["a/#"], "a/b", false),
            (None, &["a/#"], "+/b", true),
            (Some(&["c/${clientid}/#"]), &[], "c/sensor-1/x", true),
            (Some(&["c/${clientid}/#"]), &[], "c/+/x", false),
        ];
        for (subscribe, deny, filter, expected) in cases {
            let acl = acl(None, *subscribe, deny);
            assert_eq!(acl.may_subscribe(filter), *expected, "{subscribe:?} {deny:?} {filter}");
        }
    }

    #[test]
    fn reading() {
        let cases: &[Case] = &[
            (None, &[], "a", true),
            (None, &[], "$SYS/a", false),
            (Some(&["a/+"]), &[], "a/b", true),
            (Some(&["a/+"]), &[], "a/b/c", false),
            (Some(&["$SYS/#"]), &[], "$SYS/a", true),
            (Some(&["#"]), &[], "$SYS/a", false),
            (Some(&["#"]), &[], "$ferrule/e/a", false),
            (Some(&["c/${clientid}/#"]), &[], "c/sensor-1/x", true),
            (Some(&[]), &[], "a", false),
        ];
        for (subscribe, deny, name, expected) in cases {
            assert_eq!(acl(None, *subscribe, deny).may_read(name), *expected, "{subscribe:?} {name}");
        }
    }

    #[test]
    fn receiving() {
        let acl = acl(None, None, &["a/secret/#"]);
        assert!(acl.may_subscribe("a/#") && !acl.receives_all());
        assert!(acl.may_receive("a/open") && !acl.may_receive("a/secret") && !acl.may_receive("a/secret/x"));
        assert!(!acl.may_receive("$ferrule/e/x"));
    }

    #[test]
    fn an_edge_has_its_own_space() {
        let template = AclTemplate::new(AccessLists::default(), Some("press-7".into()), 0);
        let acl = template.fill("ferrule-press-7", Some("press-7"));
        for (topic, expected) in
            [("$ferrule/press-7/x", true), ("$ferrule/press-8/x", false), ("$ferrule", false), ("a", true)]
        {
            assert_eq!(acl.may_publish(topic), expected, "{topic}");
            assert_eq!(acl.may_receive(topic), expected, "{topic}");
            assert_eq!(acl.may_subscribe(topic), expected, "{topic}");
        }
        assert!(acl.may_subscribe("$ferrule/press-7/#") && !acl.may_subscribe("$ferrule/#"));
        assert!(!acl.may_subscribe("$ferrule/+/x"));
        assert!(acl.may_subscribe("$share/g/$ferrule/press-7/#"));
    }

    #[test]
    fn names_do_not_change_a_filters_shape() {
        let lists = AccessLists {
            publish: Some(list(&["d/${clientid}/#", "${username}/x"])),
            subscribe: None,
            deny: Vec::new(),
        };
        let template = AclTemplate::new(lists, None, 0);
        let fixed = AclTemplate::new(AccessLists::default(), None, 0);
        assert!(Arc::ptr_eq(&fixed.fill("a", None), &fixed.fill("b", None)), "shared");
        for (client_id, username, topic, expected) in [
            ("a", Some("u"), "d/a/t", true),
            ("+", Some("u"), "d/a/t", false),
            ("#", Some("u"), "d/a/t", false),
            ("+", Some("u"), "d/+/t", false),
            ("a/b", Some("u"), "d/a/b/t", false),
            ("", Some("u"), "d//t", false),
            ("a", Some("u"), "u/x", true),
            ("a", Some("$SYS"), "$SYS/x", false),
            ("$a", Some("u"), "d/$a/t", true),
            ("a", None, "u/x", false),
            ("a", None, "d/a/t", true),
            // What a name holds is not filled in again.
            ("${username}", Some("u"), "d/u/t", false),
            ("${username}", Some("u"), "d/${username}/t", true),
        ] {
            assert_eq!(
                template.fill(client_id, username).may_publish(topic),
                expected,
                "{client_id} {topic}"
            );
        }
    }

    #[test]
    fn filters_are_checked() {
        for filter in ["a/#", "${clientid}/+/x", "a-${username}", "$SYS/#", "#"] {
            assert_eq!(check_filter(filter), Ok(()), "{filter}");
        }
        for (filter, part) in [
            ("", "no topic filter"),
            ("a/#/b", "no topic filter"),
            ("a/+${clientid}", "no topic filter"),
            ("a/${client}", "other than"),
            ("a/${clientid", "other than"),
            ("$share/g/a", "must be plain"),
            ("$exclusive/a", "must be plain"),
            ("$ferrule/a", "closed"),
        ] {
            let error = check_filter(filter).unwrap_err();
            assert!(error.contains(part), "{filter}: {error}");
        }
    }
}
