//! What a shard does beyond the standard, or where the standard leaves it the choice. All of it is off by default.

use crate::rewrite::Rewrites;
use ferrule_store::record::Subscription;

/// What is switched on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// Response Information [MQTT 5, 3.2.2.3.15], for clients that ask for it: a text with `${clientid}` and `${username}`.
    pub response_information: Option<Box<str>>,
    /// Server Reference [MQTT 5, 3.2.2.3.16]: where clients are sent that come while this node is full or stops (0x9C).
    pub server_reference: Option<Box<str>>,
    /// A payload that its publisher calls UTF-8 must be that, or it is refused (0x99).
    pub check_payload_format: bool,
    /// Topics that clients name, and what is meant.
    pub rewrites: Rewrites,
    /// What every client is subscribed to when it connects.
    pub auto_subscribe: Vec<AutoSubscription>,
}

impl Features {
    /// Whether publishes have to be looked at for any of it.
    pub(crate) fn concern_publishes(&self) -> bool {
        self.check_payload_format || self.rewrites.concern_publishes()
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoSubscription {
    /// A filter, with `${clientid}` and `${username}`.
    pub filter: Box<str>,
    /// As if the client had asked for it so.
    pub options: Subscription,
}

/// A topic or filter with `${clientid}` and `${username}` in place; `None` when one of them cannot be, or a placeholder is unknown.
#[must_use]
pub fn fill(template: &str, client_id: &str, username: Option<&str>) -> Option<String> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}')?;
        let value = match name {
            "clientid" => client_id,
            "username" => username?,
            _ => return None,
        };
        out.push_str(before);
        if value.is_empty() || value.contains(['+', '#', '/']) || (out.is_empty() && value.starts_with('$')) {
            return None;
        }
        out.push_str(value);
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_where_they_are_one_level() {
        for (template, client_id, username, filled) in [
            ("a/${clientid}/${username}", "c", Some("u"), Some("a/c/u")),
            ("a/b", "c/d", None, Some("a/b")),
            ("a/${x}", "c", None, None),
            ("a/${", "c", None, None),
            ("${clientid}/a", "$SYS", None, None),
            ("a/${clientid}", "c/d", None, None),
            ("a/${clientid}", "+", None, None),
            ("a/${username}", "c", None, None),
            ("a/${username}", "c", Some("#"), None),
            ("a/${username}", "${clientid}", Some("${clientid}"), Some("a/${clientid}")),
        ] {
            assert_eq!(fill(template, client_id, username).as_deref(), filled, "{template}");
        }
    }
}
